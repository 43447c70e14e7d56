//! Where what clients ask for leads: to a service, or to another host where that is allowed.
//!
//! Requests, CONNECT and SOCKS5 are told the same here, so that none of them reaches what another may not.

use std::rc::Rc;

use super::connection::{Connection, Inside};
use super::exchange::Next;
use super::local::LocalService;
use super::refusal::Refusal;
use super::route::{normalized, without_suffix};
use super::tunnel;
use super::worker::Worker;
use crate::service::ServiceStats;
use crate::upstream::Pool;

/// Where a request, or a tunnel, goes.
pub enum Destination {
    Service(Rc<LocalService>),
    Host(Rc<Pool>),
}

impl Destination {
    /// Whether there is anything to connect to. Where there is not, that can be said at once.
    pub fn may_be_reached(&self) -> bool {
        match self {
            Self::Service(local) => local.service.snapshot().eligible_count() > 0,
            Self::Host(_) => true,
        }
    }

    /// Where its requests are counted.
    pub fn stats<'a>(&'a self, worker: &'a Worker) -> &'a ServiceStats {
        match self {
            Self::Service(local) => &local.stats,
            Self::Host(_) => &worker.passed_through,
        }
    }
}

/// Where a host leads: to the service that everything on the connection is for, to the one that the host names, or
/// with a port, as proxy requests, CONNECT and SOCKS have one, to the host itself.
///
/// A registry must not take over what clients send to hosts of others. So with a port, a name of several labels outside
/// the suffix leads to a service only where the source that announces it says so.
///
/// # Errors
///
/// When there is no such service, and the host is not passed through; and when the client's certificate is no longer
/// accepted.
pub fn find(connection: &Connection, host: &str, port: Option<u16>) -> Result<Destination, Refusal> {
    if connection.is_revoked() {
        return Err(Refusal::Revoked);
    }
    let Connection { worker, listener, .. } = connection;
    let service = if connection.is_bound() {
        connection.service()
    } else {
        let may_take = |service: &Rc<LocalService>| {
            port.is_none()
                || is_service_host(&normalized(host), &worker.common().suffix)
                || service.service.fleet.takes_proxy_requests()
        };
        worker.service_of_host(host).filter(may_take)
    };
    if let Some(service) = service {
        return Ok(Destination::Service(service));
    }
    if let Some(name) = &listener.settings.service {
        return Err(Refusal::NoEndpoint { service: name.to_string() });
    }
    match (&listener.reach, port) {
        (Some(reach), Some(port)) => Ok(Destination::Host(worker.passthrough.pool(worker, reach, host, port)?)),
        _ => Err(Refusal::UnknownService { host: host.chars().take(255).collect() }),
    }
}

/// Whether a host, in lower case, can only be meant as a service: it has one label, or ends in the suffix.
fn is_service_host(host: &str, suffix: &str) -> bool {
    !host.contains('.') || without_suffix(host, suffix).is_some()
}

/// Opens a tunnel, within the listener's deadline for requests. One to a service is looked into before an endpoint is
/// chosen; the other end of one to a host is there.
///
/// # Errors
///
/// When the host leads nowhere or cannot be reached, or the client is inside a tunnel already.
pub async fn open(connection: &Connection, host: &str, port: u16) -> Result<Next, Refusal> {
    if connection.tunnel.is_some() {
        return Err(Refusal::Unsupported("a tunnel within a tunnel"));
    }
    match find(connection, host, Some(port))? {
        Destination::Service(service) => {
            Ok(Next::Inside(Inside { service: service.service.name().clone(), host: normalized(host).into() }))
        }
        Destination::Host(pool) => {
            let Connection { worker, listener, .. } = connection;
            let opening = tunnel::to_host(connection, &pool);
            let opened = match listener.settings.request_deadline {
                Some(limit) => worker.timers.within(limit, opening).await.unwrap_or(Err(Refusal::Deadline)),
                None => opening.await,
            };
            Ok(Next::Relay(Box::new(opened?)))
        }
    }
}
