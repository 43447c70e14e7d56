//! TLS that ends here.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::certificate::identity;
use super::choice::Certificates;
use super::tickets::{self, Noting, Tickets};
use super::trust::{Judge, Trust};
use super::{Certificate, FileError, H2, HELD_BACK, HTTP_1_1, Handshakes, Proof, Reason, Revocations, provider};
use crate::config::checked::{ClientCertificates, Listener, ListenerTls, Protocol, TlsServer};
use crate::policy::Peer;
use crate::timer::Timers;
use crate::transport::Stream;

/// A handshake's time where a listener says nothing of TLS: inside tunnels.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("no TLS: there is no certificate")]
    NoCertificate,
    #[error("no TLS: the handshake was not done in time")]
    Timeout,
    #[error("no TLS: {0}")]
    Failed(#[from] io::Error),
}

/// Ends the TLS of one listener's clients, and that inside tunnels of theirs. Where the listener says nothing of TLS it
/// is for the latter only.
#[derive(Debug)]
pub struct Terminator {
    pub(super) settings: TlsServer,
    /// What can be agreed on; empty where the protocol inside is not known.
    protocols: Vec<Vec<u8>>,
    /// None without a certificate.
    current: ArcSwapOption<Current>,
    /// Of all terminators that the listener has had.
    failures: Arc<AtomicU64>,
    handshakes: Arc<Handshakes>,
    /// Likewise: connections of before are judged by it too.
    judge: Arc<Judge>,
}

/// Whose certificates are accepted from clients, as files say it.
pub(super) struct Trusted {
    pub authorities: Arc<RootCertStore>,
    pub revocations: Option<Arc<Revocations>>,
}

/// What handshakes of one moment are made with.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// What these are made of.
    held: Vec<Arc<Certificate>>,
    /// None where no client is asked.
    trust: Option<Arc<Trust>>,
}

impl Terminator {
    /// Without a certificate yet. What `before` has counted counts on.
    pub(super) fn new(listener: &Listener, before: Option<&Self>) -> Self {
        let settings = match &listener.tls {
            ListenerTls::Terminate(settings) => settings.clone(),
            ListenerTls::Off | ListenerTls::Passthrough => TlsServer {
                certificates: Vec::new(),
                client: ClientCertificates::Off,
                client_crl: None,
                only_tls13: false,
                session_tickets: true,
                handshake_timeout: HANDSHAKE_TIMEOUT,
            },
        };
        let protocols = match listener.protocol {
            Protocol::Tcp => Vec::new(),
            Protocol::Http | Protocol::Auto => vec![H2.to_vec(), HTTP_1_1.to_vec()],
        };
        Self {
            settings,
            protocols,
            current: ArcSwapOption::empty(),
            failures: before.map(|before| before.failures.clone()).unwrap_or_default(),
            handshakes: before.map(|before| before.handshakes.clone()).unwrap_or_default(),
            judge: before.map(|before| before.judge.clone()).unwrap_or_default(),
        }
    }

    /// Whether another one of these settings would do the same with these certificates and authorities.
    pub(super) fn is_as(&self, other: &Self, certificates: &[Arc<Certificate>], trusted: Option<&Trusted>) -> bool {
        let current = self.current.load();
        let (held, trust) = match &*current {
            Some(current) => (&*current.held, &current.trust),
            None => (&[][..], &None),
        };
        (&self.settings, &self.protocols) == (&other.settings, &other.protocols)
            && held.iter().map(Arc::as_ptr).eq(certificates.iter().map(Arc::as_ptr))
            && (held.is_empty() || is_of(trust.as_ref(), trusted))
    }

    /// Has new handshakes use these. Tickets of sessions stay good, unless the clients' authorities or revocation lists
    /// are others: a session that is resumed proves its client to have been found good by those of before.
    pub(super) fn set(&self, certificates: &[Arc<Certificate>], trusted: Option<Trusted>) -> Result<(), FileError> {
        let held = certificates.to_vec();
        let Some(certificates) = Certificates::new(certificates).map(Arc::new) else { return Ok(()) };
        let unusable = |reason| {
            let file = match (&self.settings.client_crl, &self.settings.client) {
                (Some(file), _) => Some(file.clone()),
                (None, ClientCertificates::Optional(file) | ClientCertificates::Required(file)) => Some(file.clone()),
                (None, ClientCertificates::Off) => {
                    self.settings.certificates.first().map(|pair| pair.certificate.clone())
                }
            };
            Reason::Unusable(reason).of(file.unwrap_or_default())
        };
        let before = self.current.load_full().filter(|current| is_of(current.trust.as_ref(), trusted.as_ref()));
        let tickets = before.as_ref().map(|current| current.config.ticketer.clone());
        let trust = match (before, trusted) {
            (Some(before), _) => before.trust.clone(),
            (None, Some(Trusted { authorities, revocations })) => {
                let optional = !matches!(self.settings.client, ClientCertificates::Required(_));
                Some(Arc::new(Trust::new(authorities, revocations, optional).map_err(unusable)?))
            }
            (None, None) => None,
        };
        let config = self.config(certificates.clone(), trust.as_deref(), tickets).map_err(unusable)?;
        self.current.store(Some(Arc::new(Current { config: Arc::new(config), certificates, held, trust })));
        Ok(())
    }

    /// Has what was set judge connections that are open, too: those of this listener whatever its settings were.
    pub(super) fn judge(&self) {
        self.judge.set(self.current.load().as_ref().and_then(|current| current.trust.clone()));
    }

    /// Has connections that are open end, unless `others` belong to the same listener.
    pub(super) fn retire<'a>(&self, mut others: impl Iterator<Item = &'a Arc<Self>>) {
        if !others.any(|other| Arc::ptr_eq(&other.judge, &self.judge)) {
            self.judge.set(None);
        }
    }

    fn config(
        &self,
        certificates: Arc<Certificates>,
        trust: Option<&Trust>,
        tickets: Option<Arc<dyn ProducesTickets>>,
    ) -> Result<ServerConfig, String> {
        let versions: &[_] =
            if self.settings.only_tls13 { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions).map_err(|error| error.to_string())?;
        let builder = match trust {
            None => builder.with_no_client_auth(),
            Some(trust) => builder.with_client_cert_verifier(Arc::new(Noting(trust.verifier.clone()))),
        };
        let mut config = builder.with_cert_resolver(certificates);
        config.alpn_protocols.clone_from(&self.protocols);
        // Clients take what is safe as it comes; what it costs is ours to know.
        config.ignore_client_order = true;
        // What a session was is in its ticket, sealed by keys that are changed; nothing is kept.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if self.settings.session_tickets {
            config.ticketer = match (tickets, trust) {
                (Some(tickets), _) => tickets,
                (None, Some(_)) => Arc::new(Tickets::new().map_err(|error| error.to_string())?),
                (None, None) => Ticketer::new().map_err(|error| error.to_string())?,
            };
        } else {
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    /// Whether a certificate of this name is held: TLS for it inside a tunnel is ended.
    pub fn covers(&self, name: &str) -> bool {
        self.current.load().as_ref().is_some_and(|current| current.certificates.covers(name))
    }

    /// Handshakes that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Handshakes that were done.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// The stream inside TLS, what the handshake said, and the proof where the client has a certificate.
    ///
    /// # Errors
    ///
    /// When the client breaks the protocol, presents no certificate that it has to, or takes too long. It was told so
    /// where TLS has a word for it.
    pub async fn accept(
        &self,
        timers: &Rc<Timers>,
        stream: Stream,
    ) -> Result<(Stream, Peer, Option<Proof>), HandshakeError> {
        let accepted = self.handshake(timers, stream).await;
        if accepted.is_err() {
            self.failures.fetch_add(1, Relaxed);
        }
        accepted
    }

    async fn handshake(
        &self,
        timers: &Rc<Timers>,
        stream: Stream,
    ) -> Result<(Stream, Peer, Option<Proof>), HandshakeError> {
        let current = self.current.load_full().ok_or(HandshakeError::NoCertificate)?;
        let accepting = TlsAcceptor::from(current.config.clone()).accept(stream.beneath_tls());
        let timeout = self.settings.handshake_timeout;
        let accepted = match &current.trust {
            Some(_) => timers.within(timeout, tickets::handshake(accepting)).await,
            None => timers.within(timeout, accepting).await,
        };
        let mut tls = accepted.map_err(|_| HandshakeError::Timeout)??;
        let session = tls.get_mut().1;
        session.set_buffer_limit(Some(HELD_BACK));
        self.handshakes.count(session);
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let peer = Peer {
            server_name: session.server_name().map(|name| Arc::from(name.to_ascii_lowercase())),
            identity: certificate.and_then(identity),
            http2: session.alpn_protocol() == Some(H2),
        };
        let proof = session.peer_certificates().zip(current.trust.as_deref());
        let proof = proof.map(|(chain, trust)| Proof::new(chain, trust, self.judge.clone()));
        Ok((TlsStream::Server(tls).into(), peer, proof))
    }
}

/// Whether what there is is made of this.
fn is_of(trust: Option<&Arc<Trust>>, trusted: Option<&Trusted>) -> bool {
    match (trust, trusted) {
        (Some(trust), Some(trusted)) => trust.is_of(&trusted.authorities, trusted.revocations.as_ref()),
        (trust, trusted) => trust.is_none() && trusted.is_none(),
    }
}
