use std::time::Duration;

use heddle_plugin::testing::{Registration, Request, Service};
use proptest::prelude::*;

use super::WeightedRoundRobin;

fn service(weights: &[u32], seed: u64) -> Service<WeightedRoundRobin> {
    let mut service = Service::new("{}", seed).expect("no settings are fine");
    service.register(
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Registration::new(format!("10.0.0.1:{index}")).weight(weight)),
    );
    service
}

fn picks(service: &mut Service<WeightedRoundRobin>, picks: usize) -> Vec<usize> {
    let request = Request::get("/");
    (0..picks).map(|_| service.pick(&request).expect("one is eligible").slot.index()).collect()
}

fn counts(picks: &[usize], endpoints: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    for &slot in picks {
        counts[slot] += 1;
    }
    counts
}

/// The schedule of nginx itself: one step for each endpoint.
fn nginx(weights: &[i64], picks: usize) -> Vec<usize> {
    let total: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    (0..picks)
        .map(|_| {
            for (current, weight) in current.iter_mut().zip(weights) {
                *current += weight;
            }
            let best = (0..weights.len()).rev().max_by_key(|&index| current[index]).expect("a weight");
            current[best] -= total;
            best
        })
        .collect()
}

fn is_rotation(one: &[usize], other: &[usize]) -> bool {
    (0..one.len()).any(|start| one[start..].iter().chain(&one[..start]).eq(other))
}

#[test]
fn where_all_weights_differ_the_schedule_is_that_of_nginx() {
    for seed in 0..20 {
        assert!(is_rotation(&picks(&mut service(&[5, 2, 1], seed), 8), &nginx(&[5, 2, 1], 8)), "seed {seed}");
        assert!(is_rotation(&picks(&mut service(&[7, 4, 3, 1], seed), 15), &nginx(&[7, 4, 3, 1], 15)), "seed {seed}");
    }
}

#[test]
fn a_heavy_endpoint_alternates_with_many_light_ones() {
    let mut weights = vec![1; 1001];
    weights[0] = 1000;
    let picks = picks(&mut service(&weights, 1), 2000);
    assert_eq!(picks.windows(2).filter(|pair| pair[0] == 0 && pair[1] == 0).count(), 0);
}

#[test]
fn equal_weights_rotate() {
    let picks = picks(&mut service(&[4; 10_000], 1), 20_000);
    assert_eq!(counts(&picks[..10_000], 10_000), [1; 10_000]);
    assert_eq!(picks[..10_000], picks[10_000..]);
}

#[test]
fn a_weight_of_0_counts_as_1_and_the_greatest_do_not_overflow() {
    assert_eq!(counts(&picks(&mut service(&[0, 2], 1), 30), 2), [10, 20]);
    assert_eq!(counts(&picks(&mut service(&[u32::MAX; 3], 1), 30), 3), [10; 3]);
    assert_eq!(counts(&picks(&mut service(&[u32::MAX, u32::MAX - 1], 1), 30), 2), [15; 2]);
}

#[test]
fn one_endpoint_takes_all_and_none_takes_nothing() {
    assert_eq!(picks(&mut service(&[3], 1), 3), [0; 3]);
    assert!(service(&[], 1).pick(&Request::get("/")).is_none());
    let mut service = service(&[1, 2], 1);
    service.set_eligible(|_| false);
    assert!(service.pick(&Request::get("/")).is_none());
    service.set_eligible(|_| true);
    assert_eq!(counts(&picks(&mut service, 6), 2), [2, 4]);
}

#[test]
fn the_rotation_goes_on_where_a_change_found_it() {
    let mut service = service(&[1; 100], 1);
    let before = picks(&mut service, 1)[0];
    service.set_eligible(|endpoint| endpoint.slot.index() != (before + 1) % 100);
    assert_eq!(picks(&mut service, 1)[0], (before + 2) % 100);
}

#[test]
fn many_that_leave_do_not_leave_a_debt_behind() {
    let mut weights = vec![1; 1000];
    weights[0] = 500;
    let mut service = service(&weights, 3);
    picks(&mut service, 1);
    service.set_eligible(|endpoint| endpoint.slot.index() < 3);
    let counts = counts(&picks(&mut service, 5020), 3);
    assert!(counts[1].abs_diff(10) <= 1 && counts[2].abs_diff(10) <= 1, "{counts:?}");
}

/// Issue 10, 16: each time a heavy endpoint came back its account was empty, and what the others were owed had been cut,
/// so that the lightest of them was never picked.
#[test]
fn an_endpoint_that_flaps_takes_no_turn_of_another() {
    let weights = [10, 3, 2, 1];
    for flapping in 0..weights.len() {
        let mut service = service(&weights, 1);
        let mut counts = [0_u32; 4];
        for number in 0..960 {
            service.set_eligible(|endpoint| endpoint.slot.index() != flapping || number % 2 == 0);
            counts[picks(&mut service, 1)[0]] += 1;
        }
        // Its share of half the picks; the others' shares of these, and of the rest.
        for (slot, weight) in weights.into_iter().enumerate() {
            let of_half = |all: u32| f64::from(weight) * 480.0 / f64::from(all);
            let with = of_half(16);
            let expected = if slot == flapping { with } else { with + of_half(16 - weights[flapping]) };
            assert!((f64::from(counts[slot]) - expected).abs() <= 3.0, "{flapping} flaps: {counts:?}");
        }
    }
}

/// The same where an endpoint is registered and removed in turn, with nothing on its account each time.
#[test]
fn an_endpoint_that_registers_again_and_again_takes_no_turn_of_another() {
    let mut service = service(&[3, 2, 1], 1);
    let mut counts = [0_u32; 4];
    for _ in 0..480 {
        service.register([Registration::new("10.0.0.1:3").weight(10)]);
        counts[picks(&mut service, 1)[0]] += 1;
        service.remove(&["10.0.0.1:3"]);
        counts[picks(&mut service, 1)[0]] += 1;
    }
    assert!(counts[0] >= 240 && counts[1] >= 160 && counts[2] >= 80, "{counts:?}");
}

/// The rotation of the only endpoints of a weight goes on when all of them are back.
#[test]
fn a_group_that_flaps_keeps_its_place_in_the_rotation() {
    let mut service = service(&[2, 2, 2, 1], 1);
    let mut counts = [0_u32; 4];
    for _ in 0..70 {
        service.set_eligible(|endpoint| endpoint.slot.index() == 3);
        service.set_eligible(|_| true);
        counts[picks(&mut service, 1)[0]] += 1;
    }
    assert_eq!(counts, [20, 20, 20, 10]);
}

#[test]
fn light_endpoints_take_turns_at_once_when_a_heavy_one_is_gone() {
    let mut service = service(&[100_000, 3, 2, 1], 1);
    picks(&mut service, 60_000);
    service.set_eligible(|endpoint| endpoint.slot.index() > 0);
    let counts = counts(&picks(&mut service, 60), 4);
    assert!(counts[1].abs_diff(30) <= 2 && counts[2].abs_diff(20) <= 2 && counts[3].abs_diff(10) <= 2, "{counts:?}");
}

#[test]
fn instances_begin_at_different_places() {
    let first: Vec<_> = (0..8).map(|seed| picks(&mut service(&[3, 2, 1], seed), 6)).collect();
    assert!(first.iter().any(|picks| picks != &first[0]));
}

/// 30 picks at each of these times.
#[test]
fn a_new_endpoint_starts_slowly_where_the_settings_say_so() {
    let mut service =
        Service::<WeightedRoundRobin>::new(r#"{"slow_start": "10s"}"#, 1).expect("the settings are right");
    service.register(["10.0.0.1:0"]);
    service.set_now(Duration::from_secs(50));
    service.register(["10.0.0.1:1", "10.0.0.1:2"]);
    for (seconds, expected) in
        [(50, [25, 2, 3]), (51, [25, 2, 3]), (55, [15, 7, 8]), (61, [10, 10, 10]), (99, [10, 10, 10])]
    {
        service.set_now(Duration::from_secs(seconds));
        let counts = counts(&picks(&mut service, 30), 3);
        assert!(counts.iter().zip(expected).all(|(count, expected)| count.abs_diff(expected) <= 1), "{counts:?}");
    }
}

/// Weights that grow between two picks must not make a starting endpoint lose its place in the schedule.
#[test]
fn an_endpoint_that_starts_gets_its_turns_also_where_picks_are_rare() {
    let mut service =
        Service::<WeightedRoundRobin>::new(r#"{"slow_start": "10s"}"#, 1).expect("the settings are right");
    service.register((0..9).map(|index| format!("10.0.0.1:{index}")));
    service.set_now(Duration::from_secs(50));
    service.register(["10.0.0.1:9"]);
    let mut new = 0;
    for millis in (50_000..60_000).step_by(50) {
        service.set_now(Duration::from_millis(millis));
        new += u32::from(picks(&mut service, 1) == [9]);
    }
    // On average it has half its weight and a bit more, so one pick in about 18.
    assert!((8..=14).contains(&new), "{new} of 200");
}

#[test]
fn settings_are_refused() {
    assert!(Service::<WeightedRoundRobin>::new(r#"{"weights": []}"#, 0).is_err());
}

proptest! {
    /// In any row of as many picks as the weights add up to, each endpoint has exactly its weight.
    #[test]
    fn any_round_is_exact(weights in prop::collection::vec(1_u32..30, 1..20), seed: u64, start in 0_usize..50) {
        let round = weights.iter().sum::<u32>() as usize;
        let picks = picks(&mut service(&weights, seed), start + round);
        prop_assert_eq!(counts(&picks[start..], weights.len()), weights);
    }

    /// At no moment is an endpoint two picks ahead of its share, or two behind.
    #[test]
    fn shares_hold_at_every_moment(weights in prop::collection::vec(1_u32..1000, 1..20), seed: u64) {
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0_i64; weights.len()];
        for (index, slot) in picks(&mut service(&weights, seed), 1000).into_iter().enumerate() {
            counts[slot] += 1;
            for (&count, &weight) in counts.iter().zip(&weights) {
                let away = (count * i64::from(total) - (index as i64 + 1) * i64::from(weight)).abs();
                prop_assert!(away < 2 * i64::from(total), "weight {} had {} of {}", weight, count, index + 1);
            }
        }
    }
}
