//! Takes an endpoint that fails out of use for a time, then lets a few requests find out whether it is well again; and
//! refuses requests for a service of which nothing answers.
//!
//! # Endpoints
//!
//! An endpoint is ejected after some failures in a row, and when it succeeds far less often than the others. The first is
//! seen by the worker where the last of them happened ([`CircuitBreaker::judge`]), so that a dead endpoint costs a handful
//! of requests. The second takes all endpoints and a second or more ([`CircuitBreaker::tick`]); it finds the endpoint that
//! fails every third request and never five in a row.
//!
//! Failures in a row are no matter of chance: at an endpoint that fails one request in a hundred, five in a row come once
//! in ten thousand million requests. Success rates are, so a rate counts only where it stands for enough requests, and
//! only a distance that is both unusual among the endpoints (standard deviations) and large in itself ([`MARGIN`]): of
//! endpoints that are all alike, one is always the worst. With the usual 1.9 deviations one endpoint of five can just be
//! told from the others: in the clearest case, where it alone fails, it is √(5 - 1) = 2 of them away from the average.
//! Where all endpoints fail alike, none is ejected for it.
//!
//! The first ejection is short, a second, and each further one at most twice as long as the one before, up to a minute.
//! Ending it costs one request, which a retry can mend, so it is better to ask often than to leave an endpoint that was
//! merely restarted unused for half a minute; and an endpoint that fails again and again is soon asked once a minute. The
//! proxy forgets an ejection for every such time that the endpoint then spends in use. Between the half and the whole of
//! the time is left to chance: many proxies see an endpoint fail in one moment, and should not all ask in one moment
//! whether it is back.
//!
//! The only endpoint of a service is not ejected, as nobody could be used in its stead.
//!
//! # The service
//!
//! Where every attempt fails, trying is of no use: requests wait for nothing, and retries multiply a load that may be what
//! keeps the endpoints down. The service is then open for a fifth of a second, and three requests at once find out
//! whether it is back: not one, as that may hang at an endpoint that is gone for longer than the others. A success
//! closes it; a failure opens it for twice that time, never longer, so that the first success comes within a second.
//!
//! One dead endpoint looks like a dead service to the requests that a hash sends there, and so may two or three among
//! retries. So it takes failures at nearly all of the endpoints that were in use lately: at four fifths of them, at least
//! at four (at all, where there are fewer). While one of five endpoints is well, retries find it. Of a large service with
//! few requests most endpoints have not been asked since they were well: there, that none has succeeded for a second or
//! two counts for the same. And where a balancer sends all requests to one endpoint, or those of a key, hardly more than
//! that one are ever asked: two are enough where, on top of that, every endpoint fails that was in use lately. One is
//! not, as it is ejected, and then the next is asked.
//!
//! # Memory
//!
//! There is none here but for random numbers. Workers see one truth, which the proxy keeps, and a verdict names the state
//! that it was made on: of two workers that saw the same failures, one ejects.

mod settings;

use std::time::Duration;

use heddle_plugin::{
    Attention, Circuit, CircuitBreaker, Condition, Config, Endpoint, Failure, Health, Level, Outcome, Random,
    Registered, Request, ServiceState, State, log, now,
};

use settings::Settings;

/// A success rate that is nearer than this to the average is none to be ejected for. Of 100 requests, a rate is known to
/// within two standard errors of 5 points at worst.
const MARGIN: f64 = 0.1;

/// Fewer failing endpoints are not taken for the whole service, unless it has no more.
const FEW: usize = 4;

/// The same where no endpoint that was in use lately is well, and the service is silent.
const FEWEST: usize = 2;

/// A large service is looked at as a whole once in a number of failures, so that one of them costs no more than reading
/// so many endpoints.
const ENDPOINTS_A_FAILURE: usize = 10;

/// An endpoint without an attempt for so many seconds is not in use.
const LATELY: u32 = 10;

/// A service without a success for so many seconds, the one that is not over counted, is silent.
const RECENTLY: u32 = 2;

struct Breaker {
    settings: Settings,
    random: Random,
}

impl CircuitBreaker for Breaker {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self { settings: Settings::read(config)?, random: Random::new(seed) })
    }

    fn attention(&self) -> Option<Attention> {
        let settings = &self.settings;
        Some(Attention {
            connect_failures: settings.consecutive_connect_failures,
            timeouts: settings.consecutive_timeouts,
            gateway_errors: settings.consecutive_gateway_errors,
            failures: settings.consecutive_failures,
            service_failures: settings.service_failures,
        })
    }

    fn judge(&mut self, endpoint: &Endpoint, _: &Request, outcome: &Outcome, health: &Health<'_>) {
        let Some(state) = health.state(endpoint) else { return };
        let service = health.service_state();
        let failures = health.consecutive_failures(endpoint);
        match outcome.succeeded() {
            Some(true) => succeeded(state, service),
            Some(false) => {
                self.failed(endpoint, state, failures, health);
                self.service_failed(service, health);
            }
            None => {}
        }
    }

    fn tick(&mut self, endpoints: &Registered, health: &Health<'_>) {
        let mut rated = Vec::new();
        for endpoint in endpoints.iter() {
            let Some(state) = health.state(endpoint) else { continue };
            match state.condition() {
                Condition::Ejected if health.ejected_until(endpoint).is_none_or(|until| until <= now()) => {
                    state.probe(self.settings.probes);
                }
                Condition::InUse => {
                    rated.extend(self.success_rate(endpoint, health).map(|rate| (endpoint, state, rate)));
                }
                _ => {}
            }
        }
        if rated.len() < self.settings.minimum_endpoints || self.settings.success_rate_deviations == 0.0 {
            return;
        }
        let rates: Vec<f64> = rated.iter().map(|&(_, _, rate)| rate).collect();
        let least = lowest_usual(&rates, self.settings.success_rate_deviations);
        for (endpoint, state, _) in rated.into_iter().filter(|&(_, _, rate)| rate < least) {
            self.eject(endpoint, state, "it fails more often than the others", health);
        }
    }
}

/// An attempt that began in these states: with a probe, or because too few endpoints were left to choose among.
fn succeeded(state: State, service: ServiceState) {
    if service.circuit() != Circuit::Closed {
        service.close();
    }
    if matches!(state.condition(), Condition::Ejected | Condition::HalfOpen) {
        state.restore();
    }
}

impl Breaker {
    fn failed(&mut self, endpoint: &Endpoint, state: State, failures: u32, health: &Health<'_>) {
        let reason = match state.condition() {
            Condition::InUse => self.too_many_in_a_row(endpoint, failures, health),
            Condition::HalfOpen => Some("a probe failed"),
            _ => None,
        };
        if let Some(reason) = reason.filter(|_| health.endpoints().len() > 1) {
            self.eject(endpoint, state, reason, health);
        }
    }

    fn too_many_in_a_row(&self, endpoint: &Endpoint, failures: u32, health: &Health<'_>) -> Option<&'static str> {
        let settings = &self.settings;
        let rules = [
            (settings.consecutive_failures, Failure::Any, "failures in a row"),
            (settings.consecutive_gateway_errors, Failure::Gateway, "gateway errors in a row"),
            (settings.consecutive_timeouts, Failure::Timeout, "timeouts in a row"),
            (settings.consecutive_connect_failures, Failure::Connect, "connect failures in a row"),
        ];
        let is_broken = |most: u32, class| match class {
            _ if most == 0 || failures < most => false,
            Failure::Any => true,
            class => health.consecutive(endpoint, class) >= most,
        };
        rules.into_iter().find(|&(most, class, _)| is_broken(most, class)).map(|(_, _, reason)| reason)
    }

    /// The share of attempts that succeeded over the interval; none where they are too few.
    fn success_rate(&self, endpoint: &Endpoint, health: &Health<'_>) -> Option<f64> {
        let attempts = health.attempts(endpoint, self.settings.interval.as_secs() as u32);
        let all = attempts.successes.saturating_add(attempts.failures);
        (all >= self.settings.minimum_requests).then(|| f64::from(attempts.successes) / f64::from(all))
    }

    fn eject(&mut self, endpoint: &Endpoint, state: State, reason: &str, health: &Health<'_>) {
        let doublings = health.ejections(endpoint).min(31);
        let most = self.settings.ejection_time.saturating_mul(1 << doublings).min(self.settings.max_ejection_time);
        let time = self.between(most / 2, most);
        if state.eject(time) {
            log(Level::Information, &[&endpoint.address, " is ejected: ", reason].concat());
        }
    }

    fn service_failed(&mut self, service: ServiceState, health: &Health<'_>) {
        let time = match service.circuit() {
            Circuit::Closed if self.is_down(health) => self.settings.open_time,
            Circuit::HalfOpen => self.settings.open_time * 2,
            _ => return,
        };
        service.open(self.between(time, time + time / 4), self.settings.open_probes);
    }

    /// Whether every attempt at the service fails, wherever it goes.
    fn is_down(&self, health: &Health<'_>) -> bool {
        let endpoints = health.endpoints();
        let (failures, most) =
            (health.service_consecutive_failures() as usize, self.settings.service_failures as usize);
        if most == 0 || failures < most || failures % endpoints.len().div_ceil(ENDPOINTS_A_FAILURE).max(1) != 0 {
            return false;
        }
        let is_failing = |endpoint: &&Endpoint| health.consecutive_failures(endpoint) > 0;
        let failing = endpoints.iter().filter(is_failing).count();
        let is_well = |endpoint: &&Endpoint| !is_failing(endpoint) && health.attempts(endpoint, LATELY).successes > 0;
        let well = || endpoints.iter().filter(is_well).count();
        let is_silent = || health.service_attempts(RECENTLY).successes == 0;
        if failing >= FEW.min(endpoints.len()) {
            return is_silent() || failing >= 4 * well();
        }
        failing >= FEWEST && is_silent() && well() == 0
    }

    /// A time between two, each as likely.
    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let spread = most.saturating_sub(least).as_micros() as u64;
        least + Duration::from_micros(self.random.below(spread.saturating_add(1)))
    }
}

/// The lowest success rate that is still usual among these.
fn lowest_usual(rates: &[f64], deviations: f64) -> f64 {
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - (deviations * variance.sqrt()).max(MARGIN)
}

heddle_plugin::export_circuit_breaker!(Breaker);

#[cfg(test)]
mod tests;
