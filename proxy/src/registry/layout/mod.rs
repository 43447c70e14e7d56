//! How fleets write endpoints into a registry: pure decoders from a key and its value to endpoints.
//!
//! A layout never sees the registry, so every format is tested from bytes alone. Keys are bytes, since some systems
//! put binary numbers into them. A prefix ends at a separator (`/`): `/services` holds `/services/users/1` and not
//! `/services-old/users/1`.

mod go_kit;
mod heddle;
pub mod weight;

use std::fmt;

use super::address::{AddressError, NameError, service_name, shown};
use super::apply::encode_key;
use crate::config::checked::Layout;
use crate::supervise;

/// What one key announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub service: String,
    pub endpoints: Vec<Endpoint>,
    /// Whether the service as a whole is paused for as long as the key says so.
    pub pauses: bool,
    /// What of it could not be read, where that is no reason to go without it.
    pub warnings: Vec<String>,
}

impl Announced {
    /// Endpoints of a service.
    pub fn endpoints(service: String, endpoints: Vec<Endpoint>) -> Self {
        Self { service, endpoints, pauses: false, warnings: Vec::new() }
    }

    /// A mark that a service is paused as a whole.
    pub fn pause(service: String) -> Self {
        Self { service, endpoints: Vec::new(), pauses: true, warnings: Vec::new() }
    }
}

/// One endpoint as a registration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// In the normal form of [`super::address::address`].
    pub address: String,
    pub weight: u32,
    /// In the order of the names, so that equal registrations compare as equal.
    pub metadata: Vec<(String, String)>,
}

/// Why an entry announces nothing that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("the key is not below the prefix that is watched")]
    Outside,
    #[error("the part of the key that names the service is not UTF-8")]
    ServiceNotUtf8,
    #[error(transparent)]
    Service(#[from] NameError),
    #[error("the key ends at the service; expected a further segment that names the instance")]
    NoInstance,
    #[error("the value is not UTF-8")]
    ValueNotUtf8,
    #[error("the value is not a registration: {0}")]
    Json(String),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the URL {url:?} has no port, and {scheme:?} has no usual one; expected http, https or a port")]
    NoUsualPort { url: String, scheme: String },
    #[error("reading this value has panicked; it is set aside until it changes")]
    SetAside,
}

/// A key as the log has it.
struct Key<'a>(&'a [u8]);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_key(self.0))
    }
}

/// The layout's name, as the configuration has it.
pub const fn name(layout: Layout) -> &'static str {
    match layout {
        Layout::Heddle => "heddle",
        Layout::GoKit => "go-kit",
    }
}

/// The prefix as it is watched: with the separator at its end, so that it cannot match half of a segment. An empty
/// prefix stays empty and holds every key.
pub fn range_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut prefix = prefix.to_vec();
    if !prefix.is_empty() && !prefix.ends_with(b"/") {
        prefix.push(b'/');
    }
    prefix
}

/// Reads one entry. `None`: nothing, as if the key were not there; so is a placeholder, a key without a value that stands for a folder (its name ends at the prefix
/// or at a separator), as several systems leave behind.
///
/// # Errors
///
/// [`LayoutError`], when the key or the value is not as `layout` writes it.
pub fn decode(layout: Layout, prefix: &[u8], key: &[u8], value: &[u8]) -> Result<Option<Announced>, LayoutError> {
    let name = Key(key);
    let _input = supervise::input(&name, value).ok_or(LayoutError::SetAside)?;
    let below = below(prefix, key).ok_or(LayoutError::Outside)?;
    if value.is_empty() && (below.is_empty() || below.ends_with(b"/")) {
        return Ok(None);
    }
    let (service, instance) = split(below)?;
    match layout {
        Layout::Heddle => heddle::decode(service, instance, value),
        Layout::GoKit => go_kit::decode(service, value).map(Some),
    }
}

/// The key without the prefix and the separator that ends it; below an empty prefix, without one at its start.
fn below<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a [u8]> {
    let rest = key.strip_prefix(prefix)?;
    match prefix.last() {
        Some(b'/') => Some(rest),
        Some(_) => rest.strip_prefix(b"/"),
        None => Some(rest.strip_prefix(b"/").unwrap_or(rest)),
    }
}

/// The service, which is the first segment, and what comes after it, if anything.
fn split(below: &[u8]) -> Result<(String, Option<&[u8]>), LayoutError> {
    let mut parts = below.splitn(2, |byte| *byte == b'/');
    let service = std::str::from_utf8(parts.next().unwrap_or_default()).map_err(|_| LayoutError::ServiceNotUtf8)?;
    Ok((service_name(service)?, parts.next().filter(|instance| !instance.is_empty())))
}

fn text(value: &[u8]) -> Result<&str, LayoutError> {
    std::str::from_utf8(value).map_err(|_| LayoutError::ValueNotUtf8)
}

#[cfg(test)]
mod tests;
