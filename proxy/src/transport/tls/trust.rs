//! Whose certificates are accepted from clients, in a handshake and for as long as a connection is open.
//!
//! A [`Trust`] is made of the authorities and revocation lists of one moment. Another one takes its place when either
//! changes, and then every proof that was made before is looked at anew: tickets of sessions are good for the trust that
//! they were given under only (see [`super::tickets`]), and an open connection has its certificate verified again before
//! its next request. That is once for each connection and change; in between a request compares two numbers.
//!
//! What a listener trusts now is its [`Judge`]'s to say. It outlives the listener's configurations, so that a connection
//! that was accepted under an earlier one is judged by the present one.
//!
//! Revocation is checked for every certificate of a chain, and where no list says anything about one, it is refused: as
//! nginx, HAProxy and Envoy do. A list that is out of date stays in force and the log says so: what it revokes is
//! revoked, and an authority that publishes late must not lock everybody out.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate::valid_until;
use super::{FileError, Reason, provider};

/// The revocation lists of a PEM file.
#[derive(Debug)]
pub struct Revocations {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them is out of date; none where none says so.
    pub next_update: Option<SystemTime>,
}

/// Revocation lists, from the contents of a PEM file.
///
/// # Errors
///
/// When there is none, or one that cannot be understood.
pub fn revocations(file: &Path, bytes: &[u8]) -> Result<Revocations, FileError> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let lists = lists.map_err(|error| Reason::Pem(error).of(file))?;
    if lists.is_empty() {
        return Err(Reason::NoRevocations.of(file));
    }
    let mut next_update = None;
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|error| Reason::Revocations(error.to_string()).of(file))?;
        let next = list.next_update().and_then(|at| u64::try_from(at.timestamp()).ok());
        let next = next.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        next_update = next_update.into_iter().chain(next).min();
    }
    Ok(Revocations { lists, next_update })
}

/// The authorities and revocation lists of one moment.
#[derive(Debug)]
pub struct Trust {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// No other has the same.
    version: u64,
    authorities: Arc<RootCertStore>,
    revocations: Option<Arc<Revocations>>,
}

impl Trust {
    /// `optional` says whether a client may have no certificate.
    pub(super) fn new(
        authorities: Arc<RootCertStore>,
        revocations: Option<Arc<Revocations>>,
        optional: bool,
    ) -> Result<Self, String> {
        static VERSION: AtomicU64 = AtomicU64::new(1);
        let mut verifier = WebPkiClientVerifier::builder_with_provider(authorities.clone(), provider());
        if let Some(revocations) = &revocations {
            verifier = verifier.with_crls(revocations.lists.iter().cloned());
        }
        if optional {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| error.to_string())?;
        Ok(Self { verifier, version: VERSION.fetch_add(1, Relaxed), authorities, revocations })
    }

    /// Whether it is made of the same.
    pub(super) fn is_of(&self, authorities: &Arc<RootCertStore>, revocations: Option<&Arc<Revocations>>) -> bool {
        let same = match (&self.revocations, revocations) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same && Arc::ptr_eq(&self.authorities, authorities)
    }

    /// Whether it accepts a chain, which was valid at `now`.
    fn accepts(&self, chain: &[CertificateDer<'static>], now: u64) -> bool {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        chain.split_first().is_some_and(|(own, rest)| self.verifier.verify_client_cert(own, rest, now).is_ok())
    }
}

/// What a listener trusts now; nothing where it asks for no certificates any more, or is gone.
#[derive(Debug, Default)]
pub struct Judge(ArcSwapOption<Trust>);

impl Judge {
    pub(super) fn set(&self, trust: Option<Arc<Trust>>) {
        self.0.store(trust);
    }
}

/// What an open connection may still be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Good,
    /// The certificate has expired, or the listener is gone: the client is asked to come again, and served until then.
    Expired,
    /// The certificate has been revoked, or its authority is not trusted any more: no request is served.
    Revoked,
}

/// What a client has proved on an open connection.
#[derive(Debug)]
pub struct Proof {
    chain: Box<[CertificateDer<'static>]>,
    /// In seconds since 1970.
    valid_until: u64,
    judge: Arc<Judge>,
    /// The version of the trust that was asked last, and what it said.
    judged: Cell<(u64, bool)>,
    /// What was proved outside of the tunnel that this was proved in.
    outer: Option<Rc<Proof>>,
}

impl Proof {
    /// For a chain that `trust` has found good.
    pub(super) fn new(chain: &[CertificateDer<'static>], trust: &Trust, judge: Arc<Judge>) -> Self {
        let judged = Cell::new((trust.version, true));
        Self { chain: chain.into(), valid_until: valid_until(chain), judge, judged, outer: None }
    }

    /// This beside what was proved outside of the tunnel that it was proved in.
    #[must_use]
    pub fn inside(self, outer: Option<&Rc<Proof>>) -> Self {
        Self { outer: outer.cloned(), ..self }
    }

    /// What the connection may be used for now.
    pub fn standing(&self) -> Standing {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.standing_at(now)
    }

    fn standing_at(&self, now: u64) -> Standing {
        let own = match &*self.judge.0.load() {
            None => Standing::Expired,
            Some(trust) => {
                // One that is older is on its way out.
                if self.judged.get().0 < trust.version {
                    // By its last moment, where it has expired: that must not hide that it was revoked.
                    let accepted = trust.accepts(&self.chain, now.min(self.valid_until));
                    self.judged.set((trust.version, accepted));
                }
                match self.judged.get().1 {
                    false => Standing::Revoked,
                    true if now > self.valid_until => Standing::Expired,
                    true => Standing::Good,
                }
            }
        };
        self.outer.as_ref().map_or(own, |outer| outer.standing_at(now).max(own))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair,
        KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;

    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn roots(&self) -> Arc<RootCertStore> {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            Arc::new(roots)
        }

        fn issue(&self, serial: u8) -> Vec<CertificateDer<'static>> {
            let mut params = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(vec![serial]));
            params.not_after = date_time_ymd(2090, 1, 1);
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            vec![params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()]
        }

        fn list(&self, serials: &[u8]) -> String {
            let revoked = |serial: &u8| RevokedCertParams {
                serial_number: SerialNumber::from(vec![*serial]),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2024, 1, 1),
                next_update: date_time_ymd(2025, 1, 1),
                crl_number: SerialNumber::from(vec![1]),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(revoked).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.0).unwrap().pem().unwrap()
        }

        fn trust(&self, revoked: Option<&[u8]>) -> Arc<Trust> {
            let lists = revoked.map(|revoked| Arc::new(read(&self.list(revoked)).unwrap()));
            Arc::new(Trust::new(self.roots(), lists, false).unwrap())
        }
    }

    fn read(text: &str) -> Result<Revocations, String> {
        revocations(Path::new("crl.pem"), text.as_bytes()).map_err(|error| error.to_string())
    }

    const NOW: u64 = 1_900_000_000;
    const AFTER_ITS_END: u64 = 3_900_000_000;

    /// Issue 10, 11: a list that comes later holds for what was proved before it.
    #[test]
    fn an_open_connection_is_judged_by_what_is_trusted_now() {
        let authority = Authority::new();
        let judge = Arc::new(Judge::default());
        let first = authority.trust(None);
        judge.set(Some(first.clone()));
        let [one, other] = [1, 2].map(|serial| Proof::new(&authority.issue(serial), &first, judge.clone()));
        let standings = |now| [one.standing_at(now), other.standing_at(now)];
        assert_eq!(standings(NOW), [Standing::Good; 2]);
        assert_eq!(standings(AFTER_ITS_END), [Standing::Expired; 2]);
        // The list is out of date, and holds.
        judge.set(Some(authority.trust(Some(&[1]))));
        assert_eq!(standings(NOW), [Standing::Revoked, Standing::Good]);
        assert_eq!(standings(AFTER_ITS_END), [Standing::Revoked, Standing::Expired]);
        judge.set(Some(authority.trust(Some(&[2]))));
        assert_eq!(standings(AFTER_ITS_END), [Standing::Expired, Standing::Revoked]);
        judge.set(Some(Authority::new().trust(None)));
        assert_eq!(standings(NOW), [Standing::Revoked; 2]);
        // A list of another authority says nothing of these.
        let (strange, roots) = (read(&Authority::new().list(&[])).unwrap(), authority.roots());
        judge.set(Some(Arc::new(Trust::new(roots, Some(Arc::new(strange)), false).unwrap())));
        assert_eq!(standings(NOW), [Standing::Revoked; 2]);
        judge.set(None);
        assert_eq!(standings(NOW), [Standing::Expired; 2]);
    }

    #[test]
    fn inside_of_a_tunnel_both_proofs_count() {
        let (authority, judge) = (Authority::new(), Arc::new(Judge::default()));
        let trust = authority.trust(Some(&[1]));
        judge.set(Some(authority.trust(Some(&[1]))));
        let proof = |serial| Proof::new(&authority.issue(serial), &trust, judge.clone());
        for (outer, inner, expected) in [(1, 2, Standing::Revoked), (2, 1, Standing::Revoked), (2, 3, Standing::Good)] {
            let inside = proof(inner).inside(Some(&Rc::new(proof(outer))));
            assert_eq!(inside.standing_at(NOW), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn lists_are_read_or_refused() {
        let authority = Authority::new();
        let list = authority.list(&[1]);
        let at = UNIX_EPOCH + Duration::from_secs(1_735_689_600);
        assert_eq!(read(&format!("{list}{list}")).unwrap().next_update, Some(at));
        assert!(read("").unwrap_err().starts_with("crl.pem: holds no revocation list"));
        let half: String = list.chars().take(list.len() / 2).collect();
        assert!(read(&half).unwrap_err().starts_with("crl.pem: not PEM"));
        let other = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        assert!(read(other).unwrap_err().starts_with("crl.pem: not a revocation list"));
    }
}
