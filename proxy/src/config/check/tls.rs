//! PEM files that tables about TLS name.

use std::path::PathBuf;

use super::super::checked::{self, EtcdTls, TlsClient};
use super::super::problem::Problems;
use super::super::read::At;
use super::super::tls::{Client, KeyPair};
use super::contents;

impl KeyPair {
    /// The files of a pair that is whole. Whether they can be read and hold what they should is reported.
    pub fn check(&self, problems: &mut Problems) -> Option<checked::KeyPair> {
        report_no_certificate(self.certificate.as_ref(), problems);
        report_no_pem(self.key.as_ref(), "PRIVATE KEY-----", "private key", problems);
        self.paths()
    }

    fn paths(&self) -> Option<checked::KeyPair> {
        let (certificate, key) = self.certificate.as_ref().zip(self.key.as_ref())?;
        Some(checked::KeyPair { certificate: certificate.value.clone(), key: key.value.clone() })
    }
}

impl Client {
    /// Reports what is wrong with the files.
    pub fn check(&self, problems: &mut Problems) {
        report_no_certificate(self.ca.as_ref(), problems);
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

/// Reports a file that holds no certificate.
pub(super) fn report_no_certificate(at: Option<&At<PathBuf>>, problems: &mut Problems) {
    report_no_pem(at, "-----BEGIN CERTIFICATE-----", "certificate", problems);
}

fn report_no_pem(at: Option<&At<PathBuf>>, label: &str, what: &str, problems: &mut Problems) {
    let Some(at) = at else { return };
    if contents(at, what, problems).is_some_and(|text| !text.contains(label)) {
        let found = format!("{} holds no {what}", at.value.display());
        problems.add(at.problem(found, format!("expected a PEM file with {label}")));
    }
}
