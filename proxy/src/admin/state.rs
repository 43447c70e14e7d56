//! What is going on, as JSON: services with their endpoints, plugins, the registry.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::process;
use crate::app::{Reloads, State};
use crate::descriptors;
use crate::plugin::{FaultKind, Plugin, Quarantine};
use crate::registry::Report;
use crate::service::{Endpoint, Limit, Service, Snapshot};

/// The whole of it.
#[derive(Serialize)]
struct Shown<'a> {
    version: &'a str,
    uptime_seconds: f64,
    resident_memory_bytes: Option<u64>,
    ready: bool,
    draining: bool,
    /// By worker.
    client_connections: Vec<usize>,
    descriptors: descriptors::Report,
    reloads: ShownReloads,
    registry: Report,
    plugins: Vec<ShownPlugin>,
    services: Vec<ShownService>,
}

/// What became of changed configurations.
#[derive(Serialize)]
struct ShownReloads {
    done: u64,
    refused: u64,
    /// When one was put in force last; milliseconds since 1970.
    last_ms: Option<u64>,
}

#[derive(Serialize)]
struct ShownPlugin {
    policy: String,
    /// None: nothing is in force, and the proxy decides by itself.
    generation: Option<ShownGeneration>,
    faults: u64,
    /// The same by kind.
    faults_by_kind: BTreeMap<&'static str, u64>,
    quarantines: u64,
    service_quarantines: u64,
    refusals: u64,
    /// Why the last file was not loaded; none after one that was.
    refusal: Option<String>,
    /// Generations that are not used for their faults, by all services or by one.
    in_quarantine: Vec<ShownQuarantine>,
}

#[derive(Serialize)]
struct ShownQuarantine {
    generation: u64,
    origin: String,
    /// None: no service uses it.
    service: Option<String>,
    age_seconds: f64,
    /// The last fault: its kind, and what was exceeded.
    cause: String,
    /// The generation that is used instead; none: the proxy decides natively, by the policy's own rule where that promises
    /// an endpoint.
    instead: Option<u64>,
}

#[derive(Serialize)]
struct ShownGeneration {
    number: u64,
    sha256: String,
    origin: String,
    age_seconds: f64,
}

#[derive(Serialize)]
struct ShownService {
    name: String,
    policy: String,
    /// What the policy is configured with.
    settings: serde_json::Value,
    requests: u64,
    failed_attempts: u64,
    retries: u64,
    hedges: u64,
    decisions: u64,
    fallbacks: u64,
    /// None where endpoints are not checked.
    health_checks: Option<ShownChecks>,
    /// Requests that wait because the service is full.
    pending: usize,
    /// To all endpoints, idle ones included; and how many requests and tunnels wait for one.
    connections: u32,
    connections_pending: usize,
    /// Requests and tunnels that were refused, by the limit that was the reason.
    limited: BTreeMap<&'static str, u64>,
    /// As of an endpoint: `out` while all requests are refused because every attempt fails.
    condition: &'static str,
    /// Whether endpoints are used although they are out of use, as too few others are in it.
    in_panic: bool,
    /// `registry`, `admin`; empty where it is not paused as a whole.
    paused_by: Vec<&'static str>,
    endpoints: Vec<ShownEndpoint>,
}

#[derive(Serialize)]
struct ShownChecks {
    passed: u64,
    failed: u64,
}

#[derive(Serialize)]
struct ShownEndpoint {
    slot: u32,
    id: String,
    address: String,
    weight: u32,
    metadata: BTreeMap<String, String>,
    eligible: bool,
    /// Whether it is out of use because of its health check.
    check_fails: bool,
    /// As of the service.
    paused_by: Vec<&'static str>,
    /// `in_use`, `out` or `half_open`, as the circuit breaker has it.
    condition: &'static str,
    ejections: u32,
    in_flight: u32,
    connections: u32,
    /// A moving average of the time to the response head; 0 before the first.
    latency_micros: u32,
    /// Entries of the metadata that policies are not given, since there are too many bytes of them.
    metadata_dropped: usize,
}

/// The state of this moment.
///
/// # Errors
///
/// When it cannot be said in JSON.
pub fn json(state: &State) -> serde_json::Result<String> {
    let mut services = state.directory.all();
    services.sort_by(|a, b| a.name().cmp(b.name()));
    let shown = Shown {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.started.elapsed().unwrap_or(Duration::ZERO).as_secs_f64(),
        resident_memory_bytes: process::resident_memory(),
        ready: state.is_ready(),
        draining: state.is_draining(),
        client_connections: state.workers.connections.iter().map(|count| count.load(Relaxed)).collect(),
        descriptors: state.workers.descriptors.report(),
        reloads: show_reloads(&state.reloads),
        registry: state.registry.report(),
        plugins: state.plugins().all().iter().map(|plugin| show_plugin(plugin)).collect(),
        services: services.iter().map(|service| show_service(service)).collect(),
    };
    serde_json::to_string_pretty(&shown)
}

fn show_reloads(reloads: &Reloads) -> ShownReloads {
    let last = reloads.last().and_then(|last| last.duration_since(UNIX_EPOCH).ok());
    let last_ms = last.and_then(|last| u64::try_from(last.as_millis()).ok());
    ShownReloads { done: reloads.done(), refused: reloads.refused(), last_ms }
}

fn show_plugin(plugin: &Plugin) -> ShownPlugin {
    let (quarantines, refusals) = plugin.incidents();
    ShownPlugin {
        policy: plugin.name.to_string(),
        generation: plugin.current().map(|generation| ShownGeneration {
            number: generation.number,
            sha256: generation.hash.to_string(),
            origin: generation.origin.to_string(),
            age_seconds: generation.loaded.elapsed().as_secs_f64(),
        }),
        faults: FaultKind::ALL.iter().map(|kind| plugin.faults.get(*kind)).sum(),
        faults_by_kind: FaultKind::ALL.iter().map(|kind| (kind.name(), plugin.faults.get(*kind))).collect(),
        quarantines,
        service_quarantines: plugin.service_quarantines(),
        refusals,
        refusal: plugin.refusal(),
        in_quarantine: plugin.quarantines().into_iter().map(show_quarantine).collect(),
    }
}

fn show_quarantine(quarantine: Quarantine) -> ShownQuarantine {
    ShownQuarantine {
        generation: quarantine.generation,
        origin: quarantine.origin,
        service: quarantine.service.map(|service| service.to_string()),
        age_seconds: quarantine.since.elapsed().as_secs_f64(),
        cause: quarantine.cause,
        instead: quarantine.instead,
    }
}

fn show_service(service: &Service) -> ShownService {
    let (total, snapshot) = (service.stats(), service.snapshot());
    let now = service.fleet.clock.now();
    let settings = &service.settings.balancer.config;
    let checks = &service.fleet.checks;
    let shown = ShownChecks { passed: checks.passed.get(), failed: checks.failed.get() };
    ShownService {
        name: service.name().to_string(),
        policy: service.balancer.name.to_string(),
        settings: serde_json::from_str(settings).unwrap_or_default(),
        requests: total.responses.iter().sum(),
        failed_attempts: total.failed_attempts,
        retries: total.retries,
        hedges: total.hedges,
        decisions: total.decisions,
        fallbacks: total.fallbacks,
        health_checks: service.settings.health_check.as_ref().map(|_| shown),
        pending: service.fleet.requests.pending(),
        connections: service.fleet.connections.open(),
        connections_pending: service.fleet.connections.pending(),
        limited: Limit::ALL.map(Limit::name).into_iter().zip(total.limited).collect(),
        condition: service.fleet.health.condition().name(),
        in_panic: snapshot.is_in_panic(),
        paused_by: snapshot.pause().by().collect(),
        endpoints: snapshot.endpoints().map(|endpoint| show_endpoint(endpoint, &snapshot, now)).collect(),
    }
}

fn show_endpoint(endpoint: &Endpoint, snapshot: &Snapshot, now: Duration) -> ShownEndpoint {
    let Endpoint { slot, registered, load, health, policy_view, .. } = endpoint;
    ShownEndpoint {
        slot: *slot,
        id: registered.id.clone(),
        address: registered.address.clone(),
        weight: registered.weight,
        metadata: registered.metadata.iter().cloned().collect(),
        eligible: snapshot.eligible_endpoint(*slot).is_some(),
        check_fails: health.check_fails(),
        paused_by: endpoint.pause().by().collect(),
        condition: health.condition().name(),
        ejections: health.ejections(now),
        in_flight: load.in_flight(),
        connections: load.connections(),
        latency_micros: load.latency_micros(),
        metadata_dropped: policy_view.dropped(),
    }
}
