//! The figures of services: their requests, endpoints, limits, health and tunnels.

use std::fmt;
use std::sync::Arc;

use super::encode::{Families, Histogram};
use super::{CLASSES, by_result, number};
use crate::app::State;
use crate::service::{Condition, DURATION_BUCKETS, Fleet, Limit, Service, Snapshot, StatsTotal, TunnelTotal};

/// One service's figures.
struct Reading {
    service: Arc<Service>,
    total: StatsTotal,
    snapshot: Arc<Snapshot>,
}

impl Reading {
    fn name(&self) -> [(&'static str, &str); 1] {
        [("service", self.service.name())]
    }

    fn name_and_policy(&self) -> [(&'static str, &str); 2] {
        [("service", self.service.name()), ("policy", &self.service.balancer.name)]
    }

    fn durations(&self) -> Histogram {
        let bounds = DURATION_BUCKETS.into_iter().chain([f64::INFINITY]);
        Histogram {
            sum: self.total.duration_seconds,
            count: self.total.durations.iter().sum(),
            buckets: bounds.zip(self.total.durations).collect(),
        }
    }
}

/// The figures of all services.
pub(super) fn figures(families: &mut Families<'_>, state: &State) -> fmt::Result {
    let mut services = state.directory.all();
    services.sort_by(|a, b| a.name().cmp(b.name()));
    let read = |service: Arc<Service>| Reading { total: service.stats(), snapshot: service.snapshot(), service };
    let readings: Vec<Reading> = services.into_iter().map(read).collect();
    let by_service =
        |figure: fn(&StatsTotal) -> u64| readings.iter().map(move |reading| (reading.name(), figure(&reading.total)));
    let by_policy = |figure: fn(&StatsTotal) -> u64| {
        readings.iter().map(move |reading| (reading.name_and_policy(), figure(&reading.total)))
    };
    let now = |figure: fn(&Snapshot) -> usize| {
        readings.iter().map(move |reading| (reading.name(), figure(&reading.snapshot) as f64))
    };

    let requests = readings.iter().flat_map(|reading| {
        let classes = CLASSES.iter().zip(reading.total.responses);
        classes.map(|(class, count)| ([("service", &*reading.service.fleet.name), ("class", *class)], count))
    });
    families.counters("heddle_requests", "Requests that have ended, by class of status.", requests)?;
    families.histograms(
        "heddle_request_duration_seconds",
        "From a request's head to the end of its response.",
        readings.iter().map(|reading| (reading.name(), reading.durations())),
    )?;
    families.gauges(
        "heddle_requests_in_flight",
        "Requests under way at endpoints.",
        now(|snapshot| snapshot.in_flight().into_iter().map(|n| n as usize).sum()),
    )?;
    families.gauges(
        "heddle_endpoints_registered",
        "Endpoints that the registry announces.",
        now(|snapshot| snapshot.endpoints().count()),
    )?;
    families.gauges("heddle_endpoints_eligible", "Endpoints that may be picked.", now(Snapshot::eligible_count))?;
    of_checks(families, &readings)?;
    families.gauges(
        "heddle_endpoints_paused",
        "Endpoints that somebody has paused.",
        now(|snapshot| snapshot.endpoints().filter(|endpoint| endpoint.pause().is_paused()).count()),
    )?;
    families.gauges(
        "heddle_service_paused",
        "1 while somebody has paused the service as a whole.",
        now(|snapshot| usize::from(snapshot.pause().is_paused())),
    )?;
    families.counters(
        "heddle_failed_attempts",
        "Attempts that ended without a response head.",
        by_service(|total| total.failed_attempts),
    )?;
    families.counters(
        "heddle_resent_requests",
        "Requests sent again because their pooled connection was found dead.",
        by_service(|total| total.resent),
    )?;
    families.counters(
        "heddle_retries",
        "Attempts after a failed one, as the retry policy wanted.",
        by_service(|total| total.retries),
    )?;
    families.counters("heddle_hedges", "Attempts beside one that was slow.", by_service(|total| total.hedges))?;
    families.counters(
        "heddle_retries_over_budget",
        "Retries and hedges that the service's budget did not allow.",
        by_service(|total| total.over_budget),
    )?;
    of_health(families, &readings)?;
    of_limits(families, &readings)?;
    of_tunnels(families, &readings)?;
    families.counters(
        "heddle_plugin_metadata_dropped",
        "Entries of endpoints' metadata that policies were not given, as there are too many bytes of them.",
        readings.iter().map(|reading| (reading.name(), reading.service.fleet.metadata_dropped())),
    )?;
    families.counters("heddle_plugin_decisions", "Decisions by plugins.", by_policy(|total| total.decisions))?;
    families.counters(
        "heddle_plugin_fallbacks",
        "Decisions that the proxy made in a plugin's stead.",
        by_policy(|total| total.fallbacks),
    )?;
    families.counters(
        "heddle_plugin_asked_again",
        "Answers of plugins that could not be used: an endpoint not eligible, tried already, or not registered.",
        by_policy(|total| total.asked_again),
    )
}

/// Active health checks, of the services that have them.
fn of_checks(families: &mut Families<'_>, readings: &[Reading]) -> fmt::Result {
    let checked = || readings.iter().filter(|reading| reading.service.settings.health_check.is_some());
    families.gauges(
        "heddle_endpoints_failing_check",
        "Endpoints that are out of use because they fail their health check.",
        checked().map(|reading| {
            let failing = reading.snapshot.endpoints().filter(|endpoint| endpoint.health.check_fails());
            (reading.name(), failing.count() as f64)
        }),
    )?;
    let checks = checked().flat_map(|reading| {
        let checks = &reading.service.fleet.checks;
        [("passed", checks.passed.get()), ("failed", checks.failed.get())]
            .map(|(result, count)| ([("service", &**reading.service.name()), ("result", result)], count))
    });
    families.counters("heddle_health_checks", "Health checks of endpoints, by result.", checks)
}

/// What circuit breakers have done.
fn of_health(families: &mut Families<'_>, readings: &[Reading]) -> fmt::Result {
    let of_fleets = |figure: fn(&Fleet) -> u64| {
        readings.iter().map(move |reading| (reading.name(), figure(&reading.service.fleet)))
    };
    families.counters(
        "heddle_ejections",
        "Endpoints taken out of use by circuit breakers.",
        of_fleets(Fleet::ejections),
    )?;
    families.counters(
        "heddle_service_openings",
        "Times that a service was opened as a whole, since every attempt failed.",
        of_fleets(Fleet::openings),
    )?;
    families.gauges(
        "heddle_service_open",
        "1 while requests are refused because every attempt fails.",
        readings
            .iter()
            .map(|reading| (reading.name(), number(reading.service.fleet.health.condition() != Condition::InUse))),
    )?;
    families.gauges(
        "heddle_endpoints_ejected",
        "Endpoints that a circuit breaker has out of use.",
        readings.iter().map(|reading| {
            let endpoints = reading.snapshot.endpoints();
            let out = endpoints.filter(|endpoint| endpoint.health.condition() != Condition::InUse);
            (reading.name(), out.count() as f64)
        }),
    )
}

/// What limits hold for, and what they have refused.
fn of_limits(families: &mut Families<'_>, readings: &[Reading]) -> fmt::Result {
    let now = |figure: fn(&Fleet) -> f64| {
        readings.iter().map(move |reading| (reading.name(), figure(&reading.service.fleet)))
    };
    families.gauges(
        "heddle_requests_pending",
        "Requests that wait because their service is full.",
        now(|fleet| fleet.requests.pending() as f64),
    )?;
    families.gauges(
        "heddle_connections",
        "Connections to endpoints, idle ones included.",
        now(|fleet| f64::from(fleet.connections.open())),
    )?;
    families.gauges(
        "heddle_connections_pending",
        "Requests and tunnels that wait for a connection because there are as many as may be.",
        now(|fleet| fleet.connections.pending() as f64),
    )?;
    let limited = readings.iter().flat_map(|reading| {
        let limits = Limit::ALL.iter().zip(reading.total.limited);
        limits.map(|(limit, count)| ([("service", &*reading.service.fleet.name), ("limit", limit.name())], count))
    });
    families.counters("heddle_limited", "Requests and tunnels that were refused for a limit.", limited)
}

/// Connections that are passed on as they are.
fn of_tunnels(families: &mut Families<'_>, readings: &[Reading]) -> fmt::Result {
    let tunnels = readings.iter().flat_map(|reading| {
        let service = ("service", &*reading.service.fleet.name);
        by_result(&reading.total.tunnels).map(move |([result], count)| ([service, result], count))
    });
    families.counters("heddle_tunnels", "Tunnels that have ended or did not come about, by how.", tunnels)?;
    families.gauges(
        "heddle_tunnels_open",
        "Tunnels under way.",
        readings.iter().map(|reading| (reading.name(), reading.total.tunnels.open() as f64)),
    )?;
    let bytes = readings.iter().flat_map(|reading| {
        let TunnelTotal { sent, received, .. } = reading.total.tunnels;
        [("sent", sent), ("received", received)]
            .map(|(direction, bytes)| ([("service", &*reading.service.fleet.name), ("direction", direction)], bytes))
    });
    families.counters("heddle_tunnel_bytes", "Bytes through tunnels: sent by clients, and received by them.", bytes)
}
