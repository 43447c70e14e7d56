//! One run: clients, the proxy's decisions, and endpoints, in virtual time.
//!
//! The decisions are the proxy's own: [`LocalService`] is what a worker asks on the path of a request. What is simulated
//! is what lies around them: when requests come, how long an attempt takes, and how it ends.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heddle::clock::Clock;
use heddle::policy::Role;
use heddle::registry::{Change, Registered};
use heddle::server::local::LocalService;
use heddle::service::Service;
use heddle::service::tick::Breakers;
use heddle::timer::{TICK, Timers};

use tokio::sync::mpsc::unbounded_channel;

use super::checks::{Check, Checks};
use super::journal::{Journal, Note};
use super::machine::Machine;
use super::plugins::{self, Compiled, plugin_of};
use super::queue::Queue;
use super::random::Random;
use super::request::Request;
use super::scenario::{Scenario, What};
use super::watch::{Broken, Held, Registration, Watch};

/// What is to happen.
#[derive(Debug)]
pub enum Event {
    Arrive,
    /// An attempt of a request ends, if it is still the one with this number.
    AttemptEnds {
        request: u64,
        number: u64,
    },
    Attempt {
        request: u64,
    },
    Hedge {
        request: u64,
        number: u64,
    },
    /// A response has ended.
    BodyEnds {
        request: u64,
    },
    ClientLeaves {
        request: u64,
    },
    ChecksAreDue,
    CheckEnds(Check),
    Tick,
    FaultBegins(usize),
    FaultEnds(usize),
    Part(Part),
}

/// The end of a part of the run.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Calm,
    Recovery,
    End,
}

/// What a proxy has for one service, on all of its workers.
pub struct Stage {
    clock: Clock,
    service: Arc<Service>,
    workers: Vec<Rc<LocalService>>,
    timers: Timers,
}

impl Stage {
    pub fn new(scenario: &Scenario, compiled: &Compiled) -> Self {
        let clock = Clock::turned_by_hand();
        let config = heddle::config::parse(&scenario.config(), "scenario".as_ref(), &[]);
        let config = config.map_err(|problems| format!("{problems:?}\n{}", scenario.config())).unwrap().config;
        let service = compiled.service(config, clock.clone());
        let seeds = (0..scenario.workers as u64).map(|worker| scenario.seed ^ worker << 32);
        // Nobody has connections here.
        let (inbox, _) = unbounded_channel();
        let workers = seeds.map(|seed| Rc::new(LocalService::new(service.clone(), None, seed, &inbox))).collect();
        Self { clock, service, workers, timers: Timers::default() }
    }
}

/// A run.
pub struct World<'a> {
    pub scenario: &'a Scenario,
    compiled: &'a Compiled,
    pub clock: Clock,
    pub now: Duration,
    pub service: Arc<Service>,
    pub workers: &'a [Rc<LocalService>],
    pub timers: &'a Timers,
    breakers: Breakers,
    pub checks: Option<Checks>,
    pub machines: Vec<Machine>,
    pub queue: Queue<Event>,
    pub requests: BTreeMap<u64, Request<'a>>,
    /// Numbers of requests and of attempts.
    pub numbers: u64,
    pub random: Random,
    pub watch: Watch,
    pub journal: Journal,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Of the journal.
    pub hash: u64,
    pub requests: u64,
    pub attempts: u64,
}

const SECOND: Duration = Duration::from_secs(1);

impl<'a> World<'a> {
    pub fn new(stage: &'a Stage, scenario: &'a Scenario, compiled: &'a Compiled, aloud: bool) -> Self {
        Self {
            scenario,
            compiled,
            now: stage.clock.now(),
            clock: stage.clock.clone(),
            service: stage.service.clone(),
            workers: &stage.workers,
            timers: &stage.timers,
            breakers: Breakers::default(),
            checks: stage.service.settings.health_check.clone().map(|check| Checks::new(check, scenario.seed)),
            machines: scenario.weights.iter().map(|_| Machine::default()).collect(),
            queue: Queue::default(),
            requests: BTreeMap::new(),
            numbers: 0,
            random: Random::new(scenario.seed),
            watch: Watch::new(),
            journal: Journal::new(aloud),
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    ///
    /// What did not hold.
    pub async fn run(&mut self) -> Held<Report> {
        let parts = self.scenario.parts;
        self.register((0..self.machines.len()).zip(self.scenario.weights.iter().copied()).collect());
        self.look()?;
        self.plan(Duration::ZERO, Event::Arrive);
        self.plan(self.random.clone().time(Duration::ZERO, SECOND), Event::Tick);
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            self.queue.plan(fault.time.start, Event::FaultBegins(number));
            self.queue.plan(fault.time.end, Event::FaultEnds(number));
        }
        self.queue.plan(parts.calm, Event::Part(Part::Calm));
        self.queue.plan(parts.recovery, Event::Part(Part::Recovery));
        self.queue.plan(parts.end, Event::Part(Part::End));
        while let Some((at, event)) = self.queue.next() {
            self.clock.advance(at.saturating_sub(self.now));
            self.now = at;
            self.timers.advance((at.as_micros() / TICK.as_micros()) as u64);
            self.happen(event)?;
            self.look()?;
            // Workers make policies anew that were at fault.
            tokio::task::yield_now().await;
        }
        must_be_empty(&self.requests)?;
        self.watch.at_rest(&self.service, self.scenario)?;
        Ok(Report { hash: self.journal.hash(), requests: self.watch.answers, attempts: self.watch.attempts })
    }

    fn look(&mut self) -> Held {
        self.watch.look(&self.service.fleet, self.scenario, self.now, &mut self.journal)
    }

    /// So long from now.
    pub fn plan(&mut self, after: Duration, event: Event) {
        self.queue.plan(self.now + after, event);
    }

    pub fn note(&mut self, note: Note) {
        self.journal.note(self.now, note);
    }

    fn happen(&mut self, event: Event) -> Held {
        match event {
            Event::Arrive => {
                if self.now < self.scenario.parts.end {
                    let gap = self.random.exponential(self.scenario.gap);
                    self.plan(gap, Event::Arrive);
                    return self.arrive();
                }
                Ok(())
            }
            Event::AttemptEnds { request, number } => self.attempt_ends(request, number),
            Event::Attempt { request } => self.attempt(request),
            Event::Hedge { request, number } => self.hedge(request, number),
            Event::BodyEnds { request } => {
                self.body_ends(request);
                Ok(())
            }
            Event::ClientLeaves { request } => self.client_leaves(request),
            Event::ChecksAreDue => {
                self.begin_checks();
                Ok(())
            }
            Event::CheckEnds(check) => {
                self.check_ends(&check);
                Ok(())
            }
            Event::Tick => {
                self.breakers.tick(&self.service);
                if self.now < self.scenario.parts.end {
                    self.plan(SECOND, Event::Tick);
                }
                Ok(())
            }
            Event::FaultBegins(number) => {
                self.fault_begins(number);
                self.watch.set_outage(self.is_down(), self.scenario, self.now)
            }
            Event::FaultEnds(number) => {
                self.fault_ends(number);
                self.watch.set_outage(self.is_down(), self.scenario, self.now)
            }
            Event::Part(part) => self.part_ends(part),
        }
    }

    fn part_ends(&mut self, part: Part) -> Held {
        match part {
            Part::Calm => self.watch.end_of_calm(self.scenario),
            Part::Recovery => self.watch.recovered(&self.service),
            Part::End => self.watch.end_of_calm(self.scenario),
        }
    }

    /// Whether no endpoint answers.
    fn is_down(&self) -> bool {
        let usable = self.watch.registered.iter().filter(|(_, registration)| registration.weight > 0);
        usable.map(|(&machine, _)| &self.machines[machine]).all(Machine::is_down)
    }

    fn fault_begins(&mut self, number: usize) {
        match self.scenario.faults[number].what.clone() {
            What::Trouble { whom, trouble } => {
                for machine in whom {
                    self.machines[machine].begin(number, trouble, self.now);
                    self.note(Note::Trouble { machine, trouble: Some(trouble) });
                    if self.machines[machine].is_crashed(self.now) {
                        self.break_connections(machine);
                    }
                }
            }
            What::Removed(whom) => self.unregister(&whom),
            What::Added(count) => {
                let first = self.machines.len();
                self.machines.resize_with(first + count, Machine::default);
                self.register((first..first + count).map(|machine| (machine, 1)).collect());
            }
            What::Reweighted { whom, weight } => self.reweigh(&whom, |_| weight),
            What::Replaced(role) => {
                if let Some(plugin) = plugin_of(&self.service, role) {
                    self.compiled.replace(plugin);
                    self.watch.set_judged(role, true, self.now);
                    self.note(Note::policy(role, true));
                }
            }
            What::Condemned { role, .. } => {
                if let Some(plugin) = plugin_of(&self.service, role) {
                    plugins::condemn(plugin);
                    let in_force = plugin.current().is_some();
                    self.watch.set_judged(role, in_force, self.now);
                    self.watch.was_condemned |= role == Role::RetryPolicy;
                    self.note(Note::policy(role, in_force));
                }
            }
        }
    }

    fn fault_ends(&mut self, number: usize) {
        let fault = &self.scenario.faults[number];
        match fault.what.clone() {
            What::Trouble { whom, .. } => {
                for machine in whom {
                    self.machines[machine].end(number);
                    self.note(Note::Trouble { machine, trouble: None });
                }
            }
            What::Removed(whom) => {
                let weights = &self.scenario.weights;
                let back = whom.into_iter().filter(|machine| !self.watch.registered.contains_key(machine));
                let back: Vec<(usize, u32)> = back.map(|machine| (machine, weights[machine])).collect();
                self.register(back);
            }
            What::Added(count) => {
                // Later faults may have added more behind them.
                let added = |faults: &[_], number: usize| -> usize {
                    let counts =
                        faults.iter().enumerate().filter_map(|(other, fault): (usize, &super::scenario::Fault)| {
                            let before = (fault.time.start, other) < (faults[number].time.start, number);
                            if let What::Added(count) = fault.what { before.then_some(count) } else { None }
                        });
                    counts.sum()
                };
                let first = self.scenario.weights.len() + added(&self.scenario.faults, number);
                self.unregister(&(first..first + count).collect::<Vec<_>>());
            }
            What::Reweighted { whom, .. } => {
                let weights = &self.scenario.weights;
                self.reweigh(&whom, |machine| weights[machine]);
            }
            What::Replaced(_) | What::Condemned { for_good: true, .. } => {}
            What::Condemned { role, for_good: false } => {
                if let Some(plugin) = plugin_of(&self.service, role)
                    && plugin.current().is_none()
                {
                    self.compiled.replace(plugin);
                    self.note(Note::policy(role, true));
                }
            }
        }
    }

    fn register(&mut self, machines: Vec<(usize, u32)>) {
        let added = machines.iter().map(|&(machine, weight)| registered(machine, weight)).collect();
        for (machine, weight) in machines {
            self.watch.registered.insert(machine, Registration { weight, check_fails: false });
            self.note(Note::Registered { machine, weight: Some(weight) });
        }
        self.change(Vec::new(), added);
    }

    fn unregister(&mut self, machines: &[usize]) {
        for &machine in machines {
            self.watch.forget(machine);
            self.note(Note::Registered { machine, weight: None });
        }
        self.change(machines.iter().map(|&machine| registered(machine, 1).id).collect(), Vec::new());
    }

    /// As a registry reports a changed registration: removed and added in one.
    fn reweigh(&mut self, machines: &[usize], weight: impl Fn(usize) -> u32) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for &machine in machines {
            let Some(registration) = self.watch.registered.get_mut(&machine) else { continue };
            registration.weight = weight(machine);
            let registered = registered(machine, registration.weight);
            removed.push(registered.id.clone());
            added.push(registered);
        }
        for &machine in machines {
            let weight = self.watch.registered.get(&machine).map(|registration| registration.weight);
            self.note(Note::Registered { machine, weight });
        }
        self.change(removed, added);
    }

    fn change(&mut self, removed: Vec<String>, added: Vec<Registered>) {
        self.service.fleet.apply(Change { service: "users".into(), removed, added, paused: None, proxied: None });
        self.follow_checks();
    }
}

fn must_be_empty(requests: &BTreeMap<u64, Request<'_>>) -> Held {
    match requests.keys().next() {
        Some(request) => Err(Broken(format!("request {request} was never answered"))),
        None => Ok(()),
    }
}

fn registered(machine: usize, weight: u32) -> Registered {
    let address = format!("10.{}.{}.{}:80", machine >> 16, machine >> 8 & 255, machine & 255);
    Registered {
        id: format!("{machine}#{address}"),
        address,
        weight,
        order: machine as u64,
        metadata: Vec::new(),
        egress: Arc::default(),
    }
}
