//! What one service does to a policy costs that service alone (issue 10, 8 and 9).

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use heddle::plugin::{Fault, FaultKind, Origin, SECOND_CHANCE, builtin_policy};
use heddle::policy::Facts;
use heddle::registry::Registered;
use heddle::server::decide::Choice;
use tempfile::TempDir;

use super::support::host::Local;
use super::support::process::{Client, Proxy, serve};
use super::support::{Host, facts, guest, instead, log, module, on_many, on_path, registered, wait_until};

/// Services of these names with the balancer `test`, and so many endpoints each.
fn host_of(services: &[(&str, usize)]) -> Host {
    let text: String = services.iter().map(|(name, _)| format!("[service.{name}]\nbalancer = \"test\"\n")).collect();
    let host = Host::new("", &text);
    for (name, endpoints) in services {
        host.register(name, *endpoints);
    }
    host
}

fn fallbacks(worker: &Local) -> u64 {
    worker.stats().fallbacks
}

/// Issue 10, 8: where a service's endpoints make a policy trap, that service goes without it, and no other does.
#[test]
fn a_services_data_takes_the_policy_from_that_service_alone() {
    let host = host_of(&[("users", 7), ("carts", 3), ("idle", 3)]);
    let generation = host.load(&guest(&[("update", &on_many(instead::TRAP))])).unwrap();
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    // Before the other service has had a decision: nothing speaks for the policy yet, and nothing against it elsewhere.
    users.slots("/", 10);
    let plugin = host.plugin("test");
    assert_eq!((plugin.incidents(), plugin.service_quarantines()), ((0, 0), 1));
    assert_eq!(plugin.current().unwrap().number, generation.number);
    assert_eq!((plugin.faults.get(FaultKind::Trap), fallbacks(&users)), (4, 10));
    assert_eq!(carts.slots("/", 4), [0, 1, 2, 0], "the guest's rotation");
    assert_eq!(fallbacks(&carts), 0);
    let quarantines = plugin.quarantines();
    assert_eq!(quarantines.len(), 1);
    assert_eq!((quarantines[0].service.as_deref(), quarantines[0].instead), (Some("users"), None));
    assert!(quarantines[0].cause.starts_with("trap: update: "), "{}", quarantines[0].cause);

    // Its data may be others later.
    let gone: Vec<String> = (3..7).map(|n| registered(n).id).collect();
    host.change("users", &gone, Vec::new());
    host.plugins.second_chances(Instant::now());
    users.slots("/", 3);
    assert_eq!(fallbacks(&users), 13, "it is too early");
    host.plugins.second_chances(Instant::now() + SECOND_CHANCE);
    assert!(plugin.quarantines().is_empty());
    users.slots("/", 3);
    assert_eq!((fallbacks(&users), carts.slots("/", 2)), (13, vec![1, 2]));
}

/// Issue 10, 8: the service at fault has the last good generation, the others stay with the new one.
#[test]
fn the_service_at_fault_goes_back_to_the_last_good_generation() {
    let host = host_of(&[("users", 3), ("carts", 3)]);
    let good = host.load(&guest(&[])).unwrap();
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    users.slots("/", 1);
    carts.slots("/", 1);
    let pick = format!("{} (return (call $answer (i32.const 2)))", on_path('f', instead::TRAP));
    let newer = host.load(&guest(&[("pick", &pick)])).unwrap();
    assert_eq!(carts.slots("/", 2), [2, 2]);
    users.slots("/f", 4);
    assert_eq!(users.slots("/f", 3), [0, 1, 2], "the good one's rotation");
    assert_eq!((carts.slots("/", 2), fallbacks(&users)), (vec![2, 2], 4));
    let plugin = host.plugin("test");
    assert_eq!(plugin.current().unwrap().number, newer.number);
    assert_eq!(plugin.quarantines()[0].instead, Some(good.number));
}

/// Issue 10, 8: a policy that fails for two services and is right for none is out of use for all.
#[test]
fn what_is_right_for_nobody_is_taken_from_all() {
    let host = host_of(&[("users", 3), ("carts", 3), ("idle", 3)]);
    let good = host.load(&guest(&[])).unwrap();
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    users.slots("/", 1);
    carts.slots("/", 1);
    host.load(&guest(&[("pick", &on_path('f', instead::TRAP))])).unwrap();
    users.slots("/f", 4);
    assert_eq!(host.plugin("test").incidents(), (0, 0), "one of them may have itself to blame");
    carts.slots("/f", 4);
    let plugin = host.plugin("test");
    assert_eq!((plugin.incidents(), plugin.current().unwrap().number), ((1, 0), good.number));
    let of_all = plugin.quarantines().into_iter().find(|quarantine| quarantine.service.is_none()).unwrap();
    assert_eq!(of_all.instead, Some(good.number));
    assert_eq!(host.worker("idle").slots("/f", 3), [0, 1, 2]);
}

/// Issue 10, 8: a service that the policy serves well speaks for it, however many others it fails for.
#[test]
fn a_service_that_is_served_keeps_the_policy() {
    let host = host_of(&[("users", 7), ("orders", 7), ("bills", 7), ("carts", 3)]);
    let generation = host.load(&guest(&[("update", &on_many(instead::ALLOCATE))])).unwrap();
    let mut carts = host.worker("carts");
    carts.slots("/", 1);
    for service in ["users", "orders", "bills"] {
        host.worker(service).slots("/", 6);
    }
    let plugin = host.plugin("test");
    assert_eq!((plugin.incidents(), plugin.service_quarantines()), ((0, 0), 3));
    assert_eq!(plugin.current().unwrap().number, generation.number);
    assert_eq!((carts.slots("/", 3), fallbacks(&carts)), (vec![1, 2, 0], 0));
}

/// Issue 10, 8, as it was found: 60 keys with 1.15 MB of metadata put `leader` out of use for every service.
#[test]
fn sixty_megabytes_of_metadata_leave_every_leader_in_place() {
    let host = Host::new("", "[service.users]\nbalancer = \"leader\"\n[service.carts]\nbalancer = \"leader\"\n");
    host.plugins.load_builtin().unwrap();
    let blob = "x".repeat(1_150_000);
    let large = (0..60).map(|n| {
        let mut metadata = vec![("note".to_owned(), blob.clone())];
        if n == 41 {
            metadata.push(("role".to_owned(), "master".to_owned()));
        }
        Registered { metadata, ..registered(n) }
    });
    host.change("users", &[], large.collect());
    host.register("carts", 3);
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    assert_eq!((users.slots("/", 5), carts.slots("/", 5)), (vec![41; 5], vec![0; 5]));
    let plugin = host.plugin("leader");
    assert!(FaultKind::ALL.iter().all(|kind| plugin.faults.get(*kind) == 0));
    assert_eq!((fallbacks(&users), fallbacks(&carts)), (0, 0));
    let fleet = &users.service.fleet;
    assert_eq!(fleet.metadata_dropped(), 60, "and each is said to be dropped");
    assert!(fleet.snapshot().endpoints().all(|endpoint| endpoint.policy_view.dropped() == 1));
    assert_eq!(carts.service.fleet.metadata_dropped(), 0);
}

/// Metadata of a service with many endpoints is bounded as a whole, and what is gone makes room.
#[test]
fn all_metadata_of_a_service_fit_its_guests() {
    let host = Host::new("", "[service.users]\nbalancer = \"leader\"\n");
    host.plugins.load_builtin().unwrap();
    let tiny = |n: usize| {
        let metadata = (0..256).map(|m| (format!("{m:03}"), "x".repeat(60))).collect();
        Registered { metadata, ..registered(n) }
    };
    host.change("users", &[], (0..4_000).map(tiny).collect());
    let mut users = host.worker("users");
    assert_eq!((users.slots("/", 3), fallbacks(&users)), (vec![0; 3], 0));
    let dropped = |worker: &Local| {
        let snapshot = worker.service.snapshot();
        snapshot.endpoints().filter(|endpoint| endpoint.policy_view.dropped() > 0).count()
    };
    assert!((3_000..4_000).contains(&dropped(&users)), "{}", dropped(&users));
    host.change("users", &(0..4_000).map(|n| registered(n).id).collect::<Vec<_>>(), (0..100).map(tiny).collect());
    assert_eq!((dropped(&users), users.slots("/", 1), fallbacks(&users)), (0, vec![0], 0));
}

/// Puts a built-in policy out of use for all services.
fn condemn(host: &Host, policy: &str) {
    let plugin = host.plugin(policy);
    let generation = plugin.current().unwrap();
    plugin.fault(&generation, &Fault { kind: FaultKind::Trap, cause: "by the test".into(), weight: usize::MAX });
    assert!(plugin.current().is_none());
}

/// A request for this path by a client of this number, with what keys are made of.
fn request(number: u8) -> Facts {
    let mut facts =
        Facts { client: IpAddr::V4(Ipv4Addr::new(10, 9, 8, number)), ..facts(&format!("/p/{number}?user={number}")) };
    facts.head.headers.insert("x-user", format!("user {number}").parse().unwrap());
    facts.head.headers.insert("cookie", format!("a=1; session=s{number}").parse().unwrap());
    facts
}

/// Issue 10, 8: while a policy that promises an endpoint is out of use, the proxy picks the same endpoint by itself.
#[test]
fn without_its_policy_a_request_goes_where_it_went_before() {
    let policies = [
        "balancer = \"leader\"",
        "balancer = { plugin = \"leader\", mark = \"zone=b\" }",
        "balancer = \"url-hash\"",
        "balancer = { plugin = \"url-hash\", by = \"url\" }",
        "balancer = { plugin = \"url-hash\", by = \"query:user\" }",
        "balancer = \"ip-hash\"",
        "balancer = { plugin = \"ip-hash\", by = \"header:x-user\" }",
        "balancer = { plugin = \"ip-hash\", by = \"cookie:session\" }",
        "balancer = \"maglev\"",
        "balancer = { plugin = \"maglev\", by = \"path\" }",
    ];
    for policy in policies {
        let host = Host::new("", &format!("[service.users]\n{policy}\n"));
        host.plugins.load_builtin().unwrap();
        let endpoints = (0..20).map(|n| Registered {
            weight: [1, 3, 1, 0, 2][n % 5],
            order: 100 - n as u64,
            metadata: vec![("zone".to_owned(), ["a", "b"][usize::from(n == 7)].to_owned())],
            ..registered(n)
        });
        host.change("users", &[], endpoints.collect());
        let mut worker = host.worker("users");
        let mut picks = || -> Vec<u32> {
            let mut slot = |mut facts: Facts| match worker.decider.choose(&mut facts) {
                Choice::Endpoint(picked) => picked.endpoint.slot,
                other => panic!("{policy}: {other:?}"),
            };
            let first: Vec<u32> = (0..200).map(|number| slot(request(number))).collect();
            // What has been tried is passed over, by the same rule.
            let again = first.iter().zip(0..).map(|(tried, number)| Facts { tried: vec![*tried], ..request(number) });
            let second: Vec<u32> = again.map(slot).collect();
            [first, second].concat()
        };
        let by_policy = picks();
        let name = host.service("users").balancer.name.clone();
        condemn(&host, &name);
        let natively = picks();
        assert_eq!(
            (by_policy == natively, worker.stats().fallbacks),
            (true, 400),
            "{policy}: {by_policy:?} {natively:?}"
        );
    }
}

/// Issue 10, 8: a file under such a name, with settings that only it knows, has no stand-in: requests are refused.
#[test]
fn what_cannot_be_kept_natively_is_refused() {
    let host = Host::new("", "[service.users]\nbalancer = { plugin = \"leader\", lease = \"5s\" }\n");
    host.register("users", 3);
    let trapping = guest(&[("pick", &on_path('f', instead::TRAP))]);
    host.plugins.load("leader", &trapping, Origin::File("leader.wasm".into())).unwrap();
    let mut worker = host.worker("users");
    assert_eq!(worker.slots("/", 2), [0, 1]);
    assert!(matches!(worker.choose("/f"), Choice::NoPolicy));
    assert_eq!((worker.stats().fallbacks, worker.slots("/", 1)), (0, vec![0]), "a new instance");
}

/// A file that overrides `leader` and fails leaves the leader in its place, from the first fault on.
#[test]
fn an_override_at_fault_sends_nothing_elsewhere() {
    let host = Host::new("", "[service.users]\nbalancer = \"leader\"\n[service.carts]\nbalancer = \"leader\"\n");
    for service in ["users", "carts"] {
        host.register(service, 3);
    }
    let trapping = guest(&[("pick", instead_of_all(&on_path('f', instead::TRAP)).as_str())]);
    host.plugins.load("leader", &trapping, Origin::File("leader.wasm".into())).unwrap();
    let mut users = host.worker("users");
    assert_eq!(users.slots("/f", 20), [0; 20]);
    assert_eq!(users.stats().fallbacks, 20);
    assert!(builtin_policy("leader").is_some());
}

/// A guest that picks slot 0 after this.
fn instead_of_all(before: &str) -> String {
    format!("{before} (return (call $answer (i32.const 0)))")
}

/// A loop of so many rounds, for requests whose path begins so.
fn burn(letter: char, rounds: u32) -> String {
    let burn = format!(
        "(global.set $note (i32.const {rounds}))
         (loop $work
           (global.set $note (i32.sub (global.get $note) (i32.const 1)))
           (br_if $work (global.get $note)))"
    );
    on_path(letter, &burn)
}

/// Issue 10, 9: beyond its share a service is decided for natively until the second is over, which is no fault of the
/// policy; the other service keeps it.
#[test]
fn a_service_that_takes_too_much_time_waits_for_the_next_second() {
    let host = host_of(&[("users", 3), ("carts", 3)]);
    let generation = host.load(&guest(&[("pick", &burn('b', 2_000_000))])).unwrap();
    let (mut users, mut carts) = (host.worker("users"), host.worker("carts"));
    let plugin = host.plugin("test");
    let shares = || plugin.faults.get(FaultKind::Share);
    // Alone it may take all the time that there is.
    let start = Instant::now();
    while start.elapsed().as_millis() < 1_500 {
        users.slot("/b");
    }
    assert_eq!(shares(), 0);
    wait_until("its share is used up", || {
        carts.slot("/");
        users.slot("/b");
        shares() > 0
    });
    let decided = users.stats().decisions;
    users.slots("/b", 50);
    assert_eq!(fallbacks(&users), shares(), "each decision of this kind is counted");
    wait_until("another second begins", || {
        users.slot("/");
        users.stats().decisions > decided
    });
    assert_eq!((fallbacks(&carts), plugin.incidents(), plugin.service_quarantines()), (0, (0, 0), 0));
    assert_eq!(plugin.current().unwrap().number, generation.number);
    assert_eq!(plugin.faults.get(FaultKind::Deadline), 0);
}

/// Issue 10, 9: guests have a total. Who would have more than is left goes without, nobody is condemned for it, and there is
/// room for others.
#[test]
fn all_guests_share_a_total_of_memory() {
    let services = "[service.users]\nbalancer = \"test\"\n[service.carts]\nbalancer = \"test\"\n";
    let host = Host::new("memory = \"16MiB\"\nmemory_total = \"16MiB\"", services);
    host.register("users", 3);
    host.register("carts", 3);
    // 15 MiB, once.
    let grow = "(if (i32.eqz (global.get $note)) (then
        (global.set $note (i32.const 1))
        (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then (unreachable)))))";
    host.load(&guest(&[("pick", &on_path('m', grow))])).unwrap();
    let plugin = host.plugin("test");
    let mut workers: Vec<Local> = (0..6).map(|_| host.worker("users")).collect();
    for worker in &mut workers {
        worker.slots("/m", 2);
    }
    // 4 MiB each: two, of the 8 that one service may have; the others, and those that follow them, are decided natively.
    let total = plugin.faults.get(FaultKind::MemoryTotal);
    assert!(total >= 4, "{total}");
    assert!(host.plugins.engine().guest_memory() <= 16 << 20);
    let mut carts = host.worker("carts");
    carts.slots("/m", 3);
    assert_eq!(fallbacks(&carts), 0, "another service finds room");
    assert_eq!((plugin.incidents(), plugin.service_quarantines()), ((0, 0), 0));
    let before = fallbacks(&workers[0]);
    drop(workers);
    let mut users = host.worker("users");
    users.slots("/m", 3);
    assert_eq!((fallbacks(&users), plugin.faults.get(FaultKind::MemoryTotal)), (before, total), "there is room again");
}

/// Issue 10, 17: a fault names the call and the budget that was exceeded, and a trap hides no loop and no allocation.
#[test]
fn fault_lines_name_the_budget_and_hide_none_of_another_kind() {
    let log = log();
    let host = Host::new("faults = 100", "[service.lines]\nbalancer = \"test\"\n");
    host.register("lines", 3);
    let pick = [on_path('t', instead::TRAP), on_path('o', instead::LOOP), on_path('a', instead::ALLOCATE)].concat();
    host.load(&guest(&[("pick", &pick)])).unwrap();
    let mut worker = host.worker("lines");
    for path in ["/t", "/t", "/o", "/a", "/t"] {
        worker.slot(path);
    }
    let line = |part: &str| log.lines(&["service=lines", part]);
    assert_eq!(line("trap: pick: ").len(), 1, "{:?}", line(""));
    assert_eq!(line("deadline: pick took more than 10ms of CPU time (plugins.decision)").len(), 1, "{:?}", line(""));
    assert_eq!(line("memory: pick took more than 64 MiB of memory (plugins.memory)").len(), 1, "{:?}", line(""));
}

/// Issue 10, 17: what a file is called begins no line of the log.
#[test]
fn a_files_name_breaks_no_line() {
    let origin = Origin::File("plugins/a\nERROR forged\u{1b}[31m.wasm".into());
    assert_eq!(origin.to_string(), "plugins/a\\nERROR forged\\u{1b}[31m.wasm");
}

/// Issue 10, 9, as it was found: 6 ms a pick and 20 clients, in the real process with one worker. What another service's
/// requests take is printed; what is asserted is that the share is enforced and nobody is condemned for the load.
#[test]
fn others_are_served_while_one_service_uses_up_its_share() {
    let folder = TempDir::new().unwrap();
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins).unwrap();
    fs::write(plugins.join("heavy.wasm"), guest(&[("pick", &burn('b', 3_000_000))])).unwrap();
    let endpoint = serve().to_string();
    let config = folder.path().join("heddle.toml");
    let text = format!(
        "workers = 1\nplugins = \"plugins\"\nadmin = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [service.users]\nbalancer = \"heavy\"\nendpoints = [{endpoint:?}]\n\
         [service.carts]\nbalancer = \"round-robin\"\nendpoints = [{endpoint:?}]\n"
    );
    fs::write(&config, text).unwrap();
    let proxy = Proxy::start(&config);
    let address = proxy.address;
    let median = || {
        let mut client = Client::new(address);
        let mut times: Vec<Duration> = (0..300)
            .map(|_| {
                let start = Instant::now();
                client.get("carts", "/").unwrap();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[150]
    };
    wait_until("the heavy policy is loaded", || Client::new(address).get("users", "/b").is_ok());
    let idle = median();
    let beside = |path: &str, begun: &dyn Fn()| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let mut client = Client::new(address);
                    while !stop.load(Relaxed) {
                        client.get("users", path).unwrap();
                    }
                });
            }
            wait_until("another service asks", || Client::new(address).get("carts", "/").is_ok());
            begun();
            let median = median();
            stop.store(true, Relaxed);
            median
        })
    };
    let light = beside("/", &|| {});
    let heavy = beside("/b", &|| drop(proxy.wait_for_line("share: the service's decisions took")));
    println!(
        "median of another service: {idle:?} alone, {light:?} and {heavy:?} beside 20 clients of light and heavy picks"
    );
    let lines = proxy.stop();
    assert!(!lines.iter().any(|line| line.contains("in quarantine") || line.contains("deadline: ")), "{lines:#?}");
}

/// Issue 10, 8: retry policies and breakers are taken from one service too, which then goes without them.
#[test]
fn retry_policies_and_breakers_are_taken_from_one_service_too() {
    let trapping = [
        ("retry", module(include_str!("../guests/trapping_retry.wat"), "retry-policy")),
        ("breaker", module(include_str!("../guests/trapping_breaker.wat"), "circuit-breaker")),
    ];
    for (role, guest) in trapping {
        let services = format!("[service.users]\n{role} = \"test\"\n[service.carts]\n{role} = \"test\"\n");
        let host = Host::new("", &services);
        let generation = host.load(&guest).unwrap();
        let plugin = host.plugin("test");
        let [users, carts] = ["users", "carts"].map(|name| plugin.usage(&host.service(name).fleet.name));
        let fault = Fault { kind: FaultKind::Trap, cause: "by the test".into(), weight: 4 };
        plugin.fault_for(&users, &generation, &fault);
        assert!(plugin.generation_for(&users).is_none() && plugin.generation_for(&carts).is_some(), "{role}");
        plugin.fault_for(&carts, &generation, &fault);
        assert!(plugin.current().is_none(), "{role}: right for nobody");
    }
}
