use std::collections::HashMap;

use hash_ring::Table as _;
use heddle_plugin::testing::{Registration, Request, Service};
use heddle_plugin::{Balancer, Config, Endpoint, Endpoints};
use proptest::prelude::*;

use super::Maglev;
use super::table::{PLACES, Table};

/// Endpoints as the SDK's harness makes them.
struct Registered(Vec<Endpoint>);

thread_local! {
    static SEEN: std::cell::RefCell<Vec<Endpoint>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Balancer for Registered {
    fn new(_: Config<'_>, _: u64) -> Result<Self, String> {
        Ok(Self(Vec::new()))
    }

    fn registered_changed(&mut self, endpoints: &Endpoints) {
        self.0 = endpoints.iter().cloned().collect();
        SEEN.set(self.0.clone());
    }

    fn pick<'a>(&mut self, _: &heddle_plugin::Request, _: &'a Endpoints) -> Option<&'a Endpoint> {
        None
    }
}

fn registrations(weights: &[u32]) -> impl Iterator<Item = Registration> {
    weights.iter().enumerate().map(|(index, &weight)| Registration::new(address(index)).weight(weight))
}

fn address(index: usize) -> String {
    format!("10.{}.{}.{}:80", index >> 16, index >> 8 & 255, index & 255)
}

fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
    let mut service = Service::<Registered>::new("{}", 1).expect("it takes anything");
    service.register(registrations(weights));
    SEEN.take()
}

/// Whose place each is, by slot.
fn places(endpoints: &[Endpoint]) -> Vec<usize> {
    Table::new(endpoints.iter()).from(0).map(|slot| slot.index()).collect()
}

fn counts(weights: &[u32]) -> Vec<usize> {
    let mut counts = vec![0; weights.len()];
    for slot in places(&endpoints(weights)) {
        counts[slot] += 1;
    }
    counts
}

fn service(config: &str, weights: &[u32]) -> Service<Maglev> {
    let mut service = Service::new(config, 1).expect("the settings are right");
    service.register(registrations(weights));
    service
}

fn pick(service: &mut Service<Maglev>, client: &str) -> Option<String> {
    service.pick(&Request::get("/").from_client(client)).map(|endpoint| endpoint.address.clone())
}

fn clients() -> impl Iterator<Item = String> {
    (0..2000).map(|client| format!("192.0.{}.{}", client / 256, client % 256))
}

/// The table is a promise: proxies of different versions beside each other agree on it. These places were computed by
/// another program, from the documentation of [`Table`].
#[test]
fn places_are_where_they_always_were() {
    let places = places(&endpoints(&[1, 2, 3, 1, 2]));
    let first: Vec<usize> = places.iter().take(16).copied().collect();
    let check = places.iter().fold(0_u64, |check, &slot| (check * 31 + slot as u64) % 1_000_000_007);
    assert_eq!((first.as_slice(), check), (&FIRST_PLACES[..], CHECK));
}

const FIRST_PLACES: [usize; 16] = [1, 4, 2, 1, 4, 2, 4, 2, 0, 4, 1, 4, 2, 1, 3, 2];
const CHECK: u64 = 425_626_835;

#[test]
fn equal_endpoints_differ_by_one_place_at_most() {
    for endpoints in [1, 2, 3, 10, 100, 1000] {
        let counts = counts(&vec![7; endpoints]);
        assert_eq!(counts.iter().sum::<usize>(), PLACES);
        assert!(counts.iter().all(|count| count.abs_diff(PLACES / endpoints) <= 1), "{endpoints}");
    }
}

#[test]
fn places_are_in_proportion_to_the_weights() {
    let many: Vec<u32> = (0..300).map(|index| 1 + index % 9).collect();
    for weights in [&[1, 2, 3, 4][..], &[100, 1], &[5, 5, 1, 900], &many] {
        let all: f64 = weights.iter().copied().map(f64::from).sum();
        for (count, &weight) in counts(weights).into_iter().zip(weights) {
            let fair = PLACES as f64 * f64::from(weight) / all;
            assert!((count as f64 - fair).abs() <= 1.5, "weight {weight} has {count} places instead of {fair}");
        }
    }
}

#[test]
fn the_lightest_has_a_place_and_the_greatest_weights_do_not_overflow() {
    assert_eq!(counts(&[u32::MAX, 0, u32::MAX, 1]), [32_768, 1, 32_767, 1]);
}

#[test]
fn slots_do_not_matter() {
    let endpoints = endpoints(&[1; 50]);
    let names = |endpoints: &[Endpoint]| -> Vec<String> {
        let by_slot: HashMap<usize, &str> =
            endpoints.iter().map(|endpoint| (endpoint.slot.index(), endpoint.id.as_str())).collect();
        places(endpoints).into_iter().map(|slot| by_slot[&slot].to_owned()).collect()
    };
    let mut renumbered = endpoints.clone();
    for (endpoint, other) in renumbered.iter_mut().zip(endpoints.iter().rev()) {
        endpoint.slot = other.slot;
    }
    renumbered.rotate_left(7);
    assert_eq!(names(&endpoints), names(&renumbered));
}

/// The share of the places of other endpoints that change hands when one endpoint leaves.
fn disruption(endpoints: &[Endpoint], leaving: usize) -> f64 {
    let before = places(endpoints);
    let rest: Vec<Endpoint> =
        endpoints.iter().enumerate().filter(|(index, _)| *index != leaving).map(|(_, other)| other.clone()).collect();
    let gone = endpoints[leaving].slot.index();
    let others: Vec<_> = before.iter().zip(places(&rest)).filter(|(before, _)| **before != gone).collect();
    others.iter().filter(|(before, after)| *before != after).count() as f64 / others.len() as f64
}

#[test]
fn few_keys_of_others_move_when_an_endpoint_leaves() {
    for count in [3, 10, 100, 1000] {
        let endpoints = endpoints(&vec![1; count]);
        for leaving in [0, count / 2, count - 1] {
            let moved = disruption(&endpoints, leaving);
            assert!(moved < 0.01, "{moved} of the keys of others moved when one of {count} left");
        }
    }
}

#[test]
fn only_keys_of_endpoints_that_are_not_eligible_move_and_they_spread() {
    let mut service = service("{}", &[1; 10]);
    let before: Vec<_> = clients().map(|client| pick(&mut service, &client).expect("one is eligible")).collect();
    service.set_eligible(|endpoint| endpoint.address != address(3));
    let mut refuges = HashMap::new();
    for (client, before) in clients().zip(&before) {
        let after = pick(&mut service, &client).expect("one is eligible");
        if *before == address(3) {
            *refuges.entry(after).or_insert(0) += 1;
        } else {
            assert_eq!(*before, after);
        }
    }
    assert_eq!(refuges.len(), 9);
    assert!(!refuges.contains_key(&address(3)));
    service.set_eligible(|_| true);
    assert!(clients().zip(&before).all(|(client, before)| pick(&mut service, &client).as_ref() == Some(before)));
}

#[test]
fn a_client_keeps_its_endpoint_unless_another_key_is_named() {
    let mut by_client = service("{}", &[1; 10]);
    let home = pick(&mut by_client, "192.0.2.7");
    assert!(home.is_some());
    (0..10).for_each(|_| assert_eq!(pick(&mut by_client, "192.0.2.7"), home));
    let mut by_path = service(r#"{"by": "path"}"#, &[1; 10]);
    let home = pick(&mut by_path, "192.0.2.7");
    assert!(clients().all(|client| pick(&mut by_path, &client) == home));
    assert!(clients().any(|client| pick(&mut by_client, &client) != home));
}

#[test]
fn a_full_endpoint_passes_keys_on_where_load_is_bounded() {
    let mut service = service(r#"{"bounded_load": 1.25}"#, &[1; 4]);
    let home = pick(&mut service, "192.0.2.7").expect("one is eligible");
    service.set_in_flight(&home, 3);
    let refuge = pick(&mut service, "192.0.2.7").expect("one is eligible");
    assert_ne!(home, refuge);
    (0..4).for_each(|index| service.set_in_flight(&address(index), 3));
    assert_eq!(pick(&mut service, "192.0.2.7"), Some(home));
}

#[test]
fn more_endpoints_than_places_are_served_too() {
    let weights = vec![1; PLACES + 3];
    assert!(counts(&weights).iter().filter(|&&count| count == 1).count() == PLACES);
    let mut service = service("{}", &weights);
    assert!(pick(&mut service, "192.0.2.7").is_some());
    let without_a_place: Vec<_> =
        counts(&weights).iter().enumerate().filter(|(_, count)| **count == 0).map(|(slot, _)| slot).collect();
    service.set_eligible(|endpoint| without_a_place.contains(&endpoint.slot.index()));
    assert!(pick(&mut service, "192.0.2.7").is_some());
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service, "192.0.2.7"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whichever endpoint leaves, whatever the weights, at most one key in thirty of the others moves.
    #[test]
    fn disruption_is_bounded(weights in prop::collection::vec(1_u32..20, 2..60), leaving: prop::sample::Index) {
        let endpoints = endpoints(&weights);
        let moved = disruption(&endpoints, leaving.index(weights.len()));
        prop_assert!(moved < 0.03, "{moved}");
    }
}
