//! From the configuration as written to the checked one: defaults, inheritance, and what only shows when several keys or
//! other files are looked at. Each default is said here and nowhere else (an endpoint's weight: beside its reading).

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::checked::{
    CLIENT_SHARE, Compile, Config, Ejection, Etcd, EtcdLogin, EtcdWatch, FileSource, FixedEndpoint, KeyPair, Layout,
    Listener, ListenerTls, Password, Plugins, Policy, Pool, Protocol, Registry, RegistryLimits, RetryBudget, Service,
    Services, SourceRules, TlsClient, UpstreamProtocol,
};
use super::file::{self, Admin, File, NamedService};
use super::names::NamePattern;
use super::problem::{Place, Problems};
use super::read::At;
use super::{Checked, Listening, Written, service, tls as written};
use crate::cgroup;
use crate::policy::Role;
use crate::regular;

mod health;
mod listener;
mod tls;

/// Checks what was read. Where there is a problem the result is no configuration to run by, and the problems say so.
pub(super) fn check(file: File, place: Place, problems: &mut Problems) -> Checked {
    let (admin, admin_hosts) = match &file.admin {
        Some(Admin::Table { address, hosts }) => (Some(address.as_ref().map_or(ADMIN, |at| at.value)), hosts.clone()),
        Some(Admin::Off) => (None, Vec::new()),
        None => (Some(ADMIN), Vec::new()),
    };
    let listening = listening(&file);
    report_shared_addresses(&file, problems);
    report_no_folder(file.state.as_ref(), problems);
    report_no_folder(file.plugins.folder.as_ref(), problems);
    report_no_socket(file.admin_socket.as_ref(), problems);

    let suffix = file.suffix.unwrap_or_else(|| "mesh".to_owned());
    report_unreachable_names(&file.services.named, &suffix, problems);
    let named = &file.services.named;
    let fixed = named.iter().filter_map(|service| fixed_endpoints(service, problems)).collect();
    report_files_of_services(&file.services, problems);
    health::report(&file.services, problems);
    let policies = policies(&file.services, place);
    let default = inherit(&file.services.default, &built_in_service());
    let inherited = |service: &NamedService| Arc::new(inherit(&service.settings, &default));
    let named: HashMap<_, _> = named.iter().map(|service| (service.name.value.clone(), inherited(service))).collect();
    let services = Services { default: Arc::new(default), named };
    report_idle_queues(&file.services, &services, problems);

    let certificates = certificates(&file.certificates, problems);
    let has_common = !file.certificates.is_empty();
    let listeners = file.listeners.into_iter();
    let listeners: Vec<_> = listeners.filter_map(|written| listener::check(written, has_common, problems)).collect();
    report_idle_certificates(&file.certificates, &listeners, problems);
    let registry = registry(file.registry, fixed, problems);
    let config = Config {
        workers: file.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        drain: file.drain.unwrap_or(Duration::from_secs(8)),
        drain_delay: file.drain_delay.unwrap_or(Duration::ZERO),
        plugins: plugins(
            file.plugins,
            file.plugin_share,
            &file.compile,
            file.state.as_ref().map(|at| at.value.as_path()),
        ),
        state: file.state.map(|at| at.value),
        admin,
        admin_hosts,
        admin_socket: file.admin_socket.map(|at| at.value),
        via: file.via.unwrap_or_else(own_name),
        suffix,
        certificates,
        listeners,
        registry,
        services,
    };
    Checked { config, listening, policies }
}

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4191);

/// The longest path of a Unix socket, in bytes (unix(7): 108 with the NUL).
const LONGEST_SOCKET: usize = 107;

/// A name in `Via` that no other process has: 64 random bits, drawn once.
fn own_name() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    let draw = || {
        use std::hash::{BuildHasher, RandomState};
        format!("heddle-{:016x}", RandomState::new().hash_one(std::process::id()))
    };
    NAME.get_or_init(draw).clone()
}

/// Every address that is written.
fn listening(file: &File) -> Vec<Listening> {
    let admin = match &file.admin {
        Some(Admin::Table { address, .. }) => address.as_ref(),
        Some(Admin::Off) | None => None,
    };
    let all = file.listeners.iter().filter_map(|listener| listener.address.as_ref()).chain(admin);
    all.map(|at| Listening { key: at.key.clone(), place: at.place.clone(), address: at.value }).collect()
}

/// Two listeners, or a listener and the admin server, on one address. Port 0 is another one each time.
fn report_shared_addresses(file: &File, problems: &mut Problems) {
    let admin = match &file.admin {
        Some(Admin::Table { address, .. }) => address.as_ref(),
        Some(Admin::Off) | None => None,
    };
    let listeners = file.listeners.iter().filter_map(|listener| listener.address.as_ref());
    let fixed = listeners.clone().chain(admin).filter(|at| at.value.port() != 0);
    report_doubles(fixed.map(|at| (at.value, at)), "expected an address of its own", problems);
    if file.admin.is_none() || matches!(&file.admin, Some(Admin::Table { address: None, .. })) {
        for at in listeners.filter(|at| at.value == ADMIN) {
            let remedy = "expected another address, or one for [admin]";
            problems.add(at.problem(format!("{ADMIN} is where the admin server listens by default"), remedy));
        }
    }
}

fn report_no_folder(at: Option<&At<PathBuf>>, problems: &mut Problems) {
    if let Some(at) = at.filter(|at| at.value.exists() && !at.value.is_dir()) {
        problems.add(at.problem(format!("{} is not a folder", at.value.display()), "expected a folder"));
    }
}

/// Where no Unix socket can be.
fn report_no_socket(at: Option<&At<PathBuf>>, problems: &mut Problems) {
    let Some(at) = at else { return };
    let (path, length) = (at.value.display(), at.value.as_os_str().len());
    let there = std::fs::symlink_metadata(&at.value);
    if length > LONGEST_SOCKET {
        let found = format!("{path} has {length} bytes");
        problems.add(at.problem(found, format!("expected a path of at most {LONGEST_SOCKET} bytes")));
    } else if there.is_ok_and(|there| !there.file_type().is_socket()) {
        problems.add(at.problem(format!("{path} is no socket"), "expected a path at which there is nothing else"));
    } else if !folder_of(&at.value).is_dir() {
        let found = format!("there is no folder {}", folder_of(&at.value).display());
        problems.add(at.problem(found, "expected a socket in a folder that exists"));
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn report_unreachable_names(services: &[NamedService], suffix: &str, problems: &mut Problems) {
    if suffix.is_empty() {
        return;
    }
    for NamedService { name, .. } in services {
        if let Some(short) = name.value.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.')) {
            let found = format!("no host names this service: {:?} means {short:?}", &*name.value);
            problems.add(name.problem(found, format!("expected {short:?}, or another suffix")));
        }
    }
}

/// Half of what the process may have, in bytes.
fn half_of_memory() -> usize {
    usize::try_from(cgroup::available_memory() / 2).unwrap_or(usize::MAX)
}

fn plugins(written: file::Plugins, share: Option<u32>, compile: &file::Compile, state: Option<&Path>) -> Plugins {
    let (memory, default) = (written.memory.unwrap_or(64 << 20), Compile::default());
    Plugins {
        folder: written.folder.map(|at| at.value),
        rescan: written.rescan.unwrap_or(Duration::from_secs(5)),
        decision: written.decision.unwrap_or(Duration::from_millis(10)),
        change: written.change.unwrap_or(Duration::from_millis(100)),
        memory,
        memory_total: written.memory_total.unwrap_or_else(|| half_of_memory().max(memory)),
        faults: written.faults.unwrap_or(4),
        share: share.unwrap_or(25),
        cache: state.map(|state| state.join("plugins")),
        compile: Compile {
            cpu: compile.cpu.unwrap_or(default.cpu),
            memory: compile.memory.map(|bytes| bytes as u64),
            cache: compile.cache.map_or(default.cache, |bytes| bytes as u64),
        },
    }
}

fn certificates(written: &[written::KeyPair], problems: &mut Problems) -> Vec<KeyPair> {
    let files = written.iter().filter_map(|pair| pair.certificate.as_ref());
    report_doubles(files.map(|at| (at.value.clone(), at)), "expected each certificate once", problems);
    written.iter().filter_map(|pair| pair.check(problems)).collect()
}

/// Certificates that no listener could present: TLS ends at none, and none has tunnels in which it might.
fn report_idle_certificates(written: &[written::KeyPair], listeners: &[Listener], problems: &mut Problems) {
    let presents =
        |listener: &Listener| listener.protocol != Protocol::Tcp || matches!(listener.tls, ListenerTls::Terminate(_));
    if !listeners.is_empty() && !listeners.iter().any(presents) {
        for at in written.iter().filter_map(|pair| pair.certificate.as_ref()) {
            problems
                .add(at.problem("no listener presents it", "expected a listener with tls = true, or none of these"));
        }
    }
}

fn registry(
    written: file::Registry,
    fixed: HashMap<Arc<str>, Vec<FixedEndpoint>>,
    problems: &mut Problems,
) -> Registry {
    let memory = cgroup::memory_limit();
    let defaults = RegistryLimits::within(memory);
    let limits = RegistryLimits {
        max_endpoints: written.max_endpoints.unwrap_or(defaults.max_endpoints),
        max_bytes: written.max_registry_bytes.unwrap_or(defaults.max_bytes),
    };
    // What is written here is the operator's own word for each name.
    let everything = || NamePattern::new("*").into_iter().collect();
    let mut fixed_rules = SourceRules { names: everything(), ..SourceRules::default() };
    if let Some(written) = written.fixed {
        let has_names = written.names.is_some();
        let rules = source_rules(written);
        fixed_rules = SourceRules { names: if has_names { rules.names } else { fixed_rules.names }, ..rules };
    }
    Registry {
        etcd: written.etcd.map(|written| Etcd { limits, largest: largest_answer(memory), ..etcd(written, problems) }),
        file: written.file.and_then(|written| file_source(written, problems)),
        fixed,
        fixed_rules,
        limits,
    }
}

/// The largest answer of etcd that is taken: it is in memory up to three times while it is read. The least holds what
/// etcd lets one request write by default, 1.5 MiB.
fn largest_answer(memory: Option<u64>) -> usize {
    let memory = memory.and_then(|memory| usize::try_from(memory).ok()).unwrap_or(usize::MAX);
    (memory / 16).clamp(4 << 20, 64 << 20)
}

fn source_rules(written: file::SourceRules) -> SourceRules {
    SourceRules {
        names: written.names.into_iter().flatten().map(|at| at.value).collect(),
        allow_networks: written.allow_networks.into_iter().map(|at| at.value).collect(),
        deny_networks: written.deny_networks.into_iter().map(|at| at.value).collect(),
    }
}

/// The file itself may come later, as a mounted one does; its folder may not, since that is how a mistyped path looks.
fn file_source(written: file::FileSource, problems: &mut Problems) -> Option<FileSource> {
    let at = written.path?;
    if !matches!(at.value.extension().and_then(|ending| ending.to_str()), Some("toml" | "json")) {
        problems.add(at.problem(
            format!("{} ends neither in .toml nor in .json", at.value.display()),
            "expected a TOML or JSON file with one of these endings",
        ));
    }
    let folder = folder_of(&at.value);
    if !folder.is_dir() {
        let found = format!("there is no folder {}", folder.display());
        problems.add(at.problem(found, "expected a file in a folder that exists; the file itself may come later"));
    } else if at.value.is_dir() {
        problems.add(at.problem(format!("{} is a folder", at.value.display()), "expected a file"));
    }
    let rescan = written.rescan.unwrap_or(Duration::from_secs(5));
    Some(FileSource { rescan, path: at.value, rules: source_rules(written.rules) })
}

fn etcd(written: file::Etcd, problems: &mut Problems) -> Etcd {
    let members = written.members.iter().flatten().map(|at| (at.value.as_str(), at));
    report_doubles(members, "expected each member once", problems);
    let mut members = written.members.iter();
    let plain = members.all(|member| member.as_ref().is_some_and(|at| at.value.starts_with("http:")));
    if let Some(at) = written.tls.as_ref().filter(|_| plain && !written.members.is_empty()) {
        let remedy = "expected an https:// URL among the endpoints";
        problems.add(at.problem("no member is reached over TLS", remedy));
    }
    Etcd {
        login: login(&written, problems),
        tls: written.tls.as_ref().map(|at| tls::etcd(&at.value, problems)),
        watches: watches(written.watches, problems),
        members: written.members.into_iter().flatten().map(|at| at.value).collect(),
        connect_timeout: written.connect_timeout.unwrap_or(Duration::from_secs(2)),
        request_timeout: written.request_timeout.unwrap_or(Duration::from_secs(5)),
        liveness: written.liveness.unwrap_or(Duration::from_secs(15)),
        backoff: written.backoff.unwrap_or(Duration::from_secs(1)),
        page: written.page.unwrap_or(1000),
        rules: source_rules(written.rules),
        largest: largest_answer(None),
        limits: RegistryLimits::default(),
    }
}

fn login(written: &file::Etcd, problems: &mut Problems) -> Option<EtcdLogin> {
    let from_file = written.password_file.as_ref().and_then(|at| {
        let password = contents(at, "password", problems)?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            problems.add(at.problem(format!("{} is empty", at.value.display()), "expected a file with the password"));
        }
        // Read again at each login.
        Some(Password::File(at.value.clone()))
    });
    let password = written.password.clone().map(Password::Text).or(from_file)?;
    Some(EtcdLogin { user: written.user.clone()?, password })
}

/// The text of a file that is named by a key.
fn contents(at: &At<PathBuf>, what: &str, problems: &mut Problems) -> Option<String> {
    let read = regular::read(&at.value, regular::TEXT);
    match read.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other)) {
        Ok(text) => Some(text),
        Err(error) => {
            let found = format!("{} cannot be read: {error}", at.value.display());
            problems.add(at.problem(found, format!("expected a file with the {what}")));
            None
        }
    }
}

fn watches(written: Vec<file::Watch>, problems: &mut Problems) -> Vec<EtcdWatch> {
    let prefixes: Vec<&At<String>> = written.iter().filter_map(|watch| watch.prefix.as_ref()).collect();
    for (i, at) in prefixes.iter().enumerate() {
        let clash = prefixes.iter().take(i).find(|o| o.value.starts_with(&at.value) || at.value.starts_with(&o.value));
        if let Some(other) = clash {
            let found = format!("{:?} and {} ({:?}) have keys in common", at.value, other.key, other.value);
            problems.add(at.problem(found, "expected prefixes of which none begins with another"));
        }
    }
    let checked = |watch: file::Watch| {
        let prefix = watch.prefix?.value.into_bytes();
        Some(EtcdWatch { prefix, layout: watch.layout.unwrap_or(Layout::Heddle) })
    };
    written.into_iter().filter_map(checked).collect()
}

fn fixed_endpoints(service: &NamedService, problems: &mut Problems) -> Option<(Arc<str>, Vec<FixedEndpoint>)> {
    let written = service.settings.endpoints.as_ref()?;
    let addresses = written.iter().map(|at| (at.value.address.as_str(), at));
    report_doubles(addresses, "expected each address once", problems);
    Some((service.name.value.clone(), written.iter().map(|at| at.value.clone()).collect()))
}

/// Reports each value that stands a second time.
fn report_doubles<'a, K: Eq + Hash + Debug, T: 'a>(
    all: impl Iterator<Item = (K, &'a At<T>)>,
    remedy: &str,
    problems: &mut Problems,
) {
    let mut seen: HashMap<K, &str> = HashMap::new();
    for (value, at) in all {
        if let Some(first) = seen.get(&value) {
            problems.add(at.problem(format!("{value:?} is {first} too"), remedy));
        } else {
            seen.insert(value, &at.key);
        }
    }
}

fn report_files_of_services(services: &file::Services, problems: &mut Problems) {
    let named = services.named.iter().map(|service| &service.settings);
    for service in std::iter::once(&services.default).chain(named) {
        if let Some(service::Tls::On(client)) = &service.tls {
            client.check(problems);
        }
    }
}

/// Queues in which nobody would ever wait, since nothing limits the requests of those that have them.
fn report_idle_queues(written: &file::Services, checked: &Services, problems: &mut Problems) {
    let waits = |at: &&At<u32>| at.value > 0;
    let of_all = written.default.max_pending.as_ref().filter(waits);
    let of_all = of_all.filter(|_| !checked.named.values().chain([&checked.default]).any(|s| s.max_requests.is_some()));
    let of_one = written.named.iter().filter_map(|service| {
        let at = service.settings.max_pending.as_ref().filter(waits)?;
        checked.get(&service.name.value).max_requests.is_none().then_some(at)
    });
    for at in of_all.into_iter().chain(of_one) {
        problems.add(at.problem("nobody waits where max_requests sets no limit", "expected max_requests beside it"));
    }
}

fn built_in_service() -> Service {
    Service {
        balancer: Policy { plugin: Arc::from("round-robin"), config: Arc::from("{}") },
        retry: None,
        breaker: None,
        ejection: Ejection { max_percent: 10, panic_percent: 50 },
        retry_budget: RetryBudget { percent: 20, min: 3 },
        max_replay_bytes: 64 << 10,
        protocol: UpstreamProtocol::Negotiated,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(15),
        stream_idle_timeout: Duration::from_secs(5 * 60),
        tunnel_idle_timeout: Duration::from_secs(60 * 60),
        tls: None,
        proxy_protocol: None,
        max_connections: None,
        client_share: CLIENT_SHARE,
        max_requests: None,
        max_pending: 0,
        max_pending_time: Duration::from_secs(1),
        pool: Pool { max_idle: 128, idle_timeout: Duration::from_secs(60), max_connections: 1024, max_requests: None },
        health_check: None,
    }
}

/// What is written, and `base` where nothing is.
fn inherit(written: &service::Service, base: &Service) -> Service {
    Service {
        balancer: written.balancer.as_ref().map_or_else(|| base.balancer.clone(), |at| at.value.clone()),
        retry: written.retry.as_ref().map_or_else(|| base.retry.clone(), |at| at.value.clone()),
        breaker: written.breaker.as_ref().map_or_else(|| base.breaker.clone(), |at| at.value.clone()),
        ejection: Ejection {
            max_percent: written.ejection.max_percent.unwrap_or(base.ejection.max_percent),
            panic_percent: written.ejection.panic_percent.unwrap_or(base.ejection.panic_percent),
        },
        retry_budget: RetryBudget {
            percent: written.retry_budget.percent.unwrap_or(base.retry_budget.percent),
            min: written.retry_budget.min.unwrap_or(base.retry_budget.min),
        },
        max_replay_bytes: written.max_replay_bytes.unwrap_or(base.max_replay_bytes),
        protocol: written.protocol.unwrap_or(base.protocol),
        connect_timeout: written.connect_timeout.unwrap_or(base.connect_timeout),
        request_timeout: written.request_timeout.unwrap_or(base.request_timeout),
        stream_idle_timeout: written.stream_idle_timeout.unwrap_or(base.stream_idle_timeout),
        tunnel_idle_timeout: written.tunnel_idle_timeout.unwrap_or(base.tunnel_idle_timeout),
        tls: match &written.tls {
            Some(service::Tls::On(client)) => Some(client.inherit(base.tls.as_ref().unwrap_or(&TlsClient::default()))),
            Some(service::Tls::Off) => None,
            None => base.tls.clone(),
        },
        proxy_protocol: written.proxy_protocol.unwrap_or(base.proxy_protocol),
        max_connections: written.max_connections.or(base.max_connections),
        client_share: written.client_share.unwrap_or(base.client_share),
        max_requests: written.max_requests.or(base.max_requests),
        max_pending: written.max_pending.as_ref().map_or(base.max_pending, |at| at.value),
        max_pending_time: written.max_pending_time.unwrap_or(base.max_pending_time),
        pool: Pool {
            max_idle: written.pool.max_idle.unwrap_or(base.pool.max_idle),
            idle_timeout: written.pool.idle_timeout.unwrap_or(base.pool.idle_timeout),
            max_connections: written.pool.max_connections.unwrap_or(base.pool.max_connections),
            max_requests: written.pool.max_requests.or(base.pool.max_requests),
        },
        health_check: match &written.health_check {
            Some(check) => check.inherit(base.health_check.as_deref()).map(Arc::new),
            None => base.health_check.clone(),
        },
    }
}

/// The policies that were written, and the built-in balancer if `[service.default]` names none.
fn policies(services: &file::Services, place: Place) -> Vec<Written> {
    let file::Services { default, named } = services;
    let built_in = At { value: built_in_service().balancer, place, key: "service.default.balancer".to_owned() };
    let unsaid = default.balancer.is_none().then_some(built_in);
    let unsaid = unsaid.into_iter().map(|at| (at, Role::Balancer));
    let written = std::iter::once(default).chain(named.iter().map(|service| &service.settings)).flat_map(|service| {
        let balancer = service.balancer.clone().map(|at| (at, Role::Balancer));
        let retry = on(&service.retry).map(|at| (at, Role::RetryPolicy));
        let breaker = on(&service.breaker).map(|at| (at, Role::CircuitBreaker));
        [balancer, retry, breaker].into_iter().flatten()
    });
    let written = unsaid.chain(written);
    written.map(|(at, role)| Written { key: at.key, place: at.place, policy: at.value, role }).collect()
}

/// A policy that is not switched off.
fn on(written: &Option<At<Option<Policy>>>) -> Option<At<Policy>> {
    let At { value, place, key } = written.clone()?;
    Some(At { value: value?, place, key })
}
