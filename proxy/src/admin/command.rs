//! Commands: what a POST changes.
//!
//! Each answers with what holds now, as JSON. What only this proxy was told to pause is forgotten when it restarts; the
//! registry is the place for what should last, and for all proxies.

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::Answer;
use crate::app::State;
use crate::drain::Phase;
use crate::registry::address::{address, service_name};
use crate::service::{Pause, Service};

/// Names of what there is are given up to this many.
const NAMED: usize = 50;

/// What is paused now, or is not.
#[derive(Serialize)]
struct Paused<'a> {
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    paused: bool,
    /// `registry` and `admin`: who would have to resume it.
    paused_by: Vec<&'static str>,
}

/// Pauses or resumes a service, or one of its endpoints, in this proxy.
pub fn set_paused(state: &State, names: &[String], paused: bool) -> Answer {
    let (name, endpoint) = match names {
        [name] => (name, None),
        [name, endpoint] => (name, Some(endpoint)),
        _ => return Answer::error(StatusCode::NOT_FOUND, "expected the name of a service", json!({})),
    };
    let service = service_name(name).ok().and_then(|name| state.directory.get(&name));
    let Some(service) = service else {
        let names = state.directory.all().into_iter().map(|service| service.name().to_string()).collect();
        return not_there(&format!("no service is called {name:?}"), "services", names);
    };
    let Some(endpoint) = endpoint else {
        return answer(&service, None, service.fleet.set_paused(paused), paused);
    };
    match address(endpoint).ok().and_then(|address| service.fleet.set_endpoint_paused(&address, paused)) {
        Some(pause) => answer(&service, Some(endpoint), pause, paused),
        None => {
            let snapshot = service.snapshot();
            let addresses = snapshot.endpoints().map(|endpoint| endpoint.registered.address.clone()).collect();
            not_there(&format!("{} has no endpoint {endpoint:?}", service.name()), "endpoints", addresses)
        }
    }
}

/// 200 where it is as it should be, and 409 where the registry keeps it paused.
fn answer(service: &Service, endpoint: Option<&str>, pause: Pause, wanted: bool) -> Answer {
    let status = if pause.is_paused() == wanted { StatusCode::OK } else { StatusCode::CONFLICT };
    let what = endpoint.map(|endpoint| format!("endpoint {endpoint} of ")).unwrap_or_default();
    tracing::info!(target: "heddle::admin", "{what}{}: {pause}", service.name());
    let said = Paused { service: service.name(), endpoint, paused: pause.is_paused(), paused_by: pause.by().collect() };
    Answer::json(status, &said)
}

fn not_there(error: &str, kind: &str, mut names: Vec<String>) -> Answer {
    let more = names.len().saturating_sub(NAMED);
    names.sort_unstable();
    names.truncate(NAMED);
    Answer::error(StatusCode::NOT_FOUND, error, json!({ kind: names, "more": more }))
}

/// Stops the proxy, in good order or at once, when the answer has been given.
pub fn stop(phase: Phase) -> Answer {
    tracing::info!(target: "heddle::admin", "told to stop");
    let how = if phase == Phase::Cutting { "at once" } else { "in good order" };
    Answer { then: Some(phase), ..Answer::json(StatusCode::OK, &json!({ "stopping": how })) }
}
