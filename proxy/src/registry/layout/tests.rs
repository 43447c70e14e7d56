use proptest::prelude::*;

use super::*;

fn endpoint(address: &str) -> Endpoint {
    Endpoint { address: address.into(), weight: 1, metadata: Vec::new() }
}

fn one(layout: Layout, prefix: &str, key: &str, value: &str) -> (String, Endpoint) {
    let announced = decode(layout, prefix.as_bytes(), key.as_bytes(), value.as_bytes());
    let mut announced = announced.expect("a good entry").expect("no placeholder");
    assert_eq!(announced.endpoints.len(), 1);
    (announced.service, announced.endpoints.remove(0))
}

fn refused(layout: Layout, key: &str, value: &str) -> LayoutError {
    decode(layout, b"/services/", key.as_bytes(), value.as_bytes()).expect_err(value)
}

#[test]
fn heddle_reads_address_weight_and_metadata() {
    let key = "/services/users/a";
    assert_eq!(
        one(Layout::Heddle, "/services/", key, r#"{"address":"10.0.0.5:80"}"#),
        ("users".into(), endpoint("10.0.0.5:80"))
    );
    let value = r#"{"address":"10.0.0.5:80","weight":0,"metadata":{"zone":"a","cpu":8,"on":true,"none":null,
        "list":[1,"x"]},"later":{"field":1}}"#;
    let (_, endpoint) = one(Layout::Heddle, "/services/", key, value);
    assert_eq!(endpoint.weight, 0);
    let pairs = [("cpu", "8"), ("list", r#"[1,"x"]"#), ("on", "true"), ("zone", "a")];
    assert_eq!(endpoint.metadata, pairs.map(|(name, value)| (name.into(), value.into())));
}

#[test]
fn heddle_refuses_with_a_reason() {
    let key = "/services/users/a";
    for value in ["", "{}", "[]", "10.0.0.5:80", r#"{"address":5}"#, r#"{"address":"a:1","metadata":[]}"#] {
        assert!(matches!(refused(Layout::Heddle, key, value), LayoutError::Json(_)), "{value}");
    }
    assert!(matches!(refused(Layout::Heddle, key, r#"{"address":"a"}"#), LayoutError::Address(_)));
    assert_eq!(refused(Layout::Heddle, "/services/users", r#"{"address":"a:1"}"#), LayoutError::NoInstance);
    assert_eq!(refused(Layout::Heddle, "/services/users/", r#"{"address":"a:1"}"#), LayoutError::NoInstance);
}

/// Issue 10, 14: a weight that cannot be read keeps the endpoint, with weight 1 and a warning.
#[test]
fn heddle_reads_weights_in_any_spelling() {
    let read = |weight: &str| {
        let value = format!(r#"{{"address":"a:1","weight":{weight}}}"#);
        let decoded = decode(Layout::Heddle, b"/services/", b"/services/users/a", value.as_bytes());
        let mut announced = decoded.expect(weight).expect(weight);
        (announced.endpoints.remove(0).weight, announced.warnings.len())
    };
    for (text, weight) in [("2.0", 2), ("1e2", 100), ("null", 1), ("0.0", 0), ("\"3\"", 3)] {
        assert_eq!(read(text), (weight, 0), "{text}");
    }
    for text in ["-1", "1.5", "4294967296", "1e400", "true", "\"x\"", "[1]", "{}"] {
        assert_eq!(read(text), (1, 1), "{text}");
    }
}

#[test]
fn heddle_reads_a_pause_of_a_whole_service() {
    let read = |key: &str, value: &str| decode(Layout::Heddle, b"/services/", key.as_bytes(), value.as_bytes());
    assert_eq!(read("/services/Users/paused", "true"), Ok(Some(Announced::pause("users".into()))));
    assert_eq!(read("/services/users/paused", " false\n"), Ok(None));
    // An instance of that name is one, and no other key pauses.
    let (service, instance) =
        one(Layout::Heddle, "/services/", "/services/users/paused", r#"{"address":"10.0.0.5:80"}"#);
    assert_eq!((service.as_str(), instance), ("users", endpoint("10.0.0.5:80")));
    for (key, value) in [("paused", "yes"), ("paused", "1"), ("paused", ""), ("paused/", "true"), ("a", "true")] {
        assert!(matches!(read(&format!("/services/users/{key}"), value), Err(LayoutError::Json(_))), "{key}: {value}");
    }
    assert!(matches!(refused(Layout::GoKit, "/services/users/paused", "true"), LayoutError::Address(_)));
}

#[test]
fn go_kit_reads_addresses_and_urls() {
    for (value, expected) in [
        ("10.0.0.5:50051", "10.0.0.5:50051"),
        ("10.0.0.5:50051\n", "10.0.0.5:50051"),
        ("http://1.2.3.4:8080", "1.2.3.4:8080"),
        ("http://1.2.3.4", "1.2.3.4:80"),
        ("HTTPS://Host/path?x#y", "host:443"),
        ("http://user:secret@[::1]/", "[::1]:80"),
        ("grpc://10.0.0.5:9000", "10.0.0.5:9000"),
    ] {
        let expected = ("book".to_owned(), endpoint(expected));
        assert_eq!(one(Layout::GoKit, "/services/", "/services/book/x/y", value), expected, "{value}");
        assert_eq!(one(Layout::GoKit, "/services/", "/services/book", value), expected, "{value}");
    }
}

#[test]
fn go_kit_refuses_with_a_reason() {
    let key = "/services/book/1";
    assert_eq!(refused(Layout::GoKit, key, ""), LayoutError::Address(AddressError::Empty));
    assert_eq!(refused(Layout::GoKit, key, "http:///x"), LayoutError::Address(AddressError::Empty));
    assert!(matches!(refused(Layout::GoKit, key, "users"), LayoutError::Address(AddressError::NoPort(_))));
    assert_eq!(
        refused(Layout::GoKit, key, "grpc://host"),
        LayoutError::NoUsualPort { url: "grpc://host".into(), scheme: "grpc".into() }
    );
    assert_eq!(decode(Layout::GoKit, b"/s/", b"/s/book/1", b"\xff"), Err(LayoutError::ValueNotUtf8));
}

#[test]
fn prefixes_end_at_a_separator() {
    assert_eq!(range_prefix(b"/services"), b"/services/");
    assert_eq!(range_prefix(b"/services/"), b"/services/");
    assert_eq!(range_prefix(b""), b"");
    assert_eq!(one(Layout::GoKit, "/services", "/services/book/1", "a:1").0, "book");
    assert_eq!(one(Layout::GoKit, "", "/book/1", "a:1").0, "book");
    assert_eq!(one(Layout::GoKit, "", "book/1", "a:1").0, "book");
    for key in ["/services/localhost/1", "/services/127.0.0.1/1", "/services/0x7f.1/1"] {
        assert!(matches!(refused(Layout::GoKit, key, "a:1"), LayoutError::Service(_)), "{key}");
    }
    for key in ["/services-old/book/1", "/service", "services/book/1"] {
        assert_eq!(decode(Layout::GoKit, b"/services", key.as_bytes(), b"a:1"), Err(LayoutError::Outside), "{key}");
    }
}

#[test]
fn the_service_is_a_host_in_lower_case() {
    assert_eq!(one(Layout::GoKit, "/services/", "/services/User.RPC/1", "a:1").0, "user.rpc");
    assert!(matches!(refused(Layout::GoKit, "/services/10.0.0.5:80", "10.0.0.5:80"), LayoutError::Service(_)));
    assert!(matches!(refused(Layout::GoKit, "/services//1", "a:1"), LayoutError::Service(_)));
    assert_eq!(decode(Layout::GoKit, b"/s/", b"/s/\xff/1", b"a:1"), Err(LayoutError::ServiceNotUtf8));
    let odd = decode(Layout::GoKit, b"/s/", b"/s/book/\x00\xff/1", b"a:1");
    assert_eq!(odd.expect("the instance may be any bytes").expect("no placeholder").service, "book");
}

#[test]
fn placeholders_announce_nothing() {
    for layout in [Layout::Heddle, Layout::GoKit] {
        for key in ["/services/", "/services/users/", "/services/users/a/"] {
            assert_eq!(decode(layout, b"/services/", key.as_bytes(), b""), Ok(None), "{key}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        key in prop::collection::vec(any::<u8>(), 0..40),
        below in prop::collection::vec(any::<u8>(), 0..40),
        value in prop::collection::vec(any::<u8>(), 0..80),
        text in "\\PC{0,60}",
    ) {
        let under = [b"/s/".as_slice(), below.as_slice()].concat();
        for layout in [Layout::Heddle, Layout::GoKit] {
            for key in [&key, &under, &b"/s/users/1".to_vec()] {
                for value in [value.as_slice(), text.as_bytes()] {
                    for prefix in [b"".as_slice(), b"/s", b"/s/"] {
                        let _ = decode(layout, prefix, key, value);
                    }
                }
            }
        }
    }

    #[test]
    fn heddle_round_trips(
        host in "[a-z][a-z0-9-]{0,20}",
        port in 1..=u16::MAX,
        weight: u32,
        metadata in prop::collection::btree_map("\\PC{0,10}", "\\PC{0,10}", 0..5),
    ) {
        let value = serde_json::json!({"address": format!("{host}:{port}"), "weight": weight, "metadata": metadata});
        let (service, endpoint) = one(Layout::Heddle, "/s", "/s/users/1", &value.to_string());
        prop_assert_eq!(service, "users");
        prop_assert_eq!(endpoint.address, format!("{host}:{port}"));
        prop_assert_eq!(endpoint.weight, weight);
        prop_assert_eq!(endpoint.metadata, metadata.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn go_kit_round_trips(ip: std::net::Ipv6Addr, port in 1..=u16::MAX, path in "(/[a-z?#@:]{0,10})?") {
        let expected = endpoint(&format!("[{ip}]:{port}"));
        prop_assert_eq!(one(Layout::GoKit, "/s", "/s/book/1", &format!("[{ip}]:{port}")).1, expected.clone());
        prop_assert_eq!(one(Layout::GoKit, "/s", "/s/book/1", &format!("http://[{ip}]:{port}{path}")).1, expected);
    }
}
