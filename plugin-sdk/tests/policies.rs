//! A retry policy and a circuit breaker, written and tested as their authors would.

use std::time::Duration;

use heddle_plugin::testing::{Breaking, Outcome, Request, Retries};
use heddle_plugin::{
    Attention, CircuitBreaker, Condition, Config, Endpoint, Health, Kind, Level, Registered, RetryPolicy, Terms, log,
    now,
};

struct ThreeAttempts;

impl RetryPolicy for ThreeAttempts {
    fn new(config: Config<'_>, _: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self)
    }

    fn terms(&self) -> Terms {
        Terms { timeout: Some(Duration::from_secs(3)), ..Terms::default() }
    }

    fn decide(&mut self, request: &heddle_plugin::Request, outcome: &heddle_plugin::Outcome) -> Option<Duration> {
        let again = request.attempt() < 3 && outcome.replayable()? && outcome.kind() != Kind::ClientGone;
        again.then(|| outcome.retry_after().unwrap_or(Duration::from_millis(25)))
    }
}

heddle_plugin::export_retry_policy!(ThreeAttempts);

struct FiveFailures;

impl CircuitBreaker for FiveFailures {
    fn new(_: Config<'_>, _: u64) -> Result<Self, String> {
        Ok(Self)
    }

    fn attention(&self) -> Option<Attention> {
        Some(Attention { failures: 5, ..Attention::default() })
    }

    fn judge(
        &mut self,
        endpoint: &Endpoint,
        _: &heddle_plugin::Request,
        outcome: &heddle_plugin::Outcome,
        health: &Health<'_>,
    ) {
        let Some(state) = health.state(endpoint) else { return };
        if state.condition() == Condition::HalfOpen && outcome.kind() == Kind::Response {
            state.restore();
        } else if outcome.succeeded() == Some(false) && state.eject(Duration::from_secs(30)) {
            assert!(!state.eject(Duration::from_secs(60)), "the state that this verdict names is over");
            log(Level::Warning, "ejected");
        }
    }

    fn tick(&mut self, endpoints: &Registered, health: &Health<'_>) {
        for endpoint in endpoints.iter() {
            let over = health.ejected_until(endpoint).is_some_and(|until| until <= now());
            if let Some(state) = health.state(endpoint).filter(|_| over) {
                state.probe(1);
            }
        }
    }
}

heddle_plugin::export_circuit_breaker!(FiveFailures);

#[test]
fn a_retry_policy_decides_from_the_facts_of_the_attempt() {
    let mut retries = Retries::<ThreeAttempts>::new("{}", 1).expect("no settings are fine");
    assert_eq!(retries.terms(), Terms { timeout: Some(Duration::from_secs(3)), try_timeout: None, hedging: None });
    let replayable = Outcome { kind: Some(Kind::Refused), replayable: Some(true), ..Outcome::default() };
    assert_eq!(retries.decide(&Request::get("/"), &replayable), Some(Duration::from_millis(25)));
    let asked = Outcome { retry_after: Some(Duration::from_secs(2)), ..replayable.clone() };
    assert_eq!(retries.decide(&Request::get("/"), &asked), Some(Duration::from_secs(2)));
    assert_eq!(retries.decide(&Request { attempt: Some(3), ..Request::get("/") }, &replayable), None);
    assert_eq!(retries.decide(&Request::get("/"), &Outcome::default()), None);
}

#[test]
fn a_breaker_ejects_probes_and_restores() {
    let mut service = Breaking::<FiveFailures>::new("{}", 1).expect("no settings are fine");
    service.register(["10.0.0.1:80", "10.0.0.2:80"]);
    let condition = |service: &mut Breaking<_>| service.health("10.0.0.2:80").map(|health| health.condition);
    let failure = Outcome { kind: Some(Kind::Closed), ..Outcome::default() };

    service.judge("10.0.0.2:80", &Request::get("/"), &failure);
    assert_eq!(condition(&mut service), Some(Condition::InUse));
    service.health("10.0.0.2:80").expect("registered").consecutive_failures = 5;
    service.judge("10.0.0.2:80", &Request::get("/"), &failure);
    assert_eq!(condition(&mut service), Some(Condition::Ejected));

    service.set_now(Duration::from_secs(29));
    service.tick();
    assert_eq!(condition(&mut service), Some(Condition::Ejected));
    service.set_now(Duration::from_secs(30));
    service.tick();
    assert_eq!(condition(&mut service), Some(Condition::HalfOpen));

    let success = Outcome { kind: Some(Kind::Response), status: Some(200), ..Outcome::default() };
    service.judge("10.0.0.2:80", &Request::get("/"), &success);
    assert_eq!(condition(&mut service), Some(Condition::InUse));
}
