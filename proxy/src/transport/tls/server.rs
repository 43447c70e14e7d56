//! TLS that ends here.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::certificate::identity;
use super::choice::Certificates;
use super::{Certificate, FileError, H2, HELD_BACK, HTTP_1_1, Reason, provider};
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
}

/// What handshakes of one moment are made with.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// What these are made of.
    held: Vec<Arc<Certificate>>,
    /// Of clients.
    authorities: Option<Arc<RootCertStore>>,
}

impl Terminator {
    /// Without a certificate yet. What `before` has counted counts on.
    pub(super) fn new(listener: &Listener, before: Option<&Self>) -> Self {
        let settings = match &listener.tls {
            ListenerTls::Terminate(settings) => settings.clone(),
            ListenerTls::Off | ListenerTls::Passthrough => TlsServer {
                certificates: Vec::new(),
                client: ClientCertificates::Off,
                only_tls13: false,
                session_tickets: true,
                handshake_timeout: HANDSHAKE_TIMEOUT,
            },
        };
        let protocols = match listener.protocol {
            Protocol::Tcp => Vec::new(),
            Protocol::Http | Protocol::Auto => vec![H2.to_vec(), HTTP_1_1.to_vec()],
        };
        let failures = before.map(|before| before.failures.clone()).unwrap_or_default();
        Self { settings, protocols, current: ArcSwapOption::empty(), failures }
    }

    /// Whether another one of these settings would do the same with these certificates and authorities.
    pub(super) fn is_as(
        &self,
        other: &Self,
        certificates: &[Arc<Certificate>],
        authorities: &Option<Arc<RootCertStore>>,
    ) -> bool {
        let current = self.current.load();
        let (held, trusted) = match &*current {
            Some(current) => (&*current.held, &current.authorities),
            None => (&[][..], &None),
        };
        (&self.settings, &self.protocols) == (&other.settings, &other.protocols)
            && held.iter().map(Arc::as_ptr).eq(certificates.iter().map(Arc::as_ptr))
            && (held.is_empty() || same(trusted, authorities))
    }

    /// Has new handshakes use these. Tickets of sessions stay good, unless the clients' authorities are others: a
    /// session that is resumed proves its client to have been found good by those of before.
    pub(super) fn set(
        &self,
        certificates: &[Arc<Certificate>],
        authorities: Option<Arc<RootCertStore>>,
    ) -> Result<(), FileError> {
        let held = certificates.to_vec();
        let Some(certificates) = Certificates::new(certificates).map(Arc::new) else { return Ok(()) };
        let before = self.current.load_full().filter(|current| same(&current.authorities, &authorities));
        let tickets = before.map(|current| current.config.ticketer.clone());
        let config = self.config(certificates.clone(), authorities.clone(), tickets).map_err(|reason| {
            let file = match &self.settings.client {
                ClientCertificates::Optional(file) | ClientCertificates::Required(file) => Some(file.clone()),
                ClientCertificates::Off => self.settings.certificates.first().map(|pair| pair.certificate.clone()),
            };
            Reason::Unusable(reason).of(file.unwrap_or_default())
        })?;
        self.current.store(Some(Arc::new(Current { config: Arc::new(config), certificates, held, authorities })));
        Ok(())
    }

    fn config(
        &self,
        certificates: Arc<Certificates>,
        authorities: Option<Arc<RootCertStore>>,
        tickets: Option<Arc<dyn ProducesTickets>>,
    ) -> Result<ServerConfig, String> {
        let versions: &[_] =
            if self.settings.only_tls13 { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions).map_err(|error| error.to_string())?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider());
                let verifier = match self.settings.client {
                    ClientCertificates::Required(_) => verifier,
                    ClientCertificates::Off | ClientCertificates::Optional(_) => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
        };
        let mut config = builder.with_cert_resolver(certificates);
        config.alpn_protocols.clone_from(&self.protocols);
        // Clients take what is safe as it comes; what it costs is ours to know.
        config.ignore_client_order = true;
        // What a session was is in its ticket, sealed by keys that rustls changes every six hours; nothing is kept.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if self.settings.session_tickets {
            config.ticketer = match tickets {
                Some(tickets) => tickets,
                None => Ticketer::new().map_err(|error| error.to_string())?,
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

    /// The stream inside TLS, and what the handshake said.
    ///
    /// # Errors
    ///
    /// When the client breaks the protocol, presents no certificate that it has to, or takes too long. It was told so
    /// where TLS has a word for it.
    pub async fn accept(&self, timers: &Rc<Timers>, stream: Stream) -> Result<(Stream, Peer), HandshakeError> {
        let accepted = self.handshake(timers, stream).await;
        if accepted.is_err() {
            self.failures.fetch_add(1, Relaxed);
        }
        accepted
    }

    async fn handshake(&self, timers: &Rc<Timers>, stream: Stream) -> Result<(Stream, Peer), HandshakeError> {
        let config = self.current.load().as_ref().map(|current| current.config.clone());
        let acceptor = TlsAcceptor::from(config.ok_or(HandshakeError::NoCertificate)?);
        let accepted = timers.within(self.settings.handshake_timeout, acceptor.accept(stream.beneath_tls())).await;
        let mut tls = accepted.map_err(|_| HandshakeError::Timeout)??;
        let session = tls.get_mut().1;
        session.set_buffer_limit(Some(HELD_BACK));
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let peer = Peer {
            server_name: session.server_name().map(|name| Arc::from(name.to_ascii_lowercase())),
            identity: certificate.and_then(identity),
            http2: session.alpn_protocol() == Some(H2),
        };
        Ok((TlsStream::Server(tls).into(), peer))
    }
}

fn same(one: &Option<Arc<RootCertStore>>, other: &Option<Arc<RootCertStore>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}
