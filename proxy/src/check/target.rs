//! The endpoint that a check is about, and how it is reached.

use std::sync::Arc;

use ::http::uri::{Authority, Scheme};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Failed, grpc, http, tcp};
use crate::config::checked::{self, CheckKind, HealthCheck};
use crate::service::{Endpoint, Service};
use crate::transport::Stream;
use crate::transport::tls::Connector;
use crate::upstream::{ConnectSettings, Offer, Opening, OwnSockets, open};

pub struct Target {
    pub service: Arc<Service>,
    pub check: Arc<HealthCheck>,
    pub endpoint: Arc<Endpoint>,
    /// Begins TLS, where the service has it.
    pub connector: Option<Arc<Connector>>,
    /// Names that may be looked up at once.
    pub lookups: Arc<Semaphore>,
    /// Where the proxy listens itself.
    pub own: Arc<OwnSockets>,
}

impl Target {
    /// Makes the check.
    ///
    /// # Errors
    ///
    /// When the endpoint does not pass it, or not in time.
    pub async fn check(self) -> Result<(), Failed> {
        let time = self.check.timeout;
        let checked = async {
            match &self.check.kind {
                CheckKind::Tcp => tcp::check(&self).await,
                CheckKind::Http(check) => http::check(&self, check).await,
                CheckKind::Grpc(check) => grpc::check(&self, check, time).await,
            }
        };
        timeout(time, checked).await.unwrap_or(Err(Failed::Timeout))
    }

    pub fn settings(&self) -> &checked::Service {
        &self.service.settings
    }

    /// A new connection that begins with `header`, and whether HTTP/2 was agreed on among `protocols`.
    ///
    /// # Errors
    ///
    /// When there is none. How long that may take is for the caller to bound.
    pub async fn connect(&self, header: &[u8], protocols: &[&[u8]]) -> Result<(Stream, bool), Failed> {
        let settings = ConnectSettings {
            timeout: self.settings().connect_timeout,
            reach: None,
            egress: Some(self.endpoint.registered.egress.clone()),
            lookups: Some(self.lookups.clone()),
            own: self.own.clone(),
        };
        let tls = self.connector.as_ref().map(|connector| Offer { connector, protocols });
        let address = &self.endpoint.registered.address;
        Ok(open(address, self.endpoint.socket, &settings, Opening { header, tls, link: None }).await?)
    }

    pub fn scheme(&self) -> Scheme {
        if self.connector.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// The host of a request: as configured, else the service's name, as clients call it.
    ///
    /// # Errors
    ///
    /// When a service from the registry has a name that is no host.
    pub fn host(&self, configured: Option<&Authority>) -> Result<Authority, Failed> {
        match configured {
            Some(host) => Ok(host.clone()),
            None => Ok(Authority::try_from(&**self.service.name()).map_err(::http::Error::from)?),
        }
    }
}
