use std::net::IpAddr;

use crate::endpoints::{Endpoint, Slot};
use crate::host;

/// The request, or the TCP connection, that a decision is about.
///
/// A fact is read from the proxy when its function is called, so a policy pays only for what it reads. A fact is
/// absent where the protocol lacks it.
#[derive(Debug)]
pub struct Request(());

impl Request {
    pub(crate) const CURRENT: Self = Self(());

    /// The name of the service that was asked for.
    #[must_use]
    pub fn service(&self) -> Option<String> {
        host::request::service()
    }

    /// The client's IP address in its usual text form, without a port.
    #[must_use]
    pub fn client_ip(&self) -> Option<String> {
        host::request::client_ip()
    }

    /// The client's IP address, parsed.
    #[must_use]
    pub fn client_addr(&self) -> Option<IpAddr> {
        self.client_ip()?.parse().ok()
    }

    /// The HTTP method, as sent.
    #[must_use]
    pub fn method(&self) -> Option<String> {
        host::request::method()
    }

    /// The path with its query (`/a?b=c`), as sent; none for a connection that is not HTTP.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        host::request::path()
    }

    /// The value of a request header, by its name in any case; several lines of one name are joined by `, `. The bytes
    /// are as sent: they need not be UTF-8. `Authorization`, `Proxy-Authorization`, `Cookie` and `Set-Cookie` are absent
    /// unless the policy's settings name them, as `"header:authorization"`, `"cookie:NAME"` or in `expose_headers`, a list
    /// that the operator writes beside the policy's own settings and that the policy does not get.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<Vec<u8>> {
        host::request::header(name)
    }

    /// The server name that the client asked for in its TLS handshake.
    #[must_use]
    pub fn sni(&self) -> Option<String> {
        host::request::sni()
    }

    /// The identity that the client's certificate proved: a SPIFFE URI, or a DNS name.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        host::request::identity()
    }

    /// Which attempt of the request this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        host::request::attempt().unwrap_or(1)
    }

    /// The endpoints that should not be picked again: those that this request has tried already, and those that were
    /// picked for this attempt and could not be used.
    #[must_use]
    pub fn tried(&self) -> Tried {
        Tried(host::request::tried())
    }
}

/// The endpoints that a request has tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried(Vec<u32>);

impl Tried {
    /// Whether this is the request's first try.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an endpoint is among them.
    #[must_use]
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        self.contains_slot(endpoint.slot)
    }

    /// Whether the endpoint with this slot is among them.
    #[must_use]
    pub fn contains_slot(&self, slot: Slot) -> bool {
        self.0.contains(&slot.0)
    }
}
