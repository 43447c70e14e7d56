//! What can be asked for, where, and how: one table.
//!
//! What only tells is asked for by GET, at both doors. What changes something is a POST, and is taken on the Unix socket
//! only: whoever reaches a port need not be somebody who may stop the proxy.

use std::borrow::Cow;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::{Answer, Door};
use crate::handover::TARGET;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Live,
    Ready,
    Metrics,
    State,
    /// Of the service that is named first, or of its endpoint that is named second.
    Pause,
    Resume,
    Drain,
    Shutdown,
    /// All listening sockets, by another process.
    TakeOver,
}

/// `{...}` stands for a segment that names something.
const ROUTES: &[(Method, &str, Action)] = &[
    (Method::GET, "/live", Action::Live),
    (Method::GET, "/ready", Action::Ready),
    (Method::GET, "/metrics", Action::Metrics),
    (Method::GET, "/state", Action::State),
    (Method::POST, "/services/{NAME}/pause", Action::Pause),
    (Method::POST, "/services/{NAME}/resume", Action::Resume),
    (Method::POST, "/services/{NAME}/endpoints/{HOST:PORT}/pause", Action::Pause),
    (Method::POST, "/services/{NAME}/endpoints/{HOST:PORT}/resume", Action::Resume),
    (Method::POST, "/drain", Action::Drain),
    (Method::POST, "/shutdown", Action::Shutdown),
    (Method::POST, TARGET, Action::TakeOver),
];

/// A request that is understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub action: Action,
    /// The segments that name something, decoded.
    pub names: Vec<String>,
}

/// Finds what is asked for.
///
/// # Errors
///
/// The answer that says what could be.
pub fn find(method: &Method, path: &str, door: &Door<'_>) -> Result<Asked, Answer> {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let mut other = None;
    for (method, pattern, action) in ROUTES {
        let Some(names) = names(pattern, path) else { continue };
        if method != wanted {
            other = Some(method);
        } else if let Some(place) = door.keeps_out(method) {
            return Err(Answer::plain(StatusCode::FORBIDDEN, &format!("POST is not taken on this port; {place}")));
        } else {
            return Ok(Asked { action: *action, names });
        }
    }
    Err(match other {
        Some(method) => {
            Answer { allow: Some(method), ..Answer::plain(StatusCode::METHOD_NOT_ALLOWED, &expected(other)) }
        }
        None => Answer::plain(StatusCode::NOT_FOUND, &expected(None)),
    })
}

/// The names in a path that has this pattern.
fn names(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut names, mut segments) = (Vec::new(), path.split('/'));
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            names.push(percent_decode_str(segment).decode_utf8().ok().map(Cow::into_owned)?);
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(names)
}

fn expected(method: Option<&Method>) -> String {
    if let Some(method) = method {
        return format!("expected {method}");
    }
    let all = ROUTES.iter().map(|(method, pattern, _)| format!("{method} {}", pattern.replace(['{', '}'], "")));
    format!("expected one of:\n{}", all.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn at(door: &Door<'_>, method: Method, path: &str) -> Result<Asked, (u16, String)> {
        find(&method, path, door)
            .map_err(|answer| (answer.status.as_u16(), String::from_utf8_lossy(&answer.text).into_owned()))
    }

    #[test]
    fn names_are_decoded() {
        for (path, action, names) in [
            ("/services/users/pause", Action::Pause, &["users"][..]),
            ("/services/us%65rs/resume", Action::Resume, &["users"]),
            ("/services/a%2Fb/endpoints/%5B::1%5D%3a80/pause", Action::Pause, &["a/b", "[::1]:80"]),
        ] {
            let expected = Asked { action, names: names.iter().map(|&name| name.to_owned()).collect() };
            assert_eq!(at(&Door::Unix, Method::POST, path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let (status, text) = at(&Door::Unix, Method::GET, "/metric").unwrap_err();
        assert_eq!(status, 404);
        assert!(text.contains("\nGET /metrics\n") && text.contains("\nPOST /services/NAME/pause\n"), "{text}");
        for path in ["/services/users/pause/", "//services/users/pause", "/services/%ff/pause", "", "live"] {
            assert_eq!(at(&Door::Unix, Method::POST, path).unwrap_err().0, 404, "{path}");
        }
        assert_eq!(at(&Door::Unix, Method::GET, "/drain"), Err((405, "expected POST\n".to_owned())));
        assert_eq!(at(&Door::Unix, Method::POST, "/live"), Err((405, "expected GET\n".to_owned())));
        assert_eq!(at(&Door::Unix, Method::HEAD, "/live").unwrap().action, Action::Live);
    }

    #[test]
    fn a_port_takes_no_commands_and_says_where_they_are_taken() {
        for (socket, part) in [(None, "admin_socket"), (Some(Path::new("/run/a.sock")), "--unix-socket /run/a.sock")] {
            let door = Door::Tcp { socket };
            for (_, pattern, _) in ROUTES.iter().filter(|(method, ..)| method == Method::POST) {
                let (status, text) = at(&door, Method::POST, pattern).unwrap_err();
                assert!(status == 403 && text.contains(part), "{pattern}: {status} {text}");
            }
            assert_eq!(at(&door, Method::GET, "/state").unwrap().action, Action::State);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_found_or_not(path in "[/a-z%0-9:{}é]{0,40}") {
            let _ = at(&Door::Unix, Method::POST, &path);
        }
    }
}
