//! What a configuration means that holds.

use std::time::Duration;

use super::super::checked::{Forwarded, Layout, Password, UpstreamProtocol};
use super::*;

#[test]
fn a_listener_is_enough() {
    let config = config_of(LISTENER);
    assert!(config.workers >= 1);
    assert_eq!((config.drain, config.drain_delay), (Duration::from_secs(8), Duration::ZERO));
    assert_eq!(config.admin_socket, None);
    assert_eq!(config.state, None);
    assert_eq!(config.admin, Some("127.0.0.1:4191".parse().unwrap()));
    assert_eq!(config.suffix, "mesh");
    assert_eq!(config.plugins.folder, None);
    assert_eq!(config.plugins.rescan, Duration::from_secs(5));
    assert_eq!(config.plugins.decision, Duration::from_millis(10));
    assert_eq!(config.plugins.change, Duration::from_millis(100));
    assert_eq!(config.plugins.memory, 64 << 20);
    assert_eq!(config.plugins.faults, 4);
    assert_eq!(config.plugins.share, 25);
    assert!(config.plugins.memory_total >= config.plugins.memory);
    assert_eq!(config.plugins.cache, None);
    let compile = config.plugins.compile;
    assert_eq!((compile.cpu, compile.memory, compile.cache), (Duration::from_secs(5), None, 32 << 20));
    let [listener] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
    assert_eq!(listener.service, None);
    assert!(listener.passthrough.is_some());
    assert_eq!(listener.forwarded, Forwarded::Off);
    assert_eq!(listener.header_timeout, Duration::from_secs(10));
    assert_eq!(listener.idle_timeout, Duration::from_secs(3600));
    assert_eq!(listener.max_connections, 65_536);
    assert!(config.registry.etcd.is_none() && config.registry.file.is_none() && config.registry.fixed.is_empty());
    let service = config.services.get("any");
    assert_eq!((&*service.balancer.plugin, &*service.balancer.config), ("round-robin", "{}"));
    assert_eq!(service.protocol, UpstreamProtocol::Negotiated);
    assert_eq!(service.connect_timeout, Duration::from_secs(1));
    assert_eq!(service.request_timeout, Duration::from_secs(15));
    assert_eq!(service.stream_idle_timeout, Duration::from_secs(300));
    assert_eq!(service.pool.max_idle, 128);
    assert_eq!(service.pool.idle_timeout, Duration::from_secs(60));
    assert_eq!(service.pool.max_connections, 1024);
    assert_eq!(service.client_share, 25);
    assert_eq!((service.retry.as_ref(), service.breaker.as_ref()), (None, None));
    assert_eq!((service.retry_budget.percent, service.retry_budget.min), (20, 3));
    assert_eq!(service.max_replay_bytes, 64 << 10);
    assert_eq!((service.pool.max_requests, service.max_requests, service.max_connections), (None, None, None));
    assert_eq!((service.max_pending, service.max_pending_time), (0, Duration::from_secs(1)));
    assert_eq!(listener.deadline_header, None);
}

#[test]
fn own_name_is_the_same_for_the_whole_process() {
    assert_eq!(config_of(LISTENER).via, config_of(LISTENER).via);
    assert!(config_of(LISTENER).via.starts_with("heddle-"));
}

#[test]
fn services_inherit_key_by_key() {
    let config = config_of(&format!(
        r#"{LISTENER}
        [service.default]
        balancer = {{ plugin = "url-hash", by = "path" }}
        request_timeout = "3s"
        pool = {{ max_idle = 7 }}
        [service.users]
        pool = {{ idle_timeout = "5s" }}
        protocol = "http2"
        [service."a.b_c-1"]
        balancer = "random"
        "#
    ));
    let users = config.services.get("users");
    assert_eq!((&*users.balancer.plugin, &*users.balancer.config), ("url-hash", r#"{"by":"path"}"#));
    assert_eq!(users.request_timeout, Duration::from_secs(3));
    assert_eq!((users.pool.max_idle, users.pool.idle_timeout), (7, Duration::from_secs(5)));
    assert_eq!(users.protocol, UpstreamProtocol::Http2);
    let other = config.services.get("a.b_c-1");
    assert_eq!((&*other.balancer.plugin, &*other.balancer.config), ("random", "{}"));
    assert_eq!(other.protocol, UpstreamProtocol::Negotiated);
}

#[test]
fn limits_are_read_and_inherited() {
    let config = config_of(&format!(
        r#"{LISTENER}deadline_header = "X-Request-Timeout-Ms"
        [service.default]
        max_requests = 500
        max_pending = 20
        pool = {{ max_requests = 100 }}
        [service.users]
        max_connections = 7
        client_share = 50
        max_pending = 0
        max_pending_time = "250ms"
        "#
    ));
    assert_eq!(config.listeners[0].deadline_header.as_ref().unwrap(), "x-request-timeout-ms");
    let (users, other) = (config.services.get("users"), config.services.get("orders"));
    assert_eq!((users.max_requests, users.max_connections, users.pool.max_requests), (Some(500), Some(7), Some(100)));
    assert_eq!(users.client_share, 50);
    assert_eq!((users.max_pending, users.max_pending_time), (0, Duration::from_millis(250)));
    assert_eq!((other.max_requests, other.max_connections), (Some(500), None));
    assert_eq!((other.max_pending, other.max_pending_time), (20, Duration::from_secs(1)));
}

#[test]
fn retries_are_inherited_and_can_be_switched_off() {
    let config = config_of(&format!(
        r#"{LISTENER}
        [service.default]
        retry = {{ plugin = "retry", attempts = 5 }}
        retry_budget = {{ percent = 50 }}
        max_replay_bytes = "1MiB"
        [service.users]
        retry_budget = {{ min = 0 }}
        max_replay_bytes = 0
        [service.orders]
        retry = "off"
        "#
    ));
    let users = config.services.get("users");
    let policy = users.retry.as_ref().map(|policy| (&*policy.plugin, &*policy.config));
    assert_eq!(policy, Some(("retry", r#"{"attempts":5}"#)));
    assert_eq!((users.retry_budget.percent, users.retry_budget.min, users.max_replay_bytes), (50, 0, 0));
    let orders = config.services.get("orders");
    assert_eq!((orders.retry.as_ref(), orders.retry_budget.min, orders.max_replay_bytes), (None, 3, 1 << 20));
}

#[test]
fn passthrough_is_on_by_default_on_loopback_only() {
    let text = r#"listener = [
        { address = "127.9.9.9:1" }, { address = "[::1]:2" }, { address = "0.0.0.0:3" }, { address = "10.0.0.1:4" },
        { address = "0.0.0.0:5", passthrough = true }, { address = "127.0.0.1:6", passthrough = false },
        { address = "127.0.0.1:7", service = "users" }, { address = "127.0.0.1:8", proxy_protocol = ["127.0.0.1"] },
    ]"#;
    let passes: Vec<_> = config_of(text).listeners.iter().map(|listener| listener.passthrough.is_some()).collect();
    assert_eq!(passes, [true, true, false, false, true, false, false, false]);
}

#[test]
fn port_zero_may_stand_twice() {
    let config = config_of(
        "admin.address = \"127.0.0.1:0\"\nlistener = [{ address = \"127.0.0.1:0\" }, { address = \"127.0.0.1:0\" }]",
    );
    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn admin_can_be_off() {
    assert_eq!(config_of(&format!("admin = false\n{LISTENER}")).admin, None);
}

#[test]
fn paths_start_from_the_folder_of_the_file() {
    let text = format!("plugins = \"p\"\nstate = \"/var/lib/heddle\"\n{LISTENER}");
    let config = parse(&text, Path::new("/etc/heddle/heddle.toml"), &[]).unwrap().config;
    assert_eq!(config.plugins.folder.unwrap(), Path::new("/etc/heddle/p"));
    assert_eq!(config.plugins.cache.unwrap(), Path::new("/var/lib/heddle/plugins"));
    assert_eq!(config.state.unwrap(), Path::new("/var/lib/heddle"));
}

#[test]
fn settings_of_a_plugin_become_json() {
    let config = config_of(&format!(
        r#"{LISTENER}
        [service.users.balancer]
        plugin = "own"
        text = "a\"b"
        numbers = [1, -2, 1.5]
        flag = true
        nested = {{ deep = [{{}}] }}
        "#
    ));
    let policy = &config.services.get("users").balancer;
    assert_eq!(&*policy.plugin, "own");
    let expected = r#"{"flag":true,"nested":{"deep":[{}]},"numbers":[1,-2,1.5],"text":"a\"b"}"#;
    assert_eq!(&*policy.config, expected);
}

#[test]
fn sizes_have_units() {
    for (written, bytes) in
        [("2097152", 2 << 20), ("\"2MiB\"", 2 << 20), ("\"1 GiB\"", 1 << 30), ("\"4096KiB\"", 4 << 20)]
    {
        assert_eq!(config_of(&format!("plugins.memory = {written}\n{LISTENER}")).plugins.memory, bytes, "{written}");
    }
}

#[test]
fn etcd_is_read_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["etcd".to_owned()]).unwrap();
    std::fs::write(folder.path().join("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.path().join("password"), "secret\n").unwrap();
    let text = format!(
        r#"{LISTENER}
        [registry.etcd]
        endpoints = ["https://etcd-1.example:2379/", "http://[::1]:2379"]
        user = "heddle"
        password_file = "password"
        tls = {{ ca = "cert.pem", certificate = "cert.pem", key = "key.pem", server_name = "etcd" }}
        page = 10
        watch = [{{ prefix = "/a/" }}, {{ prefix = "/b/", layout = "go-kit" }}]
        "#
    );
    let config = parse(&text, &folder.path().join("heddle.toml"), &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let etcd = config.config.registry.etcd.unwrap();
    assert_eq!(etcd.members, ["https://etcd-1.example:2379", "http://[::1]:2379"]);
    let login = etcd.login.unwrap();
    assert_eq!(login.user, "heddle");
    assert!(login.password == Password::File(folder.path().join("password")), "it is read at each login");
    let tls = etcd.tls.unwrap();
    assert_eq!(tls.ca, Some(folder.path().join("cert.pem")));
    assert_eq!(tls.client, Some((folder.path().join("cert.pem"), folder.path().join("key.pem"))));
    assert_eq!(tls.server_name.as_deref(), Some("etcd"));
    assert_eq!(etcd.page, 10);
    let watches: Vec<_> = etcd.watches.iter().map(|watch| (&watch.prefix[..], watch.layout)).collect();
    assert_eq!(watches, [(&b"/a/"[..], Layout::Heddle), (&b"/b/"[..], Layout::GoKit)]);
}

#[test]
fn balancers_know_where_they_were_written() {
    let text = format!(
        "{LISTENER}[service.users]\nbalancer = \"own\"\n[service.orders.balancer]\nplugin = \"other\"\n[service.carts]\n"
    );
    let checked = parse(&text, Path::new("heddle.toml"), &[]).unwrap();
    let all: Vec<_> = checked.policies.iter().map(|b| format!("{}: {} {}", b.place, b.key, b.policy.plugin)).collect();
    let expected = [
        "heddle.toml: service.default.balancer round-robin",
        "heddle.toml:5: service.orders.balancer other",
        "heddle.toml:4: service.users.balancer own",
    ];
    assert_eq!(all, expected);

    let known = |policy: &checked::Policy, _| match &*policy.plugin {
        "round-robin" | "other" => Ok(()),
        name => Err(Refusal { found: format!("{name:?} is no plugin"), remedy: "expected one of other".to_owned() }),
    };
    let problems = checked.check_policies(known).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "heddle.toml:4: service.users.balancer: \"own\" is no plugin; expected one of other"
    );
    assert_eq!(checked.check_policies(|_, _| Ok(())), Ok(()));
}
