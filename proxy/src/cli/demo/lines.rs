//! What happens, as lines for a person: when, which part, which policy, what.

use std::fmt::{self, Write as _};
use std::io;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

/// Joins, leaves and plugins that come and go, and of everything else what is wrong.
fn shown() -> Targets {
    let targets = ["heddle::registry", "heddle::plugin"].map(|target| (target, LevelFilter::INFO));
    Targets::new().with_default(LevelFilter::WARN).with_targets(targets)
}

/// Prints what happens from now on.
pub fn start() {
    let lines = Lines { started: Instant::now() };
    // A second subscriber in one process is the test harness's.
    let layer = tracing_subscriber::fmt::layer().event_format(lines).with_writer(io::stdout);
    let _ = Registry::default().with(layer).with(shown()).try_init();
}

struct Lines {
    started: Instant,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let target = event.metadata().target();
        let part = target.strip_prefix("heddle::").unwrap_or(target);
        writeln!(writer, "{:6.1} s  {part:<8}  {line}", self.started.elapsed().as_secs_f64())
    }
}

/// The fields of an event that are worth showing.
#[derive(Default)]
struct Line {
    policy: String,
    message: String,
    generation: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let place = match field.name() {
            "policy" => &mut self.policy,
            "message" => &mut self.message,
            "generation" => &mut self.generation,
            _ => return,
        };
        let _writing_to_a_string_cannot_fail = write!(place, "{value:?}");
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, message, generation } = self;
        if !policy.is_empty() {
            write!(f, "{policy}: ")?;
        }
        f.write_str(message)?;
        if !generation.is_empty() {
            write!(f, " (generation {generation})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_which_part_and_what() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Lines { started: Instant::now() })
            .with_writer(move || writer.clone());
        let subscriber = Registry::default().with(layer).with(shown());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "heddle::registry", "users: 10.0.0.1:80 left");
            tracing::info!(target: "heddle::server", "not shown");
            tracing::info!(target: "heddle::plugin", policy = "random", generation = 7_u64, sha256 = "1f", "loaded");
            tracing::warn!(target: "other", "shown");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once(" s  ").unwrap().1).collect();
        assert_eq!(
            lines,
            ["registry  users: 10.0.0.1:80 left", "plugin    random: loaded (generation 7)", "other     shown"]
        );
    }
}
