//! `heddle check --config F`: everything that is wrong with a configuration, or what it says.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use crate::config::checked::{Config, Etcd, Layout, Listener};
use crate::config::{self, Checked, Problems};

/// Reads the file, lays the environment over it, and asks `policies` about the balancers (see
/// [`Checked::check_policies`]). Problems go to standard error, one line each, and the exit code is 1; else a summary goes
/// to standard output.
pub fn check(path: &Path, policies: impl FnOnce(&Checked) -> Result<(), Problems>) -> ExitCode {
    let checked = config::load(path, &config::environment());
    match checked.and_then(|checked| policies(&checked).map(|()| checked)) {
        Ok(checked) => {
            println!("{} is in order.\n{}", path.display(), summary(&checked));
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
    let Config { admin, plugins, listeners, registry, services, .. } = &checked.config;
    let mut lines = Vec::new();
    lines.extend(listeners.iter().map(|listener| format!("listener  {}", listener_line(listener))));
    lines.push(match admin {
        Some(address) => format!("admin     {address}{}", reach(address)),
        None => "admin     off".to_owned(),
    });
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
        lines.push(line);
    }
    lines.join("\n")
}

fn listener_line(listener: &Listener) -> String {
    let Listener { address, service, passthrough, .. } = listener;
    let target = match service {
        Some(service) => format!("all to {service}"),
        None if passthrough.is_some() => "by host, other hosts pass through".to_owned(),
        None => "by host".to_owned(),
    };
    format!("{address} http, {target}{}", reach(address))
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
    format!("etcd {}: {}", etcd.members.join(" "), watches.collect::<Vec<_>>().join(", "))
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

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
