//! `health_check` of services.

use std::time::Duration;

use checked::{CheckKind, GrpcCheck, HealthCheck, HttpCheck};
use http::Method;

use super::problems::assert_problems_after_listener;
use super::*;

/// The check of the service `users`, if it has one.
fn check(text: &str) -> Option<HealthCheck> {
    config_of(&format!("{LISTENER}{text}")).services.get("users").health_check.as_deref().cloned()
}

fn http() -> HttpCheck {
    HttpCheck {
        method: Method::GET,
        path: "/".parse().unwrap(),
        host: None,
        statuses: std::iter::once(200..=200).collect(),
    }
}

fn with_defaults(kind: CheckKind) -> HealthCheck {
    HealthCheck { kind, interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
}

#[test]
fn checks_are_off_until_they_are_asked_for() {
    for text in ["", "[service.users]\nhealth_check = false", "[service.users]\nhealth_check = 'off'"] {
        assert_eq!(check(text), None, "{text}");
    }
    let kinds =
        [("tcp", CheckKind::Tcp), ("http", CheckKind::Http(http())), ("grpc", CheckKind::Grpc(GrpcCheck::default()))];
    for (name, kind) in kinds {
        let expected = Some(with_defaults(kind));
        assert_eq!(check(&format!("[service.users]\nhealth_check = '{name}'")), expected);
        assert_eq!(check(&format!("[service.users.health_check]\ntype = '{name}'")), expected);
        assert_eq!(check(&format!("[service.default]\nhealth_check = '{name}'")), expected);
    }
}

#[test]
fn checks_are_read_in_full() {
    let read = check(
        "[service.users.health_check]
        type = 'http'
        interval = '10s'
        timeout = '250ms'
        rise = 1
        fall = 5
        method = 'HEAD'
        path = '/health?deep=1'
        host = 'users.internal:8080'
        status = [200, '300-399']",
    );
    let kind = CheckKind::Http(HttpCheck {
        method: Method::HEAD,
        path: "/health?deep=1".parse().unwrap(),
        host: Some("users.internal:8080".parse().unwrap()),
        statuses: vec![200..=200, 300..=399],
    });
    let expected =
        HealthCheck { kind, interval: Duration::from_secs(10), timeout: Duration::from_millis(250), rise: 1, fall: 5 };
    assert_eq!(read, Some(expected));
    let read = check("[service.users]\nhealth_check = { type = 'grpc', service = 'users.v1.Users', host = 'u' }");
    let kind = GrpcCheck { service: "users.v1.Users".to_owned(), host: Some("u".parse().unwrap()) };
    assert_eq!(read, Some(with_defaults(CheckKind::Grpc(kind))));
}

#[test]
fn checks_are_inherited_key_by_key() {
    let default = "[service.default.health_check]\ntype = 'http'\npath = '/health'\ninterval = '5s'\n[service.users]\n";
    let inherited = |text: &str| check(&format!("{default}{text}"));
    let of = |kind| Some(HealthCheck { interval: Duration::from_secs(5), ..with_defaults(kind) });
    let health = HttpCheck { path: "/health".parse().unwrap(), ..http() };
    assert_eq!(inherited(""), of(CheckKind::Http(health.clone())));
    assert_eq!(inherited("health_check = 'http'"), of(CheckKind::Http(health.clone())));
    let other = HttpCheck { method: Method::HEAD, ..health };
    assert_eq!(inherited("health_check = { method = 'HEAD' }"), of(CheckKind::Http(other)));
    assert_eq!(inherited("health_check = false"), None);
    // Of another type, what every type has.
    assert_eq!(inherited("health_check = 'tcp'"), of(CheckKind::Tcp));
    assert_eq!(inherited("health_check = { type = 'grpc' }"), of(CheckKind::Grpc(GrpcCheck::default())));
}

#[test]
fn variables_reach_into_checks() {
    let text = format!("{LISTENER}[service.users]\nhealth_check = {{ type = 'tcp' }}");
    let variables = [("HEDDLE__SERVICE__USERS__HEALTH_CHECK__RISE".into(), "7".into())];
    let config = parse(&text, Path::new("heddle.toml"), &variables).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.config.services.get("users").health_check.as_ref().unwrap().rise, 7);
}

#[test]
fn what_makes_no_sense_is_told() {
    let no_type = ":4: service.users.health_check: it has no type; expected type = \"tcp\" or \"http\" or \"grpc\"";
    assert_problems_after_listener(&[
        (
            "[service.users]\nhealth_check = true",
            &[
                ":4: service.users.health_check: true is not a health check; expected false, \"tcp\", \"http\", \"grpc\", \
               or a table such as { type = \"http\", path = \"/health\" }",
            ],
        ),
        ("[service.users]\nhealth_check = { rise = 1 }", &[no_type]),
        (
            "[service.users]\nhealth_check = { type = 'icmp', path = 1 }",
            &[
                ":4: service.users.health_check.type: \"icmp\" is not a type of check; expected \"tcp\" or \"http\" or \
                 \"grpc\"",
                ":4: service.users.health_check.path: 1 is not the path of a request; expected a path such as \
                 \"/health\"",
            ],
        ),
        (
            "[service.users.health_check]\ntype = 'tcp'\npath = '/'\nmethod = 'GET'\nhost = 'a'\nstatus = [200]\n\
             service = ''",
            &[
                ":5: service.users.health_check.path: type = \"tcp\" has no use for it; expected type = \"http\"",
                ":6: service.users.health_check.method: type = \"tcp\" has no use for it; expected type = \"http\"",
                ":7: service.users.health_check.host: type = \"tcp\" has no use for it; expected type = \"http\" or \
                 \"grpc\"",
                ":8: service.users.health_check.status: type = \"tcp\" has no use for it; expected type = \"http\"",
                ":9: service.users.health_check.service: type = \"tcp\" has no use for it; expected type = \"grpc\"",
            ],
        ),
        (
            "[service.default]\nhealth_check = 'grpc'\n[service.users]\nhealth_check = { path = '/' }",
            &[":6: service.users.health_check.path: type = \"grpc\" has no use for it; expected type = \"http\""],
        ),
        (
            "[service.users]\nhealth_check = { type = 'http', service = 'a' }",
            &[":4: service.users.health_check.service: type = \"http\" has no use for it; expected type = \"grpc\""],
        ),
        (
            "[service.default]\nhealth_check = 'grpc'\n[service.users]\nprotocol = 'http1'",
            &[
                ":4: service.default.health_check: gRPC needs HTTP/2, and the service's protocol is \"http1\"; expected \
               another type, or another protocol for the service",
            ],
        ),
        ("[service.default]\nhealth_check = 'grpc'\n[service.users]\nprotocol = 'http1'\nhealth_check = 'off'", &[]),
    ]);
}

#[test]
fn values_of_checks() {
    assert_problems_after_listener(&[(
        "[service.users.health_check]\ntype = 'http'\nmethod = 'POST'\npath = 'health'\nhost = 'a b'\n\
         status = [101, '399-300', 'ok']\nrise = 0\nfall = 101\ninterval = '1ms'\ntimeout = 1\nintervall = '1s'",
        &[
            ":5: service.users.health_check.method: \"POST\" is not a method of a check; expected \"GET\" or \"HEAD\"",
            ":6: service.users.health_check.path: \"health\" is not the path of a request; expected a path such as \
             \"/health\"",
            ":7: service.users.health_check.host: \"a b\" is not a host; expected a host, with a port or without, such \
             as \"users.internal\"",
            ":8: service.users.health_check.status[0]: 101 is out of range; expected 200 to 599",
            ":8: service.users.health_check.status[1]: \"399-300\" ends before it begins; expected \"300-399\"",
            ":8: service.users.health_check.status[2]: \"ok\" is not a status; expected 200 to 599, or a text such as \
             \"200-299\"",
            ":9: service.users.health_check.rise: 0 is out of range; expected 1 to 100",
            ":10: service.users.health_check.fall: 101 is out of range; expected 1 to 100",
            ":11: service.users.health_check.interval: \"1ms\" is out of range; expected 10ms to 1h",
            ":12: service.users.health_check.timeout: 1 is not a duration; expected a number with a unit such as \
             \"250ms\" or \"8s\"",
            ":13: service.users.health_check.intervall: unknown key; did you mean \"interval\"?",
        ],
    )]);
    for path in ["/a b", "/a#b", "/\u{e9}", "", "http://a/"] {
        let text = format!("{LISTENER}[service.users]\nhealth_check = {{ type = 'http', path = '{path}' }}");
        assert!(problems_of(&text).contains("is not the path of a request"), "{path}");
    }
    assert_problems_after_listener(&[(
        "[service.users]\nhealth_check = { type = 'http', status = [] }",
        &[":4: service.users.health_check.status: an empty list; expected statuses such as [200] or [\"200-299\"]"],
    )]);
}
