//! `health_check` of a service, as it is written.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::Method;
use http::uri::{Authority, PathAndQuery};

use super::file::WAIT;
use super::read::{At, Refusal, Section, take_item};
use super::tree::{Node, Value};
use super::value::{authority, choice, duration, grpc_service, http_path, integer, refuse, status};

/// What is asked of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Tcp,
    Http,
    Grpc,
}

impl Type {
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(_, of)| *of == self).map_or("", |(name, _)| name)
    }
}

const TYPES: &[(&str, Type)] = &[("tcp", Type::Tcp), ("http", Type::Http), ("grpc", Type::Grpc)];

/// What `type` may be, for a problem.
pub(super) const ANY_TYPE: &str = "\"tcp\" or \"http\" or \"grpc\"";

/// `health_check` of a service.
pub(super) enum HealthCheck {
    Off,
    /// A table, or the type alone.
    On(Box<At<Keys>>),
}

/// The keys of the table. Which go together is known once the type is, which may be inherited.
#[derive(Default)]
pub(super) struct Keys {
    pub kind: Option<At<Type>>,
    /// Whether there is a type, be it one that was refused.
    pub says_type: bool,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub rise: Option<u32>,
    pub fall: Option<u32>,
    pub method: Option<At<Method>>,
    pub path: Option<At<PathAndQuery>>,
    pub host: Option<At<Authority>>,
    pub status: Option<At<Vec<RangeInclusive<u16>>>>,
    pub service: Option<At<String>>,
}

impl HealthCheck {
    pub fn read(s: &mut Section<'_>) -> Option<HealthCheck> {
        const KEY: &str = "health_check";
        if matches!(s.peek(KEY), Some(Value::Table(_))) {
            return s.section(KEY, |s| {
                let (place, key) = (s.place.clone(), s.key.clone());
                HealthCheck::On(Box::new(At { value: Keys::read(s), place, key }))
            });
        }
        s.at(KEY, word).map(|At { value, place, key }| match value {
            None => HealthCheck::Off,
            Some(kind) => {
                let kind = Some(At { value: kind, place: place.clone(), key: key.clone() });
                HealthCheck::On(Box::new(At { value: Keys { kind, says_type: true, ..Keys::default() }, place, key }))
            }
        })
    }
}

impl Keys {
    fn read(s: &mut Section<'_>) -> Keys {
        Keys {
            says_type: s.has("type"),
            kind: s.at("type", choice("a type of check", TYPES)),
            interval: s.get("interval", duration(Duration::from_millis(10)..=Duration::from_secs(60 * 60))),
            timeout: s.get("timeout", duration(WAIT)),
            rise: s.get("rise", integer(1..=100)),
            fall: s.get("fall", integer(1..=100)),
            method: s.at("method", |node| choice("a method of a check", METHODS)(node).map(Method::from)),
            path: s.at("path", http_path),
            host: s.at("host", authority),
            status: statuses(s),
            service: s.at("service", grpc_service),
        }
    }
}

fn statuses(s: &mut Section<'_>) -> Option<At<Vec<RangeInclusive<u16>>>> {
    const KEY: &str = "status";
    if matches!(s.peek(KEY), Some(Value::List(items)) if items.is_empty()) {
        s.refuse(KEY, "an empty list", "expected statuses such as [200] or [\"200-299\"]");
    }
    let (place, key) = (s.place_of(KEY), s.path(KEY));
    let value = s.list(KEY, |node, key, problems| take_item(node, key, problems, status).map(|at| at.value))?;
    Some(At { value, place, key })
}

#[derive(Clone, Copy)]
enum Asking {
    Get,
    Head,
}

impl From<Asking> for Method {
    fn from(asking: Asking) -> Self {
        match asking {
            Asking::Get => Method::GET,
            Asking::Head => Method::HEAD,
        }
    }
}

const METHODS: &[(&str, Asking)] = &[("GET", Asking::Get), ("HEAD", Asking::Head)];

/// The type alone; none for no checks.
fn word(node: &Node) -> Result<Option<Type>, Refusal> {
    const WORDS: &[(&str, Option<Type>)] =
        &[("off", None), ("tcp", Some(Type::Tcp)), ("http", Some(Type::Http)), ("grpc", Some(Type::Grpc))];
    let expected = "false, \"tcp\", \"http\", \"grpc\", or a table such as { type = \"http\", path = \"/health\" }";
    match node.value {
        Value::Flag(false) => Ok(None),
        _ => choice("", WORDS)(node).map_err(|_| refuse(node, "a health check", expected)),
    }
}
