use std::thread;

use super::*;
use http::StatusCode;

use crate::policy::Kind;
use crate::registry::Registered;
use crate::service::Class;

const SECOND: Duration = Duration::from_secs(1);

/// So many endpoints with slots from 0 on, of which a share may be ejected, and which panic below another.
fn fleet(count: u32, max_percent: u8, panic_percent: u8) -> Arc<Fleet> {
    let fleet = Fleet::new("users".into(), Ejection { max_percent, panic_percent }, Clock::turned_by_hand());
    fleet.apply(change(&[], count));
    Arc::new(fleet)
}

fn id(n: u32) -> String {
    format!("{n}#10.0.0.{n}:80")
}

fn change(removed: &[u32], count: u32) -> Change {
    let registered = |n| Registered {
        id: id(n),
        address: format!("10.0.0.{n}:80"),
        weight: 1,
        order: 0,
        metadata: vec![],
        egress: Arc::default(),
    };
    Change {
        service: "users".into(),
        removed: removed.iter().map(|n| id(*n)).collect(),
        added: (0..count).map(registered).collect(),
        paused: None,
        proxied: None,
    }
}

fn seen(fleet: &Fleet, slot: u32) -> u64 {
    fleet.snapshot().endpoint(slot).unwrap().health.seen()
}

fn eject(fleet: &Fleet, slot: u32) -> bool {
    fleet.eject(slot, seen(fleet, slot), SECOND)
}

fn eligible(fleet: &Fleet) -> Vec<u32> {
    let snapshot = fleet.snapshot();
    let all = snapshot.endpoints().map(|endpoint| endpoint.slot);
    all.filter(|slot| snapshot.eligible_endpoint(*slot).is_some()).collect()
}

/// An attempt that was answered so, after no time.
fn answer(status: u16) -> Outcome {
    Outcome { status: StatusCode::from_u16(status).ok(), ..Outcome::of(Kind::Response, Duration::ZERO) }
}

/// One that was not answered in this time.
fn timeout(time: Duration) -> Outcome {
    Outcome::of(Kind::Timeout, time)
}

/// Counts an attempt of now. A response that broke has been counted for its head.
fn record(fleet: &Fleet, endpoint: &Endpoint, outcome: &Outcome) {
    fleet.record(endpoint, outcome, fleet.seen(endpoint), outcome.kind == Kind::Broken);
}

fn endpoint(fleet: &Fleet, slot: u32) -> Arc<Endpoint> {
    fleet.snapshot().endpoint(slot).unwrap().clone()
}

fn condition(fleet: &Fleet, slot: u32) -> Condition {
    endpoint(fleet, slot).health.condition()
}

#[test]
fn of_two_verdicts_on_the_same_state_one_holds() {
    let fleet = fleet(10, 100, 0);
    let seen = seen(&fleet, 3);
    let ejected: usize = thread::scope(|scope| {
        let ejecting: Vec<_> = (0..4).map(|_| scope.spawn(|| fleet.eject(3, seen, SECOND))).collect();
        ejecting.into_iter().filter_map(|thread| thread.join().unwrap().then_some(())).count()
    });
    assert_eq!(ejected, 1);
    assert_eq!(fleet.snapshot().endpoint(3).unwrap().health.ejections(fleet.clock.now()), 1);
    assert!(!fleet.restore(3, seen) && !fleet.probe(3, seen, 1), "that was before");
    assert_eq!(eligible(&fleet), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_share_may_be_ejected_and_one_always() {
    let fleet = fleet(20, 10, 0);
    assert_eq!((0..20).filter(|slot| eject(&fleet, *slot)).count(), 2);
    let few = self::fleet(3, 10, 0);
    assert!(eject(&few, 1) && !eject(&few, 2));
    // One that is out already may be ejected for longer.
    assert!(few.probe(1, seen(&few, 1), 1) && eject(&few, 1));
    assert!(few.restore(1, seen(&few, 1)) && eject(&few, 2));
}

#[test]
fn when_too_few_are_well_all_are_used() {
    let fleet = fleet(4, 100, 50);
    assert!(eject(&fleet, 0) && eject(&fleet, 1));
    assert_eq!(eligible(&fleet), [2, 3]);
    let third = fleet.snapshot().endpoint(2).unwrap().clone();
    assert!(fleet.set_check_fails(&third, true) && !fleet.set_check_fails(&third, true));
    assert!(fleet.snapshot().is_in_panic());
    assert_eq!(eligible(&fleet), [0, 1, 2, 3]);
    assert!(fleet.set_check_fails(&third, false));
    assert_eq!((eligible(&fleet), fleet.snapshot().is_in_panic()), (vec![2, 3], false));
}

#[test]
fn what_is_remembered_of_an_endpoint_ends_with_its_registration() {
    let fleet = fleet(3, 100, 0);
    assert!(eject(&fleet, 1));
    // It has changed, and is the same.
    fleet.apply(Change { added: vec![change(&[], 3).added[1].clone()], ..change(&[1], 0) });
    assert_eq!(eligible(&fleet), [0, 2]);
    let before = fleet.snapshot().endpoint(1).unwrap().clone();
    fleet.apply(change(&[1], 0));
    fleet.apply(change(&[], 3));
    assert_eq!(eligible(&fleet), [0, 1, 2]);
    assert!(!fleet.set_check_fails(&before, true), "it is gone");
}

fn paused(by_registry: bool, by_admin: bool) -> Pause {
    Pause { by_registry, by_admin }
}

#[test]
fn a_paused_endpoint_is_not_picked_not_even_in_panic() {
    let fleet = fleet(4, 100, 50);
    assert_eq!(fleet.set_endpoint_paused("10.0.0.1:80", true), Some(paused(false, true)));
    assert_eq!(fleet.set_endpoint_paused("10.0.0.9:80", true), None);
    assert_eq!(eligible(&fleet), [0, 2, 3]);
    assert!(eject(&fleet, 2));
    assert_eq!(eligible(&fleet), [0, 3], "more than half of those that are offered are well");
    assert!(eject(&fleet, 3));
    assert_eq!((eligible(&fleet), fleet.snapshot().is_in_panic()), (vec![0, 2, 3], true));
    assert_eq!(fleet.set_endpoint_paused("10.0.0.1:80", false), Some(paused(false, false)));
    assert_eq!((eligible(&fleet), fleet.snapshot().is_in_panic()), (vec![0, 1], false));
    let version = fleet.version();
    assert_eq!(fleet.set_endpoint_paused("10.0.0.1:80", false), Some(paused(false, false)));
    assert_eq!(fleet.version(), version, "nothing has changed");
}

/// One that is told to pause stays so while its registration changes, and not beyond its end.
#[test]
fn a_pause_by_command_lasts_as_long_as_the_registration() {
    let fleet = fleet(3, 100, 0);
    fleet.set_endpoint_paused("10.0.0.1:80", true);
    let mut again = change(&[1], 3);
    again.added.retain(|registered| registered.id == id(1));
    again.added[0].metadata = vec![("paused".into(), "true".into())];
    fleet.apply(again.clone());
    assert_eq!(fleet.set_endpoint_paused("10.0.0.1:80", false), Some(paused(true, false)));
    assert_eq!(eligible(&fleet), [0, 2]);
    assert_eq!(fleet.set_endpoint_paused("10.0.0.1:80", true), Some(paused(true, true)));
    again.added[0].metadata.clear();
    fleet.apply(again);
    assert_eq!(eligible(&fleet), [0, 2]);
    fleet.apply(change(&[1], 0));
    fleet.apply(change(&[], 3));
    assert_eq!(eligible(&fleet), [0, 1, 2]);
}

#[test]
fn a_service_that_is_paused_has_no_eligible_endpoint_until_all_who_paused_it_resume_it() {
    let fleet = fleet(3, 100, 50);
    fleet.apply(Change { paused: Some(true), ..change(&[], 0) });
    assert_eq!((eligible(&fleet), fleet.snapshot().is_in_panic()), (vec![], false));
    assert_eq!(fleet.set_paused(true), paused(true, true));
    fleet.apply(change(&[], 4));
    assert_eq!((eligible(&fleet), fleet.snapshot().pause()), (vec![], paused(true, true)));
    fleet.apply(Change { paused: Some(false), ..change(&[], 0) });
    assert_eq!((eligible(&fleet), fleet.snapshot().pause()), (vec![], paused(false, true)));
    assert_eq!(fleet.set_paused(false), paused(false, false));
    assert_eq!(eligible(&fleet), [0, 1, 2, 3]);
}

#[test]
fn probes_are_bounded_and_given_back() {
    let fleet = fleet(10, 10, 0);
    assert!(eject(&fleet, 0) && fleet.probe(0, seen(&fleet, 0), 2));
    let endpoint = fleet.snapshot().endpoint(0).unwrap().clone();
    assert_eq!(endpoint.health.condition(), Condition::HalfOpen);
    assert_eq!(eligible(&fleet).len(), 10);
    let (first, second) = (endpoint.health.probe(), endpoint.health.probe());
    assert!(first.is_some() && second.is_some() && endpoint.health.probe().is_none());
    drop(first);
    assert!(endpoint.health.probe().is_some());
}

#[test]
fn failures_are_told_apart_and_forgotten_after_a_success() {
    let fleet = fleet(2, 100, 0);
    let endpoint = fleet.snapshot().endpoint(0).unwrap().clone();
    for _ in 0..3 {
        record(&fleet, &endpoint, &timeout(Duration::ZERO));
    }
    let classes = [Class::Connect, Class::Timeout, Class::Gateway, Class::Any];
    assert_eq!(classes.map(|class| endpoint.health.consecutive(class)), [0, 3, 0, 3]);
    assert_eq!((fleet.health.consecutive(), endpoint.health.window(1, fleet.clock.now())), (3, (0, 3)));
    record(&fleet, &endpoint, &Outcome::of(Kind::ClientGone, Duration::ZERO));
    assert_eq!(fleet.health.consecutive(), 3);
    record(&fleet, &endpoint, &answer(200));
    assert_eq!(classes.map(|class| endpoint.health.consecutive(class)), [0; 4]);
    assert_eq!((fleet.health.consecutive(), fleet.health.window(1, fleet.clock.now())), (0, (1, 3)));
}

#[test]
fn what_began_before_the_state_changed_is_neither_counted_nor_judged() {
    let fleet = fleet(2, 100, 0);
    let endpoint = endpoint(&fleet, 0);
    let is_judged = |began| fleet.record(&endpoint, &timeout(9 * SECOND), began, false);
    let in_use = fleet.seen(&endpoint);
    assert!(is_judged(in_use));
    assert!(eject(&fleet, 0));
    let out = fleet.seen(&endpoint);
    assert!(is_judged(out) && !is_judged(in_use));
    assert!(fleet.probe(0, seen(&fleet, 0), 1));
    let half_open = fleet.seen(&endpoint);
    assert!(is_judged(half_open) && !is_judged(out) && !is_judged(in_use));
    assert_eq!(endpoint.health.consecutive(Class::Any), 3);
    assert!(fleet.restore(0, seen(&fleet, 0)));
    assert!(!is_judged(half_open) && !is_judged(in_use), "it is not the use of before");
    let counted = || (endpoint.health.consecutive(Class::Any), endpoint.health.window(60, fleet.clock.now()));
    assert_eq!(counted(), (0, (0, 0)));
    assert!(is_judged(fleet.seen(&endpoint)));
    assert_eq!(counted(), (1, (0, 1)));
    assert_eq!(fleet.health.consecutive(), 9, "the service has always been in use");
}

#[test]
fn a_failure_of_before_the_service_changed_does_not_open_it_anew() {
    let fleet = fleet(2, 100, 0);
    let endpoint = endpoint(&fleet, 0);
    let is_judged = |outcome, began| fleet.record(&endpoint, &outcome, began, false);
    let closed = fleet.seen(&endpoint);
    assert!(fleet.open(fleet.health.seen(), SECOND, 1));
    fleet.clock.advance(2 * SECOND);
    let probe = fleet.enter().unwrap();
    assert!(probe.is_some());
    // What was let in finds it half-open, however soon it began.
    let half_open = fleet.seen(&endpoint);
    assert!(!is_judged(timeout(SECOND), closed));
    assert_eq!((fleet.health.consecutive(), endpoint.health.consecutive(Class::Any)), (0, 1));
    assert!(is_judged(timeout(9 * SECOND), half_open));
    // A success is of now, whenever it began.
    assert!(is_judged(answer(200), closed));
    assert!(fleet.close(fleet.health.seen()));
    assert!(!is_judged(timeout(Duration::ZERO), half_open));
    assert!(is_judged(timeout(Duration::ZERO), fleet.seen(&endpoint)));
    assert_eq!(fleet.health.consecutive(), 1);
}

#[test]
fn responses_that_break_are_a_row_although_their_heads_arrive() {
    let broken = Outcome { kind: Kind::Broken, ..answer(200) };
    for at_once in [1, 2, 3, 10] {
        let fleet = fleet(2, 100, 0);
        let endpoint = endpoint(&fleet, 0);
        let record = |outcome: &Outcome, times: u32| {
            for _ in 0..times {
                record(&fleet, &endpoint, outcome);
            }
            endpoint.health.consecutive(Class::Any)
        };
        for row in 1..=4 {
            record(&answer(200), at_once);
            assert_eq!(record(&broken, at_once), row * at_once);
        }
        // As many as have broken take back what came before them; the first that is more was well.
        record(&answer(200), at_once);
        assert_eq!(record(&answer(200), 1), 0);
        // Each that is well ends a row, and so does the end of an ejection.
        record(&broken, 1);
        record(&answer(200), 1);
        assert_eq!((record(&broken, 1), record(&answer(200), 2)), (2, 0));
        record(&broken, 1);
        assert!(eject(&fleet, 0) && fleet.restore(0, seen(&fleet, 0)));
        record(&timeout(Duration::ZERO), 1);
        assert_eq!(record(&answer(200), 1), 0);
    }
}

#[test]
fn a_response_that_was_told_at_its_end_has_no_success_to_take_back() {
    let fleet = fleet(2, 100, 0);
    let endpoint = endpoint(&fleet, 0);
    for _ in 0..9 {
        fleet.record(&endpoint, &Outcome { kind: Kind::Broken, ..answer(200) }, fleet.seen(&endpoint), false);
        assert_eq!(endpoint.health.consecutive(Class::Any), 1);
        record(&fleet, &endpoint, &answer(200));
        assert_eq!(endpoint.health.consecutive(Class::Any), 0);
    }
}

#[test]
fn an_endpoint_is_not_thought_ill_of_for_long_after_many_responses_broke_at_once() {
    let fleet = fleet(2, 100, 0);
    let endpoint = endpoint(&fleet, 0);
    for _ in 0..1_000 {
        record(&fleet, &endpoint, &Outcome { kind: Kind::Broken, ..answer(200) });
    }
    assert_eq!(endpoint.health.consecutive(Class::Any), 1_000);
    for _ in 0..=32 {
        record(&fleet, &endpoint, &answer(200));
    }
    assert_eq!(endpoint.health.consecutive(Class::Any), 0);
    // One that was a failure by its head has no success to take back.
    record(&fleet, &endpoint, &Outcome { kind: Kind::Broken, ..answer(500) });
    record(&fleet, &endpoint, &answer(200));
    assert_eq!(endpoint.health.consecutive(Class::Any), 0);
}

#[test]
fn what_an_endpoint_was_ejected_for_is_over_when_it_is_back() {
    let fleet = fleet(2, 100, 0);
    let endpoint = fleet.snapshot().endpoint(0).unwrap().clone();
    for outcome in [timeout(Duration::ZERO), answer(200), timeout(Duration::ZERO)] {
        record(&fleet, &endpoint, &outcome);
    }
    assert!(eject(&fleet, 0) && fleet.probe(0, seen(&fleet, 0), 1));
    let counted = || (endpoint.health.consecutive(Class::Any), endpoint.health.window(60, fleet.clock.now()));
    assert_eq!(counted(), (1, (1, 2)));
    assert!(fleet.restore(0, seen(&fleet, 0)));
    assert_eq!(counted(), (0, (0, 0)));
    assert_eq!(fleet.health.window(60, fleet.clock.now()), (1, 2), "the service is another matter");
}

#[test]
fn ejections_are_forgotten_in_time() {
    let fleet = fleet(2, 100, 0);
    let ejections = || fleet.snapshot().endpoint(0).unwrap().health.ejections(fleet.clock.now());
    for _ in 0..3 {
        assert!(fleet.eject(0, seen(&fleet, 0), 4 * SECOND));
    }
    assert_eq!(ejections(), 3);
    fleet.clock.advance(60 * SECOND);
    assert_eq!(ejections(), 3, "it is still out");
    assert!(fleet.restore(0, seen(&fleet, 0)));
    fleet.clock.advance(7 * SECOND);
    assert_eq!(ejections(), 2);
    fleet.clock.advance(30 * SECOND);
    assert_eq!(ejections(), 0);
}

#[test]
fn a_service_that_is_open_refuses_and_then_probes() {
    let fleet = fleet(2, 100, 0);
    assert!(fleet.enter().unwrap().is_none());
    assert!(fleet.open(fleet.health.seen(), SECOND, 1));
    assert!(!fleet.open(0, SECOND, 1), "it was seen before that");
    assert_eq!(fleet.enter().unwrap_err(), SECOND);
    fleet.clock.advance(SECOND);
    let probe = fleet.enter().unwrap();
    assert!(probe.is_some());
    assert_eq!(fleet.enter().unwrap_err(), Duration::ZERO);
    drop(probe);
    let probe = fleet.enter().unwrap();
    assert!(fleet.close(fleet.health.seen()));
    assert!(fleet.enter().unwrap().is_none());
    drop(probe);
}

#[test]
fn a_verdict_is_bounded_and_changes_nothing_that_is_so_already() {
    let fleet = fleet(2, 100, 0);
    let (hour, five_minutes) = (3_600 * SECOND, 300 * SECOND);
    assert!(fleet.eject(0, seen(&fleet, 0), Duration::MAX));
    assert_eq!(endpoint(&fleet, 0).health.ejected_until(), Some(hour));
    assert!(fleet.open(fleet.health.seen(), Duration::from_millis(u64::MAX), 1));
    assert_eq!(fleet.enter().unwrap_err(), five_minutes);

    assert!(fleet.close(fleet.health.seen()) && !fleet.close(fleet.health.seen()));
    assert!(fleet.restore(0, seen(&fleet, 0)));
    record(&fleet, &endpoint(&fleet, 0), &timeout(Duration::ZERO));
    let before = (fleet.version(), seen(&fleet, 0), fleet.health.seen());
    assert!(!fleet.restore(0, seen(&fleet, 0)) && !fleet.close(fleet.health.seen()));
    assert_eq!((fleet.version(), seen(&fleet, 0), fleet.health.seen()), before);
    assert_eq!(endpoint(&fleet, 0).health.consecutive(Class::Any), 1);
}

/// One whose check fails, or that is paused, can have no probe.
#[test]
fn one_that_nobody_would_pick_leaves_room_in_the_share() {
    let fleet = fleet(8, 10, 0);
    assert!(eject(&fleet, 0) && !eject(&fleet, 1));
    let first = endpoint(&fleet, 0);
    fleet.set_check_fails(&first, true);
    assert!(fleet.probe(0, seen(&fleet, 0), 1), "half-open is as much out as ejected");
    assert!(eject(&fleet, 1) && !eject(&fleet, 2));
    assert_eq!(eligible(&fleet), [2, 3, 4, 5, 6, 7]);
    fleet.set_endpoint_paused("10.0.0.1:80", true);
    assert!(eject(&fleet, 2) && !eject(&fleet, 3));
    // Whoever can be picked again counts again.
    fleet.set_check_fails(&first, false);
    assert!(fleet.restore(2, seen(&fleet, 2)) && !eject(&fleet, 3));
    assert!(fleet.restore(0, seen(&fleet, 0)) && eject(&fleet, 3));
}

#[test]
fn what_no_breaker_decides_the_proxy_does() {
    let fleet = fleet(4, 100, 0);
    let conditions = || [0, 1, 2, 3].map(|slot| condition(&fleet, slot));
    assert!(eject(&fleet, 0) && fleet.eject(1, seen(&fleet, 1), 3 * SECOND));
    assert!(eject(&fleet, 2) && fleet.probe(2, seen(&fleet, 2), 1));
    assert!(fleet.open(fleet.health.seen(), 2 * SECOND, 1));
    fleet.decide_natively();
    assert_eq!(conditions(), [Condition::Out, Condition::Out, Condition::InUse, Condition::InUse]);
    assert_eq!(fleet.health.condition(), Condition::Out);
    fleet.clock.advance(SECOND);
    fleet.decide_natively();
    assert_eq!(conditions(), [Condition::InUse, Condition::Out, Condition::InUse, Condition::InUse]);
    assert_eq!((eligible(&fleet), fleet.enter().unwrap_err()), (vec![0, 2, 3], SECOND));
    // It is half-open for nobody but a breaker.
    fleet.clock.advance(SECOND);
    let probe = fleet.enter().unwrap();
    assert!(probe.is_some() && fleet.enter().is_err());
    fleet.decide_natively();
    assert!(fleet.enter().unwrap().is_none());
    drop(probe);
    fleet.forget_verdicts();
    assert_eq!((conditions(), eligible(&fleet)), ([Condition::InUse; 4], vec![0, 1, 2, 3]));
    assert!(fleet.open(fleet.health.seen(), 2 * SECOND, 1));
    fleet.forget_verdicts();
    assert!(fleet.enter().unwrap().is_none());
    let version = fleet.version();
    fleet.forget_verdicts();
    fleet.decide_natively();
    assert_eq!(fleet.version(), version, "nothing has changed");
}

#[test]
fn a_service_that_is_closed_while_a_request_enters_lets_it_in() {
    let health = ServiceHealth::default();
    assert!(health.open(health.seen(), SECOND, 1, Duration::ZERO));
    let meanwhile = || {
        health.close(health.seen());
        SECOND
    };
    assert!(matches!(health.enter(meanwhile), Door::Closed));
    assert_eq!(health.condition(), Condition::InUse);
}
