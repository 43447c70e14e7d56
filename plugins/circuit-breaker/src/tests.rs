use std::time::Duration;

use heddle_plugin::testing::{Breaking, Outcome};
use heddle_plugin::{Attempts, Circuit, Condition, Kind};
use proptest::prelude::*;

use super::Breaker;

fn service(endpoints: usize, config: &str, seed: u64) -> Breaking<Breaker> {
    let mut service = Breaking::new(config, seed).expect("these settings are fine");
    service.register((0..endpoints).map(address));
    service
}

fn address(index: usize) -> String {
    format!("10.0.0.{index}:80")
}

fn ok() -> Outcome {
    Outcome::response(200)
}

fn error() -> Outcome {
    Outcome::response(500)
}

/// Attempts at one endpoint that end so.
fn attempts(service: &mut Breaking<Breaker>, index: usize, count: usize, outcome: &Outcome) {
    for _ in 0..count {
        service.attempt(&address(index), outcome);
    }
}

fn conditions(service: &Breaking<Breaker>, endpoints: usize) -> Vec<Condition> {
    (0..endpoints).filter_map(|index| service.condition(&address(index))).collect()
}

fn condition(service: &Breaking<Breaker>, index: usize) -> Condition {
    service.condition(&address(index)).expect("it is registered")
}

/// Until when an endpoint is ejected.
fn until(service: &mut Breaking<Breaker>, index: usize) -> Duration {
    service.health(&address(index)).and_then(|health| health.ejected_until).expect("it is ejected")
}

/// Goes to the end of an endpoint's ejection, and lets a second pass.
fn end_ejection(service: &mut Breaking<Breaker>, index: usize) -> Duration {
    let end = until(service, index);
    service.set_now(end);
    service.tick();
    end
}

#[test]
fn five_failures_in_a_row_eject() {
    let mut service = service(3, "{}", 1);
    attempts(&mut service, 1, 4, &error());
    assert_eq!(condition(&service, 1), Condition::InUse);
    attempts(&mut service, 1, 1, &ok());
    attempts(&mut service, 1, 4, &error());
    assert_eq!(condition(&service, 1), Condition::InUse);
    attempts(&mut service, 1, 1, &error());
    assert_eq!(conditions(&service, 3), [Condition::InUse, Condition::Ejected, Condition::InUse]);
    let told: Vec<&str> = service.logged().iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(told, ["10.0.0.1:80 is ejected: failures in a row"]);
}

#[test]
fn further_failures_of_one_that_is_ejected_change_nothing() {
    let mut service = service(3, "{}", 1);
    attempts(&mut service, 1, 5, &error());
    let before = until(&mut service, 1);
    attempts(&mut service, 1, 4, &error());
    assert_eq!(until(&mut service, 1), before);
    assert_eq!(service.health(&address(1)).map(|health| health.ejections), Some(1));
}

/// Settings by which two failures in a row of one kind eject, and nothing else does.
fn only(setting: &str) -> String {
    let kinds =
        ["failures", "gateway_errors", "timeouts", "connect_failures"].map(|kind| format!("consecutive_{kind}"));
    let settings = kinds.map(|name| format!("{name:?}: {}", if name == setting { 2 } else { 0 }));
    format!("{{{}}}", settings.join(", "))
}

#[test]
fn kinds_of_failures_are_told_apart() {
    let connect = [Kind::Refused, Kind::ConnectTimeout, Kind::Tls].map(Outcome::of);
    let timeouts = [Kind::ConnectTimeout, Kind::ResponseTimeout].map(Outcome::of);
    let gateway = [Outcome::of(Kind::Closed), Outcome::response(502), Outcome::response(503), Outcome::response(504)];
    let unavailable = Outcome { grpc_status: Some(14), ..ok() };
    let others =
        [error(), Outcome::of(Kind::Broken), Outcome::of(Kind::Other), Outcome { grpc_status: Some(13), ..ok() }];
    let all: Vec<&Outcome> =
        connect.iter().chain(&timeouts).chain(&gateway).chain([&unavailable]).chain(&others).collect();
    let cases: [(&str, Vec<&Outcome>); 4] = [
        ("consecutive_connect_failures", connect.iter().collect()),
        ("consecutive_timeouts", connect[1..2].iter().chain(&timeouts).collect()),
        ("consecutive_gateway_errors", gateway.iter().chain([&unavailable]).collect()),
        ("consecutive_failures", all.clone()),
    ];
    for (setting, counted) in cases {
        let config = only(setting);
        for outcome in &all {
            let mut service = service(2, &config, 1);
            attempts(&mut service, 0, 1, outcome);
            assert_eq!(condition(&service, 0), Condition::InUse, "{setting}: {outcome:?}");
            attempts(&mut service, 0, 1, outcome);
            let is_counted = counted.iter().any(|counted| format!("{counted:?}") == format!("{outcome:?}"));
            assert_eq!(condition(&service, 0) == Condition::Ejected, is_counted, "{setting}: {outcome:?}");
        }
    }
}

#[test]
fn three_connections_that_do_not_come_about_eject() {
    let mut service = service(2, "{}", 1);
    attempts(&mut service, 0, 2, &Outcome::of(Kind::Refused));
    attempts(&mut service, 0, 1, &error());
    attempts(&mut service, 0, 1, &Outcome::of(Kind::Refused));
    assert_eq!(condition(&service, 0), Condition::InUse);
    attempts(&mut service, 1, 3, &Outcome::of(Kind::ConnectTimeout));
    assert_eq!(conditions(&service, 2), [Condition::InUse, Condition::Ejected]);
}

#[test]
fn a_row_may_be_of_several_kinds() {
    let mut service = service(2, "{}", 1);
    for kind in [Kind::Refused, Kind::Closed, Kind::ResponseTimeout, Kind::Broken] {
        attempts(&mut service, 0, 1, &Outcome::of(kind));
    }
    assert_eq!(condition(&service, 0), Condition::InUse);
    attempts(&mut service, 0, 1, &error());
    assert_eq!(condition(&service, 0), Condition::Ejected);
}

#[test]
fn what_is_no_fault_of_the_endpoint_neither_ejects_nor_restores() {
    for kind in [Kind::ClientGone, Kind::NotProcessed, Kind::NoEndpoint] {
        let mut service = service(2, "{}", 1);
        attempts(&mut service, 0, 30, &Outcome::of(kind));
        assert_eq!(condition(&service, 0), Condition::InUse, "{kind:?}");
        // Not even where the proxy's bounds have kept an endpoint in use that fails.
        service.health(&address(0)).expect("registered").consecutive_failures = 30;
        service.service().consecutive_failures = 30;
        attempts(&mut service, 0, 1, &Outcome::of(kind));
        assert_eq!(condition(&service, 0), Condition::InUse, "{kind:?}");
        assert_eq!(service.service().circuit, Circuit::Closed, "{kind:?}");

        attempts(&mut service, 0, 1, &error());
        end_ejection(&mut service, 0);
        attempts(&mut service, 0, 1, &Outcome::of(kind));
        assert_eq!(condition(&service, 0), Condition::HalfOpen, "{kind:?}");
    }
}

#[test]
fn what_the_client_did_wrong_is_a_success_of_the_endpoint() {
    let mut service = service(2, "{}", 1);
    attempts(&mut service, 0, 4, &error());
    attempts(&mut service, 0, 1, &Outcome::response(404));
    attempts(&mut service, 0, 1, &error());
    attempts(&mut service, 0, 30, &Outcome { grpc_status: Some(12), ..ok() });
    assert_eq!(condition(&service, 0), Condition::InUse);
}

#[test]
fn a_rule_that_is_0_is_off() {
    let mut service = service(2, r#"{"consecutive_failures": 0, "consecutive_connect_failures": 0}"#, 1);
    attempts(&mut service, 0, 100, &Outcome::of(Kind::Refused));
    assert_eq!(condition(&service, 0), Condition::InUse);
}

#[test]
fn the_only_endpoint_is_not_ejected() {
    let mut service = service(1, r#"{"service_failures": 0}"#, 1);
    attempts(&mut service, 0, 100, &error());
    assert_eq!(condition(&service, 0), Condition::InUse);
}

#[test]
fn an_ejection_ends_in_probes_and_a_success_restores() {
    let mut service = service(2, r#"{"probes": 3}"#, 1);
    attempts(&mut service, 0, 5, &error());
    let end = until(&mut service, 0);
    service.set_now(end - Duration::from_millis(1));
    service.tick();
    assert_eq!(condition(&service, 0), Condition::Ejected);
    end_ejection(&mut service, 0);
    assert_eq!(condition(&service, 0), Condition::HalfOpen);
    assert_eq!(service.health(&address(0)).map(|health| health.permits), Some(3));
    service.tick();
    attempts(&mut service, 0, 1, &ok());
    assert_eq!(condition(&service, 0), Condition::InUse);
}

#[test]
fn one_that_answers_while_too_few_others_are_left_is_restored() {
    let mut service = service(2, "{}", 1);
    attempts(&mut service, 0, 5, &error());
    attempts(&mut service, 0, 1, &ok());
    assert_eq!(condition(&service, 0), Condition::InUse);
}

#[test]
fn ejections_grow_up_to_the_longest_and_differ_between_proxies() {
    let (mut shortest, mut longest) = ([Duration::MAX; 9], [Duration::ZERO; 9]);
    for seed in 0..500 {
        let mut service = service(2, "{}", seed);
        let mut begun = Duration::ZERO;
        attempts(&mut service, 0, 4, &error());
        for ejection in 0..9 {
            // The first time the fifth failure in a row, then a failed probe.
            attempts(&mut service, 0, 1, &error());
            let time = until(&mut service, 0) - begun;
            shortest[ejection] = shortest[ejection].min(time);
            longest[ejection] = longest[ejection].max(time);
            begun = end_ejection(&mut service, 0);
        }
    }
    for (ejection, most) in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000].into_iter().enumerate()
    {
        let most = Duration::from_millis(most);
        let (shortest, longest) = (shortest[ejection], longest[ejection]);
        assert!(most / 2 - Duration::from_millis(1) <= shortest && longest <= most, "{shortest:?} to {longest:?}");
        // All of the range is used.
        assert!(shortest < most * 52 / 100 && longest > most * 98 / 100, "{shortest:?} to {longest:?}");
    }
}

#[test]
fn the_most_ejections_do_not_overflow() {
    let mut service = service(2, r#"{"ejection_time": "1m", "max_ejection_time": "1h"}"#, 1);
    service.health(&address(0)).expect("registered").ejections = u32::MAX - 1;
    attempts(&mut service, 0, 5, &error());
    let time = until(&mut service, 0);
    assert!((30 * 60..=60 * 60).contains(&time.as_secs()), "{time:?}");
}

/// Says how many attempts succeeded and failed over the interval.
fn rate(service: &mut Breaking<Breaker>, index: usize, successes: u32, failures: u32) {
    service.health(&address(index)).expect("registered").attempts = Attempts { successes, failures };
}

/// Which endpoints a second ejects, of those that had so many successes and failures.
fn ejected_for_success_rate(config: &str, attempts: &[(u32, u32)]) -> Vec<usize> {
    let mut service = service(attempts.len(), config, 1);
    for (index, &(successes, failures)) in attempts.iter().enumerate() {
        rate(&mut service, index, successes, failures);
    }
    service.tick();
    let is_ejected = |index: &usize| condition(&service, *index) == Condition::Ejected;
    (0..attempts.len()).filter(is_ejected).collect()
}

#[test]
fn the_one_that_fails_more_often_than_the_others_is_ejected() {
    let mut attempts = vec![(1_000, 3); 10];
    attempts[7] = (200, 100);
    assert_eq!(ejected_for_success_rate("{}", &attempts), [7]);
    attempts[2] = (110, 90);
    assert_eq!(ejected_for_success_rate("{}", &attempts), [2], "7 is hidden by one that is worse still");
    assert_eq!(ejected_for_success_rate(r#"{"success_rate_deviations": 0}"#, &attempts), [0; 0]);
    // The clearest case of the fewest endpoints.
    assert_eq!(ejected_for_success_rate("{}", &[(100, 0), (100, 0), (0, 100), (100, 0), (100, 0)]), [2]);
}

#[test]
fn what_may_be_chance_ejects_nobody() {
    // Too few requests at the one that fails; then too few endpoints to compare it with.
    let mut attempts = vec![(1_000, 3); 10];
    attempts[7] = (66, 33);
    assert_eq!(ejected_for_success_rate("{}", &attempts), [0; 0]);
    attempts[7] = (67, 33);
    assert_eq!(ejected_for_success_rate("{}", &attempts), [7]);
    assert_eq!(ejected_for_success_rate("{}", &attempts[4..8]), [0; 0]);
    assert_eq!(ejected_for_success_rate(r#"{"minimum_endpoints": 10}"#, &attempts[4..]), [0; 0]);
    // One of those that are all alike is the worst.
    attempts[7] = (920, 80);
    assert_eq!(ejected_for_success_rate("{}", &attempts), [0; 0]);
    // All fail alike.
    assert_eq!(ejected_for_success_rate("{}", &[(30, 70); 10]), [0; 0]);
    assert_eq!(ejected_for_success_rate("{}", &[(0, 200); 10]), [0; 0]);
}

#[test]
fn the_only_endpoint_is_down_after_ten_failures_in_a_row() {
    let mut service = service(1, "{}", 1);
    attempts(&mut service, 0, 9, &error());
    attempts(&mut service, 0, 1, &ok());
    attempts(&mut service, 0, 9, &error());
    assert_eq!(service.service().circuit, Circuit::Closed);
    attempts(&mut service, 0, 1, &error());
    assert_eq!(service.service().circuit, Circuit::Open);
    assert_eq!(service.service().permits, 3);
}

#[test]
fn a_service_is_down_when_nearly_all_of_its_endpoints_fail() {
    let mut service = service(10, "{}", 1);
    for index in 0..10 {
        attempts(&mut service, index, 5, &ok());
    }
    // Seven are tried, more than once each; the others were well a moment ago.
    for turn in 0..28 {
        attempts(&mut service, turn % 7, 1, &error());
    }
    assert_eq!(service.service().circuit, Circuit::Closed);
    attempts(&mut service, 7, 1, &error());
    assert_eq!(service.service().circuit, Circuit::Open);
}

#[test]
fn dead_endpoints_that_are_picked_again_and_again_do_not_make_a_dead_service() {
    let mut service = service(8, "{}", 1);
    attempts(&mut service, 7, 1, &ok());
    for turn in 0..300 {
        attempts(&mut service, turn % 3, 1, &Outcome::of(Kind::Refused));
    }
    assert_eq!(service.service().circuit, Circuit::Closed);
    let mut pair = self::service(2, "{}", 1);
    attempts(&mut pair, 0, 300, &error());
    assert_eq!(pair.service().circuit, Circuit::Closed);
}

#[test]
fn a_dead_service_is_known_by_few_of_many_endpoints_where_no_others_are_in_use() {
    let mut service = service(100, r#"{"service_failures": 11}"#, 1);
    for turn in 0..19 {
        attempts(&mut service, turn % 3, 1, &error());
    }
    assert_eq!(service.service().circuit, Circuit::Closed);
    // A large service is looked at with every tenth failure.
    attempts(&mut service, 0, 1, &error());
    assert_eq!(service.service().circuit, Circuit::Open);
}

/// Where requests always go to the same endpoint, or those of one key do, few are asked. Here one is ejected, and the share
/// leaves room for no other.
#[test]
fn a_dead_service_is_known_by_the_two_of_it_that_are_asked() {
    let mut service = service(8, "{}", 1);
    attempts(&mut service, 0, 5, &Outcome::of(Kind::Closed));
    attempts(&mut service, 1, 4, &Outcome::of(Kind::Closed));
    assert_eq!(service.service().circuit, Circuit::Closed);
    attempts(&mut service, 1, 1, &Outcome::of(Kind::Closed));
    assert_eq!(service.service().circuit, Circuit::Open);
    // Not where another has answered lately.
    let mut service = self::service(8, "{}", 1);
    attempts(&mut service, 5, 1, &ok());
    attempts(&mut service, 0, 5, &Outcome::of(Kind::Closed));
    attempts(&mut service, 1, 50, &Outcome::of(Kind::Closed));
    assert_eq!(service.service().circuit, Circuit::Closed);
}

#[test]
fn half_of_a_large_service_is_not_all_of_it() {
    let mut service = service(16, "{}", 1);
    for index in 8..16 {
        attempts(&mut service, index, 20, &ok());
    }
    for turn in 0..80 {
        attempts(&mut service, turn % 8, 1, &error());
    }
    assert_eq!(service.service().circuit, Circuit::Closed);
}

#[test]
fn a_service_that_never_opens_can_be_asked_for() {
    let mut service = service(1, r#"{"service_failures": 0}"#, 1);
    attempts(&mut service, 0, 100, &error());
    assert_eq!(service.service().circuit, Circuit::Closed);
}

#[test]
fn a_service_is_open_for_a_short_time_that_differs_between_proxies() {
    let (mut first, mut second) = ((u128::MAX, 0), (u128::MAX, 0));
    for seed in 0..500 {
        let mut service = service(1, "{}", seed);
        attempts(&mut service, 0, 10, &error());
        let opened = service.service().open_until.expect("it is open");
        service.set_now(opened);
        assert_eq!(service.service().circuit, Circuit::HalfOpen);
        attempts(&mut service, 0, 1, &error());
        assert_eq!(service.service().circuit, Circuit::Open);
        let again = service.service().open_until.expect("it is open again") - opened;
        first = (first.0.min(opened.as_millis()), first.1.max(opened.as_millis()));
        second = (second.0.min(again.as_millis()), second.1.max(again.as_millis()));
    }
    assert!((200..=202).contains(&first.0) && (248..=250).contains(&first.1), "{first:?}");
    assert!((400..=404).contains(&second.0) && (496..=500).contains(&second.1), "{second:?}");
}

#[test]
fn failures_of_attempts_under_way_do_not_keep_a_service_open() {
    let mut service = service(1, "{}", 1);
    attempts(&mut service, 0, 10, &error());
    let until = service.service().open_until;
    attempts(&mut service, 0, 50, &error());
    assert_eq!(service.service().open_until, until);
}

#[test]
fn a_success_closes_the_service_and_restores_the_endpoint() {
    let mut service = service(4, "{}", 1);
    for turn in 0..20 {
        attempts(&mut service, turn % 4, 1, &error());
    }
    assert_eq!(conditions(&service, 4), [Condition::Ejected; 4]);
    let until = service.service().open_until.expect("it is open");
    service.set_now(until);
    attempts(&mut service, 2, 1, &ok());
    assert_eq!((service.service().circuit, condition(&service, 2)), (Circuit::Closed, Condition::InUse));
    assert_eq!(condition(&service, 1), Condition::Ejected);
    // Another failure is one of ten, not the end.
    attempts(&mut service, 2, 1, &error());
    assert_eq!(service.service().circuit, Circuit::Closed);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (config, part) in [
        (r#"{"consecutive_failure": 5}"#, "unknown field `consecutive_failure`"),
        (r#"{"consecutive_failures": -1}"#, "invalid value"),
        (r#"{"interval": "1500ms"}"#, "interval"),
        (r#"{"interval": "61s"}"#, "interval"),
        (r#"{"interval": "0s"}"#, "interval"),
        (r#"{"success_rate_deviations": -0.1}"#, "success_rate_deviations"),
        (r#"{"minimum_requests": 0}"#, "minimum_requests"),
        (r#"{"minimum_endpoints": 1}"#, "minimum_endpoints"),
        (r#"{"ejection_time": "0s"}"#, "ejection_time"),
        (r#"{"ejection_time": "2m"}"#, "max_ejection_time"),
        (r#"{"max_ejection_time": "61m"}"#, "max_ejection_time"),
        (r#"{"max_ejection_time": "soon"}"#, "\"soon\" is not a duration"),
        (r#"{"probes": 0}"#, "probes"),
        (r#"{"open_time": "0ms"}"#, "open_time"),
        (r#"{"open_time": "121s"}"#, "open_time"),
        (r#"{"open_probes": 0}"#, "open_probes"),
    ] {
        let refusal = Breaking::<Breaker>::new(config, 1).err().unwrap_or_default();
        assert!(refusal.contains(part), "{config}: {refusal}");
    }
    let largest = r#"{"interval": "60s", "success_rate_deviations": 2, "max_ejection_time": "1h", "open_time": "2m"}"#;
    assert!(Breaking::<Breaker>::new(largest, 1).is_ok());
}

proptest! {
    /// Whatever happens, who never failed is in use; an ejection is within its bounds; and when everything is well
    /// again, everything is back within the longest ejection and a probe each.
    #[test]
    fn who_is_well_is_in_use(
        steps in prop::collection::vec((0_usize..6, 0_u8..10, 0_u64..3_000), 1..300),
        seed: u64,
    ) {
        let mut service = service(6, r#"{"max_ejection_time": "8s"}"#, seed);
        let mut now = Duration::ZERO;
        for (index, how, millis) in steps {
            now += Duration::from_millis(millis);
            service.set_now(now);
            // The first is always well, the others less and less.
            let outcome = if how < index as u8 * 2 { error() } else { ok() };
            attempts(&mut service, index, 1, &outcome);
            service.tick();
            prop_assert_eq!(condition(&service, 0), Condition::InUse);
            for index in 0..6 {
                let until = service.health(&address(index)).and_then(|health| health.ejected_until);
                prop_assert!(until.is_none_or(|until| until > now && until <= now + Duration::from_secs(8)));
            }
        }
        for _ in 0..2 {
            now += Duration::from_secs(8);
            service.set_now(now);
            service.tick();
            (0..6).for_each(|index| attempts(&mut service, index, 1, &ok()));
        }
        prop_assert_eq!(conditions(&service, 6), [Condition::InUse; 6]);
        prop_assert_eq!(service.service().circuit, Circuit::Closed);
    }
}
