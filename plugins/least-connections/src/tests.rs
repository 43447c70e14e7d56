use std::time::Duration;

use heddle_plugin::testing::{Registration, Request, Service, fits};
use proptest::prelude::*;

use super::LeastConnections;

fn service(weights: &[u32], seed: u64) -> Service<LeastConnections> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service
        .register(weights.iter().enumerate().map(|(index, &weight)| Registration::new(address(index)).weight(weight)));
    service
}

fn address(index: usize) -> String {
    format!("10.0.0.1:{index}")
}

fn pick(service: &mut Service<LeastConnections>) -> Option<usize> {
    service.pick(&Request::get("/")).map(|endpoint| endpoint.slot.index())
}

fn counts(service: &mut Service<LeastConnections>, endpoints: usize, picks: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    for _ in 0..picks {
        counts[pick(service).expect("one is eligible")] += 1;
    }
    counts
}

#[test]
fn the_least_loaded_is_picked() {
    let mut service = service(&[1, 1, 1], 1);
    for (index, requests) in [4, 2, 3].into_iter().enumerate() {
        service.set_in_flight(&address(index), requests);
    }
    assert_eq!(counts(&mut service, 3, 100), [0, 100, 0]);
}

#[test]
fn a_request_weighs_less_on_a_heavier_endpoint() {
    let mut service = service(&[1, 3], 1);
    service.set_in_flight(&address(0), 1);
    service.set_in_flight(&address(1), 2);
    assert_eq!(pick(&mut service), Some(1));
    service.set_in_flight(&address(1), 4);
    assert_eq!(pick(&mut service), Some(0));
}

#[test]
fn idle_endpoints_share_in_proportion_to_their_weights() {
    for seed in 1..=5 {
        assert!(fits(&counts(&mut service(&[1; 10], seed), 10, 10_000), &[1; 10]), "seed {seed}");
        assert!(fits(&counts(&mut service(&[1, 2, 3], seed), 3, 10_000), &[1, 2, 3]), "seed {seed}");
    }
    let ten_thousand = counts(&mut service(&[1; 10_000], 1), 10_000, 5000);
    let thousands: Vec<u32> = ten_thousand.chunks(1000).map(|thousand| thousand.iter().sum()).collect();
    assert!(fits(&thousands, &[1; 10]), "{thousands:?}");
}

#[test]
fn idle_endpoints_share_while_others_are_busy() {
    let mut service = service(&[1; 5], 1);
    service.set_in_flight(&address(1), 1);
    service.set_in_flight(&address(3), 9);
    let counts = counts(&mut service, 5, 3000);
    assert_eq!((counts[1], counts[3]), (0, 0));
    assert!(fits(&[counts[0], counts[2], counts[4]], &[1; 3]), "{counts:?}");
}

#[test]
fn an_endpoint_that_was_tried_is_passed_over_while_another_is_eligible() {
    let mut service = service(&[1, 1, 1], 1);
    service.set_in_flight(&address(1), 5);
    service.set_in_flight(&address(2), 9);
    let after = |service: &mut Service<_>, tried: &[&str]| {
        service.pick(&Request::get("/").tried(tried)).map(|endpoint| endpoint.slot.index())
    };
    assert_eq!(after(&mut service, &["10.0.0.1:0"]), Some(1));
    assert_eq!(after(&mut service, &["10.0.0.1:0", "10.0.0.1:1"]), Some(2));
    assert_eq!(after(&mut service, &["10.0.0.1:0", "10.0.0.1:1", "10.0.0.1:2"]), Some(0));
}

#[test]
fn without_an_eligible_endpoint_there_is_no_pick() {
    let mut service = service(&[1, 1], 1);
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service), None);
    assert_eq!(pick(&mut self::service(&[], 1)), None);
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    let mut service = service(&[0, u32::MAX, u32::MAX], 1);
    for index in 0..3 {
        service.set_in_flight(&address(index), u32::MAX);
    }
    assert_eq!(counts(&mut service, 3, 100)[0], 0);
}

#[test]
fn a_new_endpoint_holds_fewer_requests_where_the_settings_say_so() {
    let mut service = Service::<LeastConnections>::new(r#"{"slow_start": "10s"}"#, 1).expect("the settings are right");
    service.register([address(0)]);
    service.set_now(Duration::from_secs(50));
    service.register([address(1)]);
    service.set_in_flight(&address(0), 9);
    service.set_in_flight(&address(1), 1);
    assert_eq!(pick(&mut service), Some(0), "ten times as much for its weight");
    service.set_now(Duration::from_secs(52));
    assert_eq!(pick(&mut service), Some(1));
    service.set_in_flight(&address(1), 8);
    assert_eq!(pick(&mut service), Some(0));
    service.set_now(Duration::from_secs(61));
    assert_eq!(pick(&mut service), Some(1));
}

#[test]
fn settings_are_refused() {
    assert!(Service::<LeastConnections>::new(r#"{"by": "weight"}"#, 0).is_err());
}

proptest! {
    #[test]
    fn no_eligible_endpoint_has_a_lower_load_than_the_one_picked(
        endpoints in prop::collection::vec((1_u32..10, 0_u32..20, any::<bool>()), 1..40),
        seed: u64,
    ) {
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.0).collect();
        let mut service = service(&weights, seed);
        for (index, &(_, requests, _)) in endpoints.iter().enumerate() {
            service.set_in_flight(&address(index), requests);
        }
        service.set_eligible(|endpoint| endpoints[endpoint.slot.index()].2);
        match pick(&mut service) {
            None => prop_assert!(endpoints.iter().all(|endpoint| !endpoint.2)),
            Some(picked) => {
                let (weight, requests, eligible) = endpoints[picked];
                prop_assert!(eligible);
                for &(other_weight, other_requests, _) in endpoints.iter().filter(|endpoint| endpoint.2) {
                    prop_assert!(requests * other_weight <= other_requests * weight);
                }
            }
        }
    }
}
