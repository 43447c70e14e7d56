use std::collections::HashMap;

use heddle_plugin::testing::{Registration, Request, Service};
use heddle_plugin::{Balancer, Config, Endpoint, Endpoints};
use proptest::prelude::*;

use super::{HashBalancer, Key, Ring};

struct ByUrl(HashBalancer<Ring>);

impl Balancer for ByUrl {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        HashBalancer::new(config, seed, Key::Url).map(Self)
    }

    fn registered_changed(&mut self, endpoints: &Endpoints) {
        self.0.registered_changed(endpoints);
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.0.eligible_changed(endpoints);
    }

    fn pick<'a>(&mut self, request: &heddle_plugin::Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        self.0.pick(request, endpoints)
    }
}

const KEYS: usize = 5000;

fn empty(config: &str) -> Service<ByUrl> {
    Service::new(config, 1).expect("the settings are right")
}

fn service(weights: &[u32]) -> Service<ByUrl> {
    let mut service = empty("{}");
    service
        .register(weights.iter().enumerate().map(|(index, &weight)| Registration::new(address(index)).weight(weight)));
    service
}

fn address(index: usize) -> String {
    format!("10.0.{}.{}:80", index / 256, index % 256)
}

fn pick(service: &mut Service<ByUrl>, request: &Request) -> Option<String> {
    service.pick(request).map(|endpoint| endpoint.address.clone())
}

/// Where each of the test's keys goes.
fn places(service: &mut Service<ByUrl>) -> Vec<String> {
    (0..KEYS).map(|key| pick(service, &Request::get(&format!("/items/{key}"))).expect("one is eligible")).collect()
}

fn shares(places: &[String]) -> HashMap<&str, usize> {
    places.iter().fold(HashMap::new(), |mut shares, place| {
        *shares.entry(place.as_str()).or_insert(0) += 1;
        shares
    })
}

fn moved(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

#[test]
fn a_key_keeps_its_endpoint() {
    let mut service = service(&[1; 10]);
    let before = places(&mut service);
    assert_eq!(before, places(&mut service));
}

/// The hash is a promise: proxies of different versions beside each other agree on it. These places were computed by
/// another program, from the documentation of [`super::Ring`] and with Python's `xxhash`.
#[test]
fn keys_are_where_they_always_were() {
    let mut service = service(&[1, 2, 3, 1, 2]);
    let first: Vec<_> = places(&mut service).into_iter().take(8).collect();
    assert_eq!(first, [2, 2, 1, 2, 4, 1, 3, 2].map(address));
}

#[test]
fn slots_do_not_matter() {
    let mut reversed = empty("{}");
    reversed.register((0..10).rev().map(address));
    assert_eq!(places(&mut service(&[1; 10])), places(&mut reversed));
}

#[test]
fn only_the_keys_of_endpoints_that_are_not_eligible_move_and_they_spread() {
    let mut service = service(&[1; 10]);
    let before = places(&mut service);
    service.set_eligible(|endpoint| endpoint.address != address(3));
    let after = places(&mut service);
    let mut refuges = HashMap::new();
    for (before, after) in before.iter().zip(&after) {
        if *before == address(3) {
            *refuges.entry(after).or_insert(0) += 1;
        } else {
            assert_eq!(before, after);
        }
    }
    assert_eq!(refuges.len(), 9);
    assert!(!refuges.contains_key(&address(3)));
    service.set_eligible(|_| true);
    assert_eq!(before, places(&mut service));
}

#[test]
fn only_the_keys_of_an_endpoint_that_is_removed_or_added_move() {
    let mut service = service(&[1; 10]);
    let before = places(&mut service);
    service.remove(&[&address(3)]);
    let without = places(&mut service);
    assert!(before.iter().zip(&without).all(|(before, without)| *before == address(3) || before == without));
    service.register([address(3)]);
    assert_eq!(before, places(&mut service));
}

#[test]
fn a_heavier_newcomer_moves_few_keys_between_the_others() {
    let mut service = service(&[1; 20]);
    let before = places(&mut service);
    service.register([Registration::new("10.0.0.99:80").weight(2)]);
    let after = places(&mut service);
    let taken = after.iter().filter(|place| *place == "10.0.0.99:80").count();
    let others = moved(&before, &after) - taken;
    assert!(others < taken, "{others} moved, {taken} taken");
}

#[test]
fn a_thousand_endpoints_and_more_keep_their_keys_when_one_comes() {
    let mut service = service(&[1; 1000]);
    let before = places(&mut service);
    service.register(["10.9.9.9:80"]);
    let moved = moved(&before, &places(&mut service));
    assert!(moved < KEYS / 100, "{moved}");
}

#[test]
fn keys_spread_by_weight() {
    let mut service = service(&[1, 2, 3, 4]);
    let places = places(&mut service);
    let shares = shares(&places);
    for (index, weight) in (1..=4).enumerate() {
        let (share, fair) = (shares[address(index).as_str()], KEYS * weight / 10);
        assert!(share.abs_diff(fair) * 5 < fair, "weight {weight} has {share} of {KEYS}");
    }
}

#[test]
fn keys_spread_over_equal_endpoints() {
    let mut service = service(&[100; 10]);
    let places = places(&mut service);
    assert!(shares(&places).values().all(|&share| share.abs_diff(KEYS / 10) * 10 < KEYS / 10 * 3));
}

#[test]
fn ten_thousand_endpoints_all_have_keys() {
    let mut service = service(&[1; 10_000]);
    let places = places(&mut service);
    let shares = shares(&places);
    assert!(shares.len() > 3500, "{}", shares.len());
}

#[test]
fn a_weight_of_0_counts_as_1_and_the_greatest_do_not_overflow() {
    assert_eq!(places(&mut service(&[0, 1])), places(&mut service(&[1, 1])));
    assert_eq!(places(&mut service(&[u32::MAX; 3])), places(&mut service(&[1; 3])));
    assert_eq!(shares(&places(&mut service(&[u32::MAX, 0]))).len(), 2);
}

#[test]
fn one_endpoint_takes_all_and_none_takes_nothing() {
    assert_eq!(shares(&places(&mut service(&[1]))).len(), 1);
    assert_eq!(pick(&mut service(&[]), &Request::get("/")), None);
    let mut service = service(&[1; 3]);
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service, &Request::get("/")), None);
}

#[test]
fn a_request_goes_on_past_what_it_has_tried_always_in_the_same_order() {
    let mut service = service(&[1; 4]);
    let order = |service: &mut Service<ByUrl>| {
        let mut tried: Vec<String> = Vec::new();
        for _ in 0..4 {
            let addresses: Vec<&str> = tried.iter().map(String::as_str).collect();
            let next = pick(service, &Request::get("/a").tried(&addresses)).expect("one is eligible");
            tried.push(next);
        }
        tried
    };
    let first = order(&mut service);
    assert_eq!(shares(&first).len(), 4);
    assert_eq!(first, order(&mut service));
    let all: Vec<&str> = first.iter().map(String::as_str).collect();
    assert_eq!(pick(&mut service, &Request::get("/a").tried(&all)).as_ref(), first.first());
}

/// Issue 10, 16, as in round robin.
#[test]
fn an_endpoint_that_flaps_takes_no_turn_of_another() {
    let mut service = empty(r#"{"by": "header:x-user"}"#);
    service.register((0..5).map(address));
    let mut picks = [0; 5];
    for number in 0..60 {
        service.set_eligible(|endpoint| endpoint.slot.index() != 4 || number % 2 == 0);
        picks[service.pick(&Request::get("/")).expect("one is eligible").slot.index()] += 1;
    }
    assert!(picks[..4].iter().all(|count| (12..=15).contains(count)), "{picks:?}");
}

#[test]
fn a_request_without_the_key_takes_the_endpoints_in_turn() {
    let mut service = empty(r#"{"by": "header:x-user"}"#);
    service.register((0..3).map(address));
    let picks: Vec<_> = (0..6).map(|_| pick(&mut service, &Request::get("/")).expect("one is eligible")).collect();
    assert!(shares(&picks).values().all(|&share| share == 2));
}

/// Requests that agree on the key and on nothing else go together; those that differ in the key do not.
#[test]
fn each_key_is_the_part_of_the_request_that_it_names() {
    let request = |user: usize, path: &str| Request {
        sni: Some(format!("{user}.example")),
        identity: Some(format!("spiffe://mesh/{user}")),
        ..Request::get(path)
            .from_client(&format!("2001:db8::{user}"))
            .header("X-User", &format!("{user}"))
            .header("Cookie", &format!("a=b; session={user}"))
    };
    for by in ["client-ip", "path", "url", "header:x-user", "cookie:session", "query:user", "identity", "sni"] {
        let mut service = empty(&format!(r#"{{"by": "{by}"}}"#));
        service.register((0..10).map(address));
        let mut places = Vec::new();
        for user in 0..50 {
            let (one, other) = match by {
                "path" => (format!("/{user}?x=1"), format!("/{user}?x=2")),
                "url" => (format!("/{user}?x=1"), format!("/{user}?x=1")),
                _ => (format!("/a?user={user}&x=1"), format!("/b?user={user}&x=2")),
            };
            let place = pick(&mut service, &request(user, &one));
            assert_eq!(place, pick(&mut service, &request(user, &other)), "{by}");
            places.push(place.expect("one is eligible"));
        }
        assert!(shares(&places).len() > 5, "{by}");
    }
}

fn bounded(weights: &[u32], factor: &str) -> Service<ByUrl> {
    let mut service = empty(&format!(r#"{{"bounded_load": {factor}}}"#));
    service
        .register(weights.iter().enumerate().map(|(index, &weight)| Registration::new(address(index)).weight(weight)));
    service
}

/// Sends requests for one key that do not end, and counts where they go.
fn requests_that_stay(service: &mut Service<ByUrl>, endpoints: usize, requests: usize) -> Vec<u32> {
    let mut in_flight = vec![0; endpoints];
    for _ in 0..requests {
        let picked = service.pick(&Request::get("/hot")).expect("one is eligible").slot.index();
        in_flight[picked] += 1;
        service.set_in_flight(&address(picked), in_flight[picked]);
    }
    in_flight
}

#[test]
fn a_hot_key_spreads_over_as_many_endpoints_as_it_takes() {
    for requests in [1, 10, 100, 1000] {
        let in_flight = requests_that_stay(&mut bounded(&[1; 10], "1.25"), 10, requests);
        let most = (1.25 * requests as f64 / 10.0).ceil() as u32;
        assert!(in_flight.iter().all(|&one| one <= most), "{in_flight:?}");
    }
    let in_flight = requests_that_stay(&mut bounded(&[1; 10], "4"), 10, 100);
    assert_eq!(in_flight.iter().filter(|&&one| one > 0).count(), 3, "{in_flight:?}");
}

#[test]
fn the_bound_follows_the_weights_of_those_that_are_eligible() {
    let mut service = bounded(&[1, 2, 3, 50], "1.1");
    service.set_eligible(|endpoint| endpoint.weight < 50);
    let in_flight = requests_that_stay(&mut service, 4, 600);
    assert!(in_flight[0] <= 110 && in_flight[1] <= 220 && in_flight[2] <= 330, "{in_flight:?}");
}

#[test]
fn without_much_under_way_bounded_keys_stay_where_they_are() {
    assert_eq!(places(&mut service(&[1; 10])), places(&mut bounded(&[1; 10], "1.25")));
}

#[test]
fn a_retry_goes_to_a_full_endpoint_when_no_other_is_left() {
    let mut service = bounded(&[1, 1], "1.25");
    let first = pick(&mut service, &Request::get("/hot")).expect("one is eligible");
    let other = if first == address(0) { address(1) } else { address(0) };
    service.set_in_flight(&other, 100);
    assert_eq!(pick(&mut service, &Request::get("/hot").tried(&[&first])), Some(other));
}

#[test]
fn settings_are_refused_with_what_is_expected() {
    let refusal = |config: &str| Service::<ByUrl>::new(config, 1).err().unwrap_or_default();
    assert_eq!(
        refusal(r#"{"by": "port"}"#),
        "by = \"port\": expected client-ip, path, url, identity, sni, header:NAME, cookie:NAME or query:NAME"
    );
    assert!(refusal(r#"{"by": "header:"}"#).contains("expected"));
    assert!(refusal(r#"{"by": "path:x"}"#).contains("expected"));
    assert!(refusal(r#"{"bye": "path"}"#).contains("unknown field `bye`"));
    assert!(refusal(r#"{"by": 3}"#).contains("expected a string"));
    for factor in ["1", "0.5", "-2"] {
        let refusal = refusal(&format!(r#"{{"bounded_load": {factor}}}"#));
        assert!(refusal.contains("expected a number above 1, such as 1.25"), "{refusal}");
    }
}

proptest! {
    /// Whatever the weights and whichever endpoints are eligible, no key moves that does not have to.
    #[test]
    fn keys_of_eligible_endpoints_stay(
        endpoints in prop::collection::vec((0_u32..20, any::<bool>()), 1..30),
        keys in prop::collection::vec("[a-z/]{0,12}", 20),
    ) {
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.0).collect();
        let mut service = service(&weights);
        let before: Vec<_> = keys.iter().map(|key| pick(&mut service, &Request::get(key))).collect();
        service.set_eligible(|endpoint| endpoints[endpoint.slot.index()].1);
        let eligible: Vec<_> = (0..endpoints.len()).filter(|&index| endpoints[index].1).map(address).collect();
        for (key, before) in keys.iter().zip(before) {
            let after = pick(&mut service, &Request::get(key));
            match after {
                None => prop_assert!(eligible.is_empty()),
                Some(after) => {
                    prop_assert!(eligible.contains(&after));
                    let before = before.expect("all were eligible");
                    prop_assert!(!eligible.contains(&before) || before == after);
                }
            }
        }
    }
}
