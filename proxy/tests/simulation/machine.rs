//! A simulated endpoint: how long an attempt takes there, and what comes of it.

use std::time::Duration;

use heddle::policy::Kind;

use super::random::Random;

/// What is wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// Nobody listens: connections are refused, and those that are open break.
    Crashed,
    /// Packets vanish: no connection comes about.
    BlackHole,
    /// It takes connections and requests, and answers none.
    Frozen,
    /// It takes so many times as long.
    Slow(u32),
    /// It answers so many percent of the requests with this status.
    Errors { percent: u64, status: u16 },
    /// It breaks so many percent of the connections before it answers.
    Resets { percent: u64 },
    /// It is crashed in every other period of so many milliseconds.
    Flaps { millis: u64 },
}

/// How healthy endpoints are spread over time.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    pub typical: Duration,
    /// The slowest answers take so many times the typical time.
    pub tail: u32,
}

impl Latency {
    /// Most answers take about the typical time, one in sixteen up to the longest.
    pub fn draw(&self, random: &mut Random) -> Duration {
        let factor = 0.75 + random.unit() / 2.0;
        let usual = self.typical.mul_f64(factor);
        if random.percent(6) { random.time(usual, self.longest().max(usual)) } else { usual }
    }

    pub fn longest(&self) -> Duration {
        self.typical * self.tail.max(2)
    }
}

/// What comes of an attempt if nobody gives it up before.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    pub kind: Kind,
    pub status: Option<u16>,
    /// Since the attempt began; none for never.
    pub after: Option<Duration>,
    /// Whether a byte of the request has reached the endpoint.
    pub sent: bool,
}

/// One simulated endpoint.
#[derive(Debug, Default)]
pub struct Machine {
    /// By the fault that brought it, the latest last.
    troubles: Vec<(usize, Trouble, Duration)>,
}

impl Machine {
    pub fn begin(&mut self, fault: usize, trouble: Trouble, now: Duration) {
        self.troubles.push((fault, trouble, now));
    }

    pub fn end(&mut self, fault: usize) {
        self.troubles.retain(|(other, ..)| *other != fault);
    }

    /// Whether it answers nothing.
    pub fn is_down(&self) -> bool {
        self.troubles.last().is_some_and(|(_, trouble, _)| match trouble {
            Trouble::Crashed | Trouble::BlackHole | Trouble::Frozen => true,
            Trouble::Errors { percent, .. } | Trouble::Resets { percent } => *percent >= 100,
            Trouble::Slow(_) | Trouble::Flaps { .. } => false,
        })
    }

    fn trouble(&self, now: Duration) -> Option<Trouble> {
        let &(_, trouble, since) = self.troubles.last()?;
        match trouble {
            Trouble::Flaps { millis } => {
                let periods = (now - since).as_millis() as u64 / millis.max(1);
                periods.is_multiple_of(2).then_some(Trouble::Crashed)
            }
            other => Some(other),
        }
    }

    /// Whether connections that are open have broken.
    pub fn is_crashed(&self, now: Duration) -> bool {
        self.trouble(now) == Some(Trouble::Crashed)
    }

    /// What comes of an attempt that begins now.
    pub fn serve(&self, now: Duration, latency: Latency, random: &mut Random) -> Reply {
        let usual = latency.draw(random);
        let answer =
            |status, after| Reply { kind: Kind::Response, status: Some(status), after: Some(after), sent: true };
        match self.trouble(now) {
            None => answer(200, usual),
            Some(Trouble::Crashed | Trouble::Flaps { .. }) => Reply {
                kind: Kind::Refused,
                status: None,
                after: Some(usual.min(Duration::from_micros(200))),
                sent: false,
            },
            Some(Trouble::BlackHole) => Reply { kind: Kind::ConnectTimeout, status: None, after: None, sent: false },
            Some(Trouble::Frozen) => Reply { kind: Kind::Timeout, status: None, after: None, sent: true },
            Some(Trouble::Slow(factor)) => answer(200, usual * factor),
            Some(Trouble::Errors { percent, status }) if random.percent(percent) => answer(status, usual),
            Some(Trouble::Resets { percent }) if random.percent(percent) => {
                Reply { kind: Kind::Closed, status: None, after: Some(usual / 2), sent: true }
            }
            Some(Trouble::Errors { .. } | Trouble::Resets { .. }) => answer(200, usual),
        }
    }
}
