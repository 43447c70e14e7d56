//! TLS to endpoints.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{Certificate, FileError, H2, HELD_BACK, Handshakes, Reason, provider};
use crate::config::checked::TlsClient;
use crate::transport::Stream;

/// Names of servers whose sessions are kept, to be resumed; up to eight tickets each.
const SESSIONS: usize = 1024;

/// Why there is no TLS with an endpoint, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    #[error("{0:?} is no name that a certificate can be for; expected server_name")]
    Name(String),
    #[error("its certificate is not accepted: {0}")]
    Certificate(rustls::CertificateError),
    #[error("{0}")]
    Protocol(rustls::Error),
    #[error("the connection broke during the handshake: {0}")]
    Broken(io::Error),
}

impl TlsFailure {
    /// What TLS has to say about an error of a stream; nothing where it is the connection below that broke.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<rustls::Error>().cloned().map(Self::from)
    }
}

impl From<rustls::Error> for TlsFailure {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::Certificate(error),
            other => Self::Protocol(other),
        }
    }
}

impl From<io::Error> for TlsFailure {
    fn from(error: io::Error) -> Self {
        Self::of(&error).unwrap_or(Self::Broken(error))
    }
}

/// Begins TLS to the endpoints of services with the same settings.
#[derive(Debug)]
pub struct Connector {
    pub(super) settings: TlsClient,
    config: ArcSwap<ClientConfig>,
    /// To verify, whatever the endpoint's address.
    name: Option<ServerName<'static>>,
    /// Those that were done.
    handshakes: Arc<Handshakes>,
}

impl Connector {
    pub(super) fn new(
        settings: &TlsClient,
        roots: Arc<RootCertStore>,
        client: Option<&Certificate>,
        handshakes: Arc<Handshakes>,
    ) -> Result<Self, FileError> {
        let refused = |name: &String| Reason::Unusable(TlsFailure::Name(name.clone()).to_string()).of("server_name");
        let name = settings.server_name.as_ref().map(|name| server_name(name).ok_or_else(|| refused(name)));
        let config = ArcSwap::from_pointee(config(settings, roots, client)?);
        Ok(Self { settings: settings.clone(), config, name: name.transpose()?, handshakes })
    }

    /// Has new connections use these. Sessions of before are not resumed: they stand for what was proven then.
    pub(super) fn set(&self, roots: Arc<RootCertStore>, client: Option<&Certificate>) -> Result<(), FileError> {
        self.config.store(Arc::new(config(&self.settings, roots, client)?));
        Ok(())
    }

    /// The stream inside TLS to an endpoint at `host:port`, and whether HTTP/2 was agreed on. Offers `protocols` in the
    /// order of preference; none for a protocol that has no name.
    ///
    /// # Errors
    ///
    /// When the endpoint is not who it should be, or they cannot agree.
    pub async fn connect(
        &self,
        address: &str,
        protocols: &[&[u8]],
        stream: Stream,
    ) -> Result<(Stream, bool), TlsFailure> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => host_name(address).ok_or_else(|| TlsFailure::Name(address.to_owned()))?,
        };
        let protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connector = TlsConnector::from(self.config.load_full());
        let mut tls = connector.with_alpn(protocols).connect(name, stream.beneath_tls()).await?;
        let session = tls.get_mut().1;
        session.set_buffer_limit(Some(HELD_BACK));
        self.handshakes.count(session);
        let http2 = tls.get_ref().1.alpn_protocol() == Some(H2);
        Ok((TlsStream::Client(tls).into(), http2))
    }
}

fn config(
    settings: &TlsClient,
    roots: Arc<RootCertStore>,
    client: Option<&Certificate>,
) -> Result<ClientConfig, FileError> {
    let unusable = |error: String| Reason::Unusable(error).of(settings.ca.clone().unwrap_or_default());
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable(error.to_string()))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    let builder = builder.with_webpki_verifier(verifier.map_err(|error| unusable(error.to_string()))?);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client.key.clone()))),
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// The name to verify of `host:port`: an IP address, with brackets or without, is one.
fn host_name(address: &str) -> Option<ServerName<'static>> {
    server_name(address.rsplit_once(':').map_or(address, |(host, _)| host))
}

fn server_name(host: &str) -> Option<ServerName<'static>> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::from(ip)),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_host_of_the_address() {
        let name = |address: &str| host_name(address).map(|name| name.to_str().into_owned());
        assert_eq!(name("users.example:443").as_deref(), Some("users.example"));
        assert_eq!(name("10.0.0.1:443").as_deref(), Some("10.0.0.1"));
        assert_eq!(name("[::1]:443").as_deref(), Some("::1"));
        assert_eq!(name("not a name:443"), None);
    }
}
