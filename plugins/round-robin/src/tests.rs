use std::collections::HashMap;

use heddle_plugin::testing::{Request, Service};

use super::RoundRobin;

fn service(endpoints: usize, seed: u64) -> Service<RoundRobin> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service.register((0..endpoints).map(|index| format!("10.0.0.1:{index}")));
    service
}

fn pick(service: &mut Service<RoundRobin>) -> Option<String> {
    service.pick(&Request::get("/")).map(|endpoint| endpoint.address.clone())
}

#[test]
fn each_endpoint_has_its_turn_before_any_has_another() {
    for endpoints in [1, 2, 3, 100, 10_000] {
        let mut service = service(endpoints, u64::MAX - 1);
        for _ in 0..2 {
            let mut picks = HashMap::new();
            for _ in 0..endpoints {
                *picks.entry(pick(&mut service)).or_insert(0) += 1;
            }
            assert_eq!(picks.len(), endpoints);
            assert!(!picks.contains_key(&None));
        }
    }
}

#[test]
fn without_an_eligible_endpoint_there_is_no_pick() {
    let mut service = service(3, 0);
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service), None);
    assert_eq!(pick(&mut self::service(0, 0)), None);
}

#[test]
fn an_endpoint_that_is_not_eligible_is_passed_over() {
    let mut service = service(3, 7);
    service.set_eligible(|endpoint| endpoint.address != "10.0.0.1:1");
    let mut picks: Vec<_> = (0..4).filter_map(|_| pick(&mut service)).collect();
    picks.sort();
    assert_eq!(picks, ["10.0.0.1:0", "10.0.0.1:0", "10.0.0.1:2", "10.0.0.1:2"]);
}

/// Issue 10, 16: an endpoint that was eligible at every other pick had another one get 0 of 60.
#[test]
fn an_endpoint_that_flaps_takes_no_turn_of_another() {
    for (flapping, seed) in (0..5).flat_map(|flapping| (0..5).map(move |seed| (flapping, seed))) {
        let mut service = service(5, seed);
        let mut picks = [0; 5];
        for number in 0..60 {
            service.set_eligible(|endpoint| endpoint.slot.index() != flapping || number % 2 == 0);
            picks[service.pick(&Request::get("/")).expect("one is eligible").slot.index()] += 1;
        }
        let others = (0..5).filter(|slot| *slot != flapping).map(|slot| picks[slot]);
        assert!(others.clone().all(|count| (12..=15).contains(&count)), "{flapping} flaps, seed {seed}: {picks:?}");
    }
}

/// The same where the endpoint comes and goes between two picks, so that it is there at each of them.
#[test]
fn an_endpoint_that_flaps_between_picks_keeps_its_turn() {
    let mut service = service(5, 1);
    let mut picks = [0; 5];
    for _ in 0..60 {
        service.set_eligible(|endpoint| endpoint.slot.index() != 2);
        service.set_eligible(|_| true);
        picks[service.pick(&Request::get("/")).expect("one is eligible").slot.index()] += 1;
    }
    assert_eq!(picks, [12; 5]);
}

#[test]
fn instances_begin_at_different_endpoints() {
    let first: Vec<_> = (0..3).map(|seed| pick(&mut service(3, seed))).collect();
    assert_ne!(first[0], first[1]);
    assert_ne!(first[1], first[2]);
}

#[test]
fn settings_are_refused() {
    let refusal = Service::<RoundRobin>::new(r#"{"by": "path"}"#, 0).err();
    assert_eq!(refusal.as_deref(), Some(r#"this policy takes no settings; found {"by": "path"}"#));
}
