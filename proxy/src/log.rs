//! The log, and how values from outside appear in it.
//!
//! Much of what is logged comes from outside: registry keys, error texts of servers, names of files, a guest's messages.
//! One rule holds for every value, applied where lines are formatted, so that no place that logs can forget it:
//!
//! * a value has at most 1 KiB; the rest is left out, with the number of its bytes;
//! * control characters are escaped, so that one event is one line;
//! * what stands before the `@` of a URL (user and password) is replaced by `***`.
//!
//! The text of the event itself counts as one value. What the program writes to standard error without the log
//! (problems of a configuration) and what the admin server shows of URLs goes through [`Clean`] too.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::panic;
use std::thread;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::supervise;

/// The most of a value that a line has, in bytes.
pub const VALUE: usize = 1024;

/// What is looked at of a value: more than is shown, since a URL can begin in what is shown and end behind it.
const LOOKED_AT: usize = 4 * VALUE;

/// Logs to standard error, as `HEDDLE_LOG` says: a level, or `target=level` for some targets, separated by commas. From
/// `info` on by default. A panic becomes a line of the log.
pub fn start() {
    let wanted = std::env::var("HEDDLE_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let layer = tracing_subscriber::fmt::layer()
        .fmt_fields(fields())
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    // A second subscriber in one process is the test harness's.
    let _ = Registry::default().with(layer).with(filter).try_init();
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current().name().unwrap_or("without a name").to_owned();
        let what = supervise::message(info.payload());
        supervise::count_unsupervised();
        tracing::error!(target: "heddle", thread, "panic at {place}: {what}");
    }));
}

/// Formats the fields of an event, each value as [`Clean`] has it.
fn fields() -> impl for<'w> FormatFields<'w> + 'static {
    let each = debug_fn(|writer, field, value| {
        let value = Clean(format_args!("{value:?}")).to_string();
        match field.name() {
            "message" => write!(writer, "{value}"),
            name => write!(writer, "{name}={value}"),
        }
    });
    each.delimited(" ")
}

/// A value as a line of the log may have it: short, on one line, without passwords.
#[derive(Debug, Clone, Copy)]
pub struct Clean<T>(pub T);

impl<T: fmt::Display> fmt::Display for Clean<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut beginning = Beginning::default();
        write!(beginning, "{}", self.0)?;
        let Beginning { text, more } = beginning;
        let safe = redact(&text, more > 0);
        let mut shown = String::with_capacity(safe.len().min(VALUE));
        let mut left = safe.chars();
        for c in left.by_ref() {
            let before = shown.len();
            match c {
                // Line and paragraph separators end a line for some readers.
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => shown.extend(c.escape_debug()),
                c => shown.push(c),
            }
            if shown.len() > VALUE {
                shown.truncate(before);
                let more = c.len_utf8() + left.as_str().len() + more;
                return write!(f, "{shown}... ({more} more bytes)");
            }
        }
        match more {
            0 => f.write_str(&shown),
            more => write!(f, "{shown}... ({more} more bytes)"),
        }
    }
}

/// The first part of a text, and how many bytes follow it.
#[derive(Default)]
struct Beginning {
    text: String,
    more: usize,
}

impl Write for Beginning {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = if self.more > 0 { 0 } else { LOOKED_AT.saturating_sub(self.text.len()) };
        let (taken, rest) = part.split_at_checked(part.floor_char_boundary(room)).unwrap_or((part, ""));
        self.text.push_str(taken);
        self.more = self.more.saturating_add(rest.len());
        Ok(())
    }
}

/// Replaces what stands before the `@` of each URL in a text. Of a text that was cut, a URL at its end whose `@` may
/// have been cut off counts as one.
pub fn redact(text: &str, was_cut: bool) -> Cow<'_, str> {
    if !text.contains("//") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("//") {
        out.push_str(before);
        out.push_str("//");
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let (word, behind) = after.split_at_checked(end).unwrap_or((after, ""));
        match end_of_userinfo(word, was_cut && behind.is_empty()) {
            Some(end) => {
                out.push_str("***");
                rest = after.get(end..).unwrap_or_default();
            }
            None => rest = after,
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Where the user and password of a URL end, whose part behind `//` begins here.
fn end_of_userinfo(word: &str, is_cut: bool) -> Option<usize> {
    let authority = word.split(['/', '?', '#', '\\', '"', '\'', '<', '>']).next().unwrap_or_default();
    if let Some(end) = authority.rfind('@') {
        return Some(end);
    }
    // A password with one of these characters in it breaks the URL; then what stands where the port would be is none.
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let has_password = port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()));
    let is_all = authority.len() == word.len();
    match word.rfind('@') {
        Some(end) if has_password => Some(end),
        None if is_cut && (has_password || is_all) => Some(word.len()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    fn clean(text: impl fmt::Display) -> String {
        Clean(text).to_string()
    }

    /// Issue 10, 15: the password of a URL is in no line.
    #[test]
    fn what_stands_before_the_at_of_a_url_is_not_shown() {
        for (text, shown) in [
            ("no url: a@b", "no url: a@b"),
            ("http://h:80/p?q=a@b", "http://h:80/p?q=a@b"),
            ("http://user:secret@h:80/p", "http://***@h:80/p"),
            ("from http://u:p@a, https://u:p@b and //u@c.", "from http://***@a, https://***@b and //***@c."),
            ("\"http://u:secret@h\" is no address", "\"http://***@h\" is no address"),
            ("http://u:sec/ret@h:80", "http://***@h:80"),
            ("http://u:se#c?ret@h:80", "http://***@h:80"),
            ("http://u:p@ss@h", "http://***@h"),
            ("expected http://HOST:PORT or https://HOST:PORT", "expected http://HOST:PORT or https://HOST:PORT"),
            ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ] {
            assert_eq!(clean(text), shown);
        }
        assert_eq!(redact("at http://u:secr", true), "at http://***");
        assert_eq!(redact("at http://host/pa", true), "at http://host/pa");
        let long = format!("{}http://user:secret{}@host", "x".repeat(VALUE - 10), "t".repeat(5000));
        assert!(!clean(&long).contains("user"), "{}", clean(&long));
    }

    /// Issue 10, 15: a value of any length has at most 1 KiB of a line.
    #[test]
    fn a_value_is_cut_and_stays_on_one_line() {
        assert_eq!(clean("a\nb\r\x1b[31m\u{2028}é\t"), "a\\nb\\r\\u{1b}[31m\\u{2028}é\\t");
        let exact = "x".repeat(VALUE);
        assert_eq!(clean(&exact), exact);
        assert_eq!(clean("x".repeat(VALUE + 1)), format!("{exact}... (1 more bytes)"));
        assert_eq!(clean("x".repeat(1 << 20)), format!("{exact}... ({} more bytes)", (1 << 20) - VALUE));
        let wide = clean("é\n".repeat(1 << 20));
        assert!(wide.len() <= VALUE + 30 && wide.starts_with("é\\n"), "{wide}");
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// Issue 10, 15: whoever logs, and however the value is handed over.
    #[test]
    fn every_field_of_every_event_is_clean() {
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer().fmt_fields(fields()).with_ansi(false).with_writer(lines.clone());
        let long = "y".repeat(5000);
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            let url = "http://u:secret@h";
            tracing::error!(target: "test", name = "a\nb", %url, found = ?url, long, "{url} and {long}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains("secret") && text.len() < 3 * VALUE, "{text}");
        for part in ["ERROR test: http://***@h and yyy", "name=\"a\\nb\"", "url=http://***@h", "found=\"http://***@h\""]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
