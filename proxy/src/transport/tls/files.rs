//! The files that TLS is made from, followed as they change.
//!
//! What counts is the content. A pair of certificate and key is taken together or not at all: while one of the two is
//! broken, missing, or belongs to another, what was good last stays in use, and the log says which file is at fault.
//! The next change is looked at anew, so that a pair whose files are replaced one after the other is taken when the
//! second has been written.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use sha2::{Digest, Sha256};

use super::certificate::authorities;
use super::server::Trusted;
use super::{Certificate, Connector, FileError, Handshakes, Reason, Revocations, Terminator, revocations};
use crate::config::checked::{ClientCertificates, KeyPair, Listener, TlsClient};
use crate::regular;
use crate::supervise;
use crate::watch::Changes;

/// How often the files are read anew although nothing announced a change.
const RESCAN: Duration = Duration::from_secs(5);

/// From here on the log warns of a certificate's end.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How often it does.
const DAILY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate that is in use.
#[derive(Debug, Clone)]
pub struct Held {
    pub file: PathBuf,
    pub certificate: Arc<Certificate>,
}

/// Everything of TLS that comes from files, and who uses it.
#[derive(Debug, Default)]
pub struct Files {
    pairs: HashMap<KeyPair, Kept<Certificate>>,
    authorities: HashMap<PathBuf, Kept<RootCertStore>>,
    revocations: HashMap<PathBuf, Kept<Revocations>>,
    system: Option<Arc<RootCertStore>>,
    terminators: Vec<(Arc<Terminator>, Vec<KeyPair>)>,
    connectors: HashMap<TlsClient, Arc<Connector>>,
    /// With endpoints.
    handshakes: Arc<Handshakes>,
    held: Arc<ArcSwap<Vec<Held>>>,
    before: Before,
}

/// What was made for the configuration before. Where a file holds the same as then, what was made of it goes on: clients
/// resume their sessions, and connections to endpoints stay.
#[derive(Debug, Default)]
struct Before {
    pairs: HashMap<KeyPair, Kept<Certificate>>,
    authorities: HashMap<PathBuf, Kept<RootCertStore>>,
    revocations: HashMap<PathBuf, Kept<Revocations>>,
    connectors: HashMap<TlsClient, Arc<Connector>>,
}

impl Files {
    /// For another configuration. All files are read anew.
    pub fn after(before: &Self) -> Self {
        let before_them = Before {
            pairs: before.pairs.clone(),
            authorities: before.authorities.clone(),
            revocations: before.revocations.clone(),
            connectors: before.connectors.clone(),
        };
        let (system, handshakes) = (before.system.clone(), before.handshakes.clone());
        Self { system, handshakes, before: before_them, ..Self::default() }
    }

    /// Takes the place of what was there before: from now on these are the certificates in use, and what is trusted.
    pub fn replace(&mut self, before: &Self) {
        self.held = before.held.clone();
        self.before = Before::default();
        self.judge();
        for (terminator, _) in &before.terminators {
            terminator.retire(self.terminators.iter().map(|(terminator, _)| terminator));
        }
        self.publish();
    }

    /// Has connections that are open judged by what is trusted now.
    pub fn judge(&self) {
        self.terminators.iter().for_each(|(terminator, _)| terminator.judge());
    }

    /// Ends the TLS of a listener's clients, and that inside tunnels of theirs, with the listener's own certificates
    /// and then those for all. `before` is what ended it under the configuration before; it goes on if nothing has
    /// changed.
    ///
    /// # Errors
    ///
    /// When a file cannot be used.
    pub fn terminator(
        &mut self,
        listener: &Listener,
        shared: &[KeyPair],
        before: Option<&Arc<Terminator>>,
    ) -> Result<Arc<Terminator>, FileError> {
        let mut terminator = Arc::new(Terminator::new(listener, before.map(|before| &**before)));
        let mut pairs = terminator.settings.certificates.clone();
        pairs.extend(shared.iter().filter(|pair| !terminator.settings.certificates.contains(pair)).cloned());
        for pair in &pairs {
            self.open_pair(pair)?;
        }
        if let Some(file) = authorities_of(&terminator) {
            self.open_authorities(file)?;
        }
        if let Some(file) = &terminator.settings.client_crl {
            self.open_revocations(file)?;
        }
        let (certificates, trusted) = self.contents(&terminator, &pairs);
        match before.filter(|before| before.is_as(&terminator, &certificates, trusted.as_ref())) {
            Some(before) => terminator = before.clone(),
            None => terminator.set(&certificates, trusted)?,
        }
        self.terminators.push((terminator.clone(), pairs));
        self.publish();
        Ok(terminator)
    }

    /// Begins TLS to endpoints, one for all services with the same settings.
    ///
    /// # Errors
    ///
    /// When a file cannot be used.
    pub fn connector(&mut self, settings: &TlsClient) -> Result<Arc<Connector>, FileError> {
        if let Some(connector) = self.connectors.get(settings) {
            return Ok(connector.clone());
        }
        match &settings.ca {
            Some(file) => self.open_authorities(file)?,
            None if self.system.is_none() => self.system = Some(Arc::new(system_roots()?)),
            None => {}
        }
        if let Some(pair) = &settings.client {
            self.open_pair(pair)?;
        }
        let connector = match self.before.connectors.get(settings).filter(|_| self.holds_as_before(settings)) {
            Some(before) => before.clone(),
            None => {
                let client = settings.client.as_ref().and_then(|pair| self.pair(pair));
                let handshakes = self.handshakes.clone();
                Arc::new(Connector::new(settings, self.roots(settings), client.as_deref(), handshakes)?)
            }
        };
        self.connectors.insert(settings.clone(), connector.clone());
        self.publish();
        Ok(connector)
    }

    /// Whether what a connector is made of is what it was made of before.
    fn holds_as_before(&self, settings: &TlsClient) -> bool {
        let Before { pairs, authorities, .. } = &self.before;
        let pair = |pair: &KeyPair| is_same(self.pairs.get(pair), pairs.get(pair));
        let file = |file: &PathBuf| is_same(self.authorities.get(file), authorities.get(file));
        settings.client.as_ref().is_none_or(pair) && settings.ca.as_ref().is_none_or(file)
    }

    /// The connectors so far.
    pub fn connectors(&self) -> HashMap<TlsClient, Arc<Connector>> {
        self.connectors.clone()
    }

    /// Handshakes with endpoints.
    pub fn handshakes(&self) -> Arc<Handshakes> {
        self.handshakes.clone()
    }

    /// The certificates in use, as they change.
    pub fn held(&self) -> Arc<ArcSwap<Vec<Held>>> {
        self.held.clone()
    }

    fn open_pair(&mut self, pair: &KeyPair) -> Result<(), FileError> {
        if !self.pairs.contains_key(pair) {
            let kept = Kept::open(&[&pair.certificate, &pair.key], |contents| parse_pair(pair, contents))?;
            let kept = kept.or_as_before(self.before.pairs.get(pair));
            warn_of_expiry(&pair.certificate, &kept.current);
            self.pairs.insert(pair.clone(), kept);
        }
        Ok(())
    }

    fn open_authorities(&mut self, file: &Path) -> Result<(), FileError> {
        if !self.authorities.contains_key(file) {
            let kept = Kept::open(&[file], |contents| parse_authorities(file, contents))?;
            let kept = kept.or_as_before(self.before.authorities.get(file));
            self.authorities.insert(file.to_owned(), kept);
        }
        Ok(())
    }

    fn open_revocations(&mut self, file: &Path) -> Result<(), FileError> {
        if !self.revocations.contains_key(file) {
            let kept = Kept::open(&[file], |contents| parse_revocations(file, contents))?;
            let kept = kept.or_as_before(self.before.revocations.get(file));
            warn_of_age(file, &kept.current);
            self.revocations.insert(file.to_owned(), kept);
        }
        Ok(())
    }

    fn pair(&self, pair: &KeyPair) -> Option<Arc<Certificate>> {
        self.pairs.get(pair).map(|kept| kept.current.clone())
    }

    fn roots(&self, settings: &TlsClient) -> Arc<RootCertStore> {
        let given = settings.ca.as_ref().map(|file| self.authorities.get(file).map(|kept| kept.current.clone()));
        let roots = given.unwrap_or_else(|| self.system.clone());
        roots.unwrap_or_else(|| Arc::new(RootCertStore::empty()))
    }

    fn set_terminator(&self, terminator: &Terminator, pairs: &[KeyPair]) -> Result<(), FileError> {
        let (certificates, trusted) = self.contents(terminator, pairs);
        terminator.set(&certificates, trusted)?;
        terminator.judge();
        Ok(())
    }

    /// What a terminator is made of.
    fn contents(&self, terminator: &Terminator, pairs: &[KeyPair]) -> (Vec<Arc<Certificate>>, Option<Trusted>) {
        let authorities = authorities_of(terminator).and_then(|file| self.authorities.get(file));
        let revocations = terminator.settings.client_crl.as_ref().and_then(|file| self.revocations.get(file));
        let revocations = revocations.map(|kept| kept.current.clone());
        let trusted = authorities.map(|kept| Trusted { authorities: kept.current.clone(), revocations });
        let certificates = pairs.iter().filter_map(|pair| self.pair(pair)).collect();
        (certificates, trusted)
    }

    fn publish(&self) {
        let held = |(pair, kept): (&KeyPair, &Kept<Certificate>)| Held {
            file: pair.certificate.clone(),
            certificate: kept.current.clone(),
        };
        let mut held: Vec<Held> = self.pairs.iter().map(held).collect();
        held.sort_by(|a, b| a.file.cmp(&b.file));
        self.held.store(Arc::new(held));
    }

    /// Reads everything again, and has what is new and good used by the handshakes that begin from now on.
    fn read_again(&mut self) {
        let mut changed: HashSet<PathBuf> = HashSet::new();
        for (pair, kept) in &mut self.pairs {
            if kept.read_again(&[&pair.certificate, &pair.key], |contents| parse_pair(pair, contents)) {
                let (file, names) = (pair.certificate.display(), kept.current.names.join(", "));
                tracing::info!(target: "heddle::tls", "{file}: new certificate in use, for {names}");
                warn_of_expiry(&pair.certificate, &kept.current);
                changed.insert(pair.certificate.clone());
            }
        }
        for (file, kept) in &mut self.authorities {
            if kept.read_again(&[file], |contents| parse_authorities(file, contents)) {
                tracing::info!(target: "heddle::tls", "{}: new authorities in use", file.display());
                changed.insert(file.clone());
            }
        }
        for (file, kept) in &mut self.revocations {
            if kept.read_again(&[file], |contents| parse_revocations(file, contents)) {
                tracing::info!(target: "heddle::tls", "{}: new revocation lists in use", file.display());
                warn_of_age(file, &kept.current);
                changed.insert(file.clone());
            }
        }
        if changed.is_empty() {
            return;
        }
        for (terminator, pairs) in &self.terminators {
            let concerned = pairs.iter().any(|pair| changed.contains(&pair.certificate))
                || authorities_of(terminator).is_some_and(|file| changed.contains(file))
                || terminator.settings.client_crl.as_ref().is_some_and(|file| changed.contains(file));
            if concerned && let Err(error) = self.set_terminator(terminator, pairs) {
                tracing::error!(target: "heddle::tls", "{error}; {OLD_STAYS}");
            }
        }
        for (settings, connector) in &self.connectors {
            let client = settings.client.as_ref();
            let concerned = client.is_some_and(|pair| changed.contains(&pair.certificate))
                || settings.ca.as_ref().is_some_and(|file| changed.contains(file));
            let client = client.and_then(|pair| self.pair(pair));
            if concerned && let Err(error) = connector.set(self.roots(settings), client.as_deref()) {
                tracing::error!(target: "heddle::tls", "{error}; {OLD_STAYS}");
            }
        }
        self.publish();
    }

    fn paths(&self) -> Vec<PathBuf> {
        let pairs = self.pairs.keys().flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]);
        pairs.chain(self.authorities.keys().cloned()).chain(self.revocations.keys().cloned()).collect()
    }
}

/// Follows the files for ever.
pub async fn watch(files: Arc<Mutex<Files>>) {
    let paths = files.lock().unwrap_or_else(PoisonError::into_inner).paths();
    if paths.is_empty() {
        return std::future::pending().await;
    }
    let mut changes = Changes::of_files(paths);
    let mut warned = Instant::now();
    loop {
        changes.next(RESCAN).await;
        let read = files.clone();
        let warns = warned.elapsed() >= DAILY;
        if warns {
            warned = Instant::now();
        }
        supervise::blocking(move || {
            let mut files = read.lock().unwrap_or_else(PoisonError::into_inner);
            files.read_again();
            if warns {
                files.pairs.iter().for_each(|(pair, kept)| warn_of_expiry(&pair.certificate, &kept.current));
                files.revocations.iter().for_each(|(file, kept)| warn_of_age(file, &kept.current));
            }
        })
        .await;
    }
}

/// What files held when they were last good, and what they hold.
#[derive(Debug)]
struct Kept<T> {
    seen: Seen,
    current: Arc<T>,
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self { seen: self.seen.clone(), current: self.current.clone() }
    }
}

fn is_same<T>(one: Option<&Kept<T>>, other: Option<&Kept<T>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(&one.current, &other.current))
}

/// A hash of all contents, or what was wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Hash([u8; 32]),
    Unreadable(PathBuf, io::ErrorKind),
}

/// What the log says of content that is refused.
const OLD_STAYS: &str = "what was in use stays in use";

impl<T> Kept<T> {
    fn open(files: &[&Path], parse: impl FnOnce(&[Vec<u8>]) -> Result<T, FileError>) -> Result<Self, FileError> {
        let (seen, contents) = read(files);
        Ok(Self { seen, current: Arc::new(parse(&contents?)?) })
    }

    /// What was made of the same contents before, if they are the same.
    fn or_as_before(self, before: Option<&Self>) -> Self {
        before.filter(|before| before.seen == self.seen).cloned().unwrap_or(self)
    }

    /// Whether there is something new, and it is good.
    fn read_again(&mut self, files: &[&Path], parse: impl FnOnce(&[Vec<u8>]) -> Result<T, FileError>) -> bool {
        let (seen, contents) = read(files);
        if seen == self.seen {
            return false;
        }
        self.seen = seen;
        let name = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        let content = contents.as_ref().map(|contents| contents.concat()).unwrap_or_default();
        // It was remembered before: content that makes this panic is not tried again.
        let Some(_input) = supervise::input(&name, &content) else { return false };
        match contents.and_then(|contents| parse(&contents)) {
            Ok(parsed) => {
                self.current = Arc::new(parsed);
                true
            }
            Err(error) => {
                tracing::error!(target: "heddle::tls", "{error}; {OLD_STAYS}");
                false
            }
        }
    }
}

fn read(files: &[&Path]) -> (Seen, Result<Vec<Vec<u8>>, FileError>) {
    let mut hash = Sha256::new();
    let mut contents = Vec::new();
    for file in files {
        match regular::read(file, regular::TEXT) {
            Ok(content) => {
                hash.update((content.len() as u64).to_le_bytes());
                hash.update(&content);
                contents.push(content);
            }
            Err(error) => {
                let seen = Seen::Unreadable(file.to_path_buf(), error.kind());
                return (seen, Err(Reason::Read(error).of(*file)));
            }
        }
    }
    (Seen::Hash(hash.finalize().into()), Ok(contents))
}

fn parse_pair(pair: &KeyPair, contents: &[Vec<u8>]) -> Result<Certificate, FileError> {
    let (chain, key) = contents.split_first().map_or((&[][..], &[][..]), |(chain, rest)| (chain, rest));
    Certificate::parse(pair, chain, &key.concat())
}

fn parse_authorities(file: &Path, contents: &[Vec<u8>]) -> Result<RootCertStore, FileError> {
    authorities(file, &contents.concat())
}

fn parse_revocations(file: &Path, contents: &[Vec<u8>]) -> Result<Revocations, FileError> {
    revocations(file, &contents.concat())
}

fn authorities_of(terminator: &Terminator) -> Option<&PathBuf> {
    match &terminator.settings.client {
        ClientCertificates::Optional(file) | ClientCertificates::Required(file) => Some(file),
        ClientCertificates::Off => None,
    }
}

/// The authorities that the system trusts, as OpenSSL finds them (also by `SSL_CERT_FILE` and `SSL_CERT_DIR`).
fn system_roots() -> Result<RootCertStore, FileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some that systems come with are too old to be understood.
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        _ if !roots.is_empty() => Ok(roots),
        Some(error) => Err(Reason::Unusable(error.to_string()).of("authorities of the system")),
        None => Err(Reason::NoSystemRoots.of("authorities of the system")),
    }
}

fn warn_of_expiry(file: &Path, certificate: &Certificate) {
    if let Some(when) = expires_soon(certificate.expires, SystemTime::now()) {
        let (file, names) = (file.display(), certificate.names.join(", "));
        tracing::warn!(target: "heddle::tls", "{file}: the certificate for {names} {when}");
    }
}

fn warn_of_age(file: &Path, revocations: &Revocations) {
    if revocations.next_update.is_some_and(|next| next <= SystemTime::now()) {
        let file = file.display();
        tracing::warn!(target: "heddle::tls", "{file}: a revocation list is out of date; it stays in force");
    }
}

/// What is to be said of an end that is near or past.
fn expires_soon(expires: SystemTime, now: SystemTime) -> Option<String> {
    let days = |time: Duration| time.as_secs() / DAILY.as_secs();
    match expires.duration_since(now) {
        Ok(left) if left >= SOON => None,
        Ok(left) => Some(format!("expires within {} days", days(left) + 1)),
        Err(since) => Some(format!("expired {} days ago", days(since.duration()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_near_or_past_is_warned_of() {
        let now = SystemTime::now();
        let said = |expires| expires_soon(expires, now);
        assert_eq!(said(now + SOON), None);
        assert_eq!(said(now + SOON - Duration::from_secs(1)).as_deref(), Some("expires within 14 days"));
        assert_eq!(said(now + Duration::from_secs(1)).as_deref(), Some("expires within 1 days"));
        assert_eq!(said(now - 2 * DAILY).as_deref(), Some("expired 2 days ago"));
    }
}
