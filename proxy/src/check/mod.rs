//! Active health checks: the proxy asks endpoints itself whether they are well.
//!
//! What traffic shows of an endpoint is the breaker's to judge. A check shows what traffic cannot: that an endpoint which
//! gets no requests is gone, and that one which was taken out of use is well again, without a client's request being the
//! price of finding out. It is made once a proxy and not once a worker, on the control thread: a service of a hundred
//! endpoints costs fifty connections a second with the default interval, however many cores the proxy has.
//!
//! * A service that has a `health_check` has all its registered endpoints checked, those too that are paused, ejected or
//!   of weight 0: what is known of them is true when they come back. Endpoints are followed as the registry changes, and
//!   what comes back of a check of one that has left is dropped.
//! * Each check has a connection of its own, closed after it: what is asked is whether a new connection is served too.
//!   It is made as the service's own connections are, TLS included, and is not counted among them.
//! * The [`rule`] says what follows from a result: an endpoint that fails is no longer eligible, and one that was ejected
//!   and passes is let have probes before its time. Requests under way are left alone.
//! * The [`schedule`] says when each endpoint's turn is. At most [`AT_ONCE`] checks are under way at once; where that is
//!   not enough, checks come late, in the order in which they were due, and no endpoint has two at the same time.
//!
//! Checks of all services are one loop over one queue. It looks for changes of services four times a second, at their
//! version numbers; nothing has to remember to tell it. A reload of the configuration thus finds it running: results so far
//! count under the new settings, and where checks are switched off, nothing that they have found holds any longer.

mod exchange;
mod grpc;
mod http;
pub mod rule;
pub mod schedule;
mod target;
mod tcp;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, StatusCode};
use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::grpc::ServingStatus;
use self::rule::{Effect, Rule, Standing};
use self::schedule::{Schedule, Ticket, wait};
use self::target::Target;
use crate::config::checked::{HealthCheck, TlsClient};
use crate::descriptors;
use crate::service::{Condition, Directory, Endpoint, Fleet, Service};
use crate::supervise;
use crate::transport::tls::Connector;
use crate::upstream::{self, OwnSockets};

/// Checks under way at once, over all services; fewer where the process may have few descriptors.
pub const AT_ONCE: usize = descriptors::CHECKS;

/// How often services are looked at for changes.
const LOOK: Duration = Duration::from_millis(250);

/// Names that are looked up at once: the control thread has few threads that may wait, and others need one too.
const LOOKUPS: usize = 2;

/// Probes at once that an endpoint gets whose checks have ended its ejection. The breaker says what becomes of them.
const PROBES: u32 = 1;

/// Who asks, as endpoints see it.
const USER: HeaderValue = HeaderValue::from_static(concat!("heddle-check/", env!("CARGO_PKG_VERSION")));

/// Why a check has failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("{0}")]
    Connect(#[from] upstream::Failure),
    #[error("no answer in time")]
    Timeout,
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("{}", crate::proto::http2::describe(.0))]
    Http1(#[from] hyper::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("it answered with gRPC status {status}{}", .message.as_ref().map_or(String::new(), |said| format!(": {said}")))]
    Grpc { status: String, message: Option<String> },
    #[error("it says that it is {0}")]
    NotServing(ServingStatus),
    #[error("it sent {0}")]
    Malformed(&'static str),
    #[error("what was to be sent cannot be: {0}")]
    Request(#[from] ::http::Error),
    #[error("the check broke off: {0}")]
    Lost(#[from] JoinError),
}

/// Begin TLS to endpoints, by the settings of services.
pub type Connectors = HashMap<TlsClient, Arc<Connector>>;

/// Checks the endpoints of the directory's services for ever, whatever becomes of their settings. Runs on a `LocalSet`.
/// At most `at_once` checks are under way at the same time, none of them of a listener of the proxy's `own`.
pub async fn run(
    directory: Arc<Directory>,
    connectors: Arc<ArcSwap<Connectors>>,
    own: Arc<OwnSockets>,
    at_once: usize,
) {
    let mut checker = Checker {
        directory,
        own,
        at_once,
        connectors,
        services: HashMap::new(),
        subjects: HashMap::new(),
        schedule: Schedule::new(RandomState::new().hash_one("checks")),
        tickets: 0,
        running: JoinSet::new(),
        started: HashMap::new(),
        lookups: Arc::new(Semaphore::new(LOOKUPS)),
    };
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = checker.schedule.next().filter(|_| checker.running.len() < at_once);
        tokio::select! {
            _ = looks.tick() => checker.look(),
            Some(ended) = checker.running.join_next_with_id() => match ended {
                Ok((id, result)) => checker.end(id, result),
                Err(lost) => checker.end(lost.id(), Err(lost.into())),
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => checker.start_due(Instant::now()),
        }
    }
}

/// An endpoint that is checked.
struct Subject {
    service: Arc<Service>,
    check: Arc<HealthCheck>,
    endpoint: Arc<Endpoint>,
    standing: Standing,
    /// When its next check is planned for; none while one is under way.
    due: Option<Instant>,
    /// Whether it was out of use when that was planned.
    was_out: bool,
}

impl Subject {
    fn new(service: &Arc<Service>, check: &Arc<HealthCheck>, endpoint: &Arc<Endpoint>, now: Instant) -> Self {
        Self {
            service: service.clone(),
            check: check.clone(),
            endpoint: endpoint.clone(),
            standing: Standing::of(endpoint.health.check_fails()),
            due: Some(now),
            was_out: false,
        }
    }

    /// Whether it is out of use for a reason that a check can end.
    fn is_out(&self) -> bool {
        self.standing.is_failing() || self.endpoint.health.condition() == Condition::Out
    }
}

/// A service whose endpoints are checked.
struct Checked {
    service: Arc<Service>,
    check: Arc<HealthCheck>,
    /// Of the service, when it was looked at.
    version: u64,
    /// By the id of each endpoint.
    tickets: HashMap<String, Ticket>,
}

/// A check under way.
struct Started {
    ticket: Ticket,
    at: Instant,
    /// The endpoint's health as it was: tells an ejection from every other.
    seen: u64,
}

struct Checker {
    directory: Arc<Directory>,
    connectors: Arc<ArcSwap<Connectors>>,
    services: HashMap<Arc<str>, Checked>,
    subjects: HashMap<Ticket, Subject>,
    schedule: Schedule,
    /// How many were given out.
    tickets: Ticket,
    running: JoinSet<Result<(), Failed>>,
    started: HashMap<Id, Started>,
    lookups: Arc<Semaphore>,
    own: Arc<OwnSockets>,
    at_once: usize,
}

impl Checker {
    /// Learns what services there are, and what has become of their endpoints.
    fn look(&mut self) {
        let now = Instant::now();
        let is_checked = |service: Arc<Service>| service.settings.health_check.is_some();
        let directory = &self.directory;
        let done_with = |name: &Arc<str>| !directory.get(name).is_some_and(is_checked);
        let done_with: Vec<Arc<str>> = self.services.keys().filter(|name| done_with(name)).cloned().collect();
        done_with.iter().for_each(|name| self.leave(name));
        for service in self.directory.all() {
            if let Some(check) = &service.settings.health_check {
                self.follow(&service, check, now);
            }
        }
    }

    /// A service is no longer checked: nothing that checks have found holds any more.
    fn leave(&mut self, name: &Arc<str>) {
        let Some(of) = self.services.remove(name) else { return };
        for subject in of.tickets.values().filter_map(|ticket| self.subjects.remove(ticket)) {
            subject.service.fleet.set_check_fails(&subject.endpoint, false);
        }
    }

    /// Learns what has become of a service's endpoints, if anything has changed.
    fn follow(&mut self, service: &Arc<Service>, check: &Arc<HealthCheck>, now: Instant) {
        let version = service.fleet.version().to_le_bytes();
        let Some(_input) = supervise::input(service.name(), &version) else { return forget(&service.fleet) };
        let Self { services, subjects, schedule, tickets, .. } = self;
        let of = services.entry(service.name().clone()).or_insert_with(|| Checked {
            service: service.clone(),
            check: check.clone(),
            version: 0,
            tickets: HashMap::new(),
        });
        let is_replaced = !Arc::ptr_eq(&of.service, service);
        if !is_replaced && of.version == service.fleet.version() {
            return;
        }
        let is_changed = of.check != *check;
        let snapshot = service.snapshot();
        let mut before = std::mem::take(&mut of.tickets);
        for endpoint in snapshot.endpoints() {
            let id = &endpoint.registered.id;
            let known = before.remove(id).and_then(|ticket| Some((ticket, subjects.remove(&ticket)?)));
            // One that has left and come back in between is another one.
            let known = known.filter(|(_, known)| Arc::ptr_eq(&known.endpoint.health, &endpoint.health));
            let is_new = known.is_none();
            let (ticket, known) = known.unwrap_or_else(|| {
                *tickets += 1;
                (*tickets, Subject::new(service, check, endpoint, now))
            });
            let (service, check, endpoint) = (service.clone(), check.clone(), endpoint.clone());
            let mut subject = Subject { service, check, endpoint, ..known };
            let is_out = subject.is_out();
            // Whoever was ejected just now does not wait for as long as those who are in use.
            if subject.due.is_some() && (is_new || is_changed || is_out && !subject.was_out) {
                let within = wait(&subject.check, is_out);
                (subject.due, subject.was_out) = (Some(schedule.begin(ticket, now, within)), is_out);
            }
            subjects.insert(ticket, subject);
            of.tickets.insert(id.clone(), ticket);
        }
        for ticket in before.values() {
            subjects.remove(ticket);
        }
        (of.service, of.check) = (service.clone(), check.clone());
        of.version = snapshot.version;
    }

    /// Starts what is due, as far as there is room.
    fn start_due(&mut self, now: Instant) {
        while self.running.len() < self.at_once
            && let Some((at, ticket)) = self.schedule.take_due(now)
        {
            // Those who have left are still in the schedule, and so is what was planned anew since.
            let subject = self.subjects.get_mut(&ticket).filter(|subject| subject.due == Some(at));
            let Some(subject) = subject else { continue };
            subject.due = None;
            let tls = subject.service.settings.tls.as_ref();
            let target = Target {
                service: subject.service.clone(),
                check: subject.check.clone(),
                endpoint: subject.endpoint.clone(),
                connector: tls.and_then(|tls| self.connectors.load().get(tls).cloned()),
                lookups: self.lookups.clone(),
                own: self.own.clone(),
            };
            let seen = subject.endpoint.health.seen();
            let id = self.running.spawn_local(target.check()).id();
            self.started.insert(id, Started { ticket, at: now, seen });
        }
    }

    /// A check has ended.
    fn end(&mut self, id: Id, result: Result<(), Failed>) {
        let Some(Started { ticket, at, seen }) = self.started.remove(&id) else { return };
        let Some(subject) = self.subjects.get_mut(&ticket) else { return };
        let Subject { service, check, endpoint, standing, .. } = subject;
        let name = service.name().clone();
        let version = service.fleet.version().to_le_bytes();
        let Some(_input) = supervise::input(&name, &version) else { return };
        let fleet = &service.fleet;
        let count = if result.is_ok() { &fleet.checks.passed } else { &fleet.checks.failed };
        count.add(1);

        let (effect, is_probed) = conclude(fleet, endpoint, standing, check, result.is_ok(), seen);
        tell(service, endpoint, &result, effect, is_probed);

        let is_out = subject.is_out();
        let next = self.schedule.follow(ticket, at, Instant::now(), wait(&subject.check, is_out));
        (subject.due, subject.was_out) = (Some(next), is_out);
    }
}

/// Has a check of an endpoint take effect that has passed or not, and that began when the endpoint's health was in the
/// state `seen`. Says what came of it, and whether the endpoint is half-open now.
pub fn conclude(
    fleet: &Fleet,
    endpoint: &Arc<Endpoint>,
    standing: &mut Standing,
    check: &HealthCheck,
    passed: bool,
    seen: u64,
) -> (Effect, bool) {
    let health = &endpoint.health;
    let is_still_ejected = health.condition() == Condition::Out && health.seen() == seen;
    let rule = Rule { rise: check.rise, fall: check.fall };
    let effect = standing.add(passed, is_still_ejected.then_some(seen), rule);
    if let Some(fails) = effect.failing {
        fleet.set_check_fails(endpoint, fails);
    }
    (effect, effect.ends_ejection && fleet.probe(endpoint.slot, seen, PROBES))
}

/// Lets nothing hold that checks have found of endpoints which are no longer checked.
fn forget(fleet: &Fleet) {
    for endpoint in fleet.snapshot().endpoints().filter(|endpoint| endpoint.health.check_fails()) {
        fleet.set_check_fails(endpoint, false);
    }
}

fn tell(service: &Service, endpoint: &Endpoint, result: &Result<(), Failed>, effect: Effect, is_probed: bool) {
    let (service, endpoint) = (service.name(), &endpoint.registered.address);
    match (result, effect.failing) {
        (Err(failed), Some(true)) => {
            tracing::info!(target: "heddle::check", %service, %endpoint, "out of use, for it fails its check: {failed}");
        }
        (_, Some(_)) => {
            tracing::info!(target: "heddle::check", %service, %endpoint, "back in use, for it passes its check again");
        }
        (Err(failed), None) => {
            tracing::debug!(target: "heddle::check", %service, %endpoint, "a check failed: {failed}");
        }
        (Ok(()), None) => {}
    }
    if is_probed {
        tracing::info!(target: "heddle::check", %service, %endpoint, "half-open, for it passes its check");
    }
}
