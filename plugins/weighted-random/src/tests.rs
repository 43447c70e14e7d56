use std::time::Duration;

use heddle_plugin::testing::{Registration, Request, Service, fits};

use super::WeightedRandom;

fn service(weights: &[u32], seed: u64) -> Service<WeightedRandom> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service.register(
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Registration::new(format!("10.0.0.1:{index}")).weight(weight)),
    );
    service
}

fn counts(service: &mut Service<WeightedRandom>, endpoints: usize, picks: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    for _ in 0..picks {
        let endpoint = service.pick(&Request::get("/")).expect("one is eligible");
        counts[endpoint.slot.index()] += 1;
    }
    counts
}

#[test]
fn picks_are_in_proportion_to_the_weights() {
    let ten_thousand: Vec<u32> = (0..10_000).map(|index| 1 + index % 7).collect();
    for weights in [&[1, 2, 3][..], &[100, 1], &[7; 12], &ten_thousand] {
        for seed in 1..=5 {
            let counts = counts(&mut service(weights, seed), weights.len(), 100_000.max(weights.len() * 20));
            assert!(fits(&counts, weights), "seed {seed}, {} weights", weights.len());
        }
    }
}

#[test]
fn the_greatest_weights_do_not_overflow() {
    let counts = counts(&mut service(&[u32::MAX; 3], 1), 3, 3000);
    assert!(fits(&counts, &[1; 3]));
}

#[test]
fn a_weight_of_0_counts_as_1() {
    let counts = counts(&mut service(&[0, 1], 1), 2, 2000);
    assert!(fits(&counts, &[1, 1]));
}

#[test]
fn weights_follow_a_change() {
    let mut service = service(&[1, 1], 1);
    service.register([Registration::new("10.0.0.1:0").weight(9)]);
    assert!(fits(&counts(&mut service, 2, 5000), &[9, 1]));
    service.register([Registration::new("10.0.0.1:2").weight(10)]);
    assert!(fits(&counts(&mut service, 3, 5000), &[9, 1, 10]));
    service.remove(&["10.0.0.1:0"]);
    let counts = counts(&mut service, 3, 5000);
    assert_eq!(counts[0], 0);
    assert!(fits(&counts[1..], &[1, 10]));
}

#[test]
fn only_eligible_endpoints_are_picked() {
    let mut service = service(&[5, 1, 2], 1);
    service.set_eligible(|endpoint| endpoint.weight < 5);
    let eligible = counts(&mut service, 3, 3000);
    assert_eq!(eligible[0], 0);
    assert!(fits(&eligible[1..], &[1, 2]));
    service.set_eligible(|_| false);
    assert!(service.pick(&Request::get("/")).is_none());
}

#[test]
fn a_new_endpoint_starts_slowly_where_the_settings_say_so() {
    let mut service = Service::<WeightedRandom>::new(r#"{"slow_start": "10s"}"#, 1).expect("the settings are right");
    service.register(["10.0.0.1:0"]);
    service.set_now(Duration::from_secs(50));
    service.register([Registration::new("10.0.0.1:1").weight(2)]);
    for (seconds, weights) in [(50, [10, 2]), (55, [1, 1]), (61, [1, 2]), (99, [1, 2])] {
        service.set_now(Duration::from_secs(seconds));
        assert!(fits(&counts(&mut service, 2, 5_000), &weights), "after {seconds} s");
    }
}

#[test]
fn settings_are_refused() {
    assert!(Service::<WeightedRandom>::new(r#"{"weights": []}"#, 0).is_err());
}
