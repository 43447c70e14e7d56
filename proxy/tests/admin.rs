//! The admin server of the real binary: health, figures and state.

#![cfg(test)]

#[path = "support/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use process::{Heddle, ask, command, connect, get, serve, wait_for};
use tempfile::TempDir;

/// A proxy whose services come from a file that is not there yet.
struct Proxy {
    folder: TempDir,
    _heddle: Heddle,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "
            plugins = { folder = 'plugins', rescan = '100ms' }
            [admin]
            address = '127.0.0.1:0'
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
        Self { folder, _heddle: heddle, proxy, admin }
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
        let _it_may_be_closed = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: heddle\r\n\r\n");
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
