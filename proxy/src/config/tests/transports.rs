//! What listeners and services say about transports: TLS, TCP, tunnels, limits.

use std::net::IpAddr;
use std::time::Duration;

use tempfile::TempDir;

use super::super::checked::{
    ClientCertificates, KeyPair, Listener, ListenerTls, Network, Passthrough, Protocol, ProxyProtocol, TlsClient,
    TlsServer, UpstreamProtocol,
};
use super::problems::{assert_problems, assert_problems_after_listener};
use super::*;

/// A folder with `cert.pem` and `key.pem`, and `other.pem` and `other-key.pem`.
fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (certificate, key) in [("cert.pem", "key.pem"), ("other.pem", "other-key.pem")] {
        let made = rcgen::generate_simple_self_signed(["users".to_owned()]).unwrap();
        std::fs::write(folder.path().join(certificate), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join(key), made.signing_key.serialize_pem()).unwrap();
    }
    folder
}

fn pair(folder: &TempDir, certificate: &str, key: &str) -> KeyPair {
    KeyPair { certificate: folder.path().join(certificate), key: folder.path().join(key) }
}

fn parse_beside(folder: &TempDir, text: &str) -> Result<checked::Config, String> {
    let origin = folder.path().join("heddle.toml");
    let checked = parse(text, &origin, &[]).map_err(|problems| problems.to_string());
    checked
        .map(|checked| checked.config)
        .map_err(|problems| problems.replace(&format!("{}/", folder.path().display()), ""))
}

/// The listener that this says besides its address.
fn listener_beside(folder: &TempDir, text: &str) -> Listener {
    let config = parse_beside(folder, &format!("{LISTENER}{text}")).unwrap_or_else(|problems| panic!("{problems}"));
    config.listeners.into_iter().next().unwrap()
}

fn listener(text: &str) -> Listener {
    config_of(&format!("{LISTENER}{text}")).listeners.remove(0)
}

fn network(address: &str, prefix: u8) -> Network {
    Network { address: address.parse().unwrap(), prefix }
}

#[test]
fn a_listener_bounds_what_it_is_not_told_about() {
    let listener = listener("");
    assert_eq!((listener.protocol, &listener.tls), (Protocol::Http, &ListenerTls::Off));
    assert_eq!(listener.passthrough, Some(Passthrough::default()));
    assert_eq!(listener.proxy_protocol, []);
    assert_eq!(listener.detect_timeout, Duration::from_millis(200));
    assert_eq!(listener.body_timeout, Duration::from_secs(60));
    assert_eq!(listener.request_deadline, None);
    assert_eq!(listener.max_connections_per_client, None);
    assert_eq!((listener.max_headers, listener.max_header_bytes), (100, 64 << 10));
    assert_eq!((listener.max_uri_bytes, listener.max_body_bytes), (16 << 10, None));
}

#[test]
fn a_listener_can_be_told_all_bounds() {
    let listener = listener(
        r#"
        protocol = "auto"
        proxy_protocol = ["10.0.0.0/8", "::1", "192.0.2.7"]
        detect_timeout = "50ms"
        body_timeout = "1s"
        request_deadline = "1m"
        max_connections = 50
        max_connections_per_client = 50
        max_headers = 20
        max_header_bytes = 4096
        max_uri_bytes = "4KiB"
        max_body_bytes = "1GiB"
        "#,
    );
    assert_eq!(listener.protocol, Protocol::Auto);
    assert_eq!(listener.proxy_protocol, [network("10.0.0.0", 8), network("::1", 128), network("192.0.2.7", 32)]);
    assert_eq!(listener.detect_timeout, Duration::from_millis(50));
    assert_eq!(listener.body_timeout, Duration::from_secs(1));
    assert_eq!(listener.request_deadline, Some(Duration::from_secs(60)));
    assert_eq!(listener.max_connections_per_client, Some(50));
    assert_eq!((listener.max_headers, listener.max_header_bytes), (20, 4096));
    assert_eq!((listener.max_uri_bytes, listener.max_body_bytes), (4096, Some(1 << 30)));
}

/// A short head leaves room for a short target only.
#[test]
fn a_target_is_no_longer_than_its_head() {
    assert_eq!(listener("max_header_bytes = \"2KiB\"").max_uri_bytes, 2048);
    assert_eq!(listener("max_header_bytes = \"1MiB\"").max_uri_bytes, 16 << 10);
}

#[test]
fn tcp_listeners_pass_nothing_through() {
    let plain = listener("protocol = \"tcp\"\nservice = \"db\"");
    assert_eq!((plain.protocol, plain.passthrough), (Protocol::Tcp, None));
    let by_name = listener("protocol = \"tcp\"\ntls = \"passthrough\"\npassthrough = false\nheader_timeout = \"1s\"");
    assert_eq!((by_name.service, by_name.passthrough, by_name.tls), (None, None, ListenerTls::Passthrough));
    let auto = listener("protocol = \"auto\"\ntls = \"passthrough\"");
    assert_eq!((auto.passthrough, auto.tls), (Some(Passthrough::default()), ListenerTls::Passthrough));
}

#[test]
fn passthrough_can_be_narrowed() {
    let text = r#"
        [listener.passthrough]
        allow_ports = [80, "8000-8999", "7-7"]
        deny_ports = [8080]
        allow_networks = ["0.0.0.0/0", "169.254.169.254", "fd00::/8"]
        deny_networks = ["10.0.0.0/8"]
    "#;
    let expected = Passthrough {
        allow_ports: vec![80..=80, 8000..=8999, 7..=7],
        deny_ports: vec![8080..=8080],
        allow_networks: vec![network("0.0.0.0", 0), network("169.254.169.254", 32), network("fd00::", 8)],
        deny_networks: vec![network("10.0.0.0", 8)],
    };
    assert_eq!(listener(text).passthrough, Some(expected));
    assert_eq!(listener("passthrough = {}").passthrough, Some(Passthrough::default()));
}

#[test]
fn tls_of_a_listener_is_read_in_full() {
    let folder = files();
    let text = r#"
        [listener.tls]
        certificate = "cert.pem"
        key = "key.pem"
        certificates = [{ certificate = "other.pem", key = "other-key.pem" }]
        client = "optional"
        client_ca = "cert.pem"
        min_version = "1.3"
        session_tickets = false
        handshake_timeout = "2s"
    "#;
    let expected = TlsServer {
        certificates: vec![pair(&folder, "cert.pem", "key.pem"), pair(&folder, "other.pem", "other-key.pem")],
        client: ClientCertificates::Optional(folder.path().join("cert.pem")),
        only_tls13: true,
        client_crl: None,
        session_tickets: false,
        handshake_timeout: Duration::from_secs(2),
    };
    assert_eq!(listener_beside(&folder, text).tls, ListenerTls::Terminate(expected));
    let required = "tls = { certificate = 'cert.pem', key = 'key.pem', client = 'required', client_ca = 'other.pem' }";
    let expected = TlsServer {
        certificates: vec![pair(&folder, "cert.pem", "key.pem")],
        client: ClientCertificates::Required(folder.path().join("other.pem")),
        only_tls13: false,
        client_crl: None,
        session_tickets: true,
        handshake_timeout: Duration::from_secs(10),
    };
    assert_eq!(listener_beside(&folder, required).tls, ListenerTls::Terminate(expected));
    assert_eq!(listener_beside(&folder, "tls = false").tls, ListenerTls::Off);
}

/// Certificates of the top level are enough, for `true` and for a table without any.
#[test]
fn listeners_share_certificates() {
    let folder = files();
    for tls in ["true", "{}", "{ client = 'off' }"] {
        let text = format!("{LISTENER}tls = {tls}\n[[certificate]]\ncertificate = 'cert.pem'\nkey = 'key.pem'");
        let config = parse_beside(&folder, &text).unwrap();
        assert_eq!(config.certificates, [pair(&folder, "cert.pem", "key.pem")]);
        let ListenerTls::Terminate(tls) = &config.listeners[0].tls else { panic!("{:?}", config.listeners) };
        assert_eq!((&tls.certificates[..], &tls.client), (&[][..], &ClientCertificates::Off));
    }
}

#[test]
fn services_inherit_transports_key_by_key() {
    let folder = files();
    let text = format!(
        "{LISTENER}
        [service.default]
        tls = {{ ca = 'cert.pem', certificate = 'cert.pem', key = 'key.pem' }}
        tunnel_idle_timeout = '2h'
        proxy_protocol = 'v2'
        [service.same]
        [service.on]
        tls = true
        [service.off]
        tls = false
        proxy_protocol = 'off'
        protocol = 'negotiated'
        [service.own]
        tls = {{ certificate = 'other.pem', key = 'other-key.pem', server_name = 'users.internal' }}
        proxy_protocol = 'v1'
        tunnel_idle_timeout = '1m'
        protocol = 'http1'"
    );
    let config = parse_beside(&folder, &text).unwrap();
    let common = TlsClient {
        ca: Some(folder.path().join("cert.pem")),
        client: Some(pair(&folder, "cert.pem", "key.pem")),
        server_name: None,
    };
    for name in ["same", "on", "not-written"] {
        let service = config.services.get(name);
        assert_eq!((&service.tls, service.proxy_protocol), (&Some(common.clone()), Some(ProxyProtocol::V2)), "{name}");
        assert_eq!(service.tunnel_idle_timeout, Duration::from_secs(7200));
    }
    let off = config.services.get("off");
    assert_eq!((&off.tls, off.proxy_protocol, off.protocol), (&None, None, UpstreamProtocol::Negotiated));
    let own = config.services.get("own");
    let expected = TlsClient {
        client: Some(pair(&folder, "other.pem", "other-key.pem")),
        server_name: Some("users.internal".to_owned()),
        ..common
    };
    assert_eq!((&own.tls, own.proxy_protocol), (&Some(expected), Some(ProxyProtocol::V1)));
    assert_eq!((own.tunnel_idle_timeout, own.protocol), (Duration::from_secs(60), UpstreamProtocol::Http1));

    let silent = config_of(LISTENER);
    let silent = silent.services.get("any");
    assert_eq!((&silent.tls, silent.proxy_protocol), (&None, None));
    assert_eq!(silent.tunnel_idle_timeout, Duration::from_secs(3600));
    let roots = config_of(&format!("{LISTENER}[service.users]\ntls = true"));
    assert_eq!(roots.services.get("users").tls, Some(TlsClient::default()));
}

#[test]
fn variables_reach_into_tls() {
    let folder = files();
    let variables = [
        ("HEDDLE__CERTIFICATE", "[{ certificate = 'cert.pem', key = 'key.pem' }]"),
        ("HEDDLE__LISTENER__0__TLS__CLIENT", "required"),
        ("HEDDLE__LISTENER__0__TLS__CLIENT_CA", "other.pem"),
        ("HEDDLE__LISTENER__0__TLS__MIN_VERSION", "1.3"),
        ("HEDDLE__LISTENER__0__PASSTHROUGH__DENY_NETWORKS", "['10.0.0.0/8']"),
        ("HEDDLE__SERVICE__USERS__TLS__SERVER_NAME", "10.0.0.1"),
        ("HEDDLE__SERVICE__ORDERS__TLS", "true"),
    ];
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let config = parse(LISTENER, &folder.path().join("heddle.toml"), &variables).unwrap().config;
    let ListenerTls::Terminate(tls) = &config.listeners[0].tls else { panic!("{:?}", config.listeners) };
    assert_eq!(tls.client, ClientCertificates::Required(folder.path().join("other.pem")));
    assert!(tls.only_tls13);
    assert_eq!(config.listeners[0].passthrough.as_ref().unwrap().deny_networks, [network("10.0.0.0", 8)]);
    let name = |service: &str| config.services.get(service).tls.as_ref().unwrap().server_name.clone();
    assert_eq!((name("users").as_deref(), name("orders")), (Some("10.0.0.1"), None));
}

#[test]
fn keys_that_make_no_sense_for_a_protocol() {
    let requests = "expected it on a listener whose protocol is http or auto";
    let senseless =
        |line: usize, key: &str| format!(":{line}: listener[0].{key}: a tcp listener sees no requests; {requests}");
    assert_problems_after_listener(&[
        (
            "protocol = \"tcp\"",
            &[
                ":1: listener[0].service: missing; expected the service that connections go to, or tls = \"passthrough\", which routes by server name",
            ],
        ),
        (
            "protocol = \"tcp\"\nservice = \"db\"\nforwarded = \"off\"\nbody_timeout = \"1s\"\nrequest_deadline = \"1s\"\nmax_headers = 1\nmax_header_bytes = 1024\nmax_uri_bytes = 64\nmax_body_bytes = 0\n",
            &[
                &senseless(5, "forwarded"),
                &senseless(6, "body_timeout"),
                &senseless(7, "request_deadline"),
                &senseless(8, "max_headers"),
                &senseless(9, "max_header_bytes"),
                &senseless(10, "max_uri_bytes"),
                &senseless(11, "max_body_bytes"),
            ],
        ),
        (
            "protocol = \"tcp\"\nservice = \"db\"\npassthrough = true\ndetect_timeout = \"1s\"\nidle_timeout = \"1s\"\nheader_timeout = \"1s\"",
            &[
                ":5: listener[0].passthrough: a connection to a tcp listener names no host; expected it on a listener whose protocol is http or auto",
                ":5: listener[0].passthrough: nothing passes through: service takes all requests of this listener; expected only one of the two keys",
                ":6: listener[0].detect_timeout: nothing is detected on a tcp listener; expected it with protocol = \"auto\"",
                ":7: listener[0].idle_timeout: nothing is read on this listener before a connection is passed on; expected it beside proxy_protocol or tls, or tunnel_idle_timeout in the table of the service",
                ":8: listener[0].header_timeout: nothing is read on this listener before a connection is passed on; expected it beside proxy_protocol or tls",
            ],
        ),
        (
            "protocol = \"tcp\"\nservice = \"db\"\nproxy_protocol = [\"::1\"]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\npassthrough = false",
            &[],
        ),
        ("protocol = \"tcp\"\ntls = \"passthrough\"\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"", &[]),
        (
            "tls = \"passthrough\"",
            &[
                ":3: listener[0].tls: an http listener has no use for TLS that does not end at it; expected a table with certificate and key, or protocol = \"auto\" or \"tcp\"",
            ],
        ),
        (
            "protocol = \"https\"\ntls = \"passthrough\"",
            &[":3: listener[0].protocol: \"https\" is not a protocol; expected \"http\" or \"tcp\" or \"auto\""],
        ),
        (
            "passthrough = {}\nservice = \"users\"",
            &[
                ":3: listener[0].passthrough: nothing passes through: service takes all requests of this listener; expected only one of the two keys",
            ],
        ),
        (
            "max_connections = 10\nmax_connections_per_client = 11\nmax_header_bytes = 1024\nmax_uri_bytes = 1025",
            &[
                ":4: listener[0].max_connections_per_client: 11 is more than all clients may have together; expected at most max_connections, which is 10",
                ":6: listener[0].max_uri_bytes: 1025 is more than a whole head may have; expected at most max_header_bytes, which is 1024",
            ],
        ),
        (
            "detect_timeout = \"11s\"\nmax_headers = 0\nmax_uri_bytes = 63\nmax_body_bytes = -1",
            &[
                ":3: listener[0].detect_timeout: \"11s\" is out of range; expected 1ms to 10s",
                ":4: listener[0].max_headers: 0 is out of range; expected 1 to 1000",
                ":5: listener[0].max_uri_bytes: 63 is out of range; expected 64 B to 1 MiB",
                ":6: listener[0].max_body_bytes: -1 is not a size; expected bytes, or a text such as \"64MiB\"",
            ],
        ),
        (
            "max_body_bytes = \"2000GiB\"",
            &[":3: listener[0].max_body_bytes: \"2000GiB\" is out of range; expected 0 B to 1024 GiB"],
        ),
    ]);
}

#[test]
fn networks_and_ports() {
    let network = "expected ADDRESS/BITS such as \"10.0.0.0/8\", or an address";
    let refused =
        |i: usize, text: &str| format!(":3: listener[0].proxy_protocol[{i}]: {text} is not a network; {network}");
    assert_problems_after_listener(&[
        (
            "proxy_protocol = [\"10.0.0.0/33\", \"::/129\", \"10.0.0.0/+8\", \"10.0.0/8\", \"localhost\", 10, \"10.0.0.0/\"]",
            &[
                &refused(0, "\"10.0.0.0/33\""),
                &refused(1, "\"::/129\""),
                &refused(2, "\"10.0.0.0/+8\""),
                &refused(3, "\"10.0.0/8\""),
                &refused(4, "\"localhost\""),
                &refused(5, "10"),
                &refused(6, "\"10.0.0.0/\""),
            ],
        ),
        (
            "proxy_protocol = [\n\"10.1.2.3/8\",\n\"1.2.3.4/0\",\n\"fd00::1/64\",\n\"::ffff:10.0.0.1/104\",\n\"::ffff:10.0.0.1\",\n\"10.0.0.1/32\", \"10.0.0.1\"]",
            &[
                ":4: listener[0].proxy_protocol[0]: \"10.1.2.3/8\" has bits set after the first 8; expected \"10.0.0.0/8\"",
                ":5: listener[0].proxy_protocol[1]: \"1.2.3.4/0\" has bits set after the first 0; expected \"0.0.0.0/0\"",
                ":6: listener[0].proxy_protocol[2]: \"fd00::1/64\" has bits set after the first 64; expected \"fd00::/64\"",
                ":7: listener[0].proxy_protocol[3]: \"::ffff:10.0.0.1/104\" is an IPv4 network in IPv6 form; expected \"10.0.0.0/8\"",
                ":8: listener[0].proxy_protocol[4]: \"::ffff:10.0.0.1\" is an IPv4 network in IPv6 form; expected \"10.0.0.1/32\"",
                ":9: listener[0].proxy_protocol[6]: \"10.0.0.1/32\" is listener[0].proxy_protocol[5] too; expected each network once",
            ],
        ),
        (
            "[listener.passthrough]\nallow_ports = [0,\n65536,\n\"9000-8000\",\n\"80\",\n\"0-80\",\n\"80-+90\",\ntrue]",
            &[
                ":4: listener[0].passthrough.allow_ports[0]: 0 is out of range; expected 1 to 65535",
                ":5: listener[0].passthrough.allow_ports[1]: 65536 is out of range; expected 1 to 65535",
                ":6: listener[0].passthrough.allow_ports[2]: \"9000-8000\" ends before it begins; expected \"8000-9000\"",
                ":7: listener[0].passthrough.allow_ports[3]: \"80\" is not a port; expected 1 to 65535, or a text such as \"8000-8999\"",
                ":8: listener[0].passthrough.allow_ports[4]: \"0-80\" is not a port; expected 1 to 65535, or a text such as \"8000-8999\"",
                ":9: listener[0].passthrough.allow_ports[5]: \"80-+90\" is not a port; expected 1 to 65535, or a text such as \"8000-8999\"",
                ":10: listener[0].passthrough.allow_ports[6]: true is not a port; expected 1 to 65535, or a text such as \"8000-8999\"",
            ],
        ),
        (
            "[listener.passthrough]\nallow_ports = []\nallow_networks = []\ndeny_ports = []",
            &[
                ":4: listener[0].passthrough.allow_ports: an empty list; expected at least one port, or no such key",
                ":5: listener[0].passthrough.allow_networks: an empty list; expected at least one network, or no such key",
            ],
        ),
        (
            "[listener.passthrough]\nallow_ports = [80, \"8000-8100\"]\ndeny_ports = [\"1-1023\", \"8100-9000\"]\nallow_networks = [\"10.1.0.0/16\", \"::/0\"]\ndeny_networks = [\"10.0.0.0/8\", \"fd00::/8\"]",
            &[
                ":4: listener[0].passthrough.allow_ports[0]: 80 is denied by listener[0].passthrough.deny_ports[0] (1-1023); expected it in only one of the two lists: what is denied stays so",
                ":6: listener[0].passthrough.allow_networks[0]: 10.1.0.0/16 is denied by listener[0].passthrough.deny_networks[0] (10.0.0.0/8); expected it in only one of the two lists: what is denied stays so",
            ],
        ),
        (
            "passthrough = \"some\"",
            &[
                ":3: listener[0].passthrough: \"some\" is not a truth value; expected true, false, or a table with allow_ports, deny_networks and the like",
            ],
        ),
    ]);
}

#[test]
fn certificates_and_keys() {
    let nothing = "there is no certificate to present; expected certificate and key in it, or a [[certificate]] for all listeners";
    let is_absent = |file: &str, what: &str| {
        format!("{file} cannot be read: No such file or directory (os error 2); expected a file with the {what}")
    };
    let (no_certificate, no_key) = (is_absent("absent", "certificate"), is_absent("absent", "private key"));
    assert_problems_after_listener(&[
        ("tls = true", &[&format!(":3: listener[0].tls: {nothing}")]),
        ("tls = { certificates = [] }", &[&format!(":3: listener[0].tls: {nothing}")]),
        (
            "tls = \"off\"",
            &[
                ":3: listener[0].tls: \"off\" is not a way to treat TLS; expected a table with certificate and key, true, false or \"passthrough\"",
            ],
        ),
        (
            "[listener.tls]\ncertificate = \"absent\"",
            &[
                ":3: listener[0].tls.key: missing; expected the PEM file with the certificate's key",
                &format!(":4: listener[0].tls.certificate: {no_certificate}"),
            ],
        ),
        (
            "[listener.tls]\nkey = \"Cargo.toml\"\ncertificates = [{},\n{ key = \"absent\" },\n1]",
            &[
                ":3: listener[0].tls.certificate: missing; expected the PEM file with the key's certificate",
                ":4: listener[0].tls.key: Cargo.toml holds no private key; expected a PEM file with PRIVATE KEY-----",
                ":5: listener[0].tls.certificates[0].certificate: missing; expected the PEM file with a certificate chain",
                ":5: listener[0].tls.certificates[0].key: missing; expected the PEM file with the certificate's key",
                ":6: listener[0].tls.certificates[1].certificate: missing; expected the PEM file with the key's certificate",
                &format!(":6: listener[0].tls.certificates[1].key: {no_key}"),
                ":7: listener[0].tls.certificates[2]: 1 is not a table; expected a table of keys and values",
            ],
        ),
        (
            "tls = true\n[[certificate]]\ncertificate = \"Cargo.toml\"\nkey = \"absent\"",
            &[
                ":5: certificate[0].certificate: Cargo.toml holds no certificate; expected a PEM file with -----BEGIN CERTIFICATE-----",
                &format!(":6: certificate[0].key: {no_key}"),
            ],
        ),
        (
            "[service.default.tls]\nca = \"absent\"\n[service.users]\ntls = { ca = \"Cargo.toml\", key = \"absent\",\nserver_name = \"a b\" }\n[service.orders]\ntls = \"on\"\nproxy_protocol = 2",
            &[
                &format!(":4: service.default.tls.ca: {no_certificate}"),
                ":6: service.users.tls.certificate: missing; expected the PEM file with the key's certificate",
                ":6: service.users.tls.ca: Cargo.toml holds no certificate; expected a PEM file with -----BEGIN CERTIFICATE-----",
                &format!(":6: service.users.tls.key: {no_key}"),
                ":7: service.users.tls.server_name: \"a b\" is not the name of a server; expected a DNS name or an IP address, such as \"users.internal\"",
                ":9: service.orders.tls: \"on\" is not a way to use TLS; expected true, false, or a table such as { ca = \"ca.pem\" }",
                ":10: service.orders.proxy_protocol: 2 is not a version of the PROXY protocol; expected \"off\" or \"v1\" or \"v2\"",
            ],
        ),
    ]);
    assert_problems(&[(
        "[[listener]]\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nservice = \"db\"\n[[certificate]]\ncertificate = \"Cargo.toml\"",
        &[
            ":5: certificate[0].key: missing; expected the PEM file with the certificate's key",
            ":6: certificate[0].certificate: Cargo.toml holds no certificate; expected a PEM file with -----BEGIN CERTIFICATE-----",
            ":6: certificate[0].certificate: no listener presents it; expected a listener with tls = true, or none of these",
        ],
    )]);
}

#[test]
fn certificates_of_clients() {
    let folder = files();
    let tls = "tls = { certificate = \"cert.pem\", key = \"key.pem\"";
    for (text, expected) in [
        (
            "client = \"required\"",
            ":3: listener[0].tls.client_ca: missing; expected the PEM file with the authorities that sign clients' certificates",
        ),
        (
            "client_ca = \"cert.pem\"",
            ":3: listener[0].tls.client_ca: no client is asked for a certificate; expected client = \"required\" or client = \"optional\" beside it",
        ),
        (
            "client = \"off\", client_ca = \"cert.pem\"",
            ":3: listener[0].tls.client_ca: no client is asked for a certificate; expected client = \"required\" or client = \"optional\" beside it",
        ),
        (
            "client = \"yes\", client_ca = \"cert.pem\"",
            ":3: listener[0].tls.client: \"yes\" is not a way to treat clients' certificates; expected \"off\" or \"optional\" or \"required\"",
        ),
        (
            "client = \"optional\", client_ca = \"key.pem\"",
            ":3: listener[0].tls.client_ca: key.pem holds no certificate; expected a PEM file with -----BEGIN CERTIFICATE-----",
        ),
        (
            "client_crl = \"key.pem\"",
            ":3: listener[0].tls.client_crl: no client is asked for a certificate; expected client = \"required\" or client = \"optional\" beside it\nheddle.toml:3: listener[0].tls.client_crl: key.pem holds no revocation list; expected a PEM file with -----BEGIN X509 CRL-----",
        ),
        (
            "client = \"required\", client_ca = \"cert.pem\", client_crl = \"key.pem\"",
            ":3: listener[0].tls.client_crl: key.pem holds no revocation list; expected a PEM file with -----BEGIN X509 CRL-----",
        ),
        (
            "min_version = 1.3",
            ":3: listener[0].tls.min_version: 1.3 is not a version of TLS; expected \"1.2\" or \"1.3\"",
        ),
        (
            "certificates = [{ certificate = \"cert.pem\", key = \"key.pem\" }]",
            ":3: listener[0].tls.certificates[0].certificate: \"cert.pem\" is listener[0].tls.certificate too; expected each certificate once",
        ),
    ] {
        let problems = parse_beside(&folder, &format!("{LISTENER}{tls}, {text} }}")).unwrap_err();
        assert_eq!(problems, format!("heddle.toml{expected}"));
    }
}

/// What `heddle run` would not start with is found without starting it.
#[test]
fn files_that_do_not_hold_what_their_labels_say() {
    let folder = files();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let half = |text: &str| text.chars().take(text.len() / 2).collect::<String>();
    write("half.pem", &half(&read("cert.pem")));
    write("half-key.pem", &half(&read("key.pem")));
    write("no-x509.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    write("no-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    write("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let assert_told = |text: &str, starts: &str, remedy: &str| {
        let problems = parse_beside(&folder, text).unwrap_err();
        assert!(problems.starts_with(&format!("heddle.toml:{starts}")), "{problems}");
        assert!(problems.ends_with(&format!("; expected {remedy}")) && problems.lines().count() == 1, "{problems}");
    };
    for (certificate, key, starts, remedy) in [
        (
            "cert.pem",
            "other-key.pem",
            "5: listener[0].tls.key: other-key.pem: the key is not that of the certificate cert.pem",
            "the two files that were made together, in both keys",
        ),
        ("half.pem", "key.pem", "4: listener[0].tls.certificate: half.pem: not PEM", "a whole PEM file"),
        ("cert.pem", "half-key.pem", "5: listener[0].tls.key: half-key.pem: not PEM", "a whole PEM file"),
        (
            "no-x509.pem",
            "key.pem",
            "4: listener[0].tls.certificate: no-x509.pem: not a certificate that can be used",
            "certificates of X.509",
        ),
        (
            "cert.pem",
            "no-key.pem",
            "5: listener[0].tls.key: no-key.pem: not a key that can be used",
            "a key of ECDSA, Ed25519 or RSA, in PKCS#8, SEC1 or PKCS#1",
        ),
        (
            "cert.pem",
            "locked.pem",
            "5: listener[0].tls.key: locked.pem holds no private key that can be read",
            "one in PKCS#8, SEC1 or PKCS#1 that is not encrypted",
        ),
    ] {
        let text = format!("{LISTENER}[listener.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"");
        assert_told(&text, starts, remedy);
    }
    let tls =
        "[listener.tls]\ncertificate = 'cert.pem'\nkey = 'key.pem'\nclient = 'optional'\nclient_ca = 'no-x509.pem'";
    let starts = "7: listener[0].tls.client_ca: no-x509.pem: not a certificate that can be used";
    assert_told(&format!("{LISTENER}{tls}"), starts, "certificates of X.509");
    let service = "[service.users.tls]\nca = 'half.pem'";
    assert_told(&format!("{LISTENER}{service}"), "4: service.users.tls.ca: half.pem: not PEM", "a whole PEM file");
}

#[test]
fn networks_contain_and_cover() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let ten = network("10.0.0.0", 8);
    assert!(ten.contains(ip("10.255.0.1")) && !ten.contains(ip("11.0.0.0")) && !ten.contains(ip("::a00:1")));
    assert!(network("0.0.0.0", 0).contains(ip("255.0.0.1")) && !network("0.0.0.0", 0).contains(ip("::1")));
    assert!(network("::1", 128).contains(ip("::1")) && !network("::1", 128).contains(ip("::2")));
    assert!(ten.covers(&network("10.1.0.0", 16)) && ten.covers(&ten) && !network("10.1.0.0", 16).covers(&ten));
    assert_eq!(ten.to_string(), "10.0.0.0/8");
}

/// Paths start from the folder of the file, those in tables of services too.
#[test]
fn paths_to_certificates_start_from_the_folder_of_the_file() {
    let folder = files();
    std::fs::create_dir(folder.path().join("tls")).unwrap();
    std::fs::copy(folder.path().join("cert.pem"), folder.path().join("tls/ca.pem")).unwrap();
    let text = format!("{LISTENER}[service.users.tls]\nca = \"tls/ca.pem\"");
    let ca = parse_beside(&folder, &text).unwrap().services.get("users").tls.clone().unwrap().ca;
    assert_eq!(ca, Some(folder.path().join("tls/ca.pem")));
}
