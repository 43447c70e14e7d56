//! Every kind of problem, with its line and its words.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Each case is a text and its problems without `heddle.toml`.
pub(super) fn assert_problems(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|line| format!("heddle.toml{line}")).collect();
        assert_eq!(problems_of(text), expected.join("\n"), "{text}");
    }
}

/// As [`assert_problems`], behind a listener that takes two lines.
pub(super) fn assert_problems_after_listener(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        assert_problems(&[(&format!("{LISTENER}{text}"), expected)]);
    }
}

#[test]
fn all_problems_come_at_once_and_in_order() {
    let text = r#"workers = "two"
drian = "8s"
plugins = { folder = "p", memory = "64MB" }

[[listener]]
address = "foo"
forwarded = "yes"

[[listener]]
service = "Users"

[service.users]
balancer = 7
pool = { max_idle = -1 }
"#;
    assert_eq!(
        problems_of(text),
        r#"heddle.toml:1: workers: "two" is not an integer; expected 1 to 1024
heddle.toml:2: drian: unknown key; did you mean "drain"?
heddle.toml:3: plugins.memory: "64MB" is not a size; expected bytes, or a text such as "64MiB"
heddle.toml:6: listener[0].address: "foo" is not an address; expected IP:PORT such as "127.0.0.1:4140"
heddle.toml:7: listener[0].forwarded: "yes" is not a way to tell services about the client; expected "off" or "standard" or "legacy"
heddle.toml:9: listener[1].address: missing; expected IP:PORT such as "127.0.0.1:4140"
heddle.toml:10: listener[1].service: "Users" is not a service name; expected lower-case letters, digits, "-" and "_" in parts separated by dots, other than "default"
heddle.toml:13: service.users.balancer: 7 is not a balancer; expected the name of a plugin, or a table such as { plugin = "url-hash" }
heddle.toml:14: service.users.pool.max_idle: -1 is out of range; expected 0 to 1000000"#
    );
}

#[test]
fn what_a_stop_and_commands_need() {
    let long = format!("/{}", "x".repeat(107));
    for (text, problem) in [
        ("drain_delay = \"2h\"".to_owned(), "drain_delay: \"2h\" is out of range; expected 0s to 1h".to_owned()),
        (
            format!("admin_socket = \"{long}\""),
            format!("admin_socket: {long} has 108 bytes; expected a path of at most 107 bytes"),
        ),
        (
            "admin_socket = \"absent/s\"".to_owned(),
            "admin_socket: there is no folder absent; expected a socket in a folder that exists".to_owned(),
        ),
        (
            "admin_socket = \"Cargo.toml\"".to_owned(),
            "admin_socket: Cargo.toml is no socket; expected a path at which there is nothing else".to_owned(),
        ),
    ] {
        assert_problems(&[(&format!("{text}\n{LISTENER}"), &[&format!(":1: {problem}")])]);
    }
    let config = config_of(&format!("drain_delay = \"5s\"\nadmin_socket = \"s\"\n{LISTENER}"));
    assert_eq!(config.drain_delay, Duration::from_secs(5));
    assert_eq!(config.admin_socket.as_deref(), Some(Path::new("s")));
}

#[test]
fn columns_count_characters() {
    let problems = parse("via = 'é' # é\nsuffix.'é' = { 'ü' = 1 }", Path::new("heddle.toml"), &[]).unwrap_err();
    let places: Vec<_> = problems.iter().map(|problem| problem.place.clone()).collect();
    let file: Arc<Path> = Arc::from(Path::new("heddle.toml"));
    let at = |line, column| Place::Text { file: file.clone(), line, column };
    assert_eq!(places, [Place::File { file: file.clone() }, at(1, 7), at(2, 1)]);
}

#[test]
fn text_that_is_not_toml() {
    assert_problems(&[(
        "a = 1\na = 2\nb = foo\n[x\n",
        &[
            ":2: not TOML: duplicate key; expected each key once",
            ":3: not TOML: invalid boolean; expected true or false, or text in quotes",
            ":4: not TOML: unclosed table; expected `]`",
        ],
    )]);
}

/// A key or table that stands twice hides nothing else.
#[test]
fn keys_that_stand_twice() {
    assert_problems_after_listener(&[(
        "address = \"127.0.0.1:1\"\n[admin]\nadress = 1\n[service.users]\nprotocol = 1\n[service.users]\nbalancer = 1",
        &[
            ":3: not TOML: duplicate key; expected each key once",
            r#":5: admin.adress: unknown key; did you mean "address"?"#,
            r#":7: service.users.protocol: 1 is not a protocol; expected "negotiated" or "http1" or "http2" or "opaque""#,
            ":8: not TOML: duplicate key; expected each key once",
            r#":9: service.users.balancer: 1 is not a balancer; expected the name of a plugin, or a table such as { plugin = "url-hash" }"#,
        ],
    )]);
}

#[test]
fn listeners() {
    assert_problems(&[
        ("", &[": listener: missing; expected at least one [[listener]] with an address"]),
        ("listener = []", &[":1: listener: an empty list; expected at least one [[listener]] with an address"]),
        ("listener = 1", &[":1: listener: 1 is not a list; expected a list, in square brackets"]),
        ("listener = [1]", &[":1: listener[0]: 1 is not a table; expected a table of keys and values"]),
        (
            "[listener]\naddress = \"127.0.0.1:1\"",
            &[":1: listener: a table is not a list; expected a list, in square brackets"],
        ),
        (
            "[[listener]]\naddress = \"localhost:4140\"\nprotocol = \"udp\"\n",
            &[
                r#":2: listener[0].address: "localhost:4140" is not an address; expected IP:PORT such as "127.0.0.1:4140""#,
                r#":3: listener[0].protocol: "udp" is not a protocol; expected "http" or "tcp" or "auto""#,
            ],
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:4140\"\n[[listener]]\naddress = \"127.0.0.1:4140\"\n",
            &[r#":4: listener[1].address: 127.0.0.1:4140 is listener[0].address too; expected an address of its own"#],
        ),
        (
            "admin.address = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:1\"",
            &[r#":1: admin.address: 127.0.0.1:1 is listener[0].address too; expected an address of its own"#],
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:4191\"",
            &[
                r#":2: listener[0].address: 127.0.0.1:4191 is where the admin server listens by default; expected another address, or one for [admin]"#,
            ],
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1:1\"\nservice = \"users\"\npassthrough = true",
            &[
                ":4: listener[0].passthrough: nothing passes through: service takes all requests of this listener; expected only one of the two keys",
            ],
        ),
    ]);
}

#[test]
fn single_values() {
    assert_problems_after_listener(&[
        (
            "idle_timeout = 8",
            &[
                r#":3: listener[0].idle_timeout: 8 is not a duration; expected a number with a unit such as "250ms" or "8s""#,
            ],
        ),
        (
            "idle_timeout = \"8\"",
            &[
                r#":3: listener[0].idle_timeout: "8" is not a duration; expected a number with a unit such as "250ms" or "8s""#,
            ],
        ),
        ("idle_timeout = \"0s\"", &[r#":3: listener[0].idle_timeout: "0s" is out of range; expected 1ms to 1day"#]),
        (
            "idle_timeout = \"9999999999999y\"",
            &[
                r#":3: listener[0].idle_timeout: "9999999999999y" is not a duration; expected a number with a unit such as "250ms" or "8s""#,
            ],
        ),
        ("max_connections = 0", &[":3: listener[0].max_connections: 0 is out of range; expected 1 to 10000000"]),
        (
            "max_connections = 99999999999999999999",
            &[":3: listener[0].max_connections: 99999999999999999999 is not an integer; expected 1 to 10000000"],
        ),
        ("max_connections = 1.5", &[":3: listener[0].max_connections: 1.5 is not an integer; expected 1 to 10000000"]),
        (
            "passthrough = 2024-01-01",
            &[
                ":3: listener[0].passthrough: 2024-01-01 is not a truth value; expected true, false, or a table with allow_ports, deny_networks and the like",
            ],
        ),
        (
            "service = \"default\"",
            &[
                r#":3: listener[0].service: "default" is not a service name; expected lower-case letters, digits, "-" and "_" in parts separated by dots, other than "default""#,
            ],
        ),
        ("[plugins]\ndecision = \"4ms\"", &[r#":4: plugins.decision: "4ms" is out of range; expected 5ms to 1s"#]),
        (
            "[plugin_compile]\ncpu = \"500ms\"",
            &[r#":4: plugin_compile.cpu: "500ms" is out of range; expected 1s to 10m"#],
        ),
        ("[plugin_compile]\nmemory = 1", &[":4: plugin_compile.memory: 1 is out of range; expected 32 MiB to 64 GiB"]),
        ("[plugins]\nmemory = 1", &[":4: plugins.memory: 1 is out of range; expected 1 MiB to 4 GiB"]),
        (
            "[plugins]\nfolder = \"\"",
            &[r#":4: plugins.folder: "" is not a path; expected a path; a relative one starts from the file's folder"#],
        ),
        (
            "[admin]\naddress = false",
            &[r#":4: admin.address: false is not an address; expected IP:PORT such as "127.0.0.1:4140""#],
        ),
    ]);
    assert_problems(&[(
        "admin = true\nsuffix = \".mesh\"\nvia = \"a b\"\nlistener = [{ address = \"127.0.0.1:0\" }]",
        &[
            ":1: admin: true is not a table; expected false, or [admin] with an address",
            r#":2: suffix: ".mesh" is not a suffix; expected lower-case parts separated by dots, without a leading dot, such as "mesh", or "" for none"#,
            r#":3: via: "a b" is not a name for Via; expected letters, digits and "-", such as "edge-1""#,
        ],
    )]);
}

#[test]
fn long_values_are_cut_short() {
    let text = format!("via = \"{}\"\n{LISTENER}", "é ".repeat(100));
    let shown = "é ".repeat(30);
    assert!(problems_of(&text).starts_with(&format!("heddle.toml:1: via: \"{shown}\"... is not a name")));
}

#[test]
fn unknown_keys() {
    assert_problems_after_listener(&[
        ("adress = 1", &[r#":3: listener[0].adress: unknown key; did you mean "address"?"#]),
        (
            "[registry.zookeeper]\na = 1",
            &[
                ":3: registry.zookeeper: unknown key; expected one of etcd, file, fixed, max_endpoints, max_registry_bytes",
            ],
        ),
        ("[plugin]\n", &[r#":3: plugin: unknown key; did you mean "plugins"?"#]),
        (
            "[service.users]\n\"a b\" = 1\nPool = 1",
            &[
                r#":4: service.users."a b": unknown key; expected one of balancer, retry, breaker, protocol, connect_timeout, request_timeout, stream_idle_timeout, tunnel_idle_timeout, tls, proxy_protocol, max_connections, client_share, max_requests, max_pending, max_pending_time, pool, ejection, retry_budget, max_replay_bytes, health_check, endpoints"#,
                r#":5: service.users.Pool: unknown key; did you mean "pool"?"#,
            ],
        ),
    ]);
}

#[test]
fn etcd() {
    assert_problems_after_listener(&[
        ("[registry]\nmax_endpoints = 0", &[":4: registry.max_endpoints: 0 is out of range; expected 1 to 10000000"]),
        (
            "[registry.fixed]\nnames = [\"A\"]\nallow_networks = []\ndeny_networks = [\"10.0.0.1/8\"]",
            &[
                r#":4: registry.fixed.names[0]: "A" is not a pattern of service names; expected a name in lower case, with "*" for any text, such as "*.internal""#,
                ":5: registry.fixed.allow_networks: an empty list; expected at least one network, or no such key",
                r#":6: registry.fixed.deny_networks[0]: "10.0.0.1/8" has bits set after the first 8; expected "10.0.0.0/8""#,
            ],
        ),
        (
            "[registry.etcd]",
            &[
                r#":3: registry.etcd.endpoints: missing; expected the URLs of the members, such as ["http://127.0.0.1:2379"]"#,
                ":3: registry.etcd.watch: missing; expected at least one [[registry.etcd.watch]] with a prefix",
            ],
        ),
        (
            "[registry.etcd]\nendpoints = [\n\"http://a:1\",\n\"etcd:2379\",\n\"https://u:secret@a:1\", \"http://a:1/x\",\n\"http://a\"]\nwatch = [{ prefix = \"/s/\" }]",
            &[
                r#":6: registry.etcd.endpoints[1]: "etcd:2379" is not the URL of an etcd member; expected http://HOST:PORT or https://HOST:PORT"#,
                ":7: registry.etcd.endpoints[2]: the URL holds a user; expected http://HOST:PORT or https://HOST:PORT, with user and password as keys of their own",
                r#":7: registry.etcd.endpoints[3]: "http://a:1/x" is not the URL of an etcd member; expected http://HOST:PORT or https://HOST:PORT"#,
                r#":8: registry.etcd.endpoints[4]: "http://a" is not the URL of an etcd member; expected http://HOST:PORT or https://HOST:PORT"#,
            ],
        ),
        (
            "[registry.etcd]\nendpoints = [\"http://a:1\", \"http://a:1/\"]\nuser = \"u\"\n[[registry.etcd.watch]]\nprefix = \"/s/\"\n[[registry.etcd.watch]]\nprefix = \"/s/t\"\nlayout = \"gokit\"\n[[registry.etcd.watch]]\nprefix = \"\"",
            &[
                ":3: registry.etcd.password: missing; expected the user's password, or password_file",
                r#":4: registry.etcd.endpoints[1]: "http://a:1" is registry.etcd.endpoints[0] too; expected each member once"#,
                r#":9: registry.etcd.watch[1].prefix: "/s/t" and registry.etcd.watch[0].prefix ("/s/") have keys in common; expected prefixes of which none begins with another"#,
                r#":10: registry.etcd.watch[1].layout: "gokit" is not a layout; expected "heddle" or "go-kit""#,
                r#":12: registry.etcd.watch[2].prefix: "" is not a text; expected a text that is not empty"#,
            ],
        ),
    ]);
}

#[test]
fn login_and_tls_of_etcd() {
    let etcd = "[registry.etcd]\nendpoints = [\"https://a:1\"]\nwatch = [{ prefix = \"/s/\" }]\n";
    for (text, expected) in [
        ("password = \"p\"", ":3: registry.etcd.user: missing; expected the user whose password this is"),
        (
            "user = \"u\"\npassword = 1",
            ":7: registry.etcd.password: the value (not shown) is not a text, or is empty; expected a text in quotes",
        ),
        (
            "user = \"u\"\npassword = \"p\"\npassword_file = \"Cargo.toml\"",
            ":8: registry.etcd.password_file: stands beside password; expected one of the two",
        ),
        (
            "user = \"u\"\npassword_file = \"absent\"",
            ":7: registry.etcd.password_file: absent cannot be read: No such file or directory (os error 2); expected a file with the password",
        ),
        (
            "tls = { certificate = \"absent\" }",
            ":6: registry.etcd.tls.key: missing; expected the PEM file with the certificate's key\nheddle.toml:6: registry.etcd.tls.certificate: absent cannot be read: No such file or directory (os error 2); expected a file with the certificate",
        ),
        (
            "tls = { key = \"Cargo.toml\", certificate = 1 }",
            ":6: registry.etcd.tls.key: Cargo.toml holds no private key; expected a PEM file with PRIVATE KEY-----\nheddle.toml:6: registry.etcd.tls.certificate: 1 is not a path; expected a path; a relative one starts from the file's folder",
        ),
        (
            "tls.ca = \"Cargo.toml\"",
            ":6: registry.etcd.tls.ca: Cargo.toml holds no certificate; expected a PEM file with -----BEGIN CERTIFICATE-----",
        ),
    ] {
        assert_problems_after_listener(&[(&format!("{etcd}{text}"), &[expected])]);
    }
    let plain = "[registry.etcd]\nendpoints = [\"http://a:1\"]\nwatch = [{ prefix = \"/s/\" }]\ntls = {}\n";
    assert_problems_after_listener(&[(
        plain,
        &[":6: registry.etcd.tls: no member is reached over TLS; expected an https:// URL among the endpoints"],
    )]);
}

#[test]
fn file_source_and_folders() {
    assert_problems_after_listener(&[
        ("[registry.file]", &[":3: registry.file.path: missing; expected the path of a .toml or .json file"]),
        (
            "[registry.file]\npath = \"a.yaml\"",
            &[
                ":4: registry.file.path: a.yaml ends neither in .toml nor in .json; expected a TOML or JSON file with one of these endings",
            ],
        ),
        (
            "[registry.file]\npath = \"absent/a.toml\"",
            &[
                ":4: registry.file.path: there is no folder absent; expected a file in a folder that exists; the file itself may come later",
            ],
        ),
        ("[registry.file]\npath = \"later.toml\"", &[]),
        ("[plugins]\nfolder = \"Cargo.toml\"", &[":4: plugins.folder: Cargo.toml is not a folder; expected a folder"]),
        ("[plugins]\nfolder = \"later\"", &[]),
    ]);
}

#[test]
fn services() {
    assert_problems_after_listener(&[
        (
            "[service.Users]\n[service.\"a..b\"]\n[service.\"users.mesh\"]",
            &[
                r#":3: service.Users: "Users" is not a service name; expected lower-case letters, digits, "-" and "_" in parts separated by dots, other than "default""#,
                r#":4: service."a..b": "a..b" is not a service name; expected lower-case letters, digits, "-" and "_" in parts separated by dots, other than "default""#,
                r#":5: service."users.mesh": no host names this service: "users.mesh" means "users"; expected "users", or another suffix"#,
            ],
        ),
        (
            "[service.default]\nendpoints = [\"a:1\"]",
            &[
                ":4: service.default.endpoints: endpoints belong to one service; expected them in the table of a named service",
            ],
        ),
        (
            "[service.users]\nprotocol = \"h2\"\nbalancer = \"../x\"",
            &[
                r#":4: service.users.protocol: "h2" is not a protocol; expected "negotiated" or "http1" or "http2" or "opaque""#,
                r#":5: service.users.balancer: "../x" is not the name of a plugin; expected the name of its file without .wasm, such as "round-robin""#,
            ],
        ),
        (
            "[service.users]\nbalancer = { by = \"path\", limit = nan,\nday = [2024-01-01] }",
            &[
                r#":4: service.users.balancer.plugin: missing; expected the name of a plugin, such as "round-robin""#,
                r#":4: service.users.balancer.limit: NaN cannot be said in JSON, in which plugins get their settings; expected a text, a number of 64 bits, a truth value, a list or a table"#,
                r#":5: service.users.balancer.day[0]: 2024-01-01 cannot be said in JSON, in which plugins get their settings; expected a text, a number of 64 bits, a truth value, a list or a table"#,
            ],
        ),
        (
            "[service.users]\nendpoints = [\n\"a:1\",\n\"a\",\n{ address = \"a:1\" },\n{ weight = 1 },\n{ address = \"[::1]:0\", weight = -1, metadata = { z = 1 } },\n\"::1:80\", \"a:+1\" ]",
            &[
                r#":6: service.users.endpoints[1]: "a" is not an endpoint's address; expected HOST:PORT such as "10.0.0.5:8080""#,
                r#":7: service.users.endpoints[2].address: "a:1" is service.users.endpoints[0] too; expected each address once"#,
                r#":8: service.users.endpoints[3].address: missing; expected HOST:PORT such as "10.0.0.5:8080""#,
                r#":9: service.users.endpoints[4].address: "[::1]:0" is not an endpoint's address; expected HOST:PORT such as "10.0.0.5:8080""#,
                ":9: service.users.endpoints[4].weight: -1 is out of range; expected 0 to 4294967295",
                ":9: service.users.endpoints[4].metadata.z: 1 is not a text; expected a text in quotes",
                r#":10: service.users.endpoints[5]: "::1:80" is not an endpoint's address; expected HOST:PORT such as "10.0.0.5:8080""#,
                r#":10: service.users.endpoints[6]: "a:+1" is not an endpoint's address; expected HOST:PORT such as "10.0.0.5:8080""#,
            ],
        ),
    ]);
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heddle.toml");
    let problems = load(&path, &[]).unwrap_err().to_string();
    let expected = "cannot be read: No such file or directory (os error 2); expected a TOML file";
    assert_eq!(problems, format!("{}: {expected}", path.display()));
    std::fs::write(&path, b"via = 'a'\nsuffix = '\xff'").unwrap();
    let problems = load(&path, &[]).unwrap_err().to_string();
    assert_eq!(problems, format!("{}:2: not UTF-8; expected text", path.display()));
    std::fs::write(&path, LISTENER).unwrap();
    assert!(load(&path, &[]).is_ok());
}

#[test]
fn names_of_services() {
    for name in ["users", "a", "a-b_c.d1", "com.x.users", &"a".repeat(63)] {
        assert!(is_service_name(name), "{name}");
    }
    for name in [
        "",
        "default",
        "Users",
        "a..b",
        ".a",
        "a.",
        "a b",
        "é",
        "a/b",
        "a:80",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "localhost",
        "a.localhost",
        &"a".repeat(64),
        &"a.".repeat(127),
    ] {
        assert!(!is_service_name(name), "{name}");
    }
}

const REFERENCE: &str = include_str!("../../../../examples/config/reference.toml");

proptest! {
    /// Whatever is written, the answer is a configuration or at least one problem, and no panic.
    #[test]
    fn any_text_is_answered(text in "\\PC*|[\\[\\]{}=\"'.,\\n a-c0-9_#-]{0,80}") {
        if let Err(problems) = parse(&text, Path::new("heddle.toml"), &[]) {
            prop_assert!(!problems.is_empty());
        }
    }

    /// The same of the reference with parts cut out, moved, or replaced.
    #[test]
    fn any_mutation_is_answered(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, "\\PC{0,3}|true|-1|\\[|\\{|\"|\n|nan"), 1..6),
    ) {
        let mut text: Vec<char> = REFERENCE.chars().collect();
        for (at, length, put) in edits {
            let start = at.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        let lines = text.matches('\n').count() + 1;
        if let Err(problems) = parse(&text, Path::new("heddle.toml"), &[]) {
            prop_assert!(!problems.is_empty());
            for problem in &problems {
                if let Place::Text { line, column, .. } = &problem.place {
                    prop_assert!((1..=lines).contains(line) && *column >= 1, "{problem}");
                }
                prop_assert!(!problem.to_string().contains('\n'), "{problem}");
            }
        }
    }
}

#[test]
fn limits_of_services() {
    assert_problems_after_listener(&[
        (
            "[service.default]\nmax_requests = 0\nmax_connections = 0\npool = { max_requests = 0 }",
            &[
                ":4: service.default.max_requests: 0 is out of range; expected 1 to 10000000",
                ":5: service.default.max_connections: 0 is out of range; expected 1 to 10000000",
                ":6: service.default.pool.max_requests: 0 is out of range; expected 1 to 1000000",
            ],
        ),
        (
            "[service.users]\nclient_share = 0",
            &[":4: service.users.client_share: 0 is out of range; expected 1 to 100"],
        ),
        (
            "[service.users]\nmax_pending = 5",
            &[
                ":4: service.users.max_pending: nobody waits where max_requests sets no limit; expected max_requests beside it",
            ],
        ),
        (
            "[service.default]\nmax_pending = 5\n[service.users]\n",
            &[
                ":4: service.default.max_pending: nobody waits where max_requests sets no limit; expected max_requests beside it",
            ],
        ),
        ("[service.default]\nmax_pending = 5\n[service.users]\nmax_requests = 5", &[]),
        ("[service.default]\nmax_requests = 5\n[service.users]\nmax_pending = 5", &[]),
        ("[service.users]\nmax_pending = 0", &[]),
    ]);
}

#[test]
fn headers_for_deadlines() {
    let expected =
        r#"is not a header for this; expected the name of a header of your own, such as "x-request-timeout-ms""#;
    for bad in ["", "a b", "grpc-timeout", "Content-Length", "host", "\u{e9}"] {
        let problem = format!("heddle.toml:3: listener[0].deadline_header: {bad:?} {expected}");
        assert_eq!(problems_of(&format!("{LISTENER}deadline_header = {bad:?}")), problem);
    }
    assert_eq!(
        problems_of(&format!("{LISTENER}protocol = \"tcp\"\nservice = \"users\"\ndeadline_header = \"x-a\"")),
        "heddle.toml:5: listener[0].deadline_header: a tcp listener sees no requests; expected it on a listener whose protocol is http or auto"
    );
}
