//! TLS, by rustls with aws-lc-rs: ended for clients, begun to endpoints.
//!
//! A [`Terminator`] ends the TLS of one listener's clients, and a [`Connector`] begins TLS to endpoints. Both work from
//! one immutable snapshot that is replaced as a whole when a file has changed, so that a handshake sees the certificates
//! of one moment, and connections that are open go on with those that they began with. What the files held is
//! [`Files`]' to know: it reads each once, however many listeners and services use it, and follows them. Whose
//! certificates are accepted from clients, and for how long, is the matter of `trust` and `tickets`.
//!
//! The key exchange that is preferred on both sides is X25519MLKEM768, which also a quantum computer of later days cannot
//! undo (rustls' feature `prefer-post-quantum`). Its share makes a client's first message larger than a packet: nothing
//! here expects a message to come in one piece.

mod certificate;
mod choice;
mod client;
mod files;
mod handshakes;
mod hello;
mod server;
mod tickets;
mod trust;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;

pub use certificate::{Certificate, authorities};
pub use client::{Connector, TlsFailure};
pub use files::{Files, Held, watch};
pub use handshakes::Handshakes;
pub use hello::{Hello, HelloReader};
pub use server::{HandshakeError, Terminator};
pub use trust::{Proof, Revocations, Standing, revocations};

/// HTTP/2 over TLS, as it is called in a handshake (RFC 9113, 3.1).
pub const H2: &[u8] = b"h2";

/// What a session holds of encrypted bytes that the socket has not taken: a record of the largest size with what is around
/// its data. With one read of a body that waits for it, a blocked reader holds about 64 KiB.
const HELD_BACK: usize = 18 * 1024;

/// HTTP/1.1, as it is called in a handshake (RFC 7301, 6).
pub const HTTP_1_1: &[u8] = b"http/1.1";

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct FileError {
    pub file: PathBuf,
    pub reason: Reason,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("not PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("holds no certificate; expected PEM with at least one")]
    NoCertificate,
    #[error("holds no key; expected PEM with one in PKCS#8, SEC1 or PKCS#1, and not encrypted")]
    NoKey,
    #[error("not a certificate that can be used: {0}")]
    Certificate(String),
    #[error("holds no revocation list; expected PEM with at least one (X509 CRL)")]
    NoRevocations,
    #[error("not a revocation list that can be used: {0}")]
    Revocations(String),
    #[error("not a key that can be used: {0}")]
    Key(rustls::Error),
    #[error("the key is not that of the certificate {}", .0.display())]
    OtherKey(PathBuf),
    #[error("the system has no certificates of authorities; expected some, or a file in ca")]
    NoSystemRoots,
    #[error("{0}")]
    Unusable(String),
}

impl Reason {
    fn of(self, file: impl Into<PathBuf>) -> FileError {
        FileError { file: file.into(), reason: self }
    }
}

/// The cryptography in use. Said each time, because a process default would be whoever's set it first.
///
/// AES with 128 bits comes first. No more is won by 256 while the keys are agreed on over curves of that strength, and
/// SHA-256, which goes with it, is an instruction of the processor where SHA-384 is computed: an eighth of a handshake's
/// time was spent on it.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let is_preferred = |suite| {
            matches!(
                suite,
                CipherSuite::TLS13_AES_128_GCM_SHA256
                    | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                    | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
            )
        };
        provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !is_preferred(suite.suite())));
        Arc::new(provider)
    };
    PROVIDER.get_or_init(make).clone()
}
