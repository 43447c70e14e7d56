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
