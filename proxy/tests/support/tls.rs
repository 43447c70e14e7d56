//! Certificates for tests, programs that speak TLS, and a client whose every byte a test decides.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore};
use tempfile::TempDir;

/// An authority, and the folder with everything that it has made.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub folder: TempDir,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    /// As keys of a table in the configuration.
    pub fn keys(&self) -> String {
        format!("certificate = {:?}, key = {:?}", self.certificate, self.key)
    }
}

impl Authority {
    pub fn new() -> Self {
        Self::named("Heddle test authority")
    }

    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { issuer, folder }
    }

    /// The PEM file of the authority.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn path(&self) -> String {
        self.file().display().to_string()
    }

    /// A certificate with an ECDSA key for these names: IP addresses, URIs, or DNS names. The files are `stem.pem` and
    /// `stem.key`.
    pub fn issue(&self, stem: &str, names: &[&str]) -> Pair {
        self.issue_with(stem, names, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub fn issue_with(
        &self,
        stem: &str,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        self.sign(stem, names, &key, change)
    }

    /// The same for a key that is there already.
    pub fn sign(&self, stem: &str, names: &[&str], key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, stem);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = names.iter().map(|name| subject(name)).collect();
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).expect("a certificate");
        let at = |ending: &str| self.folder.path().join(format!("{stem}.{ending}"));
        let pair = Pair { certificate: at("pem"), key: at("key") };
        std::fs::write(&pair.key, key.serialize_pem()).expect("written");
        std::fs::write(&pair.certificate, certificate.pem()).expect("written");
        pair
    }

    /// A PEM file with this authority's list of revoked certificates, as a file of this name.
    pub fn revoke(&self, name: &str, pairs: &[&Pair]) -> PathBuf {
        let revoked = |pair: &&Pair| {
            let der = der(&pair.certificate);
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(parsed.raw_serial()),
                revocation_time: rcgen::date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: pairs.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let (file, new) = (self.folder.path().join(name), self.folder.path().join("new.crl"));
        let list = params.signed_by(&self.issuer).expect("a list").pem().expect("PEM");
        std::fs::write(&new, list).expect("written");
        std::fs::rename(&new, &file).expect("in place");
        file
    }

    /// A client that trusts this authority.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::new(self.client_builder().with_no_client_auth())
    }

    /// The same with a certificate of its own.
    pub fn client_config_of(&self, pair: &Pair) -> Arc<ClientConfig> {
        let chain = vec![CertificateDer::from_pem_file(&pair.certificate).expect("PEM")];
        let key = PrivateKeyDer::from_pem_file(&pair.key).expect("PEM");
        Arc::new(self.client_builder().with_client_auth_cert(chain, key).expect("a pair"))
    }

    fn client_builder(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file()).expect("PEM")).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.expect("versions").with_root_certificates(roots)
    }
}

fn subject(name: &str) -> SanType {
    if let Ok(ip) = name.parse::<IpAddr>() {
        SanType::IpAddress(ip)
    } else if name.contains("://") {
        SanType::URI(name.try_into().expect("a URI"))
    } else {
        SanType::DnsName(name.try_into().expect("a name"))
    }
}

/// What a program printed, and whether it says that all went well.
#[derive(Debug)]
pub struct Printed {
    pub ok: bool,
    pub out: String,
}

impl Printed {
    #[track_caller]
    pub fn assert_has(&self, part: &str) -> &Self {
        assert!(self.out.contains(part), "expected {part:?} in {}", self.out);
        self
    }

    #[track_caller]
    pub fn assert_lacks(&self, part: &str) -> &Self {
        assert!(!self.out.contains(part), "expected no {part:?} in {}", self.out);
        self
    }
}

/// Runs a program to its end, 30 s at most, with this on its standard input.
#[track_caller]
pub fn run(program: &str, args: &[&str], input: &str) -> Printed {
    let mut command = Command::new("timeout");
    // Proxies are what these tests are about: the machine's own must not come between.
    for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"] {
        command.env_remove(variable);
    }
    command.arg("30").arg(program).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let _who_reads_nothing_may_end_first = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.code() != Some(127), "{program} is missing: {output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Printed { ok: output.status.success(), out: text(&output.stdout) + &text(&output.stderr) }
}

/// `openssl s_client` with one request: everything that it says about the session and the answer.
#[track_caller]
pub fn s_client(address: SocketAddr, authority: &Authority, args: &[&str]) -> Printed {
    s_client_sending(address, authority, args, "GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n")
}

#[track_caller]
pub fn s_client_sending(address: SocketAddr, authority: &Authority, args: &[&str], request: &str) -> Printed {
    let (to, ca) = (address.to_string(), authority.path());
    let common = ["s_client", "-connect", &to, "-CAfile", &ca, "-ign_eof"];
    let args: Vec<&str> = common.into_iter().chain(args.iter().copied()).collect();
    run("openssl", &args, request)
}

/// A TLS client on a thread that waits.
pub struct TlsWire {
    pub session: ClientConnection,
    pub tcp: TcpStream,
}

impl TlsWire {
    /// Connects; the handshake is done with the first bytes that are read or written.
    pub fn connect(address: SocketAddr, config: Arc<ClientConfig>, name: &str) -> Self {
        Self::over(TcpStream::connect(address).expect("a connection"), config, name)
    }

    /// The same over this connection.
    pub fn over(tcp: TcpStream, config: Arc<ClientConfig>, name: &str) -> Self {
        tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        tcp.set_nodelay(true).expect("no delay");
        let name = name.to_owned().try_into().expect("a name");
        Self { session: ClientConnection::new(config, name).expect("a session"), tcp }
    }

    pub fn handshake(&mut self) -> std::io::Result<()> {
        while self.session.is_handshaking() {
            self.session.complete_io(&mut self.tcp)?;
        }
        Ok(())
    }

    /// Sends a request, and reads until the answer's head and this body have come.
    pub fn ask(&mut self, request: &str, body: &str) -> std::io::Result<String> {
        let mut stream = rustls::Stream::new(&mut self.session, &mut self.tcp);
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).ends_with(body) {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&buffer[..length]);
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Sends this, whatever it is, to a proxy that may have closed the connection.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = rustls::Stream::new(&mut self.session, &mut self.tcp).write_all(bytes.as_ref());
    }

    /// Reads until this has come, or the connection ends; all that has come.
    pub fn until(&mut self, end: &str) -> String {
        let mut stream = rustls::Stream::new(&mut self.session, &mut self.tcp);
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&said).contains(end) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => said.extend_from_slice(&buffer[..length]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    panic!("no {end:?} in time after {said:?}")
                }
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Asks for a tunnel, which is opened.
    pub fn connect_to(&mut self, target: &str) {
        self.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        let head = self.until("\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }

    /// The certificate that the server showed.
    pub fn certificate(&self) -> Vec<u8> {
        self.session.peer_certificates().and_then(|chain| chain.first()).expect("a certificate").to_vec()
    }
}

/// What a PEM file holds.
pub fn der(file: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(file).expect("PEM").to_vec()
}
