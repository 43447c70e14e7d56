//! Certificates: what files hold, the names that they are for, and whom a client's proves it to be.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{FileError, Reason, provider};
use crate::config::checked::KeyPair;

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case; some may begin with `*.`.
    pub names: Vec<Box<str>>,
    pub expires: SystemTime,
}

impl Certificate {
    /// From the contents of the two files.
    ///
    /// # Errors
    ///
    /// When either is not what it should be, or the key is another certificate's.
    pub fn parse(pair: &KeyPair, chain: &[u8], key: &[u8]) -> Result<Self, FileError> {
        let chain = certificates(&pair.certificate, chain)?;
        let own = chain.first().ok_or_else(|| Reason::NoCertificate.of(&pair.certificate))?;
        let unusable = |error: String| Reason::Certificate(error).of(&pair.certificate);
        let (_, parsed) = X509Certificate::from_der(own).map_err(|error| unusable(error.to_string()))?;
        let (names, expires) = (dns_names(&parsed), expiry(&parsed));
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => Reason::NoKey.of(&pair.key),
            error => Reason::Pem(error).of(&pair.key),
        })?;
        let key = provider().key_provider.load_private_key(key).map_err(|error| Reason::Key(error).of(&pair.key))?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // Unknown is said of keys that cannot tell what their public half is; none of ours is of that kind.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(Reason::OtherKey(pair.certificate.clone()).of(&pair.key));
            }
            Err(error) => return Err(unusable(error.to_string())),
        }
        Ok(Self { key: Arc::new(certified), names, expires })
    }
}

/// The certificates of authorities, from the contents of a PEM file.
///
/// # Errors
///
/// When there is none, or one that cannot be used.
pub fn authorities(file: &Path, bytes: &[u8]) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, bytes)? {
        roots.add(certificate).map_err(|error| Reason::Certificate(error.to_string()).of(file))?;
    }
    if roots.is_empty() { Err(Reason::NoCertificate.of(file)) } else { Ok(roots) }
}

fn certificates(file: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|error| Reason::Pem(error).of(file))
}

/// The names that a certificate is for. Its subject's common name counts for nothing (RFC 9525, 2).
fn dns_names(certificate: &X509Certificate<'_>) -> Vec<Box<str>> {
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into_boxed_str()),
        _ => None,
    };
    general_names(certificate).iter().filter_map(name).collect()
}

fn general_names<'a>(certificate: &'a X509Certificate<'_>) -> &'a [GeneralName<'a>] {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.map_or(&[], |extension| extension.value.general_names.as_slice())
}

fn expiry(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

/// Until when all certificates of a chain are valid, in seconds since 1970; 0 where one cannot be read.
pub fn valid_until<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> u64 {
    let of = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(parsed.validity().not_after.timestamp()).ok()
    };
    chain.into_iter().map(|certificate| of(certificate).unwrap_or(0)).min().unwrap_or(0)
}

/// Whom a certificate that was found good proves a client to be: its SPIFFE ID, or else its first DNS name.
///
/// More than one URI is no SPIFFE ID (X.509-SVID, 2), and neither is one with characters that such IDs do not have
/// (SPIFFE-ID, 2): what is passed on in a header must not be able to say anything beside itself.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = general_names(&certificate);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    if let (Some(uri), None) = (uris.next(), uris.next())
        && is_spiffe_id(uri)
    {
        return Some(Arc::from(uri));
    }
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    })?;
    is_host_name(&dns).then(|| Arc::from(dns))
}

/// Whether this is a SPIFFE ID: at most 2,048 bytes of `spiffe://`, a trust domain, and a path.
fn is_spiffe_id(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("spiffe://") else { return false };
    let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let in_path = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    uri.len() <= 2048 && !domain.is_empty() && domain.bytes().all(in_domain) && path.bytes().all(in_path)
}

fn is_host_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=253).contains(&name.len()) && name.bytes().all(known)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair as Key, SanType};

    use super::*;

    fn with_names(names: &[SanType]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.self_signed(&Key::generate().unwrap()).unwrap().der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    #[test]
    fn an_identity_is_the_spiffe_id_or_the_first_dns_name() {
        let of = |names: &[SanType]| identity(&with_names(names)).as_deref().map(str::to_owned);
        assert_eq!(of(&[dns("a.example"), uri("spiffe://mesh/ns/a")]).as_deref(), Some("spiffe://mesh/ns/a"));
        assert_eq!(of(&[dns("A.example"), dns("b.example")]).as_deref(), Some("a.example"));
        assert_eq!(of(&[uri("spiffe://mesh/a"), uri("spiffe://mesh/b")]), None);
        assert_eq!(of(&[uri("spiffe://mesh/a;By=spiffe://mesh/b")]), None);
        assert_eq!(of(&[uri("https://mesh/a"), dns("a.example")]).as_deref(), Some("a.example"));
        assert_eq!(of(&[dns("*.example")]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(identity(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn a_pair_is_taken_only_if_both_halves_belong_together() {
        let pair = KeyPair { certificate: "cert.pem".into(), key: "key.pem".into() };
        let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let params = CertificateParams::new(vec!["Users.example".to_owned(), "*.users.example".to_owned()]).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let parse = |chain: &str, key: &str| Certificate::parse(&pair, chain.as_bytes(), key.as_bytes());
        let good = parse(&chain, &key.serialize_pem()).unwrap();
        assert_eq!(good.names, ["users.example".into(), "*.users.example".into()]);
        let refused = |chain: &str, key: &str| parse(chain, key).unwrap_err().to_string();
        assert_eq!(refused(&chain, &other.serialize_pem()), "key.pem: the key is not that of the certificate cert.pem");
        assert!(refused("", &key.serialize_pem()).starts_with("cert.pem: holds no certificate"));
        assert!(refused(&chain, "").starts_with("key.pem: holds no key"));
        let half = |text: &str| text.chars().take(text.len() / 2).collect::<String>();
        assert!(refused(&half(&chain), &key.serialize_pem()).starts_with("cert.pem: "));
        assert!(refused(&chain, &half(&key.serialize_pem())).starts_with("key.pem: "));
    }
}
