//! The seconds of circuit breakers: comparisons between endpoints, and the end of ejections, once for the whole proxy.
//!
//! A verdict outlives the instance that gave it, and must not outlive the breaker: where there is none that answers, the
//! proxy ends verdicts by itself, and keeps the endpoint.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::directory::{Directory, Service};
use super::health::Condition;
use crate::plugin::Seat;
use crate::supervise;

/// How often a breaker is told that time has passed.
const SECOND: Duration = Duration::from_secs(1);

/// Attempts so long ago make no difference any more.
const MEMORY: u32 = 60;

/// Ticks for ever.
pub async fn run(directory: Arc<Directory>) {
    let mut breakers = Breakers::default();
    let mut seconds = tokio::time::interval(SECOND);
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        for service in directory.all() {
            let generation = service.breaker.as_ref().map_or(0, |breaker| breaker.version()).to_le_bytes();
            match supervise::input(service.name(), &generation) {
                Some(_input) => breakers.tick(&service),
                // What ends an ejection must not stop. If it is this that panics, nothing can be done for the service.
                None => {
                    supervise::caught_call("ticks", || service.fleet.decide_natively());
                }
            }
            // The control thread has other things to do between two services.
            tokio::task::yield_now().await;
        }
    }
}

/// An instance of each service's breaker, while there is something to judge.
#[derive(Default)]
pub struct Breakers {
    seats: HashMap<Arc<str>, (Arc<Service>, Seat)>,
}

impl Breakers {
    /// Lets a second pass for one service.
    pub fn tick(&mut self, service: &Arc<Service>) {
        let name = service.name();
        if !has_something_to_judge(service) {
            self.seats.remove(name);
            return;
        }
        let Some((breaker, policy)) = service.breaker.as_ref().zip(service.settings.breaker.as_ref()) else {
            self.seats.remove(name);
            // Its settings have changed, and a request that began before may have been judged since.
            service.fleet.forget_verdicts();
            return;
        };
        let is_replaced = self.seats.get(name).is_some_and(|(of, _)| !Arc::ptr_eq(of, service));
        if is_replaced {
            self.seats.remove(name);
        }
        let (_, seat) = self.seats.entry(name.clone()).or_insert_with(|| {
            let seed = service.fleet.clock.now().subsec_nanos().into();
            let seat = Seat::new(service.fleet.clone(), breaker.clone(), policy.config.clone(), seed);
            (service.clone(), seat)
        });
        if seat.needs_instance() {
            seat.make_instance();
        }
        seat.refresh();
        if seat.ask(|policy| policy.tick()).is_none() {
            service.fleet.decide_natively();
        }
    }
}

fn has_something_to_judge(service: &Service) -> bool {
    let fleet = &service.fleet;
    let is_out = || fleet.snapshot().endpoints().any(|endpoint| endpoint.health.condition() != Condition::InUse);
    fleet.health.window(MEMORY, fleet.clock.now()) != (0, 0) || fleet.health.condition() != Condition::InUse || is_out()
}
