//! Certificates that are replaced while they are in use.

#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

#[path = "support/http.rs"]
mod http;
#[path = "support/process.rs"]
mod process;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::{Endpoint, OK, Proxy, one_listener, users, wait_until};
use rustls::ClientConfig;
use tls::{Authority, Pair, TlsWire, der, s_client};

const GET: &str = "GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n";

fn proxy(endpoint: &Endpoint, tls: &str) -> Proxy {
    let listener = one_listener(&format!("service = \"users\"\ntls = {{ {tls} }}"));
    Proxy::start(&format!("admin = {{ address = \"127.0.0.1:0\" }}\n{listener}{}", users(&[endpoint], "")))
}

/// The certificate that a new connection is shown, which has to serve a request.
fn shown(proxy: &Proxy, config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut client = TlsWire::connect(proxy.addresses[0], config.clone(), "users");
    client.ask(GET, "ok").expect("an answer");
    client.certificate()
}

/// The value of the figure that begins like this.
fn figure(proxy: &Proxy, start: &str) -> String {
    let text = process::get(proxy.app().admin.expect("an address"), "/metrics").body;
    let line = text.lines().find(|line| line.starts_with(start));
    line.and_then(|line| line.rsplit(' ').next()).unwrap_or_else(|| panic!("no {start} in {text}")).to_owned()
}

/// The expiry that the figures tell of a file.
fn expiry(proxy: &Proxy, file: &Path) -> String {
    let labels = format!("{{certificate=\"{}\",names=\"users\"}}", file.display());
    figure(proxy, &format!("heddle_certificate_expiry_timestamp_seconds{labels}"))
}

/// Has the certificate replaced three times, each time once the one before it is served, and asserts that the changes
/// were announced: the files are also read again every 5 s, which alone would take more than 10 s for the three.
///
/// `swap` puts the certificate of a round in place and returns it.
#[track_caller]
fn assert_served_at_once(what: &str, proxy: &Proxy, authority: &Authority, swap: impl Fn(usize) -> Vec<u8>) {
    let taken = [0, 1, 2].map(|round| {
        let expected = swap(round);
        let swapped = Instant::now();
        // A session that is resumed would show the certificate of when it began.
        wait_until("the new certificate is served", || shown(proxy, &authority.client_config()) == expected);
        swapped.elapsed()
    });
    println!("{what}: {taken:?} until the new certificate was served");
    assert!(taken.iter().sum::<Duration>() < Duration::from_secs(4), "{what}: {taken:?}");
}

/// Puts the files of one pair in the place of another's, the key first; each is replaced as a whole.
fn replace(pair: &Pair, by: &Pair) {
    fs::rename(&by.key, &pair.key).expect("renamed");
    fs::rename(&by.certificate, &pair.certificate).expect("renamed");
}

#[test]
fn a_certificate_is_replaced_under_load() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let config = authority.client_config();
    let (stop, failed, done) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (stop, failed, done) = (stop.clone(), failed.clone(), done.clone());
            let (config, address) = (config.clone(), proxy.addresses[0]);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = TlsWire::connect(address, config.clone(), "users").ask(GET, "ok");
                    failed.fetch_add(usize::from(answer.is_err()), Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..3 {
        let before = done.load(Ordering::Relaxed);
        wait_until("clients connect", || done.load(Ordering::Relaxed) > before + 20);
        let next = authority.issue_with("next", &["users"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = rcgen::date_time_ymd(2040 + round, 1, 1);
        });
        let expected = der(&next.certificate);
        replace(&pair, &next);
        // A session that is resumed would show the certificate of when it began.
        wait_until("the new certificate is served", || shown(&proxy, &authority.client_config()) == expected);
        let ends = ["2208988800.0", "2240611200.0", "2272147200.0"][round as usize];
        wait_until("the figure follows", || expiry(&proxy, &pair.certificate) == ends);
    }
    stop.store(true, Ordering::Relaxed);
    load.into_iter().for_each(|client| client.join().expect("no panic"));
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    // What is no TLS is counted, and nothing else was.
    let mut client = proxy.client();
    client.send(b"\x16\x03\x01\x00\x05hello");
    let _an_alert_and_the_end = client.stream.read_to_end(&mut Vec::new());
    let failures = format!("heddle_tls_handshake_failures_total{{listener=\"{}\"}}", proxy.addresses[0]);
    wait_until("it has been counted", || figure(&proxy, &failures) == "1");
}

/// Tickets outlive the certificate that their session began with.
#[test]
fn sessions_are_resumed_across_a_change() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let session = authority.folder.path().join("session").display().to_string();
    s_client(proxy.addresses[0], &authority, &["-servername", "users", "-sess_out", &session]).assert_has("200 OK");
    let next = authority.issue("next", &["users"]);
    let expected = der(&next.certificate);
    replace(&pair, &next);
    wait_until("the new certificate is served", || shown(&proxy, &authority.client_config()) == expected);
    let resumed = s_client(proxy.addresses[0], &authority, &["-servername", "users", "-sess_in", &session]);
    resumed.assert_has("Reused, TLSv1").assert_has("200 OK");
}

#[test]
fn files_that_are_replaced_are_read_at_once() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    shown(&proxy, &authority.client_config());
    assert_served_at_once("files", &proxy, &authority, |_| {
        let next = authority.issue("next", &["users"]);
        let expected = der(&next.certificate);
        replace(&pair, &next);
        expected
    });
}

/// A mounted Secret of Kubernetes: files that are links through `..data`, which is a link that is replaced.
#[test]
fn links_are_followed() {
    let authority = Authority::new();
    let mounted = authority.folder.path().join("mounted");
    let versions = ["..1", "..2"].map(|version| mounted.join(version));
    let pairs = ["first", "second"].map(|stem| authority.issue(stem, &["users"]));
    for (version, pair) in versions.iter().zip(&pairs) {
        fs::create_dir_all(version).expect("a folder");
        fs::copy(&pair.certificate, version.join("tls.crt")).expect("copied");
        fs::copy(&pair.key, version.join("tls.key")).expect("copied");
    }
    symlink("..1", mounted.join("..data")).expect("a link");
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), mounted.join(file)).expect("a link");
    }
    // And a folder that is itself a link, as some tools for deployment have it.
    symlink("mounted", authority.folder.path().join("current")).expect("a link");
    let endpoint = Endpoint::saying(OK);
    let current = authority.folder.path().join("current");
    let pair = Pair { certificate: current.join("tls.crt"), key: current.join("tls.key") };
    let proxy = proxy(&endpoint, &pair.keys());
    assert_eq!(shown(&proxy, &authority.client_config()), der(&pairs[0].certificate));
    assert_served_at_once("links", &proxy, &authority, |round| {
        // The second, the first, the second.
        let next = 1 - round % 2;
        symlink(["..1", "..2"][next], mounted.join("..new")).expect("a link");
        fs::rename(mounted.join("..new"), mounted.join("..data")).expect("swapped");
        der(&pairs[next].certificate)
    });
    let elsewhere = authority.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    fs::copy(&pairs[0].certificate, elsewhere.join("tls.crt")).expect("copied");
    fs::copy(&pairs[0].key, elsewhere.join("tls.key")).expect("copied");
    symlink("elsewhere", authority.folder.path().join("new")).expect("a link");
    fs::rename(authority.folder.path().join("new"), &current).expect("swapped");
    wait_until("the first is served again", || shown(&proxy, &authority.client_config()) == der(&pairs[0].certificate));
}

/// The real binary, since what the log says counts here.
#[test]
fn a_bad_pair_changes_nothing_and_is_reported() {
    let authority = Authority::new();
    let pair = authority.issue_with("users", &["users"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let other = authority.issue("other", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let config = authority.folder.path().join("heddle.toml");
    let text = format!(
        "workers = 1\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"users\"\ntls = {{ {} }}\n{}",
        pair.keys(),
        users(&[&endpoint], "")
    );
    fs::write(&config, text).expect("written");
    let mut command = process::command(&["run", "--config", &config.display().to_string()]);
    command.env("HEDDLE_LOG", "info");
    let heddle = process::Heddle::start(command);
    let address = heddle.address("listening on ");
    let serial = |expected: &Pair| {
        let said = s_client(address, &authority, &["-servername", "users"]);
        said.assert_has("200 OK");
        said.out.contains(fs::read_to_string(&expected.certificate).expect("PEM").trim())
    };
    let first =
        Pair { certificate: authority.folder.path().join("first.pem"), key: authority.folder.path().join("first.key") };
    fs::copy(&pair.certificate, &first.certificate).expect("copied");
    fs::copy(&pair.key, &first.key).expect("copied");
    heddle.after("the certificate for users expired", 0);
    assert!(serial(&first));

    let whole = fs::read_to_string(&other.certificate).expect("PEM");
    let log = |file: &Path, reason: &str, skip: usize| heddle.after(&format!("{}: {reason}", file.display()), skip);
    fs::write(&pair.certificate, &whole.as_bytes()[..whole.len() / 2]).expect("written");
    log(&pair.certificate, "not PEM", 0);
    fs::write(&pair.certificate, "").expect("written");
    log(&pair.certificate, "holds no certificate", 0);
    fs::remove_file(&pair.certificate).expect("removed");
    log(&pair.certificate, "cannot be read", 0);
    fs::write(&pair.certificate, &whole).expect("written");
    log(&pair.key, "the key is not that of the certificate", 0);
    fs::write(&pair.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").expect("written");
    log(&pair.key, "not a key that can be used", 0);
    assert!(serial(&first));
    // The other half at last.
    fs::copy(&other.key, &pair.key).expect("copied");
    heddle.after("new certificate in use", 0);
    assert!(serial(&other));
}

#[test]
fn a_start_without_a_good_pair_is_refused() {
    let authority = Authority::new();
    let (pair, other) = (authority.issue("users", &["users"]), authority.issue("other", &["users"]));
    let config = authority.folder.path().join("heddle.toml");
    let text = format!(
        "admin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = {:?}, key = {:?} }}\n",
        pair.certificate, other.key
    );
    fs::write(&config, text).expect("written");
    let (code, _, said) = process::run(&["run", "--config", &config.display().to_string()]);
    assert_ne!(code, 0);
    assert!(said.contains("the key is not that of the certificate"), "{said}");
}

/// Whose certificates are good is followed too, and a ticket does not outlive the authority that it was given under.
#[test]
fn the_authorities_of_clients_are_replaced() {
    let (authority, second) = (Authority::new(), Authority::named("second"));
    let pair = authority.issue("users", &["users"]);
    let clients = [authority.issue("first", &["a.example"]), second.issue("second", &["b.example"])];
    let ca = authority.folder.path().join("clients.pem");
    fs::copy(authority.file(), &ca).expect("copied");
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &format!("{}, client = \"required\", client_ca = {ca:?}", pair.keys()));
    let session = authority.folder.path().join("session").display().to_string();
    let ask = |client: &Pair, more: &[&str]| {
        let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
        let args = [&["-cert", &certificate, "-key", &key], more].concat();
        s_client(proxy.addresses[0], &authority, &args)
    };
    ask(&clients[0], &["-sess_out", &session]).assert_has("200 OK");
    ask(&clients[1], &[]).assert_lacks("200 OK");
    fs::copy(second.file(), authority.folder.path().join("new.pem")).expect("copied");
    fs::rename(authority.folder.path().join("new.pem"), &ca).expect("renamed");
    wait_until("the second's clients are let in", || ask(&clients[1], &[]).out.contains("200 OK"));
    ask(&clients[0], &[]).assert_lacks("200 OK");
    ask(&clients[0], &["-sess_in", &session]).assert_lacks("200 OK").assert_lacks("Reused, TLSv1");
}

/// What is open stays open.
#[test]
fn connections_go_on_with_what_they_began_with() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let endpoint = Endpoint::saying(OK);
    let proxy = proxy(&endpoint, &pair.keys());
    let mut open = TlsWire::connect(proxy.addresses[0], authority.client_config(), "users");
    let keep = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";
    open.ask(keep, "ok").expect("an answer");
    let next = authority.issue("next", &["users"]);
    let expected = der(&next.certificate);
    replace(&pair, &next);
    wait_until("the new certificate is served", || shown(&proxy, &authority.client_config()) == expected);
    open.ask(keep, "ok").expect("an answer");
    open.session.send_close_notify();
    let mut stream = rustls::Stream::new(&mut open.session, &mut open.tcp);
    assert_eq!(stream.read(&mut [0]).expect("an orderly end"), 0);
}

/// Issue 10, 11: a revoked certificate is good for nothing more: no handshake, no session that is resumed, and within
/// moments no request on a connection that is open. Others go on.
#[test]
fn a_revoked_certificate_is_good_for_nothing_more() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let [lost, kept] = ["lost", "kept"].map(|stem| authority.issue(stem, &[&format!("{stem}.example")]));
    let crl = authority.revoke("clients.crl", &[]);
    let endpoint = Endpoint::saying(OK);
    let trusted = format!("client = \"required\", client_ca = {:?}, client_crl = {crl:?}", authority.file());
    let proxy = proxy(&endpoint, &format!("{}, {trusted}", pair.keys()));
    let ask = |client: &Pair, more: &[&str]| {
        let (certificate, key) = (client.certificate.display().to_string(), client.key.display().to_string());
        s_client(proxy.addresses[0], &authority, &[&["-cert", &certificate, "-key", &key], more].concat())
    };
    let sessions = ["-tls1_2", "-tls1_3"].map(|version| {
        let session = authority.folder.path().join(format!("session{version}")).display().to_string();
        ask(&lost, &[version, "-sess_out", &session]).assert_has("200 OK");
        ask(&lost, &[version, "-sess_in", &session]).assert_has("Reused, TLSv1").assert_has("200 OK");
        (version, session)
    });
    let keep = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";
    let open = |client: &Pair| {
        let mut wire = TlsWire::connect(proxy.addresses[0], authority.client_config_of(client), "users");
        wire.ask(keep, "ok").expect("an answer");
        wire
    };
    let (mut open_lost, mut open_kept) = (open(&lost), open(&kept));
    let before = endpoint.requests().len();

    authority.revoke("clients.crl", &[&lost]);
    wait_until("it is refused", || !ask(&lost, &[]).out.contains("200 OK"));
    for (version, session) in &sessions {
        let resumed = ask(&lost, &[version, "-sess_in", session]);
        resumed.assert_lacks("200 OK").assert_lacks("Reused, TLSv1");
        let without = s_client(proxy.addresses[0], &authority, &[version, "-sess_in", session]);
        without.assert_lacks("200 OK").assert_lacks("Reused, TLSv1");
    }
    let requests = endpoint.requests().len();
    open_lost.send(keep);
    let answer = open_lost.until("with another\n");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("proxy-status: heddle; error=http_request_denied; details=\"tls: "), "{answer}");
    assert_eq!(open_lost.until("nothing more"), "");
    assert_eq!(endpoint.requests().len(), requests);
    assert!(requests >= before);
    open_kept.ask(keep, "ok").expect("an answer");
    ask(&kept, &[]).assert_has("200 OK");

    // A file that is broken changes nothing; the authority that is removed is as good as a list.
    fs::write(&crl, "no list").expect("written");
    let stranger = Authority::named("stranger");
    let other = stranger.issue("other", &["other.example"]);
    ask(&other, &[]).assert_lacks("200 OK");
    ask(&lost, &[]).assert_lacks("200 OK");
    open_kept.ask(keep, "ok").expect("an answer");
}

/// Issue 10, 11: the same over HTTP/2, for tunnels, inside of them, and whatever the configuration was when the client
/// connected.
#[test]
fn a_revocation_reaches_whatever_is_open() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let client = authority.issue("client", &["client.example"]);
    let crl = authority.revoke("clients.crl", &[]);
    let echo = Endpoint::start(|_, mut wire| {
        while let Ok(line) = wire.until(b"\n") {
            wire.send([b"echo ", &line[..]].concat());
        }
    });
    let web = Endpoint::saying(OK);
    let config = |crl: &str, version: &str| {
        let trusted = format!("client = \"required\", client_ca = {:?}{crl}", authority.file());
        let listener = one_listener(&format!("tls = {{ {}, {trusted}, min_version = \"{version}\" }}", pair.keys()));
        format!(
            "{listener}{}[service.echo]\nendpoints = [\"{}\"]\nprotocol = \"opaque\"\n",
            users(&[&web], ""),
            echo.address
        )
    };
    // The first configuration knows no list, and the second one is as different as one can be.
    let proxy = Proxy::start(&config("", "1.2"));
    let connect = || TlsWire::connect(proxy.addresses[0], authority.client_config_of(&client), "users");
    let mut tunnel = connect();
    tunnel.connect_to("echo:7");
    assert_eq!(tunnel.ask("one\n", "one\n").expect("an echo"), "echo one\n");
    let mut inside = connect();
    inside.connect_to("users:80");
    let keep = "GET / HTTP/1.1\r\nHost: users\r\n\r\n";
    inside.ask(keep, "ok").expect("an answer");
    let runtime = {
        let own = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = own.handle().clone();
        thread::spawn(move || own.block_on(std::future::pending::<()>()));
        handle
    };
    let mut http2 = {
        let mut config = ClientConfig::clone(&authority.client_config_of(&client));
        config.alpn_protocols = vec![b"h2".to_vec()];
        runtime.block_on(async {
            let tcp = tokio::net::TcpStream::connect(proxy.addresses[0]).await.expect("a connection");
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let tls = connector.connect("users".try_into().expect("a name"), tcp).await.expect("TLS");
            let (sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
            tokio::spawn(connection);
            sender
        })
    };
    let mut status = || {
        let request = ::http::Request::get("http://users/").body(()).expect("a request");
        runtime.block_on(async {
            let (answer, _) = http2.send_request(request, true).ok()?;
            Some(answer.await.ok()?.status().as_u16())
        })
    };
    assert_eq!(status(), Some(200));
    proxy.reload(&config(&format!(", client_crl = {crl:?}"), "1.3")).expect("in force");
    assert_eq!(status(), Some(200));
    inside.ask(keep, "ok").expect("an answer");

    authority.revoke("clients.crl", &[&client]);
    wait_until("it is in force", || connect().ask(keep, "ok").is_err());
    let requests = web.requests().len();
    assert_eq!(status(), Some(403));
    inside.send(keep);
    assert!(inside.until("with another\n").starts_with("HTTP/1.1 403 "));
    assert_eq!(web.requests().len(), requests);
    tunnel.tcp.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    assert_eq!(tunnel.until("nothing more"), "", "the tunnel is cut off");
}

/// Issue 10, 12: who runs the proxy is told where a client could say itself who it is, before the start and at it.
#[test]
fn a_way_around_the_identity_of_clients_is_warned_of() {
    let authority = Authority::new();
    let pair = authority.issue("users", &["users"]);
    let file = authority.folder.path().join("heddle.toml");
    let path = file.display().to_string();
    let with = |service: &str| {
        let asks = format!("client = \"required\", client_ca = {:?}", authority.file());
        let listener = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\npassthrough = false\ntls = {{ {}, {asks} }}",
            pair.keys()
        );
        fs::write(&file, format!("workers = 1\nadmin = {{ address = \"127.0.0.1:0\" }}\n{listener}\n[service.users]\nendpoints = [\"127.0.0.1:9\"]\n{service}\n"))
            .expect("written");
    };
    const WARNING: &str = "listener 127.0.0.1:0: clients may send users anything unread";
    with("protocol = \"opaque\"");
    let (code, said, _) = process::run(&["check", "--config", &path]);
    assert!(code == 0 && said.contains(&format!("warning   {WARNING}")), "{said}");
    let heddle = process::Heddle::start(process::command(&["run", "--config", &path]));
    heddle.after(WARNING, 0);
    heddle.address("listening on ");
    drop(heddle);

    with("");
    let (code, said, _) = process::run(&["check", "--config", &path]);
    assert!(code == 0 && !said.contains("warning"), "{said}");
    let heddle = process::Heddle::start(process::command(&["run", "--config", &path]));
    let admin = heddle.address("health and metrics on ");
    assert_eq!(heddle.count("unread"), 0, "{:?}", heddle.said());
    // And at a reload.
    with("protocol = \"opaque\"");
    heddle.after(WARNING, 0);
    let metrics = process::get(admin, "/metrics").body;
    assert!(metrics.contains("# TYPE heddle_tls_handshakes counter"), "{metrics}");
}
