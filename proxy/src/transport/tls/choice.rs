//! Which certificate a client is shown.
//!
//! A name that is held as it is comes before a wildcard, which covers exactly one label (RFC 9525, 6.3). Where several
//! certificates cover a name, as with ECDSA and RSA side by side, the first whose key the client can verify is taken. A
//! client that names no server, or one that nothing covers, is shown the default: the first certificate, or one for the
//! same names with another kind of key.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Certificate;

/// The certificates of one listener, by name.
#[derive(Debug)]
pub struct Certificates {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// None without a certificate. The first is the default, and among those of one name the first is preferred.
    pub fn new(all: &[Arc<Certificate>]) -> Option<Self> {
        let first = all.first()?;
        let same_names = |other: &&Arc<Certificate>| other.names == first.names;
        let default = all.iter().filter(same_names).map(|certificate| certificate.key.clone()).collect();
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for certificate in all {
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, &**name),
                };
                map.entry(Box::from(name)).or_default().push(certificate.key.clone());
            }
        }
        Some(Self { exact, wildcard, default })
    }

    /// Whether a certificate covers this name.
    pub fn covers(&self, name: &str) -> bool {
        self.of_name(&normalized(name)).next().is_some()
    }

    /// Those that cover a name in lower case, the preferred one first.
    fn of_name(&self, name: &str) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let exact = self.exact.get(name);
        let parent = name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent));
        exact.into_iter().chain(wildcard).flatten()
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let named = name.map(normalized);
        let of_name = named.iter().flat_map(|name| self.of_name(name));
        let mut candidates = of_name.chain(&self.default);
        candidates.find(|candidate| candidate.key.choose_scheme(schemes).is_some()).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

/// In lower case, without the dot at the end that a fully qualified name may have.
fn normalized(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair as Key, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;
    use crate::config::checked::KeyPair;

    fn certificate(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> Arc<Certificate> {
        let key = Key::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let chain = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
        let pair = KeyPair { certificate: "cert.pem".into(), key: "key.pem".into() };
        Arc::new(Certificate::parse(&pair, chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap())
    }

    const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
    const ED25519: &[SignatureScheme] = &[SignatureScheme::ED25519];

    #[test]
    fn exact_names_come_before_wildcards_of_one_label() {
        let first = certificate(&["first.example"], &PKCS_ECDSA_P256_SHA256);
        let wild = certificate(&["*.users.example"], &PKCS_ECDSA_P256_SHA256);
        let exact = certificate(&["A.users.example"], &PKCS_ECDSA_P256_SHA256);
        let held = Certificates::new(&[first.clone(), wild.clone(), exact.clone()]).unwrap();
        let shown = |name: Option<&str>| held.choose(name, ECDSA).unwrap();
        let is = |name: &str, expected: &Arc<Certificate>| {
            assert!(Arc::ptr_eq(&shown(Some(name)), &expected.key), "{name}");
        };
        is("a.users.example", &exact);
        is("a.USERS.example.", &exact);
        is("b.users.example", &wild);
        is("c.b.users.example", &first);
        is("users.example", &first);
        is(".users.example", &first);
        assert!(Arc::ptr_eq(&shown(None), &first.key));
        for (name, covered) in [
            ("first.example", true),
            ("x.users.example", true),
            ("X.Users.Example.", true),
            ("a.users.example", true),
            ("users.example", false),
            ("c.b.users.example", false),
            ("", false),
        ] {
            assert_eq!(held.covers(name), covered, "{name}");
        }
        assert!(Certificates::new(&[]).is_none());
    }

    #[test]
    fn the_key_is_one_that_the_client_can_verify() {
        let first = certificate(&["users.example"], &PKCS_ECDSA_P256_SHA256);
        let second = certificate(&["users.example"], &PKCS_ED25519);
        let wild = certificate(&["*.example"], &PKCS_ED25519);
        let held = Certificates::new(&[first.clone(), wild, second.clone()]).unwrap();
        for name in [Some("users.example"), None, Some("other")] {
            assert!(Arc::ptr_eq(&held.choose(name, ECDSA).unwrap(), &first.key), "{name:?}");
            assert!(Arc::ptr_eq(&held.choose(name, ED25519).unwrap(), &second.key), "{name:?}");
        }
        assert!(held.choose(None, &[]).is_none());
    }
}
