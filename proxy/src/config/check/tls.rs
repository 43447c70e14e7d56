//! PEM files that tables about TLS name.

use std::path::PathBuf;

use super::super::checked::{self, EtcdTls, TlsClient};
use super::super::problem::{Problem, Problems};
use super::super::read::At;
use super::super::tls::{Client, KeyPair};
use super::contents;
use crate::transport::tls::{Certificate, FileError, Reason, authorities, revocations};

impl KeyPair {
    /// The files of a pair that is whole. Whether they can be read, hold what they should and belong together is
    /// reported.
    pub fn check(&self, problems: &mut Problems) -> Option<checked::KeyPair> {
        let certificate = pem(self.certificate.as_ref(), CERTIFICATE, "certificate", problems);
        let key = pem(self.key.as_ref(), "PRIVATE KEY-----", "private key", problems);
        let paths = self.paths()?;
        if let (Some((certificate, chain)), Some((key, secret))) = (certificate, key)
            && let Err(error) = Certificate::parse(&paths, chain.as_bytes(), secret.as_bytes())
        {
            problems.add(unusable(if error.file == key.value { key } else { certificate }, &error));
        }
        Some(paths)
    }

    fn paths(&self) -> Option<checked::KeyPair> {
        let (certificate, key) = self.certificate.as_ref().zip(self.key.as_ref())?;
        Some(checked::KeyPair { certificate: certificate.value.clone(), key: key.value.clone() })
    }
}

impl Client {
    /// Reports what is wrong with the files.
    pub fn check(&self, problems: &mut Problems) {
        check_authorities(self.ca.as_ref(), problems);
        self.pair.check(problems);
    }

    /// What is written, and `base` where nothing is.
    pub fn inherit(&self, base: &TlsClient) -> TlsClient {
        TlsClient {
            ca: self.ca.as_ref().map(|at| at.value.clone()).or_else(|| base.ca.clone()),
            client: self.pair.paths().or_else(|| base.client.clone()),
            server_name: self.server_name.clone().or_else(|| base.server_name.clone()),
        }
    }
}

pub(super) fn etcd(written: &Client, problems: &mut Problems) -> EtcdTls {
    written.check(problems);
    let TlsClient { ca, client, server_name } = written.inherit(&TlsClient::default());
    EtcdTls { ca, client: client.map(|pair| (pair.certificate, pair.key)), server_name }
}

/// Reports a file that does not hold the certificates of authorities.
pub(super) fn check_authorities(at: Option<&At<PathBuf>>, problems: &mut Problems) {
    if let Some((at, text)) = pem(at, CERTIFICATE, "certificate", problems)
        && let Err(error) = authorities(&at.value, text.as_bytes())
    {
        problems.add(unusable(at, &error));
    }
}

/// Reports a file that does not hold revocation lists.
pub(super) fn check_revocations(at: Option<&At<PathBuf>>, problems: &mut Problems) {
    if let Some((at, text)) = pem(at, REVOCATIONS, "revocation list", problems)
        && let Err(error) = revocations(&at.value, text.as_bytes())
    {
        problems.add(unusable(at, &error));
    }
}

const REVOCATIONS: &str = "-----BEGIN X509 CRL-----";

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// The contents of a file that has this label; any other is reported.
fn pem<'a>(
    at: Option<&'a At<PathBuf>>,
    label: &str,
    what: &str,
    problems: &mut Problems,
) -> Option<(&'a At<PathBuf>, String)> {
    let at = at?;
    let text = contents(at, what, problems)?;
    if text.contains(label) {
        return Some((at, text));
    }
    let found = format!("{} holds no {what}", at.value.display());
    problems.add(at.problem(found, format!("expected a PEM file with {label}")));
    None
}

/// What is wrong with a file that has the right label.
fn unusable(at: &At<PathBuf>, error: &FileError) -> Problem {
    let remedy = match &error.reason {
        Reason::NoKey => {
            let found = format!("{} holds no private key that can be read", at.value.display());
            return at.problem(found, "expected one in PKCS#8, SEC1 or PKCS#1 that is not encrypted");
        }
        Reason::OtherKey(_) => "expected the two files that were made together, in both keys",
        Reason::Key(_) => "expected a key of ECDSA, Ed25519 or RSA, in PKCS#8, SEC1 or PKCS#1",
        Reason::Certificate(_) => "expected certificates of X.509",
        Reason::Revocations(_) => "expected revocation lists of X.509",
        _ => "expected a whole PEM file",
    };
    at.problem(error.to_string(), remedy)
}
