//! go-kit's layout (`sd/etcdv3` of github.com/go-kit/kit): the value is `host:port` or a URL, the key is free below the
//! prefix, by convention `SERVICE/ADDRESS`. The service is the key's first segment below the prefix.
//!
//! Of a URL only the authority counts: its scheme gives the port where none is written (80 for http, 443 for https), a
//! user and a password before `@` are dropped, and what follows the authority belongs to the request's own target.
//!
//! It has no word for a pause, and none is added: what other readers of the same keys would take for a broken endpoint
//! is not for us to put there.

use super::{Announced, Endpoint, LayoutError, shown, text};
use crate::registry::address::{AddressError, address, address_or_port};

pub(super) fn decode(service: String, value: &[u8]) -> Result<Announced, LayoutError> {
    let value = text(value)?.trim_ascii();
    let address = match value.split_once("://") {
        None => address(value)?,
        Some((scheme, rest)) => url(value, scheme, rest)?,
    };
    Ok(Announced::endpoints(service, vec![Endpoint { address, weight: 1, metadata: Vec::new() }]))
}

fn url(url: &str, scheme: &str, rest: &str) -> Result<String, LayoutError> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    match usual {
        Some(port) => Ok(address_or_port(host, port)?),
        None => address(host).map_err(|error| match error {
            AddressError::NoPort(_) => LayoutError::NoUsualPort { url: shown(url), scheme: shown(scheme) },
            other => other.into(),
        }),
    }
}
