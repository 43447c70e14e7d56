use heddle_plugin::testing::{Request, Service, fits};

use super::Random;

fn service(endpoints: usize, seed: u64) -> Service<Random> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service.register((0..endpoints).map(|index| format!("10.0.0.1:{index}")));
    service
}

fn counts(service: &mut Service<Random>, endpoints: usize, picks: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    for _ in 0..picks {
        let endpoint = service.pick(&Request::get("/")).expect("one is eligible");
        counts[endpoint.slot.index()] += 1;
    }
    counts
}

#[test]
fn each_endpoint_is_as_likely() {
    for seed in 1..=5 {
        for endpoints in [2, 3, 10, 10_000] {
            let counts = counts(&mut service(endpoints, seed), endpoints, endpoints * 20);
            assert!(fits(&counts, &vec![1; endpoints]), "seed {seed}, {endpoints} endpoints");
        }
    }
}

#[test]
fn a_pick_does_not_depend_on_the_one_before() {
    let mut service = service(4, 9);
    let mut pairs = [0; 16];
    let mut before = 0;
    for _ in 0..16_000 {
        let slot = service.pick(&Request::get("/")).expect("one is eligible").slot.index();
        pairs[before * 4 + slot] += 1;
        before = slot;
    }
    assert!(fits(&pairs, &[1; 16]), "{pairs:?}");
}

#[test]
fn only_eligible_endpoints_are_picked() {
    let mut service = service(5, 3);
    service.set_eligible(|endpoint| endpoint.slot.index() % 2 == 0);
    let counts = counts(&mut service, 5, 3000);
    assert_eq!((counts[1], counts[3]), (0, 0));
    assert!(fits(&[counts[0], counts[2], counts[4]], &[1; 3]));
}

#[test]
fn one_endpoint_takes_all_and_none_takes_nothing() {
    assert_eq!(counts(&mut service(1, 1), 1, 10), [10]);
    assert!(service(0, 1).pick(&Request::get("/")).is_none());
}

#[test]
fn settings_are_refused() {
    assert!(Service::<Random>::new(r#"{"weights": true}"#, 0).is_err());
}
