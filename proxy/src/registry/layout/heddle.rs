//! Heddle's own layout: key `PREFIX SERVICE / INSTANCE`, value
//! `{"address": "10.0.0.5:80", "weight": 2, "metadata": {"zone": "a"}}`.
//!
//! Only the address is required. The weight is 1 when it is absent, and 0 keeps the endpoint registered but out of
//! use; [`super::weight`] says how it may be written. Unknown fields are ignored, so that services may say more than this version of the proxy understands. For the
//! same reason a metadata value that is not a string is no error: numbers, truth values, lists and objects become
//! their JSON text, and `null` is as good as absent. The instance is the registering side's choice and only has to be
//! there, so that two instances cannot overwrite each other.
//!
//! An endpoint whose metadata has `"paused": true` is not picked. A service as a whole is paused by a key of its own,
//! `PREFIX SERVICE / paused` with the value `true`, for as long as it is there: it stands beside the instances, so that
//! who may write a service's instances may pause it, a lease can end the pause by itself, and no application overwrites
//! it when it registers anew. `false` is as good as no key. An instance that happens to be called `paused` is still one:
//! its value is an object.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::weight::Weight;
use super::{Announced, Endpoint, LayoutError};
use crate::registry::PAUSED;
use crate::registry::address::address;

#[derive(Deserialize)]
struct Registration {
    address: String,
    #[serde(default)]
    weight: Weight,
    metadata: Option<BTreeMap<String, Value>>,
}

/// The same without the weight: a number that is too large for the JSON parser itself is skipped here unread.
#[derive(Deserialize)]
struct WithoutWeight {
    address: String,
    metadata: Option<BTreeMap<String, Value>>,
}

fn read(value: &[u8]) -> Result<Registration, serde_json::Error> {
    serde_json::from_slice(value).or_else(|error| match serde_json::from_slice(value) {
        Ok(WithoutWeight { address, metadata }) => {
            let weight = Weight::Unreadable(format!("({error})"));
            Ok(Registration { address, weight, metadata })
        }
        Err(_) => Err(error),
    })
}

pub(super) fn decode(service: String, instance: Option<&[u8]>, value: &[u8]) -> Result<Option<Announced>, LayoutError> {
    let Some(instance) = instance else { return Err(LayoutError::NoInstance) };
    if instance == PAUSED.as_bytes()
        && let Ok(paused) = serde_json::from_slice::<bool>(value)
    {
        return Ok(paused.then(|| Announced::pause(service)));
    }
    let registration = read(value).map_err(|error| LayoutError::Json(error.to_string()))?;
    let (weight, warning) = registration.weight.or_warning();
    let metadata = registration.metadata.unwrap_or_default().into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    });
    let endpoint = Endpoint { address: address(&registration.address)?, weight, metadata: metadata.collect() };
    let warnings = warning.into_iter().collect();
    Ok(Some(Announced { warnings, ..Announced::endpoints(service, vec![endpoint]) }))
}
