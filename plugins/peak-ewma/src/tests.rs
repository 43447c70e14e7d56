use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use heddle_plugin::testing::{Registration, Request, Service, fits};

use super::PeakEwma;

fn service(weights: &[u32], seed: u64) -> Service<PeakEwma> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service
        .register(weights.iter().enumerate().map(|(index, &weight)| Registration::new(address(index)).weight(weight)));
    service
}

fn address(index: usize) -> String {
    format!("10.0.0.1:{index}")
}

fn pick(service: &mut Service<PeakEwma>) -> Option<usize> {
    service.pick(&Request::get("/")).map(|endpoint| endpoint.slot.index())
}

fn counts(service: &mut Service<PeakEwma>, endpoints: usize, picks: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    for _ in 0..picks {
        counts[pick(service).expect("one is eligible")] += 1;
    }
    counts
}

/// The proxy's peak average, from its description in the contract.
#[derive(Clone, Copy)]
struct Peak {
    micros: f64,
    at: f64,
}

impl Peak {
    fn at(&self, now: f64) -> f64 {
        self.micros * ((self.at - now) / 10e6).exp()
    }

    fn observe(&mut self, micros: f64, now: f64) {
        let left = ((self.at - now) / 10e6).exp();
        self.micros = if micros > self.micros * left { micros } else { self.micros * left + micros * (1.0 - left) };
        self.at = now;
    }
}

/// How many requests each endpoint gets that takes so many microseconds for each, when one comes every `interval`
/// microseconds for a minute.
fn simulate(latencies: &[u64], interval: u64, seed: u64) -> Vec<u32> {
    let mut service = service(&vec![1; latencies.len()], seed);
    let mut peaks = vec![Peak { micros: 30_000.0, at: 0.0 }; latencies.len()];
    let (mut in_flight, mut counts) = (vec![0; latencies.len()], vec![0; latencies.len()]);
    let mut under_way: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    for now in (0..60_000_000_u64).step_by(interval as usize) {
        while let Some(&Reverse((end, slot))) = under_way.peek().filter(|Reverse((end, _))| *end <= now) {
            under_way.pop();
            in_flight[slot] -= 1;
            peaks[slot].observe(latencies[slot] as f64, end as f64);
        }
        for (slot, peak) in peaks.iter().enumerate() {
            service.set_in_flight(&address(slot), in_flight[slot]);
            service.set_peak_micros(&address(slot), peak.at(now as f64).max(1.0) as u32);
        }
        let slot = pick(&mut service).expect("one is eligible");
        counts[slot] += 1;
        in_flight[slot] += 1;
        under_way.push(Reverse((now + latencies[slot], slot)));
    }
    counts
}

#[test]
fn an_endpoint_twenty_times_slower_gets_under_two_percent() {
    for (endpoints, interval) in [(10, 1_000), (10, 10_000), (3, 2_000), (2, 2_000)] {
        for seed in 1..=3 {
            let mut latencies = vec![5_000; endpoints];
            latencies[0] = 100_000;
            let counts = simulate(&latencies, interval, seed);
            let all: u32 = counts.iter().sum();
            assert!(counts[0] * 50 < all, "one each {interval} us: {counts:?}");
            assert!(counts[0] > 1, "it is tried again: {counts:?}");
        }
    }
}

#[test]
fn equal_endpoints_share_evenly() {
    let counts = simulate(&[5_000; 10], 1_000, 1);
    let fair = counts.iter().sum::<u32>() / 10;
    assert!(counts.iter().all(|count| count.abs_diff(fair) * 5 < fair), "{counts:?}");
}

#[test]
fn of_two_the_faster_and_the_idler_is_picked() {
    let mut service = service(&[1, 1], 1);
    service.set_peak_micros(&address(0), 10_000);
    service.set_peak_micros(&address(1), 1_000);
    assert_eq!(counts(&mut service, 2, 100), [0, 100]);
    service.set_in_flight(&address(1), 9);
    service.set_in_flight(&address(0), 0);
    service.set_peak_micros(&address(0), 9_999);
    assert_eq!(counts(&mut service, 2, 100), [100, 0]);
}

#[test]
fn the_slowest_of_many_is_never_picked() {
    let mut service = service(&[1; 20], 1);
    (0..20).for_each(|index| service.set_peak_micros(&address(index), 1_000 + index as u32));
    let counts = counts(&mut service, 20, 2_000);
    assert_eq!(counts[19], 0);
    assert!(counts[0] > counts[10]);
}

#[test]
fn idle_endpoints_share_in_proportion_to_their_weights() {
    for seed in 1..=5 {
        assert!(fits(&counts(&mut service(&[1; 10], seed), 10, 10_000), &[1; 10]), "seed {seed}");
        assert!(fits(&counts(&mut service(&[1, 2, 3], seed), 3, 10_000), &[1, 2, 3]), "seed {seed}");
    }
}

/// With twice the weight and twice as much under way the load is the same.
#[test]
fn busy_endpoints_share_in_proportion_to_their_weights() {
    let mut service = service(&[100, 200, 300], 1);
    for index in 0..3 {
        service.set_in_flight(&address(index), 4 * (index as u32 + 1));
    }
    assert!(fits(&counts(&mut service, 3, 10_000), &[1, 2, 3]));
}

#[test]
fn an_endpoint_that_was_tried_is_passed_over_while_another_is_eligible() {
    let mut service = service(&[1_000_000, 1, 1], 1);
    service.set_peak_micros(&address(0), 1);
    let after = |service: &mut Service<_>, tried: &[&str]| {
        service.pick(&Request::get("/").tried(tried)).map(|endpoint| endpoint.slot.index())
    };
    for _ in 0..100 {
        assert_ne!(after(&mut service, &["10.0.0.1:0"]), Some(0));
        assert_eq!(after(&mut service, &["10.0.0.1:0", "10.0.0.1:1"]), Some(2));
    }
    assert!(after(&mut service, &["10.0.0.1:0", "10.0.0.1:1", "10.0.0.1:2"]).is_some());
}

#[test]
fn one_endpoint_takes_all_and_none_takes_nothing() {
    assert_eq!(counts(&mut service(&[3], 1), 1, 10), [10]);
    assert_eq!(pick(&mut service(&[], 1)), None);
    let mut service = service(&[1, 1], 1);
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service), None);
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    let mut service = service(&[0, u32::MAX, u32::MAX], 1);
    for index in 0..3 {
        service.set_in_flight(&address(index), u32::MAX);
        service.set_peak_micros(&address(index), u32::MAX);
    }
    assert_eq!(counts(&mut service, 3, 100)[0], 0);
}

#[test]
fn a_new_endpoint_starts_slowly_where_the_settings_say_so() {
    let mut service = Service::<PeakEwma>::new(r#"{"slow_start": "10s"}"#, 1).expect("the settings are right");
    service.register([address(0)]);
    service.set_now(Duration::from_secs(50));
    service.register([address(1)]);
    for (seconds, weights) in [(50, [10, 1]), (55, [2, 1]), (61, [1, 1])] {
        service.set_now(Duration::from_secs(seconds));
        assert!(fits(&counts(&mut service, 2, 5_000), &weights), "after {seconds} s");
    }
}

#[test]
fn settings_are_refused() {
    assert!(Service::<PeakEwma>::new(r#"{"decay": "10s"}"#, 0).is_err());
}
