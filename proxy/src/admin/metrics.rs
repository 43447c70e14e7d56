//! The figures, in the text format of OpenMetrics.
//!
//! Nothing is counted here: each scrape reads the counters that workers, plugins and the registry keep anyway. Labels
//! take values from bounded sets only: services and sources that the registry has announced, policies that are loaded,
//! listeners and certificates that are configured, classes of statuses, kinds of faults; never a path, a client or an
//! endpoint.

mod encode;
mod services;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use self::encode::{Families, Histogram};
use super::process;
use crate::app::State;
use crate::plugin::{FaultKind, Plugin};
use crate::server::listener::Refused;
use crate::service::{ServiceStats, StatsTotal, TunnelEnd, TunnelTotal};
use crate::supervise;
use crate::transport::tls::Held;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The classes of [`StatsTotal::responses`], by index.
pub const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// All figures of this moment.
pub fn text(state: &Arc<State>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(state.clone())));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct Figures(Arc<State>);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(state) = self;
        let mut families = Families(encoder);
        of_process(&mut families, state)?;
        of_workers(&mut families, state)?;
        of_listeners(&mut families, state)?;
        of_tls(&mut families, state)?;
        services::figures(&mut families, state)?;
        of_registry(&mut families, state)?;
        of_plugins(&mut families, state)
    }
}

fn of_process(families: &mut Families<'_>, state: &State) -> fmt::Result {
    families.info("heddle_build", "The version that runs.", [[("version", env!("CARGO_PKG_VERSION"))]])?;
    families.gauge("process_start_time_seconds", "When the proxy started, since 1970.", seconds(state.started))?;
    if let Some(bytes) = process::resident_memory() {
        families.gauge("process_resident_memory_bytes", "Memory in use.", bytes as f64)?;
    }
    families.total("process_cpu_seconds", "CPU time used.", process::cpu_time().as_secs_f64())?;
    families.gauge("heddle_ready", "1 while requests should be sent here.", number(state.is_ready()))?;
    let results = [("done", state.reloads.done()), ("refused", state.reloads.refused())];
    let results = results.map(|(result, count)| ([("result", result)], count));
    families.counters(
        "heddle_config_reloads",
        "Changed configurations, by what became of them.",
        results.into_iter(),
    )?;
    let last = state.reloads.last().map_or(0.0, seconds);
    families.gauge(
        "heddle_config_last_reload_timestamp_seconds",
        "When one was put in force last, since 1970; 0: none.",
        last,
    )?;
    families.counters(
        "heddle_task_panics",
        "Panics and unexpected ends of the proxy's own tasks, each of which is started again.",
        supervise::panics().into_iter().map(|(task, count)| ([("task", task)], count)),
    )?;
    families.gauge("heddle_draining", "1 once the proxy has been told to stop.", number(state.is_draining()))
}

fn of_workers(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let workers = &state.workers;
    let connections: Vec<_> = workers
        .connections
        .iter()
        .enumerate()
        .map(|(number, count)| (number.to_string(), count.load(Relaxed) as f64))
        .collect();
    families.gauges(
        "heddle_client_connections",
        "Open connections of clients.",
        connections.iter().map(|(number, count)| ([("worker", number.as_str())], *count)),
    )?;
    let tasks: Vec<_> = workers
        .runtimes
        .iter()
        .enumerate()
        .filter_map(|(number, runtime)| Some((number.to_string(), runtime.get()?.metrics().num_alive_tasks() as f64)))
        .collect();
    families.gauges(
        "heddle_worker_tasks",
        "Tasks of the worker's runtime: a few of its own, and those of connections, streams and connection attempts.",
        tasks.iter().map(|(number, count)| ([("worker", number.as_str())], *count)),
    )?;
    families.counters(
        "heddle_unrouted_requests",
        "Requests that named no service and were not passed through, by class of status.",
        by_class(&sum(&workers.unrouted)),
    )?;
    families.counters(
        "heddle_passed_through_requests",
        "Requests for hosts that are no service, by class of status.",
        by_class(&sum(&workers.passed_through)),
    )?;
    families.counters(
        "heddle_unrouted_tunnels",
        "Connections that named no service and were not passed through, by what became of them.",
        by_result(&sum(&workers.unrouted).tunnels),
    )?;
    families.counters(
        "heddle_passed_through_tunnels",
        "Tunnels to hosts that are no service, by what became of them.",
        by_result(&sum(&workers.passed_through).tunnels),
    )
}

fn of_listeners(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let refusals = state.listeners().into_iter().flat_map(|listener| {
        let address = listener.settings.address.to_string();
        let labels = move |reason: Refused| [("listener", address.clone()), ("reason", reason.to_string())];
        listener.refusals().map(|(reason, count)| (labels(reason), count)).collect::<Vec<_>>()
    });
    families.counters(
        "heddle_refused_connections",
        "Connections that were closed without having been served.",
        refusals,
    )
}

fn of_tls(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let held = state.certificates.load();
    families.gauges(
        "heddle_certificate_expiry_timestamp_seconds",
        "When a certificate that is in use expires, since 1970.",
        held.iter().map(|Held { file, certificate }| {
            let labels = [("certificate", file.display().to_string()), ("names", certificate.names.join(","))];
            (labels, seconds(certificate.expires))
        }),
    )?;
    families.counters(
        "heddle_tls_handshakes",
        "Handshakes with clients that were done, by version, group of the key exchange and kind.",
        state.listeners().iter().flat_map(|listener| {
            let address = listener.settings.address.to_string();
            let labelled = |([version, group, kind], count): ([&'static str; 3], u64)| {
                let [version, group, kind] = [version, group, kind].map(str::to_owned);
                ([("listener", address.clone()), ("version", version), ("group", group), ("kind", kind)], count)
            };
            listener.tls.handshakes().totals().into_iter().map(labelled).collect::<Vec<_>>()
        }),
    )?;
    families.counters(
        "heddle_tls_endpoint_handshakes",
        "Handshakes with endpoints that were done, likewise.",
        state
            .endpoint_handshakes
            .totals()
            .into_iter()
            .map(|([version, group, kind], count)| ([("version", version), ("group", group), ("kind", kind)], count)),
    )?;
    families.counters(
        "heddle_tls_handshake_failures",
        "Handshakes with clients that failed, by listener.",
        state
            .listeners()
            .iter()
            .map(|listener| ([("listener", listener.settings.address.to_string())], listener.tls.failures())),
    )
}

fn sum(stats: &[Arc<ServiceStats>]) -> StatsTotal {
    let mut total = StatsTotal::default();
    stats.iter().for_each(|of| total.add(of));
    total
}

fn by_class(total: &StatsTotal) -> impl Iterator<Item = ([(&'static str, &'static str); 1], u64)> {
    CLASSES.iter().zip(total.responses).map(|(class, count)| ([("class", *class)], count))
}

fn by_result(total: &TunnelTotal) -> impl Iterator<Item = ([(&'static str, &'static str); 1], u64)> {
    let ended = TunnelEnd::ALL.map(TunnelEnd::name).into_iter().zip(total.ended);
    ended.chain([("refused", total.refused)]).map(|(result, count)| ([("result", result)], count))
}

fn of_registry(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let report = state.registry.report();
    families.gauge(
        "heddle_registry_ready",
        "1 once every source has answered or was restored from disk.",
        number(report.ready),
    )?;
    families.gauge("heddle_registry_services", "Services with endpoints.", report.services as f64)?;
    families.gauge("heddle_registry_endpoints", "Endpoints of all services.", report.endpoints as f64)?;
    let sources = &report.sources;
    let source = |name: &'static str| [("source", name)];
    families.gauges(
        "heddle_registry_connected",
        "1 while changes are followed; of a file: its last reading was good.",
        sources.iter().map(|of| (source(of.name), number(of.connected))),
    )?;
    families.gauges(
        "heddle_registry_revision",
        "The revision of etcd last heard of.",
        sources.iter().filter(|of| of.name == "etcd").map(|of| (source(of.name), of.revision as f64)),
    )?;
    families.gauges(
        "heddle_registry_last_event_timestamp_seconds",
        "When something was last heard that could change endpoints, since 1970.",
        sources.iter().filter_map(|of| Some((source(of.name), of.last_event_ms? as f64 / 1e3))),
    )?;
    families.counters(
        "heddle_registry_relists",
        "Complete readings.",
        sources.iter().map(|of| (source(of.name), of.relists)),
    )?;
    families.counters(
        "heddle_registry_reconnects",
        "Connections given up or lost.",
        sources.iter().map(|of| (source(of.name), of.reconnects)),
    )?;
    families.counters(
        "heddle_registry_skipped_entries",
        "Entries that could not be understood.",
        sources.iter().map(|of| (source(of.name), of.skipped)),
    )
}

fn of_plugins(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let plugins = state.plugins().all();
    let policy = |plugin: &Arc<Plugin>| [("policy", plugin.name.to_string())];
    let loaded = plugins.iter().filter_map(|plugin| {
        let generation = plugin.current()?;
        Some([
            ("policy", plugin.name.to_string()),
            ("sha256", generation.hash.to_string()),
            ("origin", generation.origin.to_string()),
            ("generation", generation.number.to_string()),
        ])
    });
    families.info("heddle_plugin", "The plugins in force.", loaded)?;
    families.gauges(
        "heddle_plugin_generation",
        "Number of the generation in force; 0: none, the proxy decides by itself.",
        plugins.iter().map(|of| (policy(of), of.current().map_or(0.0, |generation| generation.number as f64))),
    )?;
    families.counters(
        "heddle_plugin_faults",
        "Calls of plugins that failed, by kind.",
        plugins.iter().flat_map(|of| {
            let name = &of.name;
            FaultKind::ALL
                .map(|kind| ([("policy", name.to_string()), ("kind", kind.name().to_owned())], of.faults.get(kind)))
        }),
    )?;
    families.counters(
        "heddle_plugin_quarantines",
        "Generations taken out of force after repeated faults.",
        plugins.iter().map(|of| (policy(of), of.incidents().0)),
    )?;
    families.counters(
        "heddle_plugin_service_quarantines",
        "Times that a generation was taken from one service after repeated faults of its instances.",
        plugins.iter().map(|of| (policy(of), of.service_quarantines())),
    )?;
    families.gauges(
        "heddle_plugin_services_in_quarantine",
        "Services that do not use a generation for their instances' faults.",
        plugins.iter().map(|of| {
            let services = of.quarantines().iter().filter(|quarantine| quarantine.service.is_some()).count();
            (policy(of), services as f64)
        }),
    )?;
    families.gauge(
        "heddle_plugin_memory_bytes",
        "Memory of all instances, that included which they have declared and never touched.",
        state.plugins().engine().guest_memory() as f64,
    )?;
    families.counters(
        "heddle_plugin_refusals",
        "Files that were not loaded.",
        plugins.iter().map(|of| (policy(of), of.incidents().1)),
    )?;
    let timing = |of: &Arc<Plugin>| {
        let (sum, count) = of.timing().total();
        Histogram { sum, count, buckets: vec![(f64::INFINITY, count)] }
    };
    families.histograms(
        "heddle_plugin_decision_seconds",
        "Time of decisions, from a sample of them.",
        plugins.iter().map(|of| (policy(of), timing(of))),
    )
}

fn number(flag: bool) -> f64 {
    f64::from(u8::from(flag))
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
