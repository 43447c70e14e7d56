//! What is written about TLS, in the tables of whatever speaks it: PEM files, and the names that certificates are for.

use std::path::{Path, PathBuf};

use super::read::{At, Section};
use super::value::{path, server_name};

/// `certificate` and `key` of a table. Reading reports one without the other.
#[derive(Default)]
pub(super) struct KeyPair {
    pub certificate: Option<At<PathBuf>>,
    pub key: Option<At<PathBuf>>,
}

/// TLS to a server: `tls` of a service, or of `[registry.etcd]`.
#[derive(Default)]
pub(super) struct Client {
    pub ca: Option<At<PathBuf>>,
    pub pair: KeyPair,
    pub server_name: Option<String>,
}

impl KeyPair {
    /// Relative paths start from `base`.
    pub fn read(s: &mut Section<'_>, base: &Path) -> KeyPair {
        match (s.has("certificate"), s.has("key")) {
            (true, false) => s.missing("key", "the PEM file with the certificate's key"),
            (false, true) => s.missing("certificate", "the PEM file with the key's certificate"),
            _ => {}
        }
        KeyPair { certificate: s.at("certificate", path(base)), key: s.at("key", path(base)) }
    }

    /// As [`KeyPair::read`], of a table that is there for nothing else.
    pub fn required(s: &mut Section<'_>, base: &Path) -> KeyPair {
        if !s.has("certificate") && !s.has("key") {
            s.missing("certificate", "the PEM file with a certificate chain");
            s.missing("key", "the PEM file with the certificate's key");
        }
        KeyPair::read(s, base)
    }
}

impl Client {
    pub fn read(s: &mut Section<'_>, base: &Path) -> Client {
        Client {
            ca: s.at("ca", path(base)),
            pair: KeyPair::read(s, base),
            server_name: s.get("server_name", server_name),
        }
    }
}
