//! What a services file says: pure, from bytes to entries.
//!
//! ```toml
//! [services.users]
//! endpoints = [
//!     "127.0.0.1:9001",
//!     { address = "127.0.0.1:9002", weight = 2, metadata = { zone = "a" } },
//!     { address = "127.0.0.1:9003", paused = true },
//! ]
//! ```
//!
//! and the same shape in JSON. `paused = true` beside `endpoints` pauses the service as a whole. A person writes it, so unknown names are refused, with the line. The order of the
//! endpoints is their order of registration.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::registry::PAUSED;
use crate::registry::address::{NameError, address, service_name};
use crate::registry::apply::{Content, Entry};
use crate::registry::layout::weight::{self, Weight};
use crate::registry::layout::{Announced, Endpoint};

/// How a services file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    Json,
}

/// Why a services file is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("the file is empty; expected a table `services` (`{{}}` for none)")]
    Empty,
    #[error("not UTF-8 after byte {0}")]
    NotUtf8(usize),
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("reading it broke off: {0}")]
    Lost(String),
}

impl Format {
    /// By the extension: `.json`, and TOML for all others.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("json") => Self::Json,
            _ => Self::Toml,
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Services {
    services: BTreeMap<Name, Service>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    endpoints: Vec<Written>,
    #[serde(default)]
    paused: bool,
}

/// A service's name, in the form in which names are compared; and why it is none, where it is well written but means
/// something else to clients. Such a service is left out by itself: no mistake in writing, and none of the others' concern.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(String, Option<String>);

/// An endpoint as a text or a table, and what is wrong with its weight.
struct Written(Endpoint, Option<String>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    address: Address,
    #[serde(default)]
    weight: Weight,
    /// The same as in the metadata.
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

struct Address(String);

/// Reads a services file.
///
/// # Errors
///
/// [`ContentError`], at the first fault. A file with nothing in it is one, since that is how a file looks that is just
/// being written; `services = {}` says that there is none.
pub fn parse(content: &[u8], format: Format) -> Result<Vec<Entry>, ContentError> {
    let text = std::str::from_utf8(content).map_err(|error| ContentError::NotUtf8(error.valid_up_to()))?;
    if text.trim().is_empty() {
        return Err(ContentError::Empty);
    }
    let Services { services } = match format {
        Format::Toml => toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
            ContentError::Line { line, what: error.message().to_owned() }
        }),
        Format::Json => serde_json::from_str(text)
            .map_err(|error| ContentError::Line { line: error.line(), what: error.to_string() }),
    }?;
    let entries = services.into_iter().flat_map(|(Name(service, refused), Service { endpoints, paused })| {
        if let Some(reason) = refused {
            return vec![Entry { key: service.into_bytes(), order: 0, content: Content::Unreadable(reason) }];
        }
        let endpoints = entries(&service, endpoints.into_iter().map(|Written(endpoint, warning)| (endpoint, warning)));
        // No address is without a port, so no endpoint has this key.
        let key = format!("{service}/{PAUSED}").into_bytes();
        let mark = || Entry { key, order: 0, content: Content::Announced(Announced::pause(service)) };
        paused.then(mark).into_iter().chain(endpoints).collect()
    });
    Ok(entries.collect())
}

/// One entry for each endpoint, by service and address and in the order in which they are written. Of endpoints with
/// one address the first counts.
pub(in crate::registry) fn entries(
    service: &str,
    endpoints: impl Iterator<Item = (Endpoint, Option<String>)>,
) -> Vec<Entry> {
    let mut addresses = HashSet::new();
    let first = endpoints.filter(|(endpoint, _)| addresses.insert(endpoint.address.clone()));
    let entries = first.zip(0..).map(|((endpoint, warning), order)| {
        let key = format!("{service}/{}", endpoint.address).into_bytes();
        let announced = Announced::endpoints(service.to_owned(), vec![endpoint]);
        let content = Content::Announced(Announced { warnings: warning.into_iter().collect(), ..announced });
        Entry { key, order, content }
    });
    entries.collect()
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match service_name(&text) {
            Ok(name) => Ok(Self(name, None)),
            Err(error @ NameError::Form(_)) => Err(de::Error::custom(error)),
            Err(error) => Ok(Self(text.to_ascii_lowercase(), Some(error.to_string()))),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        address(&text).map(Self).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndpointVisitor;
        impl<'de> Visitor<'de> for EndpointVisitor {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an endpoint: \"host:port\" or a table with address, weight and metadata")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
                let address = address(text).map_err(E::custom)?;
                Ok(Written(Endpoint { address, weight: weight::DEFAULT, metadata: Vec::new() }, None))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
                let Table { address: Address(address), weight, paused, mut metadata } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                if paused {
                    metadata.insert(PAUSED.to_owned(), "true".to_owned());
                }
                let (weight, warning) = weight.or_warning();
                Ok(Written(Endpoint { address, weight, metadata: metadata.into_iter().collect() }, warning))
            }
        }
        deserializer.deserialize_any(EndpointVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, format: Format) -> Vec<(String, u64, Endpoint)> {
        let entries = parse(text.as_bytes(), format).expect(text).into_iter();
        let flat = entries.map(|entry| match entry.content {
            Content::Announced(mut announced) => (announced.service, entry.order, announced.endpoints.remove(0)),
            Content::Unreadable(_) => panic!("a file is read as a whole"),
        });
        flat.collect()
    }

    fn endpoint(address: &str, weight: u32, metadata: &[(&str, &str)]) -> Endpoint {
        let metadata = metadata.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Endpoint { address: address.into(), weight, metadata }
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = r#"
            [services.Users]
            endpoints = ["127.0.0.1:9001", { address = "127.0.0.1:9002", weight = 2, metadata = { zone = "a" } }]
            [services.empty]
            endpoints = []
        "#;
        let json = r#"{"services": {"empty": {"endpoints": []}, "Users": {"endpoints": ["127.0.0.1:9001",
            {"address": "127.0.0.1:9002", "weight": 2, "metadata": {"zone": "a"}}]}}}"#;
        let expected = [
            ("users".to_owned(), 0, endpoint("127.0.0.1:9001", 1, &[])),
            ("users".to_owned(), 1, endpoint("127.0.0.1:9002", 2, &[("zone", "a")])),
        ];
        assert_eq!(read(toml, Format::Toml), expected);
        assert_eq!(read(json, Format::Json), expected);
        assert_eq!(read("services = {}", Format::Toml), []);
        assert_eq!(read("[services.a]\nendpoints = ['h:1', 'H:1']", Format::Toml).len(), 1);
    }

    #[test]
    fn a_pause_is_of_an_endpoint_or_of_a_service() {
        let toml = "[services.users]\npaused = true\nendpoints = [{ address = 'a:1', paused = true }, 'b:1']";
        let json = r#"{"services":{"users":{"endpoints":[{"address":"a:1","paused":true},"b:1"],"paused":true}}}"#;
        for (text, format) in [(toml, Format::Toml), (json, Format::Json)] {
            let mut entries = parse(text.as_bytes(), format).expect(text);
            let mark = entries.remove(0);
            assert_eq!(mark.key, b"users/paused");
            assert_eq!(mark.content, Content::Announced(Announced::pause("users".into())));
            let endpoints = [endpoint("a:1", 1, &[("paused", "true")]), endpoint("b:1", 1, &[])];
            for (entry, expected) in entries.into_iter().zip(endpoints) {
                assert_eq!(entry.content, Content::Announced(Announced::endpoints("users".into(), vec![expected])));
            }
        }
    }

    #[test]
    fn a_fault_is_named_with_its_line() {
        for (text, line, what) in [
            ("[services.users]\nendpoints = [\n\"a:1\",\n\"a\"]", 4, "no port"),
            ("[services.users]\nendpoints = [\"a:1\"", 2, ""),
            ("[services.users]\nendpoint = []", 2, "unknown field `endpoint`"),
            ("[services.users]\nendpoints = [\n{ address = \"a:1\", wait = 2 }]", 3, "unknown field `wait`"),
            ("[services.users]\nendpoints = [\n{ weight = 1 }]", 3, "missing field `address`"),
            ("[services.users]\nendpoints = [7]", 2, "an endpoint: \"host:port\" or a table"),
            ("\n[services.\"a/b\"]\nendpoints = []", 2, "cannot name a service"),
            ("[service.users]\nendpoints = []", 1, "unknown field `service`"),
        ] {
            let Err(ContentError::Line { line: is, what: said }) = parse(text.as_bytes(), Format::Toml) else {
                panic!("{text}")
            };
            assert_eq!(is, line, "{text}: {said}");
            assert!(said.contains(what), "{text}: {said}");
        }
        let json = "{\"services\": {\n\"users\": {\"endpoints\": [\n\"a\"]}}}";
        let error = parse(json.as_bytes(), Format::Json).expect_err("no port");
        assert!(matches!(&error, ContentError::Line { line: 3, what } if what.contains("no port")), "{error}");
    }

    /// Issue 10, 13: addresses and localhost name no service, and the others of the file are served.
    #[test]
    fn a_name_that_means_something_else_is_left_out_by_itself() {
        let text = "[services]\nusers = { endpoints = ['a:1'] }\nLocalhost = { endpoints = ['b:1', 'c:1'] }\n\
                    '127.1' = { endpoints = ['b:1'], paused = true }";
        let entries = parse(text.as_bytes(), Format::Toml).expect("a good file");
        let of = |entry: &Entry| match &entry.content {
            Content::Announced(announced) => announced.service.clone(),
            Content::Unreadable(reason) => format!("{}: {reason}", String::from_utf8_lossy(&entry.key)),
        };
        let expected = [
            r#"127.1: "127.1" cannot name a service: clients take it for an IP address"#,
            r#"localhost: "Localhost" cannot name a service: it is the client's own machine"#,
            "users",
        ];
        assert_eq!(entries.iter().map(of).collect::<Vec<_>>(), expected);
    }

    /// Issue 10, 14: a weight that cannot be read keeps the endpoint, with weight 1 and a warning.
    #[test]
    fn weights_in_any_spelling() {
        let weight = |text: &str, format: Format| {
            let mut entries = parse(text.as_bytes(), format).expect(text);
            match entries.remove(0).content {
                Content::Announced(mut announced) => (announced.endpoints.remove(0).weight, announced.warnings.len()),
                Content::Unreadable(reason) => panic!("{reason}"),
            }
        };
        for (text, expected) in [
            ("2.0", (2, 0)),
            ("1e2", (100, 0)),
            ("'3'", (3, 0)),
            ("-1", (1, 1)),
            ("1.5", (1, 1)),
            ("'x'", (1, 1)),
            ("inf", (1, 1)),
            ("[1]", (1, 1)),
            ("{ a = 1 }", (1, 1)),
            ("true", (1, 1)),
            ("1979-05-27", (1, 1)),
        ] {
            let toml = format!("[services.users]\nendpoints = [{{ address = 'a:1', weight = {text} }}]");
            assert_eq!(weight(&toml, Format::Toml), expected, "{text}");
        }
        for (text, expected) in [("null", (1, 0)), ("2.0", (2, 0)), ("1e2", (100, 0)), ("{}", (1, 1)), ("-1", (1, 1))] {
            let json = format!(r#"{{"services":{{"users":{{"endpoints":[{{"address":"a:1","weight":{text}}}]}}}}}}"#);
            assert_eq!(weight(&json, Format::Json), expected, "{text}");
        }
    }

    #[test]
    fn an_empty_file_is_no_list_of_no_services() {
        assert_eq!(parse(b"", Format::Toml), Err(ContentError::Empty));
        assert_eq!(parse(b" \n", Format::Json), Err(ContentError::Empty));
        assert!(parse(b"# nothing", Format::Toml).is_err());
        assert_eq!(parse(b"[services]\nx = \"\xff\"", Format::Toml), Err(ContentError::NotUtf8(16)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, text in "[\\[\\]{}=\"a-z0-9.:,\\n ]{0,80}") {
            for format in [Format::Toml, Format::Json] {
                let _ = parse(&bytes, format);
                let _ = parse(text.as_bytes(), format);
            }
        }
    }
}
