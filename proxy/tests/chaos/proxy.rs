//! The proxy under test: the real binary, its configuration and its plugins.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::Signal;
use tempfile::TempDir;

use super::guests::{guest, instead, module, on_path};
use super::process::{Heddle, command, figure, wait_for};

pub struct Proxy {
    heddle: Heddle,
    pub address: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
    base: String,
}

impl Proxy {
    /// Starts it and waits until it knows all endpoints. `hedge` goes into the settings of the retry
    /// policy, `settings` are keys of `[service.default]`.
    pub fn start(etcd: &str, hedge: &str, settings: &str, endpoints: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        let base = format!(
            r#"workers = 2
plugins = {{ folder = {plugins:?}, rescan = "100ms" }}
[admin]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[registry.etcd]
endpoints = ["{etcd}"]
[[registry.etcd.watch]]
prefix = "/services/"
[service.default]
retry = {{ plugin = "retry", attempts = 5, timeout = "8s", per_try_timeout = "1s", statuses = [500, 502, 503, 504]{hedge} }}
breaker = {{ plugin = "circuit-breaker", consecutive_failures = 3 }}
health_check = {{ type = "http", path = "/health", interval = "500ms", timeout = "500ms" }}
{settings}"#
        );
        fs::write(folder.path().join("heddle.toml"), &base).unwrap();
        let file = folder.path().join("heddle.toml");
        let mut command = command(&["run", "--config", file.to_str().unwrap()]);
        command.env("NO_COLOR", "1");
        let heddle = Heddle::start(command);
        let (address, admin) = (heddle.address("listening on "), heddle.address("health and metrics on "));
        let proxy = Self { heddle, address, admin, folder, base };
        proxy.wait_all_in_use(endpoints);
        proxy
    }

    fn figure(&self, name: &str) -> f64 {
        figure(self.admin, name)
    }

    /// Waits until all endpoints are eligible and none is ejected.
    pub fn wait_all_in_use(&self, endpoints: usize) {
        wait_for("all endpoints are in use", || {
            let eligible = self.figure("heddle_endpoints_eligible") == endpoints as f64;
            (eligible && self.figure("heddle_endpoints_ejected") == 0.0).then_some(())
        });
    }

    /// Waits until etcd is followed.
    pub fn wait_connected(&self) {
        wait_for("etcd is followed", || (self.figure("heddle_registry_connected") == 1.0).then_some(()));
    }

    fn plugin(&self, policy: &str) -> PathBuf {
        self.folder.path().join("plugins").join(format!("{policy}.wasm"))
    }

    /// Puts a plugin into the folder, and waits until it is in force.
    pub fn replace_plugin(&self, policy: &str, bytes: &[u8]) {
        let aside = self.folder.path().join("aside");
        fs::write(&aside, bytes).unwrap();
        fs::rename(aside, self.plugin(policy)).unwrap();
        let loaded = format!("/{policy}.wasm ");
        wait_for("the plugin is in force", || {
            let is_loaded = |line: &String| line.contains("loaded from") && line.contains(&loaded);
            self.heddle.said().iter().any(is_loaded).then_some(())
        });
    }

    pub fn remove_plugin(&self, policy: &str) {
        fs::remove_file(self.plugin(policy)).unwrap();
    }

    /// Has it read another configuration, and waits until that is in force.
    pub fn reload(&self, key_of_default_service: &str) {
        let before = self.figure("heddle_config_reloads_total");
        fs::write(self.folder.path().join("heddle.toml"), format!("{}{key_of_default_service}\n", self.base)).unwrap();
        self.heddle.signal(Signal::HUP);
        wait_for("the configuration is in force", || {
            (self.figure("heddle_config_reloads_total") > before).then_some(())
        });
    }

    pub fn figures(&self) -> String {
        let figures = ["retries", "hedges", "ejections", "service_openings", "failed_attempts", "plugin_faults"];
        let said = figures.map(|name| format!("{name} {}", self.figure(&format!("heddle_{name}_total"))));
        said.join(", ")
    }

    pub fn log(&self) -> String {
        self.heddle.said().join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the proxy said:\n{}", self.log());
        }
    }
}

/// Policies that pass their probe and trap under load: the balancer and the retry policy when asked about what no server
/// has, the circuit breaker at every success.
pub fn trapping_plugins() -> [(&'static str, Vec<u8>); 3] {
    let balancer = guest(&[("pick", &on_path('m', instead::TRAP))]);
    let retry = module(RETRY, "retry-policy");
    let breaker = module(BREAKER, "circuit-breaker");
    [("round-robin", balancer), ("retry", retry), ("circuit-breaker", breaker)]
}

/// Traps where there is a status, which the probe's outcome has not.
const RETRY: &str = include_str!("../guests/trapping_retry.wat");
const BREAKER: &str = include_str!("../guests/trapping_breaker.wat");
