//! Faults of real processes, one after the other and three at once, under steady load: every request that may be
//! repeated is answered within its deadline.
//!
//! Eight servers run as processes of their own (this binary again, as `chaos serve`), registered in a real etcd; the proxy
//! is the real binary with retry, circuit breaker and health checks. A minute long one server at a time is killed,
//! stopped, made slow, broken and put right again, while the registry is killed, plugins are replaced by ones that trap,
//! and the configuration is read anew. Another minute long three of the eight fail at once, and slow requests are hedged.
//! Both print what they saw.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

#[path = "../support/etcd.rs"]
mod etcd;
#[path = "../support/plugins/guests.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod guests;
mod load;
#[path = "../support/process.rs"]
mod process;
mod proxy;
mod server;

use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd::Etcd;
use load::Load;
use proxy::Proxy;
use rustix::process::Signal;
use server::{Behaviour, Server};

const SERVERS: usize = 8;

/// How long a fault lasts, and how long all is well before the next.
const FAULT: Duration = Duration::from_millis(3_500);
const REST: Duration = Duration::from_millis(1_500);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return server::serve();
    }
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    one_at_a_time();
    three_of_eight();
}

fn one_at_a_time() {
    let mut stage = Stage::start("", "");
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        stage.with_fault(fault, &[number % SERVERS]);
    }
    stage.etcd.kill();
    sleep(FAULT);
    stage.etcd.restart();
    stage.proxy.wait_connected();
    for (policy, trap) in proxy::trapping_plugins() {
        stage.proxy.replace_plugin(policy, &trap);
        sleep(FAULT / 2);
        stage.proxy.remove_plugin(policy);
        sleep(REST / 2);
    }
    for seconds in [6, 7, 8] {
        stage.proxy.reload(&format!("request_timeout = \"{seconds}s\""));
        sleep(REST);
    }
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        stage.with_fault(fault, &[(number + 3) % SERVERS]);
    }
    stage.finish("one at a time");
}

fn three_of_eight() {
    let settings = "retry_budget = { percent = 100, min = 20 }\nejection = { max_percent = 50, panic_percent = 30 }\n";
    let mut stage = Stage::start(", hedge = \"p95\"", settings);
    for (first, fault) in Fault::ALL.into_iter().cycle().take(12).enumerate() {
        stage.with_fault(fault, &[first % SERVERS, (first + 2) % SERVERS, (first + 5) % SERVERS]);
    }
    stage.finish("three of eight");
}

/// What is done to a server.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    Frozen,
    Slow,
    Errors,
    Resets,
}

impl Fault {
    const ALL: [Self; 5] = [Self::Killed, Self::Frozen, Self::Slow, Self::Errors, Self::Resets];
}

/// Registry, servers, proxy and load.
struct Stage {
    servers: Vec<Server>,
    load: Load,
    proxy: Proxy,
    etcd: Etcd,
    started: Instant,
}

impl Stage {
    /// `hedge` goes into the settings of the retry policy, `settings` are keys of `[service.default]`.
    fn start(hedge: &str, settings: &str) -> Self {
        let etcd = Etcd::start();
        let servers: Vec<Server> = (0..SERVERS).map(|_| Server::start()).collect();
        for (number, server) in servers.iter().enumerate() {
            etcd.put(&format!("/services/users/{number}"), &format!(r#"{{"address":"{}"}}"#, server.address));
        }
        let proxy = Proxy::start(&etcd.url(), hedge, settings, SERVERS);
        let load = Load::start(proxy.address);
        Self { servers, load, proxy, etcd, started: Instant::now() }
    }

    /// These servers fail for a time, and are put right again.
    fn with_fault(&mut self, fault: Fault, numbers: &[usize]) {
        println!("{:5.1} s  {fault:?} {numbers:?}", self.started.elapsed().as_secs_f64());
        for &number in numbers {
            let server = &mut self.servers[number];
            match fault {
                Fault::Killed => server.kill(),
                Fault::Frozen => server.signal(Signal::STOP),
                Fault::Slow => server.behave(Behaviour::Slow),
                Fault::Errors => server.behave(Behaviour::Errors),
                Fault::Resets => server.behave(Behaviour::Resets),
            }
        }
        sleep(FAULT);
        for &number in numbers {
            let server = &mut self.servers[number];
            match fault {
                Fault::Killed => server.restart(),
                Fault::Frozen => server.signal(Signal::CONT),
                Fault::Slow | Fault::Errors | Fault::Resets => server.behave(Behaviour::Well),
            }
        }
        sleep(REST);
    }

    fn finish(self, what: &str) {
        self.proxy.wait_all_in_use(SERVERS);
        let seen = self.load.finish();
        println!("{what}: {seen}; {}", self.proxy.figures());
        assert_eq!(seen.failed(), 0, "{seen:#?}\n{}", self.proxy.log());
        assert!(seen.answered > 1_000, "hardly any load: {seen}");
    }
}
