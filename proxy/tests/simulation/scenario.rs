//! What a seed stands for: a service with its settings and its traffic, and what goes wrong when.
//!
//! A run has four parts. In the first nothing goes wrong; in the second everything may; then the service has time to
//! recover, as much as follows from its settings; and in the last nothing goes wrong again.

use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

use heddle::policy::Role;

use super::machine::{Latency, Trouble};
use super::random::Random;

/// Balancers and their settings, as the configuration has them.
const BALANCERS: &[Balancer] = &[
    Balancer { text: r#""round-robin""#, spread: Spread::InTurn },
    Balancer { text: r#""weighted-round-robin""#, spread: Spread::InWeightedTurn },
    Balancer { text: r#""random""#, spread: Spread::Random },
    Balancer { text: r#""weighted-random""#, spread: Spread::WeightedRandom },
    Balancer { text: r#""least-connections""#, spread: Spread::LeastLoaded },
    Balancer { text: r#""url-hash""#, spread: Spread::ByPath },
    Balancer { text: r#""ip-hash""#, spread: Spread::ByClient },
    Balancer { text: r#""maglev""#, spread: Spread::ByClient },
    Balancer { text: r#"{ plugin = "maglev", by = "path" }"#, spread: Spread::ByPath },
    Balancer { text: r#"{ plugin = "maglev", bounded_load = 1.25 }"#, spread: Spread::Bounded },
    Balancer { text: r#"{ plugin = "url-hash", bounded_load = 2 }"#, spread: Spread::Bounded },
    Balancer { text: r#""peak-ewma""#, spread: Spread::Fastest },
    Balancer { text: r#"{ plugin = "peak-ewma", slow_start = "3s" }"#, spread: Spread::Fastest },
    Balancer { text: r#"{ plugin = "weighted-round-robin", slow_start = "3s" }"#, spread: Spread::Growing },
    Balancer { text: r#"{ plugin = "least-connections", slow_start = "3s" }"#, spread: Spread::Growing },
    Balancer { text: r#""leader""#, spread: Spread::First },
];

/// How a balancer spreads requests over endpoints that are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each worker gives each endpoint as many as any other, but for one.
    InTurn,
    /// Each worker gives each endpoint as many as its weight says, but for a few.
    InWeightedTurn,
    /// Each as likely.
    Random,
    /// Each as likely as its weight says.
    WeightedRandom,
    /// To one that has the fewest under way for its weight.
    LeastLoaded,
    /// All of one path to the same.
    ByPath,
    /// All of one client to the same.
    ByClient,
    /// To the better of two that are drawn as their weights say.
    Fastest,
    /// All to the same.
    First,
    /// All of one client to the same, while that has no more than its share under way.
    Bounded,
    /// By weights that change with time.
    Growing,
}

#[derive(Debug, Clone, Copy)]
pub struct Balancer {
    /// The value of the key `balancer`.
    pub text: &'static str,
    pub spread: Spread,
}

/// Settings of the retry policy, and the service's budget.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub attempts: u32,
    pub timeout: Option<Duration>,
    pub per_try_timeout: Option<Duration>,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub hedge: Option<&'static str>,
    pub percent: u32,
    pub min: u32,
}

impl Retry {
    fn draw(latency: Latency, random: &mut Random) -> Self {
        // What is well is in time.
        let (backoff, long) = (random.millis(1, 50), latency.longest() * 3 / 2 + random.millis(100, 500));
        let attempts = random.between(1, 5) as u32;
        Self {
            attempts,
            timeout: random.percent(60).then(|| long + random.millis(0, 2_000)),
            per_try_timeout: random.percent(60).then_some(long),
            backoff,
            max_backoff: backoff * random.between(1, 10) as u32,
            // It is one of the attempts.
            hedge: random.percent(25).then_some(random.one_of(&["p50", "p90", "p95"])).filter(|_| attempts > 1),
            percent: random.one_of(&[20, 20, 20, 0, 50, 100]),
            min: random.one_of(&[3, 3, 3, 0, 1, 10]),
        }
    }

    /// Whether a second attempt may begin beside the first.
    pub fn hedges(&self) -> bool {
        self.hedge.is_some()
    }

    fn write(&self, text: &mut String) {
        let Self { attempts, hedge, percent, min, .. } = self;
        let _ = writeln!(text, "retry_budget = {{ percent = {percent}, min = {min} }}");
        let _ = writeln!(text, "[service.users.retry]\nplugin = \"retry\"\nattempts = {attempts}");
        if let Some(hedge) = hedge {
            let _ = writeln!(text, "hedge = \"{hedge}\"");
        }
        let times = [
            ("timeout", self.timeout),
            ("per_try_timeout", self.per_try_timeout),
            ("backoff", Some(self.backoff)),
            ("max_backoff", Some(self.max_backoff)),
        ];
        for (key, time) in times {
            if let Some(time) = time {
                let _ = writeln!(text, "{key} = {}", millis(time));
            }
        }
    }
}

/// Settings of the circuit breaker.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    pub consecutive_failures: u32,
    pub interval: u64,
    pub minimum_requests: u32,
    pub ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub probes: u32,
    /// 0 for never.
    pub service_failures: u32,
    pub open_time: Duration,
    pub open_probes: u32,
}

impl Breaker {
    fn draw(random: &mut Random) -> Self {
        let ejection_time = random.millis(100, 2_000);
        Self {
            consecutive_failures: random.between(2, 8) as u32,
            interval: random.between(2, 10),
            minimum_requests: random.between(20, 100) as u32,
            ejection_time,
            max_ejection_time: ejection_time * random.between(1, 6) as u32,
            probes: random.between(1, 3) as u32,
            service_failures: random.one_of(&[10, 10, 10, 5, 20, 0]),
            open_time: random.millis(50, 400),
            open_probes: random.between(1, 5) as u32,
        }
    }

    fn write(&self, text: &mut String) {
        let Self { consecutive_failures, interval, minimum_requests, probes, service_failures, open_probes, .. } = self;
        let _ = writeln!(text, "[service.users.breaker]\nplugin = \"circuit-breaker\"");
        let _ = writeln!(text, "consecutive_failures = {consecutive_failures}\ninterval = \"{interval}s\"");
        let _ = writeln!(text, "minimum_requests = {minimum_requests}\nprobes = {probes}");
        let _ = writeln!(text, "service_failures = {service_failures}\nopen_probes = {open_probes}");
        let times = [
            ("ejection_time", self.ejection_time),
            ("max_ejection_time", self.max_ejection_time),
            ("open_time", self.open_time),
        ];
        for (key, time) in times {
            let _ = writeln!(text, "{key} = {}", millis(time));
        }
    }
}

/// Active checks.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
}

/// What goes wrong, from when to when.
#[derive(Debug, Clone)]
pub struct Fault {
    pub time: Range<Duration>,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Trouble {
        whom: Vec<usize>,
        trouble: Trouble,
    },
    /// They are registered again at the end.
    Removed(Vec<usize>),
    /// So many more, which leave at the end.
    Added(usize),
    /// They weigh so much until the end.
    Reweighted {
        whom: Vec<usize>,
        weight: u32,
    },
    /// Another generation comes into force.
    Replaced(Role),
    /// The proxy decides by itself until the end, or until the policy is replaced, if there was only one generation yet.
    Condemned {
        role: Role,
        for_good: bool,
    },
}

/// The moments at which the parts of a run end.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    pub calm: Duration,
    pub faults: Duration,
    pub recovery: Duration,
    pub end: Duration,
}

#[derive(Debug)]
pub struct Scenario {
    pub seed: u64,
    /// Of each endpoint that is registered at first.
    pub weights: Vec<u32>,
    pub workers: usize,
    pub balancer: Balancer,
    pub max_percent: u64,
    pub panic_percent: u64,
    pub retry: Option<Retry>,
    pub breaker: Option<Breaker>,
    pub check: Option<Check>,
    pub latency: Latency,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    /// Between two requests, on average.
    pub gap: Duration,
    /// Different paths, and clients.
    pub paths: usize,
    pub clients: usize,
    /// How many percent of the requests are given up by their clients while things go wrong.
    pub leaving: u64,
    pub parts: Parts,
    pub faults: Vec<Fault>,
}

impl Scenario {
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // The first numbers of neighbouring seeds have nothing in common, but let them be mixed all the same.
        let random = &mut random.fork();
        let is_large = random.below(64) == 0;
        let count = match random.below(8) {
            _ if is_large => random.between(1_000, 5_000) as usize,
            0 => 2,
            1 => 3,
            2..5 => random.between(4, 8) as usize,
            5 | 6 => random.between(9, 20) as usize,
            _ => random.between(21, 100) as usize,
        };
        let balancer = random.one_of(BALANCERS);
        let most_weight = random.one_of(&[1, 1, 3, 10]);
        let weights = (0..count).map(|_| random.between(1, most_weight) as u32).collect();
        let latency = Latency {
            typical: random.time(Duration::from_millis(1), Duration::from_millis(20)),
            tail: random.between(2, 6) as u32,
        };
        let connect_timeout = random.millis(50, 1_000);
        let request_timeout = latency.longest() * 2 + random.millis(100, 2_000);
        let check = (!is_large && random.percent(40)).then(|| Check {
            interval: random.millis(200, 2_000),
            timeout: latency.longest() + random.millis(20, 200),
            rise: random.between(1, 3) as u32,
            fall: random.between(1, 3) as u32,
        });
        let retry = random.percent(80).then(|| Retry::draw(latency, random));
        let breaker = random.percent(85).then(|| Breaker::draw(random));
        let calm = random.millis(4_000, 8_000);
        let faults = calm + random.millis(8_000, 20_000);
        let slowest = request_timeout + connect_timeout;
        let checks = check.map_or(Duration::ZERO, |check| (check.interval * 2 + check.timeout) * (check.rise + 1));
        // The last attempts of the bad times end; what they eject is out for a time, and then some second's tick ends
        // that. A service that is open for a while needs a request to be closed.
        let ejections = breaker.map_or(Duration::ZERO, |breaker| breaker.max_ejection_time);
        let requests = if random.percent(15) { random.between(100, 500) } else { random.between(1_000, 4_000) };
        let retries = retry.map_or(Duration::ZERO, |retry| (slowest + retry.max_backoff) * retry.attempts);
        let gap = (faults + Duration::from_secs(15)) / requests as u32;
        let recovery = faults + slowest * 2 + retries + checks + ejections + gap * 30 + Duration::from_secs(5);
        let end = recovery + random.millis(4_000, 8_000);
        let mut scenario = Self {
            seed,
            weights,
            workers: random.one_of(&[1, 1, 2, 2, 3, 4]),
            balancer,
            max_percent: random.one_of(&[10, 10, 10, 30, 50, 100]),
            panic_percent: random.one_of(&[50, 50, 50, 30, 0]),
            retry,
            breaker,
            check,
            latency,
            connect_timeout,
            request_timeout,
            gap,
            paths: random.one_of(&[1, 20, 200]),
            clients: random.one_of(&[1, 20, 200]),
            leaving: random.one_of(&[0, 0, 1, 10]),
            parts: Parts { calm, faults, recovery, end },
            faults: Vec::new(),
        };
        // Some services have no trouble at all, and must be left alone.
        let troubles = if random.percent(10) { 0 } else { random.between(1, 6) };
        for _ in 0..troubles {
            let fault = scenario.fault(random);
            scenario.faults.push(fault);
        }
        scenario
    }

    fn fault(&self, random: &mut Random) -> Fault {
        let Parts { calm, faults, .. } = self.parts;
        let begin = random.time(calm, faults - Duration::from_millis(500));
        let end = random.time(begin + Duration::from_millis(100), faults);
        let count = self.weights.len();
        let few = |random: &mut Random| {
            let most = (count / 10).clamp(1, 20);
            let number = random.between(1, most as u64) as usize;
            random.several(number, count)
        };
        let role = |random: &mut Random| random.one_of(&[Role::Balancer, Role::RetryPolicy, Role::CircuitBreaker]);
        let what = match random.below(12) {
            0..5 => What::Trouble { whom: few(random), trouble: trouble(random) },
            5 | 6 => {
                let number = random.between(1, count as u64) as usize;
                What::Trouble { whom: random.several(number, count), trouble: trouble(random) }
            }
            7 => What::Trouble { whom: (0..count).collect(), trouble: trouble(random) },
            8 => {
                let all_but_one = random.percent(20);
                What::Removed(if all_but_one { random.several(count - 1, count) } else { few(random) })
            }
            9 if random.percent(50) => What::Added(random.between(1, 5) as usize),
            9 => What::Reweighted { whom: few(random), weight: random.between(0, 5) as u32 },
            10 => What::Replaced(role(random)),
            // The others have to spread the load, and to try again, in the end.
            _ if random.percent(30) => What::Condemned { role: Role::CircuitBreaker, for_good: true },
            _ => What::Condemned { role: role(random), for_good: false },
        };
        Fault { time: begin..end, what }
    }

    /// The configuration of the service.
    pub fn config(&self) -> String {
        let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:0\"\n[service.users]\n");
        let _ = writeln!(text, "balancer = {}", self.balancer.text);
        let _ = writeln!(text, "connect_timeout = {}", millis(self.connect_timeout));
        let _ = writeln!(text, "request_timeout = {}", millis(self.request_timeout));
        let Self { max_percent, panic_percent, .. } = self;
        let _ = writeln!(text, "ejection = {{ max_percent = {max_percent}, panic_percent = {panic_percent} }}");
        if let Some(Check { interval, timeout, rise, fall }) = self.check {
            let (interval, timeout) = (millis(interval), millis(timeout));
            let keys = format!("interval = {interval}, timeout = {timeout}, rise = {rise}, fall = {fall}");
            let _ = writeln!(text, "health_check = {{ type = \"http\", {keys} }}");
        }
        if let Some(retry) = &self.retry {
            retry.write(&mut text);
        }
        if let Some(breaker) = &self.breaker {
            breaker.write(&mut text);
        }
        text
    }

    /// Whether requests reach all endpoints, whoever sends them.
    pub fn reaches_all(&self) -> bool {
        !matches!(self.balancer.spread, Spread::ByPath | Spread::ByClient | Spread::Bounded | Spread::First)
    }

    /// Whether anything goes wrong.
    pub fn is_calm(&self, now: Duration) -> bool {
        now < self.parts.calm || now >= self.parts.recovery || self.faults.is_empty()
    }
}

fn millis(time: Duration) -> String {
    format!("\"{}ms\"", time.as_millis())
}

fn trouble(random: &mut Random) -> Trouble {
    match random.below(8) {
        0 | 1 => Trouble::Crashed,
        2 => Trouble::BlackHole,
        3 => Trouble::Frozen,
        4 => Trouble::Slow(random.one_of(&[3, 20, 100])),
        5 => Trouble::Errors { percent: random.one_of(&[20, 50, 100]), status: random.one_of(&[500, 502, 503]) },
        6 => Trouble::Resets { percent: random.one_of(&[20, 50, 100]) },
        _ => Trouble::Flaps { millis: random.between(50, 3_000) },
    }
}
