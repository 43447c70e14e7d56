//! `heddle demo --check`: traffic that never stops, while plugins and endpoints change, and the shares of the servers
//! after each change.
//!
//! The shares are those of all requests together: of a policy that takes turns, requests picked out would say nothing.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::servers::SERVERS;
use super::stage::{POLICY, Stage, StageError, TAKEN_AWAY};
use super::{SERVICE, say};
use crate::app::App;
use crate::drain::until_idle;
use crate::plugin::Plugin;

/// Connections that send one request after the other.
const CONNECTIONS: usize = 4;

/// Requests by which shares are judged.
const SAMPLE: u64 = 600;

/// How far a share may be from what is expected. Each worker takes turns by itself.
const TOLERANCE: f64 = 0.03;

/// The longest until a change has its effect.
const PATIENCE: Duration = Duration::from_secs(10);

/// A step that did not have its effect.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("FAILED  {step}: the proxy does not listen")]
    NoProxy { step: &'static str },
    #[error("FAILED  {step}: {error}")]
    Stage { step: &'static str, error: StageError },
    #[error("FAILED  {step}: a request failed: {error}")]
    Request { step: &'static str, error: ClientError },
    #[error("FAILED  {step}: expected {expected}, found {found} after {} s", PATIENCE.as_secs())]
    Shares { step: &'static str, expected: Shares, found: Shares },
    #[error("FAILED  {step}: nothing was refused within {} s", PATIENCE.as_secs())]
    NotRefused { step: &'static str },
}

/// Drives the demo, and prints what each step did.
pub async fn run(app: &App, stage: &Stage) -> Result<(), CheckError> {
    let step = "the proxy is ready";
    let (Some(proxy), Some(admin)) = (app.listeners.first().copied(), app.admin) else {
        return Err(CheckError::NoProxy { step });
    };
    let asked = Client::new(admin).get("/ready", "localhost").await;
    asked.map_err(|error| CheckError::Request { step, error })?;
    say(format_args!("ok  {step}"));

    let traffic = Rc::new(Traffic::default());
    let tasks = LocalSet::new();
    for _ in 0..CONNECTIONS {
        tasks.spawn_local(traffic.clone().flow(proxy));
    }
    tasks.run_until(steps(app, stage, &traffic)).await
}

async fn steps(app: &App, stage: &Stage, traffic: &Traffic) -> Result<(), CheckError> {
    let by_weight = Shares::by_weight(|_| true);
    traffic.shares_become("shares by weight", &by_weight).await?;

    let step = "another plugin under load: round-robin knows no weights";
    stage.drop_plugin("round-robin").map_err(|error| CheckError::Stage { step, error })?;
    let equal = Shares::of(SERVERS.map(|_| 1.0));
    traffic.shares_become(step, &equal).await?;

    let step = "a file that is no plugin is refused";
    let plugins = app.state.plugins().all();
    let refusals = || plugins.iter().find(|plugin| &*plugin.name == POLICY).map_or(0, refusals_of);
    let before = refusals();
    stage.drop_nonsense().map_err(|error| CheckError::Stage { step, error })?;
    if !until_idle(PATIENCE, || refusals() > before).await {
        return Err(CheckError::NotRefused { step });
    }
    traffic.shares_become(step, &equal).await?;

    let step = "without the file, the built-in policy is back";
    stage.remove_plugin().map_err(|error| CheckError::Stage { step, error })?;
    traffic.shares_become(step, &by_weight).await?;

    let step = "an endpoint is taken away";
    stage.take_server_away().map_err(|error| CheckError::Stage { step, error })?;
    traffic.shares_become(step, &Shares::by_weight(|name| name != TAKEN_AWAY)).await?;

    let step = "the endpoint is back";
    stage.bring_server_back().map_err(|error| CheckError::Stage { step, error })?;
    traffic.shares_become(step, &by_weight).await?;

    say(format_args!("ok  {} requests in all, none of them failed", traffic.total()));
    Ok(())
}

fn refusals_of(plugin: &std::sync::Arc<Plugin>) -> u64 {
    plugin.incidents().1
}

/// The part of all requests that each server answered, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Shares([f64; SERVERS.len()]);

impl Shares {
    fn of(counts: [f64; SERVERS.len()]) -> Self {
        let total: f64 = counts.iter().sum();
        Self(counts.map(|count| count / total.max(1.0)))
    }

    fn by_weight(takes_part: impl Fn(&str) -> bool) -> Self {
        Self::of(SERVERS.map(|(name, weight)| if takes_part(name) { f64::from(weight) } else { 0.0 }))
    }

    /// A server that is to have nothing must have nothing.
    fn is_like(&self, other: &Self) -> bool {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= if *b == 0.0 { 0.0 } else { TOLERANCE };
        self.0.iter().zip(&other.0).all(near)
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((name, _), share)) in SERVERS.iter().zip(&self.0).enumerate() {
            let gap = if i == 0 { "" } else { ", " };
            write!(f, "{gap}{name} {:2.0} %", share * 100.0)?;
        }
        Ok(())
    }
}

/// Requests without end, and who answered them.
#[derive(Default)]
struct Traffic {
    answered: Cell<[u64; SERVERS.len()]>,
    failed: RefCell<Option<ClientError>>,
}

impl Traffic {
    /// Sends one request after the other, until one fails.
    async fn flow(self: Rc<Self>, proxy: SocketAddr) {
        let mut client = Client::new(proxy);
        loop {
            match client.get(&format!("http://{SERVICE}/check"), SERVICE).await {
                Ok(text) => self.count(&text),
                Err(error) => {
                    self.failed.replace(Some(error));
                    return;
                }
            }
        }
    }

    fn count(&self, text: &str) {
        let mut answered = self.answered.get();
        for ((name, _), count) in SERVERS.iter().zip(&mut answered) {
            *count += u64::from(text.split_whitespace().next() == Some(name));
        }
        self.answered.set(answered);
    }

    fn total(&self) -> u64 {
        self.answered.get().iter().sum()
    }

    /// The shares of the next requests; an error when one has failed.
    async fn measure(&self, step: &'static str) -> Result<Shares, CheckError> {
        let (before, total) = (self.answered.get(), self.total());
        until_idle(PATIENCE, || self.total() >= total + SAMPLE || self.failed.borrow().is_some()).await;
        if let Some(error) = self.failed.take() {
            return Err(CheckError::Request { step, error });
        }
        let mut counts = [0.0; SERVERS.len()];
        for (count, (after, before)) in counts.iter_mut().zip(self.answered.get().iter().zip(before)) {
            *count = (after - before) as f64;
        }
        Ok(Shares::of(counts))
    }

    /// Waits until the shares are as expected, and prints them.
    async fn shares_become(&self, step: &'static str, expected: &Shares) -> Result<(), CheckError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.measure(step).await?;
            if found.is_like(expected) {
                say(format_args!("ok  {step}: {found}"));
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CheckError::Shares { step, expected: *expected, found });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_compared_with_a_tolerance_except_for_nothing() {
        let without = Shares::by_weight(|name| name != TAKEN_AWAY);
        assert_eq!(without.to_string(), "users-1 25 %, users-2  0 %, users-3 75 %");
        assert!(Shares::of([26.0, 0.0, 74.0]).is_like(&without));
        assert!(!Shares::of([25.0, 0.1, 74.9]).is_like(&without));
        assert!(!Shares::of([35.0, 0.0, 65.0]).is_like(&without));
        assert!(!Shares::of([0.0; 3]).is_like(&without));
    }
}
