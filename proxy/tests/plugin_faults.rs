//! A plugin cannot take traffic down: whatever a guest does, each request has an answer.

#![cfg(test)]

#[path = "plugin_faults/isolation.rs"]
mod isolation;
#[path = "support/plugins/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use heddle::plugin::{FaultKind, LoadError, SECOND_CHANCE};
use heddle::registry::Registered;
use heddle::server::decide::Choice;
use proptest::prelude::*;
use support::{
    Host, balancers, component, facts, guest, instead, log, module, on_many, on_path, registered, wait_until,
};

/// A host with one service of three endpoints, and the guest in force.
fn host_with(marks: &[(&str, &str)]) -> Host {
    let host = Host::with_endpoints(3);
    host.load(&guest(marks)).unwrap();
    host
}

/// Three requests that the guest fails, then one that it does not.
fn faults_of(pick: &str) -> [u64; 7] {
    let host = host_with(&[("pick", &on_path('f', pick))]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 4), [0, 1, 2, 0], "the guest's rotation");
    assert_eq!(worker.slots("/f", 3), [0, 1, 2], "the native rotation");
    assert_eq!(worker.slots("/", 2), [0, 1], "the new instance's rotation");
    let stats = worker.stats();
    assert_eq!((stats.decisions, stats.fallbacks, stats.asked_again), (6, 3, 0));
    let plugin = host.plugin("test");
    FaultKind::ALL.map(|kind| plugin.faults.get(kind))
}

#[test]
fn a_trap_costs_one_decision_a_native_fallback() {
    assert_eq!(faults_of(instead::TRAP), [3, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_call_that_takes_too_long_is_ended() {
    assert_eq!(faults_of(instead::LOOP), [0, 3, 0, 0, 0, 0, 0]);
}

#[test]
fn a_guest_that_takes_too_much_memory_is_ended() {
    assert_eq!(faults_of(instead::ALLOCATE), [0, 0, 3, 0, 0, 0, 0]);
}

#[test]
fn without_an_instance_the_proxy_decides() {
    // Its probe has no seven endpoints.
    let host = host_with(&[("update", &on_many(instead::TRAP))]);
    host.register("users", 7);
    let mut worker = host.worker("users");
    let picked: BTreeSet<u32> = worker.slots("/", 7).into_iter().collect();
    assert_eq!(picked.len(), 7);
    assert_eq!((worker.stats().decisions, worker.stats().fallbacks), (0, 7));
    assert!(host.plugin("test").current().is_none(), "nothing is there to go back to");
}

/// Issue 10, 7: a policy of which there never was a version is not decided in rotation.
#[test]
fn without_any_generation_nothing_is_decided() {
    let host = Host::with_endpoints(3);
    let mut worker = host.worker("users");
    assert!(matches!(worker.choose("/"), Choice::NoPolicy));
    assert_eq!((worker.stats().decisions, worker.stats().fallbacks), (0, 0));
    assert_eq!(host.plugins.missing().len(), 1);
    host.load(&guest(&[])).unwrap();
    assert_eq!(worker.slots("/", 2), [0, 1]);
    assert_eq!((worker.stats().decisions, worker.stats().fallbacks), (2, 0));
}

/// Issue 10, 7: after another generation has come into force, its instance is made ahead of the request that needs it.
#[test]
fn instances_are_made_ahead_of_the_request() {
    let host = host_with(&[]);
    let mut replaced = host.plugins.replaced();
    let mut worker = host.worker("users");
    worker.decider.seat.renew();
    assert!(worker.decider.seat.instance().is_none(), "nobody has used it");
    worker.slots("/", 1);
    let next = host.load(&guest(&[("pick", instead::DECLINE)])).unwrap();
    assert!(replaced.has_changed().unwrap(), "workers are told");
    replaced.mark_unchanged();
    worker.decider.seat.renew();
    assert_eq!(worker.decider.seat.instance().unwrap().generation().number, next.number);
}

#[test]
fn a_slot_that_cannot_be_used_is_asked_for_again_and_then_chosen_natively() {
    let host = host_with(&[("pick", &on_path('f', instead::NONSENSE))]);
    let mut worker = host.worker("users");
    let mut asked = facts("/f");
    let Choice::Endpoint(picked) = worker.decider.choose(&mut asked) else { panic!("an endpoint is there") };
    assert_eq!(picked.endpoint.slot, 0);
    assert_eq!(asked.tried, [u32::MAX - 6; 3], "the policy was told");
    let stats = worker.stats();
    assert_eq!((stats.decisions, stats.asked_again, stats.fallbacks), (3, 3, 1));
    for _ in 0..100 {
        worker.slot("/f");
    }
    let plugin = host.plugin("test");
    assert!(FaultKind::ALL.iter().all(|kind| plugin.faults.get(*kind) == 0), "that is no fault");
    assert_eq!(worker.slots("/", 3), [0, 1, 2], "the instance is the same");
}

#[test]
fn a_second_answer_that_can_be_used_is_used() {
    // Slot 1 is registered and not eligible: the rotation passes over it when asked again.
    let host = host_with(&[]);
    let mut out = registered(1);
    out.weight = 0;
    host.change("users", &[registered(1).id], vec![out]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 4), [0, 2, 0, 2]);
    assert_eq!((worker.stats().asked_again, worker.stats().fallbacks), (2, 0));
    // A slot that the request has tried is passed over as well.
    let mut tried = facts("/");
    tried.tried = vec![0];
    let Choice::Endpoint(picked) = worker.decider.choose(&mut tried) else { panic!("an endpoint is there") };
    assert_eq!(picked.endpoint.slot, 2);
    assert_eq!(worker.stats().fallbacks, 0);
}

#[test]
fn a_policy_may_decline_and_a_service_may_have_nobody() {
    let host = host_with(&[("pick", &on_path('f', instead::DECLINE))]);
    let mut worker = host.worker("users");
    assert!(matches!(worker.choose("/f"), Choice::Declined));
    assert!(matches!(worker.choose("/"), Choice::Endpoint(_)));
    let all: Vec<String> = (0..3).map(|n| registered(n).id).collect();
    host.change("users", &all, Vec::new());
    assert!(matches!(worker.choose("/"), Choice::NoneEligible));
    assert_eq!(worker.stats().fallbacks, 0);
}

#[test]
fn repeated_faults_over_all_workers_bring_the_last_good_generation_back() {
    let host = host_with(&[]);
    let mut workers: Vec<_> = (0..4).map(|_| host.worker("users")).collect();
    let good = host.plugin("test").current().unwrap();
    for worker in &mut workers {
        worker.slot("/f");
    }
    host.load(&guest(&[("pick", &on_path('f', instead::TRAP))])).unwrap();
    for (faults, worker) in workers.iter_mut().enumerate() {
        assert_ne!(host.plugin("test").current().unwrap().number, good.number, "{faults} of 4 faults so far");
        worker.slot("/f");
    }
    assert_eq!(host.plugin("test").current().unwrap().number, good.number);
    assert_eq!(host.plugin("test").incidents(), (1, 0));
    for worker in &mut workers {
        let before = worker.stats().fallbacks;
        assert_eq!(worker.slots("/f", 3), [0, 1, 2]);
        assert_eq!(worker.stats().fallbacks, before);
    }
}

#[test]
fn two_bad_generations_in_a_row_leave_the_good_one_to_go_back_to() {
    let host = host_with(&[]);
    let mut worker = host.worker("users");
    let good = host.plugin("test").current().unwrap();
    worker.slot("/");
    host.load(&guest(&[("pick", &on_path('f', instead::TRAP))])).unwrap();
    worker.slot("/f");
    host.load(&guest(&[("pick", &on_path('f', instead::ALLOCATE))])).unwrap();
    host.load(&guest(&[("pick", &on_path('f', instead::LOOP))])).unwrap();
    worker.slots("/f", 4);
    assert_eq!(host.plugin("test").current().unwrap().number, good.number);
}

#[test]
fn a_change_that_takes_too_long_is_not_tried_four_times() {
    let host = host_with(&[]);
    host.worker("users").slot("/");
    let good = host.plugin("test").current().unwrap();
    host.register("users", 7);
    host.load(&guest(&[("update", &on_many(instead::LOOP))])).unwrap();
    host.worker("users").slot("/");
    assert_eq!(host.plugin("test").current().unwrap().number, good.number);
}

#[test]
fn with_nothing_behind_it_a_plugin_has_a_second_chance_later() {
    let host = host_with(&[("pick", &on_path('f', instead::TRAP))]);
    let generation = host.plugin("test").current().unwrap();
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/f", 4), [0, 1, 2, 0]);
    assert!(host.plugin("test").current().is_none());
    assert_eq!(worker.slots("/", 2), [1, 2], "the native rotation goes on");
    host.plugins.second_chances(Instant::now());
    assert!(host.plugin("test").current().is_none(), "it is too early");
    host.plugins.second_chances(Instant::now() + SECOND_CHANCE);
    assert_eq!(host.plugin("test").current().unwrap().number, generation.number);
    assert_eq!(worker.slots("/", 2), [0, 1], "the guest's rotation");
    worker.slot("/f");
    assert!(host.plugin("test").current().is_some(), "its faults of before are forgiven");
}

#[test]
fn a_trap_in_one_service_leaves_the_rotation_of_another_alone() {
    let host = Host::new("", "[service.users]\nbalancer = \"test\"\n[service.carts]\nbalancer = \"test\"\n");
    host.register("users", 3);
    host.register("carts", 3);
    host.load(&guest(&[("pick", &on_path('f', instead::TRAP))])).unwrap();
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    assert_eq!((users.slots("/", 2), carts.slots("/", 2)), (vec![0, 1], vec![0, 1]));
    users.slot("/f");
    assert_eq!(carts.slots("/", 2), [2, 0], "goes on where it was");
    assert_eq!(users.slots("/", 2), [0, 1], "starts anew");
    assert_eq!((carts.stats().fallbacks, users.stats().fallbacks), (0, 1));
}

#[test]
fn another_generation_takes_over_at_the_next_request() {
    let host = host_with(&[]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 2), [0, 1]);
    host.load(&guest(&[("pick", "(return (call $answer (i32.const 2)))")])).unwrap();
    assert_eq!(worker.slots("/", 2), [2, 2]);
    assert_eq!(worker.stats().fallbacks, 0);
}

#[test]
fn an_idle_instance_is_dropped_and_made_again() {
    let host = host_with(&[]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 2), [0, 1]);
    worker.decider.seat.evict_unless_used();
    assert_eq!(worker.slots("/", 1), [2], "it was in use");
    worker.decider.seat.evict_unless_used();
    worker.decider.seat.evict_unless_used();
    assert!(!worker.decider.seat.needs_instance(), "not before a request asks for it");
    assert_eq!(worker.slots("/", 2), [0, 1]);
}

#[test]
fn a_service_that_is_not_asked_for_keeps_no_old_generation() {
    let host = host_with(&[]);
    let (mut worker, mut silent) = (host.worker("users"), host.worker("users"));
    worker.slot("/");
    silent.slot("/");
    let old = Arc::downgrade(&host.plugin("test").current().unwrap());
    for slot in ["1", "2"] {
        host.load(&guest(&[("pick", &format!("(return (call $answer (i32.const {slot})))"))])).unwrap();
        worker.slot("/");
    }
    assert!(old.upgrade().is_some(), "the other worker still has it");
    silent.decider.seat.drop_outdated();
    assert!(old.upgrade().is_none());
    assert!(!silent.decider.seat.needs_instance(), "not before a request asks for it");
    assert_eq!(silent.slots("/", 2), [2, 2]);
    silent.decider.seat.drop_outdated();
    assert_eq!(silent.stats().fallbacks, 0);
}

/// Why content is not taken.
fn refusal(host: &Host, bytes: &[u8]) -> String {
    host.load(bytes).unwrap_err().to_string()
}

#[test]
fn what_is_refused_replaces_nothing_and_says_why() {
    let host = host_with(&[]);
    let good = host.plugin("test").current().unwrap();
    let whole = guest(&[]);
    let imports = module("(module (import \"env\" \"read\" (func)))", "retry-policy");
    let wrong_import =
        wat::parse_str("(component (import \"host:files/read@1.0.0\" (instance (export \"read\" (func)))))").unwrap();
    let refused: [(&str, &[u8], &str); 13] = [
        ("no WebAssembly", b"#!/bin/sh\n", "not WebAssembly"),
        ("nothing", b"", "not WebAssembly"),
        ("half a module", &whole[..whole.len() / 2], "cannot be made a component: cut short"),
        ("half a component", &component(&whole)[..2_000], "does not compile: cut short"),
        ("no description", &wat::parse_str("(module)").unwrap(), "no component-type section"),
        ("an import of nobody's", &imports, "env"),
        ("an import of nobody's, in a component", &wrong_import, "host:files/read@1.0.0"),
        ("another contract", &module(include_str!("guests/retry.wat"), "retry-policy"), "balancer"),
        ("a refusal", &guest(&[("configure", instead::REFUSE)]), "guests must not be told that"),
        ("a trap in pick", &guest(&[("pick", instead::TRAP)]), "trap"),
        ("a loop in pick", &guest(&[("pick", instead::LOOP)]), "deadline"),
        ("a loop in configure", &guest(&[("configure", instead::LOOP)]), "deadline"),
        ("a loop in update", &guest(&[("update", instead::LOOP)]), "deadline"),
    ];
    for (what, bytes, why) in refused {
        let said = refusal(&host, bytes);
        assert!(said.contains(why), "{what}: {said}");
    }
    assert_eq!(host.plugin("test").current().unwrap().number, good.number);
    assert_eq!(host.plugin("test").incidents(), (0, 13));
    assert_eq!(host.worker("users").slots("/", 3), [0, 1, 2]);
}

#[test]
fn a_refusal_of_any_length_fits_a_line() {
    let host = host_with(&[]);
    let said = refusal(&host, &guest(&[("configure", instead::REFUSE_AT_LENGTH)]));
    assert!(said.len() < 2_000, "{} bytes", said.len());
}

/// A guest that loops must not outlive the clock that ends it: with a long time for changes beside a short one for
/// decisions, many ticks pass within one call.
#[test]
fn the_longest_call_is_ended_too() {
    let host = Host::new("decision = \"5ms\"\nchange = \"600ms\"", "[service.users]\nbalancer = \"test\"\n");
    let error = host.load(&guest(&[("configure", instead::LOOP)])).unwrap_err();
    let LoadError::Probe { fault, .. } = error else { panic!("{error}") };
    assert_eq!(fault.kind, FaultKind::Deadline);
}

#[test]
fn time_stands_still_within_a_decision() {
    // Slot 1 when two looks at the clock, with much work between them, differ.
    let look = "(global.set $note (i32.wrap_i64 (call $now)))
        (global.set $last (i32.const 100000))
        (loop $work
          (global.set $last (i32.sub (global.get $last) (i32.const 1)))
          (br_if $work (global.get $last)))
        (return (call $answer (i32.ne (global.get $note) (i32.wrap_i64 (call $now)))))";
    let host = host_with(&[("pick", look)]);
    assert_eq!(host.worker("users").slots("/", 5), [0; 5]);
}

#[test]
fn time_passes_between_decisions() {
    // Slot 1 when the clock reads the same as at the first decision.
    let look = "(if (i32.eqz (global.get $note)) (then (global.set $note (i32.wrap_i64 (call $now)))))
        (return (call $answer (i32.eq (global.get $note) (i32.wrap_i64 (call $now)))))";
    let host = host_with(&[("pick", look)]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slot("/"), 1);
    wait_until("time passes", || worker.slot("/") == 0);
}

#[test]
fn there_are_no_facts_outside_a_decision() {
    // Slot 2 when there is a path in `configure`, `update` or `eligible`, else slot 1 when there is one in `pick`.
    let look =
        "(call $path (i32.const 48)) (global.set $note (i32.or (global.get $note) (i32.load8_u (i32.const 48))))";
    let pick = "(call $path (i32.const 48))
        (if (global.get $note) (then (return (call $answer (i32.const 2)))))
        (return (call $answer (i32.load8_u (i32.const 48))))";
    let host = host_with(&[("configure", look), ("update", look), ("eligible", look), ("pick", pick)]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 2), [1, 1]);
    host.register("users", 4);
    assert_eq!(worker.slots("/", 2), [1, 1], "the request of before is no fact");
}

#[test]
fn a_guest_logs_ten_lines_a_second_and_no_more() {
    let log = log();
    let line = "(call $write (i32.const 2) (i32.const 64) (i32.const 28))";
    let host = host_with(&[("pick", &on_path('l', &line.repeat(50)))]);
    let (mut users, mut others) = (host.worker("users"), host.worker("users"));
    let start = Instant::now();
    users.slots("/l", 20);
    others.slots("/l", 20);
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap() + 2;
    let lines = log.lines(&["guests must not be told that", "policy=test", "service=users", "INFO"]).len();
    assert!((10..=10 * seconds).contains(&lines), "{lines} lines of one policy in {seconds} s, over two workers");
}

#[test]
fn what_a_guest_hands_over_is_bounded() {
    // Two megabytes for a line of the log.
    let line = "(drop (memory.grow (i32.const 31))) (call $write (i32.const 2) (i32.const 64) (i32.const 2000000))";
    let host = host_with(&[("pick", &on_path('f', line))]);
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/f", 3), [0, 1, 2]);
    assert_eq!(host.plugin("test").faults.get(FaultKind::Trap), 3);
}

/// Ten thousand endpoints arrive at once and then come and go: the guest is told within its time.
#[test]
fn ten_thousand_endpoints_come_and_go() {
    let host = Host::new("", "[service.users]\nbalancer = \"round-robin\"\n");
    host.plugins.load_builtin().unwrap();
    host.register("users", 10_000);
    let mut worker = host.worker("users");
    let picked: BTreeSet<u32> = worker.slots("/", 10_000).into_iter().collect();
    assert_eq!(picked.len(), 10_000, "each has its turn");
    for round in 0..20 {
        let gone: Vec<String> = (0..500).map(|n| registered(round * 500 + n).id).collect();
        host.change("users", &gone, Vec::new());
        let picked: BTreeSet<u32> = worker.slots("/", 9_500).into_iter().collect();
        assert_eq!(picked.len(), 9_500, "each of those left has its turn");
        host.change("users", &[], (0..500).map(|n| registered(round * 500 + n)).collect());
    }
    assert_eq!((worker.stats().fallbacks, worker.stats().asked_again), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes between the requests of two workers, each built-in balancer picks what may be picked,
    /// and the proxy never has to decide in its stead.
    #[test]
    fn decisions_stay_right_while_endpoints_come_and_go(
        steps in prop::collection::vec((0_usize..40, prop::option::of(0_u32..4), 0_usize..6), 1..40),
    ) {
        let names = balancers();
        let services: String = names.iter().map(|name| format!("[service.{name}]\nbalancer = \"{name}\"\n")).collect();
        // Made once: compiling all of them takes longer than all cases.
        static HOST: OnceLock<Host> = OnceLock::new();
        let host = HOST.get_or_init(|| {
            let host = Host::new("", &services);
            host.plugins.load_builtin().unwrap();
            host
        });
        for name in names {
            let service = host.service(name);
            let before: Vec<String> = service.snapshot().endpoints().map(|e| e.registered.id.clone()).collect();
            host.change(name, &before, Vec::new());
            let earlier = service.stats();
            let mut workers = [host.worker(name), host.worker(name)];
            for (number, weight, requests) in &steps {
                let endpoint = registered(*number);
                let id = endpoint.id.clone();
                let added = weight.map(|weight| Registered { weight, ..endpoint });
                host.change(name, &[id], added.into_iter().collect());
                let snapshot = service.snapshot();
                for request in 0..*requests {
                    match workers[request % 2].choose(&format!("/{number}/{request}")) {
                        Choice::Endpoint(picked) => {
                            let eligible = snapshot.eligible_endpoint(picked.endpoint.slot);
                            prop_assert!(eligible.is_some_and(|e| Arc::ptr_eq(e, &picked.endpoint)));
                        }
                        Choice::NoneEligible => prop_assert_eq!(snapshot.eligible_count(), 0),
                        Choice::AllFull => prop_assert!(false, "{} is full", name),
                        Choice::Declined | Choice::NoPolicy => prop_assert!(false, "{} declined", name),
                    }
                }
            }
            let stats = service.stats();
            prop_assert_eq!(stats.fallbacks, earlier.fallbacks, "{}", name);
            prop_assert_eq!(stats.asked_again, earlier.asked_again, "{}", name);
        }
    }
}
