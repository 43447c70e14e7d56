//! A service's table as it is written: `[service.NAME]`.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Number};

use super::checked::{FixedEndpoint, Policy, ProxyProtocol, UpstreamProtocol};
use super::file::WAIT;
use super::health::HealthCheck;
use super::problem::{Problem, Problems};
use super::read::{At, Refusal, Section, take_item};
use super::tls;
use super::tree::{Node, Table, Value};
use super::value::{choice, duration, endpoint_address, integer, parsed, plugin, refuse, shown, size};
use crate::plugin::EXPOSE_HEADERS;

/// `[service.NAME]` or `[service.default]`.
#[derive(Default)]
pub(super) struct Service {
    pub balancer: Option<At<Policy>>,
    /// None in it for `"off"`, as in `breaker`.
    pub retry: Option<At<Option<Policy>>>,
    pub breaker: Option<At<Option<Policy>>>,
    pub protocol: Option<UpstreamProtocol>,
    pub connect_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub stream_idle_timeout: Option<Duration>,
    pub tunnel_idle_timeout: Option<Duration>,
    pub tls: Option<Tls>,
    /// None in it for `"off"`.
    pub proxy_protocol: Option<Option<ProxyProtocol>>,
    pub max_connections: Option<u32>,
    pub client_share: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_pending: Option<At<u32>>,
    pub max_pending_time: Option<Duration>,
    pub pool: Pool,
    pub ejection: Ejection,
    pub retry_budget: RetryBudget,
    pub max_replay_bytes: Option<usize>,
    pub health_check: Option<HealthCheck>,
    pub endpoints: Option<Vec<At<FixedEndpoint>>>,
}

/// `tls` of a service.
pub(super) enum Tls {
    Off,
    /// A table, or `true` for one without keys.
    On(Box<tls::Client>),
}

/// `pool` of a service.
#[derive(Default)]
pub(super) struct Pool {
    pub max_idle: Option<usize>,
    pub idle_timeout: Option<Duration>,
    pub max_connections: Option<usize>,
    pub max_requests: Option<u32>,
}

/// `ejection` of a service.
#[derive(Default)]
pub(super) struct Ejection {
    pub max_percent: Option<u8>,
    pub panic_percent: Option<u8>,
}

/// `retry_budget` of a service.
#[derive(Default)]
pub(super) struct RetryBudget {
    pub percent: Option<u32>,
    pub min: Option<u32>,
}

impl Service {
    /// Relative paths start from `base`.
    pub fn read(s: &mut Section<'_>, base: &Path) -> Service {
        Service {
            balancer: s.take("balancer").and_then(|(node, key)| policy("a balancer", node, key, s.problems)),
            retry: optional_policy("a retry policy", "retry", s),
            breaker: optional_policy("a circuit breaker", "breaker", s),
            protocol: s.get("protocol", choice("a protocol", PROTOCOLS)),
            connect_timeout: s.get("connect_timeout", duration(WAIT)),
            request_timeout: s.get("request_timeout", duration(WAIT)),
            stream_idle_timeout: s.get("stream_idle_timeout", duration(WAIT)),
            tunnel_idle_timeout: s.get("tunnel_idle_timeout", duration(WAIT)),
            tls: tls(s, base),
            proxy_protocol: s.get("proxy_protocol", choice("a version of the PROXY protocol", PROXY_PROTOCOLS)),
            max_connections: s.get("max_connections", integer(MOST)),
            client_share: s.get("client_share", integer(1..=100)),
            max_requests: s.get("max_requests", integer(MOST)),
            max_pending: s.at("max_pending", integer(0..=1_000_000)),
            max_pending_time: s.get("max_pending_time", duration(WAIT)),
            pool: s.section("pool", pool).unwrap_or_default(),
            ejection: s.section("ejection", ejection).unwrap_or_default(),
            retry_budget: s.section("retry_budget", retry_budget).unwrap_or_default(),
            max_replay_bytes: s.get("max_replay_bytes", size(0..=16 << 20)),
            health_check: HealthCheck::read(s),
            endpoints: s.list("endpoints", endpoint),
        }
    }
}

/// How many there may be at once, of a service over all workers.
const MOST: RangeInclusive<u32> = 1..=10_000_000;

const PROTOCOLS: &[(&str, UpstreamProtocol)] = &[
    ("negotiated", UpstreamProtocol::Negotiated),
    ("http1", UpstreamProtocol::Http1),
    ("http2", UpstreamProtocol::Http2),
    ("opaque", UpstreamProtocol::Opaque),
];

const PROXY_PROTOCOLS: &[(&str, Option<ProxyProtocol>)] =
    &[("off", None), ("v1", Some(ProxyProtocol::V1)), ("v2", Some(ProxyProtocol::V2))];

fn tls(s: &mut Section<'_>, base: &Path) -> Option<Tls> {
    if matches!(s.peek("tls"), Some(Value::Table(_))) {
        return s.section("tls", |s| Tls::On(Box::new(tls::Client::read(s, base))));
    }
    s.get("tls", |node| match node.value {
        Value::Flag(false) => Ok(Tls::Off),
        Value::Flag(true) => Ok(Tls::On(Box::default())),
        _ => Err(refuse(node, "a way to use TLS", "true, false, or a table such as { ca = \"ca.pem\" }")),
    })
}

fn pool(s: &mut Section<'_>) -> Pool {
    Pool {
        max_idle: s.get("max_idle", integer(0..=1_000_000)),
        idle_timeout: s.get("idle_timeout", duration(WAIT)),
        max_connections: s.get("max_connections", integer(1..=1_000_000)),
        max_requests: s.get("max_requests", integer(1..=1_000_000)),
    }
}

fn ejection(s: &mut Section<'_>) -> Ejection {
    Ejection {
        max_percent: s.get("max_percent", integer(0..=100)),
        panic_percent: s.get("panic_percent", integer(0..=100)),
    }
}

fn retry_budget(s: &mut Section<'_>) -> RetryBudget {
    RetryBudget { percent: s.get("percent", integer(0..=100)), min: s.get("min", integer(0..=1_000_000)) }
}

/// `"host:port"`, or a table with an address and more.
fn endpoint(node: Node, key: String, problems: &mut Problems) -> Option<At<FixedEndpoint>> {
    if !matches!(node.value, Value::Table(_)) {
        return take_item(node, key, problems, |node| {
            endpoint_address(node).map(|address| FixedEndpoint { address, weight: WEIGHT, metadata: Vec::new() })
        });
    }
    Section::read(node, key, problems, |s| {
        let address = s.required("address", "HOST:PORT such as \"10.0.0.5:8080\"", endpoint_address);
        let weight = s.get("weight", integer(0..=u32::MAX)).unwrap_or(WEIGHT);
        let metadata = s.section("metadata", metadata).unwrap_or_default();
        let At { value: address, place, key } = address?;
        Some(At { value: FixedEndpoint { address, weight, metadata }, place, key })
    })?
}

/// What an endpoint weighs that does not say.
const WEIGHT: u32 = 1;

fn metadata(s: &mut Section<'_>) -> Vec<(String, String)> {
    let text = |node: &Node| match &node.value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err(refuse(node, "a text", "a text in quotes")),
    };
    let mut read = Vec::new();
    for (name, entry) in s.take_rest() {
        let value = take_item(entry.node, s.path(&name), s.problems, text);
        read.extend(value.map(|at| (name, at.value)));
    }
    read
}

/// As [`policy`], or `"off"`.
fn optional_policy(what: &str, key: &'static str, s: &mut Section<'_>) -> Option<At<Option<Policy>>> {
    let (node, key) = s.take(key)?;
    if matches!(&node.value, Value::Text(text) if text == "off") {
        return Some(At { value: None, place: node.place, key });
    }
    let At { value, place, key } = policy(what, node, key, s.problems)?;
    Some(At { value: Some(value), place, key })
}

/// The name of a plugin, or a table with `plugin` and the plugin's own settings.
fn policy(what: &str, node: Node, key: String, problems: &mut Problems) -> Option<At<Policy>> {
    let place = node.place.clone();
    let policy = match node.value {
        Value::Table(_) => Section::read(node, key.clone(), problems, |s| {
            let plugin = s.required("plugin", "the name of a plugin, such as \"round-robin\"", plugin);
            let exposed = s.list(EXPOSE_HEADERS, |node, key, problems| take_item(node, key, problems, any_header_name));
            let settings = s.take_rest();
            let mut config = object(settings, &s.key, s.problems);
            // The plugin gets its settings without them.
            let exposed = exposed.map(|names| names.into_iter().map(|name| serde_json::Value::String(name.value)));
            config.extend(exposed.map(|names| (EXPOSE_HEADERS.to_owned(), serde_json::Value::Array(names.collect()))));
            Some(Policy { plugin: plugin?.value, config: Arc::from(serde_json::Value::Object(config).to_string()) })
        })?,
        Value::Text(_) => {
            let named = take_item(node, key.clone(), problems, plugin);
            named.map(|at| Policy { plugin: at.value, config: Arc::from("{}") })
        }
        _ => {
            let expected = "the name of a plugin, or a table such as { plugin = \"url-hash\" }";
            let Refusal { found, remedy } = refuse(&node, what, expected);
            problems.add(Problem { place: node.place, key: key.clone(), found, remedy });
            None
        }
    };
    policy.map(|value| At { value, place, key })
}

/// The name of any header.
fn any_header_name(node: &Node) -> Result<String, Refusal> {
    parsed(node, "the name of a header", "a name such as \"authorization\"", |text| {
        http::HeaderName::try_from(text).ok().map(|name| name.to_string())
    })
}

/// A table as JSON. What JSON cannot say is reported and left out.
fn object(table: Table, key: &str, problems: &mut Problems) -> Map<String, serde_json::Value> {
    let mut object = Map::new();
    for (name, entry) in table {
        let value = json(entry.node, &super::read::join(key, &name), problems);
        object.insert(name, value);
    }
    object
}

fn json(node: Node, key: &str, problems: &mut Problems) -> serde_json::Value {
    let number = match &node.value {
        Value::Float(number) => Number::from_f64(*number),
        Value::Integer(number) => Some(Number::from(*number)),
        _ => None,
    };
    match (node.value, number) {
        (_, Some(number)) => serde_json::Value::Number(number),
        (Value::Text(text), _) => serde_json::Value::String(text),
        (Value::Flag(flag), _) => serde_json::Value::Bool(flag),
        (Value::List(items), _) => {
            let items = items.into_iter().enumerate();
            serde_json::Value::Array(items.map(|(i, item)| json(item, &format!("{key}[{i}]"), problems)).collect())
        }
        (Value::Table(table), _) => serde_json::Value::Object(object(table, key, problems)),
        (value @ (Value::Other(_) | Value::Float(_) | Value::Integer(_)), None) => {
            let node = Node { place: node.place, value, raw: None };
            problems.add(Problem {
                found: format!("{} cannot be said in JSON, in which plugins get their settings", shown(&node)),
                remedy: "expected a text, a number of 64 bits, a truth value, a list or a table".to_owned(),
                place: node.place,
                key: key.to_owned(),
            });
            serde_json::Value::Null
        }
    }
}
