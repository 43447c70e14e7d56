//! From the configuration as written to the checked one: defaults, inheritance, and what only shows when several keys or
//! other files are looked at. Each default is said here and nowhere else (an endpoint's weight: beside its reading).

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::checked::{
    Config, Etcd, EtcdLogin, EtcdTls, EtcdWatch, FileSource, FixedEndpoint, Forwarded, Layout, Listener, ListenerTls,
    Passthrough, Plugins, Policy, Pool, Protocol, Registry, Service, Services, UpstreamProtocol,
};
use super::file::{self, Admin, File, NamedService};
use super::problem::{Place, Problem, Problems};
use super::read::At;
use super::{Balancer, Checked, service};

/// Checks what was read. Where there is a problem the result is no configuration to run by, and the problems say so.
pub(super) fn check(file: File, place: Place, problems: &mut Problems) -> Checked {
    let admin = match &file.admin {
        Some(Admin::At(at)) => Some(at.value),
        Some(Admin::Off) => None,
        None => Some(ADMIN),
    };
    report_shared_addresses(&file, problems);
    report_no_folder(file.state.as_ref(), problems);
    report_no_folder(file.plugins.folder.as_ref(), problems);

    let suffix = file.suffix.unwrap_or_else(|| "mesh".to_owned());
    report_unreachable_names(&file.services.named, &suffix, problems);
    let named = &file.services.named;
    let fixed = named.iter().filter_map(|service| fixed_endpoints(service, problems)).collect();
    let balancers = balancers(&file.services, place);
    let default = inherit(&file.services.default, &built_in_service());
    let inherited = |service: &NamedService| Arc::new(inherit(&service.settings, &default));
    let named = named.iter().map(|service| (service.name.value.clone(), inherited(service))).collect();

    let config = Config {
        workers: file.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        drain: file.drain.unwrap_or(Duration::from_secs(8)),
        state: file.state.map(|at| at.value),
        admin,
        via: file.via.unwrap_or_else(own_name),
        suffix,
        plugins: plugins(file.plugins),
        certificates: Vec::new(),
        listeners: file.listeners.into_iter().filter_map(|written| listener(written, problems)).collect(),
        registry: Registry {
            etcd: file.etcd.map(|written| etcd(written, problems)),
            file: file.file.and_then(|written| file_source(written, problems)),
            fixed,
        },
        services: Services { default: Arc::new(default), named },
    };
    Checked { config, balancers }
}

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4191);

/// A name in `Via` that no other process has: 64 random bits, drawn once.
fn own_name() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    let draw = || {
        use std::hash::{BuildHasher, RandomState};
        format!("heddle-{:016x}", RandomState::new().hash_one(std::process::id()))
    };
    NAME.get_or_init(draw).clone()
}

/// Two listeners, or a listener and the admin server, on one address. Port 0 is another one each time.
fn report_shared_addresses(file: &File, problems: &mut Problems) {
    let admin = match &file.admin {
        Some(Admin::At(at)) => Some(at),
        Some(Admin::Off) | None => None,
    };
    let listeners = file.listeners.iter().filter_map(|listener| listener.address.as_ref());
    let fixed = listeners.clone().chain(admin).filter(|at| at.value.port() != 0);
    report_doubles(fixed.map(|at| (at.value, at)), "expected an address of its own", problems);
    if file.admin.is_none() {
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

fn plugins(written: file::Plugins) -> Plugins {
    Plugins {
        folder: written.folder.map(|at| at.value),
        rescan: written.rescan.unwrap_or(Duration::from_secs(5)),
        decision: written.decision.unwrap_or(Duration::from_millis(10)),
        change: written.change.unwrap_or(Duration::from_millis(100)),
        memory: written.memory.unwrap_or(64 << 20),
        faults: written.faults.unwrap_or(4),
    }
}

fn listener(written: file::Listener, problems: &mut Problems) -> Option<Listener> {
    if let Some(at) = written.passthrough.as_ref().filter(|at| at.value && written.service.is_some()) {
        problems.add(at.problem(
            "nothing passes through: service takes all requests of this listener",
            "expected only one of the two keys",
        ));
    }
    let address = written.address?.value;
    let local = address.ip().to_canonical().is_loopback();
    Some(Listener {
        address,
        passthrough: written
            .passthrough
            .map_or(local && written.service.is_none(), |at| at.value)
            .then(Passthrough::default),
        service: written.service,
        protocol: Protocol::Http,
        tls: ListenerTls::Off,
        proxy_protocol: Vec::new(),
        forwarded: written.forwarded.unwrap_or(Forwarded::Off),
        detect_timeout: Duration::from_millis(200),
        body_timeout: written.body_timeout.unwrap_or(Duration::from_secs(5 * 60)),
        request_deadline: None,
        max_connections_per_client: None,
        max_headers: written.max_headers.unwrap_or(100),
        max_header_bytes: written.max_header_bytes.unwrap_or(64 << 10),
        max_uri_bytes: written.max_uri_bytes.unwrap_or(16 << 10),
        max_body_bytes: written.max_body_bytes.map(|bytes| bytes as u64),
        header_timeout: written.header_timeout.unwrap_or(Duration::from_secs(10)),
        idle_timeout: written.idle_timeout.unwrap_or(Duration::from_secs(60 * 60)),
        max_connections: written.max_connections.unwrap_or(65_536),
    })
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
    let folder = at.value.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let found = format!("there is no folder {}", folder.display());
        problems.add(at.problem(found, "expected a file in a folder that exists; the file itself may come later"));
    } else if at.value.is_dir() {
        problems.add(at.problem(format!("{} is a folder", at.value.display()), "expected a file"));
    }
    Some(FileSource { rescan: written.rescan.unwrap_or(Duration::from_secs(5)), path: at.value })
}

fn etcd(written: file::Etcd, problems: &mut Problems) -> Etcd {
    let members = written.members.iter().flatten().map(|at| (at.value.as_str(), at));
    report_doubles(members, "expected each member once", problems);
    let mut members = written.members.iter();
    let plain = members.all(|member| member.as_ref().is_some_and(|at| at.value.starts_with("http:")));
    if let Some(tls) = written.tls.as_ref().filter(|_| plain && !written.members.is_empty()) {
        problems.add(Problem {
            place: tls.place.clone(),
            key: tls.path.clone(),
            found: "no member is reached over TLS".to_owned(),
            remedy: "expected an https:// URL among the endpoints".to_owned(),
        });
    }
    Etcd {
        login: login(&written, problems),
        tls: written.tls.map(|tls| etcd_tls(tls, problems)),
        watches: watches(written.watches, problems),
        members: written.members.into_iter().flatten().map(|at| at.value).collect(),
        connect_timeout: written.connect_timeout.unwrap_or(Duration::from_secs(2)),
        request_timeout: written.request_timeout.unwrap_or(Duration::from_secs(5)),
        liveness: written.liveness.unwrap_or(Duration::from_secs(15)),
        backoff: written.backoff.unwrap_or(Duration::from_secs(1)),
        page: written.page.unwrap_or(1000),
    }
}

fn login(written: &file::Etcd, problems: &mut Problems) -> Option<EtcdLogin> {
    let from_file = written.password_file.as_ref().and_then(|at| {
        let password = contents(at, "password", problems)?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            problems.add(at.problem(format!("{} is empty", at.value.display()), "expected a file with the password"));
        }
        Some(password.to_owned())
    });
    let password = written.password.clone().or(from_file)?;
    Some(EtcdLogin { user: written.user.clone()?, password })
}

fn etcd_tls(written: file::Tls, problems: &mut Problems) -> EtcdTls {
    let mut pem = |at: Option<At<PathBuf>>, label: &str, what: &str| {
        let at = at?;
        if contents(&at, what, problems).is_some_and(|text| !text.contains(label)) {
            problems.add(at.problem(
                format!("{} holds no {what}", at.value.display()),
                format!("expected a PEM file with {label}"),
            ));
        }
        Some(at.value)
    };
    let ca = pem(written.ca, "-----BEGIN CERTIFICATE-----", "certificate");
    let certificate = pem(written.certificate, "-----BEGIN CERTIFICATE-----", "certificate");
    let key = pem(written.key, "PRIVATE KEY-----", "private key");
    EtcdTls { ca, client: certificate.zip(key), server_name: written.server_name }
}

/// The text of a file that is named by a key.
fn contents(at: &At<PathBuf>, what: &str, problems: &mut Problems) -> Option<String> {
    match std::fs::read_to_string(&at.value) {
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

fn built_in_service() -> Service {
    Service {
        balancer: Policy { plugin: Arc::from("round-robin"), config: Arc::from("{}") },
        protocol: UpstreamProtocol::Negotiated,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(15),
        stream_idle_timeout: Duration::from_secs(5 * 60),
        tunnel_idle_timeout: Duration::from_secs(60 * 60),
        tls: None,
        proxy_protocol: None,
        pool: Pool { max_idle: 128, idle_timeout: Duration::from_secs(60), max_connections: 1024 },
    }
}

/// What is written, and `base` where nothing is.
fn inherit(written: &service::Service, base: &Service) -> Service {
    Service {
        balancer: written.balancer.as_ref().map_or_else(|| base.balancer.clone(), |at| at.value.clone()),
        protocol: written.protocol.unwrap_or(base.protocol),
        connect_timeout: written.connect_timeout.unwrap_or(base.connect_timeout),
        request_timeout: written.request_timeout.unwrap_or(base.request_timeout),
        stream_idle_timeout: written.stream_idle_timeout.unwrap_or(base.stream_idle_timeout),
        tunnel_idle_timeout: base.tunnel_idle_timeout,
        tls: base.tls.clone(),
        proxy_protocol: base.proxy_protocol,
        pool: Pool {
            max_idle: written.pool.max_idle.unwrap_or(base.pool.max_idle),
            idle_timeout: written.pool.idle_timeout.unwrap_or(base.pool.idle_timeout),
            max_connections: written.pool.max_connections.unwrap_or(base.pool.max_connections),
        },
    }
}

/// The balancers that were written, and the built-in default if `[service.default]` names none.
fn balancers(services: &file::Services, place: Place) -> Vec<Balancer> {
    let file::Services { default, named } = services;
    let written = std::iter::once(default).chain(named.iter().map(|service| &service.settings));
    let written = written.filter_map(|service| service.balancer.clone());
    let built_in = At { value: built_in_service().balancer, place, key: "service.default.balancer".to_owned() };
    let unsaid = default.balancer.is_none().then_some(built_in);
    unsaid.into_iter().chain(written).map(|at| Balancer { key: at.key, place: at.place, policy: at.value }).collect()
}
