//! Ways around the identity of clients that a configuration leaves open.
//!
//! Where a listener asks for certificates, services are told who the client is by a header that the proxy writes. That is
//! worth as much as the certainty that nobody else can write it: whatever reaches a service unread could be a request that
//! says so itself. None of this is wrong in itself, so that it is for the operator to know: `heddle check` and the log
//! of a start, or of a reload, say it.

use super::checked::{Config, Listener, ListenerTls, Protocol, UpstreamProtocol};

/// What there is to say, one line each; nothing where no listener asks for certificates.
pub fn bypasses(config: &Config) -> Vec<String> {
    let asking = config.listeners.iter().filter(|listener| listener.asks_for_certificates());
    let mut lines: Vec<String> = asking.clone().flat_map(|listener| of_asking(config, listener)).collect();
    if asking.count() > 0 {
        let others = config.listeners.iter().filter(|listener| !listener.asks_for_certificates());
        lines.extend(others.filter_map(|listener| of_other(config, listener)));
    }
    lines
}

/// Of a listener that asks for certificates.
fn of_asking(config: &Config, listener: &Listener) -> Vec<String> {
    let address = listener.address;
    let mut lines = Vec::new();
    let opaque = services(config, listener, |protocol| protocol == UpstreamProtocol::Opaque);
    if let Some(opaque) = opaque {
        lines.push(format!(
            "listener {address}: clients may send {opaque} anything unread (protocol = \"opaque\"), so that \
             x-forwarded-client-cert proves nothing there"
        ));
    }
    if listener.protocol == Protocol::Tcp
        && let Some(service) = &listener.service
        && config.services.get(service).protocol != UpstreamProtocol::Opaque
    {
        lines.push(format!(
            "listener {address}: every connection is refused, since a tcp listener that asks for certificates passes on \
             to a service of protocol = \"opaque\" only, and {service} is none"
        ));
    }
    if listener.passthrough.is_some() {
        lines.push(format!(
            "listener {address}: other hosts pass through, so that a client may reach an endpoint by its address and say \
             itself who it is; passthrough = false, or deny_networks, keeps it from that"
        ));
    }
    lines
}

/// Of a listener that asks for none, beside one that does.
fn of_other(config: &Config, listener: &Listener) -> Option<String> {
    let is_tcp = listener.protocol == Protocol::Tcp;
    let passes_tls = is_tcp && listener.tls == ListenerTls::Passthrough;
    let unread = services(config, listener, |protocol| {
        is_tcp || matches!(protocol, UpstreamProtocol::Negotiated | UpstreamProtocol::Opaque)
    })?;
    let (address, remedy) =
        (listener.address, if is_tcp { "" } else { "; protocol = \"http1\" or \"http2\" keeps it out" });
    let what = if passes_tls { "TLS" } else { "what is not recognized" };
    Some(format!(
        "listener {address}: it asks for no certificates and passes {what} on to {unread} unread, where it may hold an \
         x-forwarded-client-cert that nobody has proved{remedy}"
    ))
}

/// The services that a listener leads to and that speak something of this kind, in words; none where there are none.
fn services(config: &Config, listener: &Listener, is: impl Fn(UpstreamProtocol) -> bool) -> Option<String> {
    if let Some(name) = &listener.service {
        return is(config.services.get(name).protocol).then(|| name.to_string());
    }
    if is(config.services.default.protocol) {
        return Some("services whose protocol is not stated otherwise".to_owned());
    }
    let mut named: Vec<&str> =
        config.services.named.iter().filter(|(_, service)| is(service.protocol)).map(|(name, _)| &**name).collect();
    named.sort_unstable();
    (!named.is_empty()).then(|| named.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn lines(listeners: &[&str], services: &str) -> Vec<String> {
        let mut text = String::new();
        for (number, listener) in listeners.iter().enumerate() {
            text += &format!("[[listener]]\naddress = \"10.0.0.1:{}\"\n{listener}\n", number + 1);
        }
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["users".to_owned()]).unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let origin = folder.path().join("heddle.toml");
        let checked = config::parse(&(text + services), Path::new(&origin), &[]);
        bypasses(&checked.unwrap_or_else(|problems| panic!("{problems}")).config)
    }

    const ASKS: &str =
        "tls = { certificate = 'cert.pem', key = 'key.pem', client = 'required', client_ca = 'cert.pem' }";

    /// Issue 10, 12.
    #[test]
    fn each_way_around_is_named() {
        let has = |lines: Vec<String>, parts: &[&str]| {
            assert_eq!(lines.len(), parts.len(), "{lines:?}");
            for (line, part) in lines.iter().zip(parts) {
                assert!(line.contains(part), "{part:?} in {line:?}");
            }
        };
        let opaque = "[service.users]\nprotocol = 'opaque'\n[service.web]\nprotocol = 'http1'";
        let web = format!("{ASKS}\nservice = 'web'");
        let optional = ASKS.replace("required", "optional");
        has(lines(&[ASKS], ""), &[]);
        has(lines(&[&optional], opaque), &["10.0.0.1:1: clients may send users anything unread"]);
        has(lines(&[&web], opaque), &[]);
        has(lines(&[&format!("{ASKS}\npassthrough = true")], ""), &["other hosts pass through"]);
        let tcp = format!("{ASKS}\nprotocol = 'tcp'\nservice = ");
        has(lines(&[&format!("{tcp}'web'")], opaque), &["every connection is refused"]);
        has(lines(&[&format!("{tcp}'users'")], opaque), &["clients may send users anything"]);
        // Another listener beside it.
        let all = "services whose protocol is not stated otherwise unread";
        has(
            lines(&[ASKS, ""], ""),
            &[&format!("10.0.0.1:2: it asks for no certificates and passes what is not recognized on to {all}")],
        );
        has(lines(&[&web, "service = 'web'"], opaque), &[]);
        has(lines(&[&web, "protocol = 'tcp'\nservice = 'web'"], opaque), &["on to web unread"]);
        has(lines(&[ASKS, "protocol = 'tcp'\ntls = 'passthrough'"], ""), &["passes TLS on to"]);
        let stated = "[service.default]\nprotocol = 'http1'\n[service.db]\nprotocol = 'opaque'";
        has(
            lines(&[ASKS, ""], stated),
            &[
                "1: clients may send db anything",
                "2: it asks for no certificates and passes what is not recognized on to db",
            ],
        );
        has(lines(&["", "protocol = 'tcp'\nservice = 'web'"], opaque), &[]);
    }
}
