//! The admin server of the real binary: health, figures and state.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use process::{Heddle, ask, command, connect, get, serve, wait_for};
use tempfile::TempDir;

/// A proxy whose services come from a file that is not there yet.
struct Proxy {
    folder: TempDir,
    heddle: Heddle,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "
            plugins = { folder = 'plugins', rescan = '100ms' }
            state = 'state'
            [admin]
            address = '127.0.0.1:0'
            hosts = ['heddle.example']
            [[listener]]
            address = '127.0.0.1:0'
            passthrough = false
            [registry.file]
            path = 'services.toml'
            [service.users]
            balancer = { plugin = 'url-hash', by = 'path' }
        ";
        let path = folder.path().join("heddle.toml");
        fs::write(&path, text).expect("write");
        let heddle = Heddle::start(command(&["run", "--config", path.to_str().expect("UTF-8")]));
        let (proxy, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
        Self { folder, heddle, proxy, admin }
    }

    /// With two servers for `users`.
    fn start_with_servers() -> (Self, [SocketAddr; 2]) {
        let proxy = Self::start();
        let servers = [serve(|| ()), serve(|| ())];
        proxy.announce(&servers);
        wait_for("it is ready", || (get(proxy.admin, "/ready").status == 200).then_some(()));
        (proxy, servers)
    }

    fn announce(&self, servers: &[SocketAddr]) {
        let endpoints: String = servers.iter().map(|server| format!("'{server}', ")).collect();
        let text = format!("[services.users]\nendpoints = [{endpoints}]\n");
        fs::write(self.folder.path().join("services.toml"), text).expect("write");
    }
}

#[test]
fn it_is_ready_once_the_registry_has_answered() {
    let proxy = Proxy::start();
    assert_eq!(get(proxy.admin, "/ready").status, 503);
    assert_eq!(get(proxy.admin, "/live").status, 200);
    proxy.announce(&[]);
    wait_for("it is ready", || (get(proxy.admin, "/ready").status == 200).then_some(()));
}

/// More of them than may be open at once: for a probe of the kubelet it is no matter.
#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let (proxy, _servers) = Proxy::start_with_servers();
    let silent: Vec<_> = (0..200).map(|_| connect(proxy.admin).expect("accepted")).collect();
    assert_eq!(get(proxy.admin, "/ready").status, 200);
    // Nor do those that have asked once, or do not read.
    let asked = silent.into_iter().map(|mut stream| {
        let _it_may_be_closed = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream
    });
    let more = (0..200).map(|_| connect(proxy.admin).expect("accepted"));
    let held: Vec<_> = asked.chain(more).collect();
    assert_eq!(get(proxy.admin, "/live").status, 200);
    drop(held);
}

/// Descriptors beyond the soft limit are there for the taking, and too few of them are told of.
#[test]
fn the_limit_on_descriptors_is_raised() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("heddle.toml");
    let start = |most: usize| {
        let listener = format!("[[listener]]\naddress = '127.0.0.1:0'\nmax_connections = {most}\n");
        fs::write(&path, format!("workers = 1\n{listener}")).expect("write");
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -S -n 200; ulimit -H -n 400; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_heddle")]);
        limited.args(["run", "--config", path.to_str().expect("UTF-8")]);
        let heddle = Heddle::start(limited);
        heddle.address("listening on ");
        heddle
    };
    assert_eq!(start(50).count("descriptors"), 0);
    let heddle = start(201);
    assert_eq!(heddle.count("may have 400 descriptors; max_connections may need 402"), 1, "{:#?}", heddle.said());
}

#[test]
fn what_is_not_there_is_said_so() {
    let proxy = Proxy::start();
    let answer = get(proxy.admin, "/metric");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("/metrics"), "{answer:?}");
    assert_eq!(ask(proxy.admin, "POST", "/ready", "localhost").expect("an answer").status, 405);
    let head = ask(proxy.admin, "HEAD", "/live", "localhost").expect("an answer");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

/// The samples of a text of OpenMetrics, by name and labels; panics where it is not well-formed.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut family, mut kind, mut seen) = (String::new(), String::new(), BTreeSet::new());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"# EOF"));
    for line in &lines[..lines.len() - 1] {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match what {
                "HELP" => assert!(seen.insert(name.to_owned()), "{name} comes twice"),
                "TYPE" => (family, kind) = (name.to_owned(), rest.to_owned()),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let name = series.split_once('{').map_or(series, |(name, labels)| {
            assert!(labels.ends_with('}'), "{line}");
            name
        });
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            _ => panic!("{kind}"),
        };
        let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is not of {family}"));
        assert!(suffixes.contains(&suffix), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
    }
    samples
}

#[test]
fn requests_are_counted_where_they_ended() {
    let (proxy, servers) = Proxy::start_with_servers();
    for number in 0..5 {
        assert_eq!(get(proxy.proxy, &format!("http://users/{number}")).status, 200);
    }
    assert_eq!(get(proxy.proxy, "http://strangers/").status, 404);

    let answer = get(proxy.admin, "/metrics");
    assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let figures = samples(&answer.body);
    let figure = |name: &str| *figures.get(name).unwrap_or_else(|| panic!("no {name}: {figures:#?}"));
    assert_eq!(figure("heddle_requests_total{service=\"users\",class=\"2xx\"}"), 5.0);
    assert_eq!(figure("heddle_requests_total{service=\"users\",class=\"5xx\"}"), 0.0);
    assert_eq!(figure("heddle_unrouted_requests_total{class=\"4xx\"}"), 1.0);
    assert_eq!(figure("heddle_plugin_decisions_total{service=\"users\",policy=\"url-hash\"}"), 5.0);
    assert_eq!(figure("heddle_plugin_faults_total{policy=\"url-hash\",kind=\"trap\"}"), 0.0);
    assert_eq!(figure("heddle_endpoints_eligible{service=\"users\"}"), servers.len() as f64);
    assert_eq!(figure("heddle_registry_connected{source=\"file\"}"), 1.0);
    assert_eq!(figure("heddle_ready"), 1.0);
    // Issue 10, 10: one series for each task, whether it has panicked or not.
    for task in ["admin", "certificates", "config", "health-checks", "maintenance", "plugins", "registry", "ticks"] {
        assert_eq!(figure(&format!("heddle_task_panics_total{{task=\"{task}\"}}")), 0.0);
    }
    assert!(figure("process_resident_memory_bytes") > 0.0);

    let mut buckets: Vec<f64> = figures
        .iter()
        .filter(|(name, _)| name.starts_with("heddle_request_duration_seconds_bucket"))
        .map(|(_, count)| *count)
        .collect();
    buckets.sort_by(f64::total_cmp);
    let all = figure("heddle_request_duration_seconds_bucket{le=\"+Inf\",service=\"users\"}");
    assert_eq!((buckets.last().copied(), all), (Some(5.0), 5.0));
    assert_eq!(figure("heddle_request_duration_seconds_count{service=\"users\"}"), 5.0);
}

/// The series of a policy are those of its name, whatever generation is in force, and a dropped file shows.
#[test]
fn another_generation_is_seen_and_counters_go_on() {
    let (proxy, _servers) = Proxy::start_with_servers();
    assert_eq!(get(proxy.proxy, "http://users/").status, 200);
    let generation = |figures: &BTreeMap<String, f64>| figures["heddle_plugin_generation{policy=\"url-hash\"}"];
    let before = samples(&get(proxy.admin, "/metrics").body);
    let folder = proxy.folder.path().join("plugins");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("url-hash.wasm"), heddle::plugin::builtin_policy("round-robin").expect("built in"))
        .expect("write");
    // round-robin takes no settings: it is refused as url-hash, and counted.
    let refused = wait_for("a refusal is counted", || {
        let now = samples(&get(proxy.admin, "/metrics").body);
        (now["heddle_plugin_refusals_total{policy=\"url-hash\"}"] == 1.0).then_some(now)
    });
    assert_eq!(generation(&refused), generation(&before));
    fs::write(folder.join("url-hash.wasm"), heddle::plugin::builtin_policy("ip-hash").expect("built in"))
        .expect("write");
    let after = wait_for("another generation is in force", || {
        let now = samples(&get(proxy.admin, "/metrics").body);
        (generation(&now) > generation(&before)).then_some(now)
    });
    let origin = after.keys().find(|name| name.starts_with("heddle_plugin_info{policy=\"url-hash\""));
    assert!(origin.expect("an info").contains("plugins/url-hash.wasm"), "{origin:?}");
    for (name, value) in &before {
        if name.contains("_total") {
            assert!(after[name] >= *value, "{name} fell");
        }
    }
}

#[test]
fn the_state_is_told_as_json() {
    let (proxy, servers) = Proxy::start_with_servers();
    assert_eq!(get(proxy.proxy, "http://users/").status, 200);
    let answer = get(proxy.admin, "/state");
    assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
    let state: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(state["ready"], true);
    assert_eq!(state["registry"]["sources"][0]["name"], "file");
    let users = &state["services"][0];
    assert_eq!(
        (&users["name"], &users["policy"], &users["requests"]),
        (&"users".into(), &"url-hash".into(), &1.into())
    );
    assert_eq!(users["settings"]["by"], "path");
    let addresses: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let shown: Vec<&str> =
        users["endpoints"].as_array().expect("a list").iter().filter_map(|of| of["address"].as_str()).collect();
    assert_eq!(shown, addresses);
    let plugin = state["plugins"].as_array().expect("a list").iter().find(|of| of["policy"] == "url-hash");
    assert_eq!(plugin.expect("the policy")["generation"]["origin"], "built in");
}

/// Issue 10, 15: a page that has a name of its own point here reads nothing.
#[test]
fn only_its_own_names_are_answered() {
    let proxy = Proxy::start();
    let status = |path: &str, host: &str| ask(proxy.admin, "GET", path, host).expect("an answer").status;
    for path in ["/live", "/ready", "/metrics", "/state", "/none", "http://rebind.example/live"] {
        assert_eq!(status(path, "rebind.example:4191"), 421, "{path}");
    }
    assert_eq!(status("http://rebind.example/live", "localhost"), 421);
    let address = proxy.admin.to_string();
    for host in [address.as_str(), "localhost", "[::1]:80", "heddle.example:80"] {
        assert_eq!(status("/live", host), 200, "{host}");
    }
}

/// Issue 10, 15.
#[test]
fn no_answer_is_taken_for_another_kind_of_content() {
    let proxy = Proxy::start();
    let asked = [
        ("GET", "/live", "localhost", 200),
        ("GET", "/ready", "localhost", 503),
        ("GET", "/metrics", "localhost", 200),
        ("HEAD", "/metrics", "localhost", 200),
        ("GET", "/state", "localhost", 200),
        ("HEAD", "/state", "localhost", 200),
        ("GET", "/none", "localhost", 404),
        ("PUT", "/live", "localhost", 405),
        ("POST", "/drain", "localhost", 403),
        ("GET", "/live", "rebind.example", 421),
        ("GET", "/live", "u@localhost", 400),
    ];
    for (method, path, host, status) in asked {
        let answer = ask(proxy.admin, method, path, host).expect("an answer");
        assert_eq!(answer.status, status, "{method} {path} {host}");
        assert!(answer.head.contains("x-content-type-options: nosniff"), "{method} {path} {host}: {answer:?}");
        if method == "HEAD" {
            assert_eq!(answer.body, "", "{path}");
            assert!(!answer.head.contains("content-length: 0"), "that would be another length than of GET: {answer:?}");
        }
    }
}

/// Issue 10, 15: 4,000 pipelined requests are read bit by bit, lose nothing, and keep no probe waiting.
#[test]
fn pipelined_requests_keep_no_probe_waiting() {
    let (proxy, _servers) = Proxy::start_with_servers();
    let pipelined = "HEAD /state HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(199)
        + "HEAD /state HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = connect(proxy.admin).expect("accepted");
            client.write_all(pipelined.as_bytes()).expect("sent");
            client
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(get(proxy.admin, "/live").status, 200);
    }
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).expect("answers");
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 200);
    }
}

/// Issue 10, 15: what is kept there says which services there are, and where.
#[test]
fn the_state_folder_is_its_owners() {
    let (proxy, _servers) = Proxy::start_with_servers();
    let folder = proxy.folder.path().join("state");
    let mode = |path: &std::path::Path| fs::metadata(path).ok().map(|found| found.mode() & 0o777);
    wait_for("the registry's answer is kept", || mode(&folder.join("registry.json")));
    assert_eq!((mode(&folder), mode(&folder.join("registry.json"))), (Some(0o700), Some(0o600)));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
    proxy.announce(&[]);
    wait_for("it is its owner's again", || (mode(&folder) == Some(0o700)).then_some(()));
}

/// Issue 10, 15: nothing from outside makes a long line, and no line holds the password of a URL.
#[test]
fn lines_of_the_log_are_short_and_hold_no_password() {
    let proxy = Proxy::start();
    let services = proxy.folder.path().join("services.toml");
    let long = "x".repeat(1 << 20);
    for (text, part) in [
        (format!("[services.users]\n{long} = 1"), "more bytes)"),
        ("[services.users]\nendpoints = ['http://user:secret@host:80']".to_owned(), "of \"http://***@host:80\""),
        (
            "[services.users]\nendpoints = []\n'http://user:secret@host' = 1".to_owned(),
            "unknown field `http://***@host`",
        ),
    ] {
        fs::write(&services, text).expect("write");
        proxy.heddle.after(part, 0);
    }
    let config = proxy.folder.path().join("heddle.toml");
    let endpoint = format!("http://user:secret{}@host:80", "t".repeat(100));
    let before = fs::read_to_string(&config).expect("it is there");
    fs::write(&config, format!("{before}endpoints = ['{endpoint}']")).expect("write");
    proxy.heddle.after("goes on with the configuration as it was", 0);
    for line in proxy.heddle.said() {
        let shown: String = line.chars().take(4096).collect();
        assert!(line.len() < 4096 && !line.contains("secret"), "{shown}");
    }
}

/// Issue 10, 17: `/state` shows endpoints' metadata, and the keys that were not taken as they are, with reasons.
#[test]
fn the_state_shows_metadata_and_skipped_keys() {
    let proxy = Proxy::start();
    let server = serve(|| ());
    let text = format!(
        "[services.users]\nendpoints = [{{ address = '{server}', weight = -1, metadata = {{ zone = 'a' }} }}, \
         '169.254.169.254:80']\n"
    );
    fs::write(proxy.folder.path().join("services.toml"), text).expect("write");
    wait_for("it is ready", || (get(proxy.admin, "/ready").status == 200).then_some(()));
    // An answer of just before may be kept for a second.
    let state = wait_for("the services are there", || {
        let state: serde_json::Value = serde_json::from_str(&get(proxy.admin, "/state").body).expect("JSON");
        state["services"][0]["endpoints"][0]["address"].is_string().then_some(state)
    });
    let users = &state["services"][0];
    assert_eq!(users["endpoints"].as_array().map(Vec::len), Some(1), "{users:#}");
    assert_eq!(users["endpoints"][0]["metadata"], serde_json::json!({"zone": "a"}));
    let registry = &state["registry"];
    assert_eq!(registry["registrations"], 2, "the key of the second is known, without an endpoint");
    assert!(registry["registry_bytes"].as_u64() > Some(0) && registry["max_endpoints"].as_u64() > Some(0));
    let skipped = registry["sources"][0]["skipped_keys"].as_array().expect("a list");
    let shown = |key: &str| skipped.iter().find(|skipped| skipped["key"] == key).expect(key);
    let (weight, denied) = (shown(&format!("users/{server}")), shown("users/169.254.169.254:80"));
    assert_eq!((&weight["kept"], &denied["kept"]), (&true.into(), &false.into()));
    assert!(weight["reason"].as_str().is_some_and(|reason| reason.contains("the weight -1")), "{weight}");
    assert!(denied["reason"].as_str().is_some_and(|reason| reason.contains("169.254.169.254")), "{denied}");
}
