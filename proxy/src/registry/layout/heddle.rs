//! Heddle's own layout: key `PREFIX SERVICE / INSTANCE`, value
//! `{"address": "10.0.0.5:80", "weight": 2, "metadata": {"zone": "a"}}`.
//!
//! Only the address is required. The weight is 1 when it is absent, and 0 keeps the endpoint registered but out of
//! use. Unknown fields are ignored, so that services may say more than this version of the proxy understands. For the
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

use super::{Announced, Endpoint, LayoutError};
use crate::registry::PAUSED;
use crate::registry::address::address;

#[derive(Deserialize)]
struct Registration {
    address: String,
    #[serde(default = "one")]
    weight: u32,
    metadata: Option<BTreeMap<String, Value>>,
}

const fn one() -> u32 {
    1
}

pub(super) fn decode(service: String, instance: Option<&[u8]>, value: &[u8]) -> Result<Option<Announced>, LayoutError> {
    let Some(instance) = instance else { return Err(LayoutError::NoInstance) };
    if instance == PAUSED.as_bytes()
        && let Ok(paused) = serde_json::from_slice::<bool>(value)
    {
        return Ok(paused.then(|| Announced::pause(service)));
    }
    let registration: Registration =
        serde_json::from_slice(value).map_err(|error| LayoutError::Json(error.to_string()))?;
    let metadata = registration.metadata.unwrap_or_default().into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    });
    let endpoint = Endpoint {
        address: address(&registration.address)?,
        weight: registration.weight,
        metadata: metadata.collect(),
    };
    Ok(Some(Announced::endpoints(service, vec![endpoint])))
}
