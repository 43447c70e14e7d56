//! `heddle check --config F`: everything that is wrong with a configuration, or what it says.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use crate::config::checked::{ClientCertificates, Config, Etcd, Layout, Listener, ListenerTls, Passthrough, Protocol};
use crate::config::{self, Checked, Problems};
use crate::log::Clean;

/// Reads the file, lays the environment over it, and asks `policies` about the balancers (see
/// [`Checked::check_policies`]). Problems go to standard error, one line each, and the exit code is 1; else a summary goes
/// to standard output, and after it what leaves a way around the identity of clients ([`config::bypasses`]).
pub fn check(path: &Path, policies: impl FnOnce(&Checked) -> Result<(), Problems>) -> ExitCode {
    let checked = config::load(path, &config::environment());
    match checked.and_then(|checked| policies(&checked).map(|()| checked)) {
        Ok(checked) => {
            println!("{} is in order.\n{}", path.display(), summary(&checked));
            config::bypasses(&checked.config).iter().for_each(|line| println!("warning   {line}"));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::FAILURE
        }
    }
}

/// What a configuration says, one line for each listener, source and service.
fn summary(checked: &Checked) -> String {
    let Config { admin, admin_socket, plugins, certificates, listeners, registry, services, .. } = &checked.config;
    let mut lines = Vec::new();
    lines.extend(listeners.iter().map(|listener| format!("listener  {}", listener_line(listener))));
    if !certificates.is_empty() {
        lines.push(format!("tls       {} for all listeners", count(certificates.len(), "certificate")));
    }
    lines.push(match admin {
        Some(address) => format!("admin     {address}{}", reach(address)),
        None => "admin     off".to_owned(),
    });
    lines.extend(admin_socket.as_ref().map(|path| format!("commands  {}", path.display())));
    lines.push(match &plugins.folder {
        Some(folder) => format!("plugins   built in, and {}", folder.display()),
        None => "plugins   built in".to_owned(),
    });
    lines.extend(registry.etcd.as_ref().map(|etcd| format!("registry  {}", etcd_line(etcd))));
    lines.extend(registry.file.as_ref().map(|file| format!("registry  file {}", file.path.display())));
    if !registry.fixed.is_empty() {
        lines.push(format!("registry  {} with endpoints in the configuration", count(registry.fixed.len(), "service")));
    }
    if registry.etcd.is_none() && registry.file.is_none() && registry.fixed.is_empty() {
        lines.push("registry  none: there will be no services".to_owned());
    }
    let mut named: Vec<_> = services.named.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let all = std::iter::once(("default", &services.default)).chain(named.into_iter().map(|(name, s)| (&**name, s)));
    for (name, service) in all {
        let settings = Some(&*service.balancer.config).filter(|config| *config != "{}");
        let mut line = format!("service   {name}: {}", service.balancer.plugin);
        if let Some(settings) = settings {
            // Writing to a string cannot fail.
            let _ = write!(line, " {settings}");
        }
        if service.tls.is_some() {
            line.push_str(", over TLS");
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Such as `0.0.0.0:4143 http over TLS, all to users (open to the network)`.
fn listener_line(listener: &Listener) -> String {
    let Listener { address, protocol, tls, service, passthrough, proxy_protocol, .. } = listener;
    let protocol = match protocol {
        Protocol::Http => "http",
        Protocol::Tcp => "tcp",
        Protocol::Auto => "auto",
    };
    let mut parts = vec![format!("{address} {protocol}{}", tls_part(listener))];
    if let ListenerTls::Terminate(tls) = tls {
        parts.extend(match tls.client {
            ClientCertificates::Off => None,
            ClientCertificates::Optional(_) => Some("clients may have certificates".to_owned()),
            ClientCertificates::Required(_) => Some("clients must have certificates".to_owned()),
        });
    }
    if !proxy_protocol.is_empty() {
        let networks = proxy_protocol.iter().map(ToString::to_string).collect::<Vec<_>>();
        parts.push(format!("PROXY header from {}", networks.join(" ")));
    }
    parts.push(match service {
        Some(service) => format!("all to {service}"),
        None if listener.protocol == Protocol::Tcp => "by server name".to_owned(),
        None => "by host".to_owned(),
    });
    parts.extend(passthrough.as_ref().map(|passthrough| {
        let listed = *passthrough != Passthrough::default();
        format!("other hosts pass through{}", if listed { " as the lists say" } else { "" })
    }));
    format!("{}{}", parts.join(", "), reach(address))
}

fn tls_part(listener: &Listener) -> &'static str {
    match (&listener.tls, listener.protocol) {
        (ListenerTls::Off, _) => "",
        (ListenerTls::Terminate(_), Protocol::Auto) => " with or without TLS",
        (ListenerTls::Terminate(_), Protocol::Http | Protocol::Tcp) => " over TLS",
        (ListenerTls::Passthrough, _) => " with TLS untouched",
    }
}

fn reach(address: &SocketAddr) -> &'static str {
    if address.ip().to_canonical().is_loopback() { "" } else { " (open to the network)" }
}

fn etcd_line(etcd: &Etcd) -> String {
    let watches = etcd.watches.iter().map(|watch| {
        let layout = match watch.layout {
            Layout::Heddle => "heddle",
            Layout::GoKit => "go-kit",
        };
        format!("{} ({layout})", String::from_utf8_lossy(&watch.prefix))
    });
    format!("etcd {}: {}", Clean(etcd.members.join(" ")), watches.collect::<Vec<_>>().join(", "))
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_say_what_they_speak() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["users".to_owned()]).unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let text = r#"
            certificate = [{ certificate = "cert.pem", key = "key.pem" }]
            listener = [
                { address = "127.0.0.1:1", protocol = "auto", tls = true },
                { address = "127.0.0.1:2", tls = { client = "required", client_ca = "cert.pem" }, service = "users" },
                { address = "127.0.0.1:3", tls = { client = "optional", client_ca = "cert.pem" }, passthrough = false },
                { address = "127.0.0.1:4", protocol = "tcp", tls = "passthrough", proxy_protocol = ["::1", "10.0.0.0/8"] },
                { address = "127.0.0.1:5", protocol = "tcp", service = "users" },
                { address = "127.0.0.1:6", protocol = "auto", passthrough = { deny_ports = [25] } },
            ]
            [service.users]
            tls = true
        "#;
        let checked = config::parse(text, &folder.path().join("heddle.toml"), &[]).unwrap();
        let expected = "
listener  127.0.0.1:1 auto with or without TLS, by host, other hosts pass through
listener  127.0.0.1:2 http over TLS, clients must have certificates, all to users
listener  127.0.0.1:3 http over TLS, clients may have certificates, by host
listener  127.0.0.1:4 tcp with TLS untouched, PROXY header from ::1/128 10.0.0.0/8, by server name
listener  127.0.0.1:5 tcp, all to users
listener  127.0.0.1:6 auto, by host, other hosts pass through as the lists say
tls       1 certificate for all listeners
admin     127.0.0.1:4191
plugins   built in
registry  none: there will be no services
service   default: round-robin
service   users: round-robin, over TLS";
        assert_eq!(summary(&checked), expected.trim_start());
    }

    #[test]
    fn summary_says_what_goes_where() {
        let text = r#"
            plugins = "policies"
            [[listener]]
            address = "127.0.0.1:4140"
            [[listener]]
            address = "0.0.0.0:8080"
            service = "users"
            [registry.etcd]
            endpoints = ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]
            watch = [{ prefix = "/services/", layout = "go-kit" }]
            [service.orders]
            balancer = { plugin = "url-hash", by = "path" }
            [service.carts]
            endpoints = ["10.0.0.9:80"]
        "#;
        let checked = config::parse(text, Path::new("etc/heddle.toml"), &[]).unwrap();
        let expected = r#"
listener  127.0.0.1:4140 http, by host, other hosts pass through
listener  0.0.0.0:8080 http, all to users (open to the network)
admin     127.0.0.1:4191
plugins   built in, and etc/policies
registry  etcd http://10.0.0.1:2379 http://10.0.0.2:2379: /services/ (go-kit)
registry  1 service with endpoints in the configuration
service   default: round-robin
service   carts: round-robin
service   orders: url-hash {"by":"path"}"#;
        assert_eq!(summary(&checked), expected.trim_start());
    }
}
