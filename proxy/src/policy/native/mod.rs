//! What is decided in the stead of a balancer that cannot be asked.
//!
//! While a policy has no instance, is in quarantine for a service, or the service has used its share of CPU time, requests
//! go on. Most policies promise an even spread, and rotation keeps that. Two kinds promise more: with `leader` only one
//! endpoint may be used, and with a hash the same key has to stay where it is; rotation in their stead would send writes to
//! replicas and sessions to strangers. So those of that name are decided by the same rule here: the same order of
//! endpoints, the same key, the same ring or table, and so the same endpoint as long as it is eligible. `bounded_load` is
//! the exception: keys of busy endpoints stay at home.
//!
//! A file may stand under the name of such a policy, with settings of its own. What cannot be decided by the rule is
//! refused then, never decided by another one.

mod key;
mod leader;
mod maglev;
mod ring;

use serde::Deserialize;

use self::key::Key;
use super::Facts;

/// What a rule looks at of a registered endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    pub slot: u32,
    /// As policies are given it.
    pub id: &'a str,
    /// At least 1.
    pub weight: u32,
    /// The registry's order of creation.
    pub order: u64,
    /// Whether it has the mark that the rule asks for; see [`Rule::mark`].
    pub is_marked: bool,
}

/// How a policy is decided natively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The eligible endpoints in turn.
    Rotation,
    /// The first eligible endpoint: those with this name and value in their metadata before others, then the oldest.
    Leader { name: String, value: String },
    /// By the place of a key of the request on a ring.
    Ring(Key),
    /// The same in a table.
    Maglev(Key),
    /// The policy of this name promises one of the above, but its settings are not known here.
    Refused,
}

/// Settings of the hash balancers, as far as they count here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashSettings {
    by: Option<String>,
    #[serde(rename = "bounded_load")]
    _bounded_load: Option<f64>,
    #[serde(rename = "expose_headers")]
    _expose_headers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaderSettings {
    mark: Option<String>,
    #[serde(rename = "expose_headers")]
    _expose_headers: Option<Vec<String>>,
}

impl Rule {
    /// The rule of the policy of this name with these settings, a JSON object.
    pub fn of(policy: &str, config: &str) -> Self {
        let rule = match policy {
            "leader" => leader(config),
            "url-hash" => key(config, Key::Path).map(Self::Ring),
            "ip-hash" => key(config, Key::ClientIp).map(Self::Ring),
            "maglev" => key(config, Key::ClientIp).map(Self::Maglev),
            _ => Some(Self::Rotation),
        };
        rule.unwrap_or(Self::Refused)
    }

    /// The name and the value in an endpoint's metadata that mark it.
    pub fn mark(&self) -> Option<(&str, &str)> {
        match self {
            Self::Leader { name, value } => Some((name, value)),
            _ => None,
        }
    }

    /// Everything of the rule that depends on who is registered.
    pub fn table(&self, registered: Vec<Registration<'_>>) -> Table {
        match self {
            Self::Rotation | Self::Refused => Table::default(),
            Self::Leader { .. } => Table { places: leader::order(registered) },
            Self::Ring(_) => {
                let (starts, slots) = ring::points(registered);
                Table { places: Places::Ring { starts, slots } }
            }
            Self::Maglev(_) => Table { places: Places::Maglev(maglev::places(registered)) },
        }
    }

    /// The slots for a request in the order in which they are to be tried, some of them several times; none where the request
    /// has no key: then the eligible endpoints have their turns, as the policy would have it.
    pub fn slots<'a>(&self, table: &'a Table, facts: &Facts) -> Option<impl Iterator<Item = u32> + 'a> {
        let (slots, first) = match (&table.places, self) {
            (Places::Order(slots), Self::Leader { .. }) => (slots, 0),
            (Places::Ring { starts, slots }, Self::Ring(key)) => (slots, ring::first(starts, key.hash(facts)?)),
            (Places::Maglev(slots), Self::Maglev(key)) => (slots, maglev::first(slots, key.hash(facts)?)),
            _ => return None,
        };
        let (before, after) = slots.split_at_checked(first).unwrap_or((&[], slots));
        Some(after.iter().chain(before).copied())
    }
}

/// Who is registered, as a rule sees it.
#[derive(Debug, Default)]
pub struct Table {
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// The leader first.
    Order(Vec<u32>),
    /// By rising start on the circle.
    Ring {
        starts: Vec<u32>,
        slots: Vec<u32>,
    },
    Maglev(Vec<u32>),
}

impl Default for Places {
    fn default() -> Self {
        Self::Order(Vec::new())
    }
}

fn leader(config: &str) -> Option<Rule> {
    let settings: LeaderSettings = serde_json::from_str(config).ok()?;
    let mark = settings.mark.as_deref().unwrap_or("role=master");
    let (name, value) = mark.split_once('=').filter(|(name, _)| !name.is_empty())?;
    Some(Rule::Leader { name: name.to_owned(), value: value.to_owned() })
}

fn key(config: &str, default: Key) -> Option<Key> {
    let settings: HashSettings = serde_json::from_str(config).ok()?;
    settings.by.map_or(Some(default), |by| Key::parse(&by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_promise_an_endpoint_have_a_rule_or_are_refused() {
        assert_eq!(Rule::of("round-robin", "{}"), Rule::Rotation);
        assert_eq!(Rule::of("my-own", r#"{"any":1}"#), Rule::Rotation);
        let leader = |name: &str, value: &str| Rule::Leader { name: name.into(), value: value.into() };
        assert_eq!(Rule::of("leader", "{}"), leader("role", "master"));
        assert_eq!(Rule::of("leader", r#"{"mark":"leader=true=1"}"#), leader("leader", "true=1"));
        assert_eq!(Rule::of("url-hash", "{}"), Rule::Ring(Key::Path));
        let settings = r#"{"by":"header:x-user","bounded_load":1.25,"expose_headers":["cookie"]}"#;
        assert_eq!(Rule::of("ip-hash", settings), Rule::Ring(Key::Header("x-user".into())));
        assert_eq!(Rule::of("maglev", "{}"), Rule::Maglev(Key::ClientIp));
        for (policy, config) in [
            ("leader", r#"{"mark":"none"}"#),
            ("leader", r#"{"zone":"a"}"#),
            ("url-hash", r#"{"by":"moon"}"#),
            ("maglev", r#"{"size":7}"#),
            ("ip-hash", "no JSON"),
        ] {
            assert_eq!(Rule::of(policy, config), Rule::Refused, "{policy} {config}");
        }
    }
}
