//! The configuration as it is written: which keys there are and what each may be. A key that is absent is `None` here;
//! defaults, inheritance and what needs a look at other files come in [`check`](super::check).
//!
//! It is read key by key rather than by serde, because serde stops at the first problem and all of them are wanted.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::checked::{Layout, Network};
use super::listener::{Listener, networks};
use super::names::NamePattern;
use super::read::{At, Section, take_item};
use super::service::Service;
use super::tls::{Client, KeyPair};
use super::tree::{Node, Value};
use super::value::{
    choice, duration, host_name, integer, member, name_pattern, nonempty, path, refuse, secret, service_name, size,
    socket_address, suffix, via,
};

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Timeouts. A day is as good as never.
pub(super) const WAIT: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;
const RESCAN: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;

/// The whole file.
pub(super) struct File {
    pub workers: Option<usize>,
    pub drain: Option<Duration>,
    pub drain_delay: Option<Duration>,
    pub state: Option<At<PathBuf>>,
    pub via: Option<String>,
    pub suffix: Option<String>,
    pub plugins: Plugins,
    pub plugin_share: Option<u32>,
    pub compile: Compile,
    pub admin: Option<Admin>,
    pub admin_socket: Option<At<PathBuf>>,
    pub certificates: Vec<KeyPair>,
    pub listeners: Vec<Listener>,
    pub registry: Registry,
    pub services: Services,
}

/// All of `[service...]`.
#[derive(Default)]
pub(super) struct Services {
    pub default: Service,
    pub named: Vec<NamedService>,
}

/// `[service.NAME]`.
pub(super) struct NamedService {
    pub name: At<Arc<str>>,
    pub settings: Service,
}

/// `[admin]`, or `admin = false`.
pub(super) enum Admin {
    Off,
    Table { address: Option<At<SocketAddr>>, hosts: Vec<String> },
}

/// `[plugins]`.
#[derive(Default)]
pub(super) struct Plugins {
    pub folder: Option<At<PathBuf>>,
    pub rescan: Option<Duration>,
    pub decision: Option<Duration>,
    pub change: Option<Duration>,
    pub memory: Option<usize>,
    pub memory_total: Option<usize>,
    pub faults: Option<u32>,
}

/// `[registry]`.
#[derive(Default)]
pub(super) struct Registry {
    pub etcd: Option<Etcd>,
    pub file: Option<FileSource>,
    /// `[registry.fixed]`.
    pub fixed: Option<SourceRules>,
    pub max_endpoints: Option<usize>,
    pub max_registry_bytes: Option<usize>,
}

/// What of a source is taken: a part of `[registry.etcd]`, `[registry.file]` and `[registry.fixed]`.
pub(super) struct SourceRules {
    pub names: Option<Vec<At<NamePattern>>>,
    pub allow_networks: Vec<At<Network>>,
    pub deny_networks: Vec<At<Network>>,
}

/// `[plugin_compile]` and `plugin_cache`.
#[derive(Default)]
pub(super) struct Compile {
    pub cpu: Option<Duration>,
    pub memory: Option<usize>,
    pub cache: Option<usize>,
}

/// `[registry.file]`.
pub(super) struct FileSource {
    pub path: Option<At<PathBuf>>,
    pub rescan: Option<Duration>,
    pub rules: SourceRules,
}

/// `[registry.etcd]`.
pub(super) struct Etcd {
    /// None for one that was refused.
    pub members: Vec<Option<At<String>>>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub password_file: Option<At<PathBuf>>,
    pub tls: Option<At<Client>>,
    pub watches: Vec<Watch>,
    pub connect_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub liveness: Option<Duration>,
    pub backoff: Option<Duration>,
    pub page: Option<u32>,
    pub rules: SourceRules,
}

/// One `[[registry.etcd.watch]]`.
pub(super) struct Watch {
    pub prefix: Option<At<String>>,
    pub layout: Option<Layout>,
}

impl File {
    /// Reads the top level; relative paths start from `base`.
    pub fn read(s: &mut Section<'_>, base: &Path) -> File {
        let registry = s.section("registry", |s| registry(s, base)).unwrap_or_default();
        File {
            workers: s.get("workers", integer(1..=1024)),
            drain: s.get("drain", duration(Duration::ZERO..=HOUR)),
            drain_delay: s.get("drain_delay", duration(Duration::ZERO..=HOUR)),
            state: s.at("state", path(base)),
            via: s.get("via", via),
            suffix: s.get("suffix", suffix),
            plugins: plugins(s, base),
            plugin_share: s.get("plugin_share", integer(1..=100)),
            compile: compile(s),
            admin: admin(s),
            admin_socket: s.at("admin_socket", path(base)),
            certificates: certificates(s, base),
            listeners: listeners(s, base),
            registry,
            services: s.section("service", |s| services(s, base)).unwrap_or_default(),
        }
    }
}

fn plugins(s: &mut Section<'_>, base: &Path) -> Plugins {
    if !matches!(s.peek("plugins"), Some(Value::Table(_))) {
        return Plugins { folder: s.at("plugins", path(base)), ..Plugins::default() };
    }
    let read = s.section("plugins", |s| Plugins {
        folder: s.at("folder", path(base)),
        rescan: s.get("rescan", duration(RESCAN)),
        decision: s.get("decision", duration(Duration::from_millis(5)..=Duration::from_secs(1))),
        change: s.get("change", duration(Duration::from_millis(5)..=Duration::from_secs(10))),
        memory: s.get("memory", size(1 << 20..=4 << 30)),
        memory_total: s.get("memory_total", size(1 << 20..=1 << 40)),
        faults: s.get("faults", integer(1..=1000)),
    });
    read.unwrap_or_default()
}

fn compile(s: &mut Section<'_>) -> Compile {
    let cache = s.get("plugin_cache", size(0..=4 << 30));
    let read = s.section("plugin_compile", |s| Compile {
        cpu: s.get("cpu", duration(Duration::from_secs(1)..=Duration::from_secs(600))),
        memory: s.get("memory", size(32 << 20..=64 << 30)),
        cache: None,
    });
    Compile { cache, ..read.unwrap_or_default() }
}

fn admin(s: &mut Section<'_>) -> Option<Admin> {
    if let Some(Value::Table(_)) = s.peek("admin") {
        return s.section("admin", |s| Admin::Table {
            address: s.at("address", socket_address),
            hosts: s
                .list("hosts", |node, key, problems| Some(take_item(node, key, problems, host_name)?.value))
                .unwrap_or_default(),
        });
    }
    s.get("admin", |node| match node.value {
        Value::Flag(false) => Ok(Admin::Off),
        _ => Err(refuse(node, "a table", "false, or [admin] with an address")),
    })
}

fn listeners(s: &mut Section<'_>, base: &Path) -> Vec<Listener> {
    s.needs_items("listener", "at least one [[listener]] with an address");
    let listeners =
        s.list("listener", |node, key, problems| Section::read(node, key, problems, |s| Listener::read(s, base)));
    listeners.unwrap_or_default()
}

fn certificates(s: &mut Section<'_>, base: &Path) -> Vec<KeyPair> {
    let certificates =
        s.list("certificate", |node, key, problems| Section::read(node, key, problems, |s| KeyPair::required(s, base)));
    certificates.unwrap_or_default()
}

fn registry(s: &mut Section<'_>, base: &Path) -> Registry {
    Registry {
        etcd: s.section("etcd", |s| etcd(s, base)),
        file: s.section("file", |s| FileSource {
            path: s.required("path", "the path of a .toml or .json file", path(base)),
            rescan: s.get("rescan", duration(RESCAN)),
            rules: source_rules(s),
        }),
        fixed: s.section("fixed", source_rules),
        max_endpoints: s.get("max_endpoints", integer(1..=10_000_000)),
        max_registry_bytes: s.get("max_registry_bytes", size(64 << 10..=64 << 30)),
    }
}

fn source_rules(s: &mut Section<'_>) -> SourceRules {
    // An empty list could mean all or nothing.
    if s.has("allow_networks") {
        s.needs_items("allow_networks", "at least one network, or no such key");
    }
    SourceRules {
        names: s.list("names", |node, key, problems| take_item(node, key, problems, name_pattern)),
        allow_networks: networks(s, "allow_networks"),
        deny_networks: networks(s, "deny_networks"),
    }
}

fn etcd(s: &mut Section<'_>, base: &Path) -> Etcd {
    report_incomplete_login(s);
    s.needs_items("endpoints", "the URLs of the members, such as [\"http://127.0.0.1:2379\"]");
    s.needs_items("watch", "at least one [[registry.etcd.watch]] with a prefix");
    let members = s.list("endpoints", |node, key, problems| Some(take_item(node, key, problems, member)));
    let watches = s.list("watch", |node, key, problems| Section::read(node, key, problems, watch));
    Etcd {
        members: members.unwrap_or_default(),
        user: s.get("user", nonempty),
        password: s.get("password", secret),
        password_file: s.at("password_file", path(base)),
        tls: s.section("tls", |s| At { value: Client::read(s, base), place: s.place.clone(), key: s.key.clone() }),
        watches: watches.unwrap_or_default(),
        connect_timeout: s.get("connect_timeout", duration(WAIT)),
        request_timeout: s.get("request_timeout", duration(WAIT)),
        liveness: s.get("liveness", duration(Duration::from_millis(300)..=HOUR)),
        backoff: s.get("backoff", duration(WAIT)),
        page: s.get("page", integer(1..=10_000)),
        rules: source_rules(s),
    }
}

fn report_incomplete_login(s: &mut Section<'_>) {
    match (s.has("user"), s.has("password"), s.has("password_file")) {
        (_, true, true) => {
            s.refuse("password_file", "stands beside password", "expected one of the two");
        }
        (true, false, false) => s.missing("password", "the user's password, or password_file"),
        (false, true, _) | (false, _, true) => s.missing("user", "the user whose password this is"),
        _ => {}
    }
}

fn watch(s: &mut Section<'_>) -> Watch {
    Watch {
        prefix: s.required("prefix", "the beginning of the keys, such as \"/services/\"", nonempty),
        layout: s.get("layout", choice("a layout", &[("heddle", Layout::Heddle), ("go-kit", Layout::GoKit)])),
    }
}

fn services(s: &mut Section<'_>, base: &Path) -> Services {
    let default = s.section("default", |s| {
        if s.has("endpoints") {
            s.refuse("endpoints", "endpoints belong to one service", "expected them in the table of a named service");
        }
        Service::read(s, base)
    });
    let mut named = Vec::new();
    for (name, entry) in s.take_rest() {
        let key = s.path(&name);
        let node = Node { place: entry.key, value: Value::Text(name), raw: None };
        let name = take_item(node, key.clone(), s.problems, service_name);
        let settings = Section::read(entry.node, key, s.problems, |s| Service::read(s, base));
        named.extend(name.zip(settings).map(|(name, settings)| NamedService { name, settings }));
    }
    Services { default: default.unwrap_or_default(), named }
}
