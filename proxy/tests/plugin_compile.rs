//! Plugin files that are damaged, or made to cost: what is refused, by which limit, and that nobody else notices.
//!
//! Issue 10, 6 and 7.

#![cfg(test)]

#[path = "support/plugins/mod.rs"]
mod plugins;
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use heddle::plugin::component_of;
use plugins::{component, guest, module};
use process::{Heddle, ask, command, figure, get, serve, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const RETRY: &[u8] = include_bytes!("guests/v0.1/retry.wasm");

/// A guest that always picks this slot, and so a content of its own.
fn answering(slot: u32) -> Vec<u8> {
    guest(&[("pick", &format!("(return (call $answer (i32.const {slot})))"))])
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }
}

/// A file with one to four of its bytes changed, left out, or doubled.
fn mutated(file: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(file.len());
        match numbers.below(4) {
            0 => drop(file.remove(at)),
            1 => file.insert(at, file[at]),
            2 => file[at] ^= 1 << numbers.below(8),
            _ => file[at] = u8::try_from(numbers.below(256)).unwrap(),
        }
    }
    file
}

/// Issue 10, 6: what reads, judges and wraps a file panics for no prefix of one, and for no mutation.
#[test]
fn every_cut_and_mutation_is_judged() {
    let smallest = guest(&[]);
    for length in 0..smallest.len() {
        if let Err(error) = component_of(&smallest[..length]) {
            assert!(!error.to_string().is_empty());
        }
    }
    let half = component_of(&smallest[..smallest.len() / 2]).unwrap_err().to_string();
    assert!(half.contains("cut short"), "{half}");
    let mut numbers = Numbers(10);
    let kinds = [smallest.clone(), component(&smallest), RETRY.to_vec()];
    let refused = (0..2_000).filter(|n| component_of(&mutated(&kinds[n % kinds.len()], &mut numbers)).is_err()).count();
    assert!(refused > 100, "{refused} of 2,000");
}

/// An unsigned number in LEB128.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// A core module of these sections.
fn core(sections: &[Vec<u8>]) -> Vec<u8> {
    [&b"\0asm\x01\0\0\0"[..], &sections.concat()].concat()
}

/// A core module with so many functions of this body.
fn functions(count: usize, body: &[u8]) -> Vec<u8> {
    let types = section(1, &[1, 0x60, 0, 0]);
    let indices = [leb(count), vec![0; count]].concat();
    let body = [leb(body.len()), body.to_vec()].concat();
    core(&[types, section(3, &indices), section(10, &[leb(count), body.repeat(count)].concat())])
}

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Components side by side in one.
fn siblings(count: usize) -> Vec<u8> {
    [COMPONENT, &section(4, COMPONENT).repeat(count)].concat()
}

/// Each component doubles the size of the type before it.
fn doubling(levels: usize) -> Vec<u8> {
    let mut types = leb(levels + 1);
    types.extend([0x6f, 1, 0x79]);
    for level in 0..levels {
        types.extend([0x6f, 8]);
        types.extend(leb(level).repeat(8));
    }
    [COMPONENT, &section(7, &types)].concat()
}

/// Components within components, the innermost empty.
fn nested(levels: usize) -> Vec<u8> {
    (0..levels).fold(COMPONENT.to_vec(), |inner, _| [COMPONENT, &section(4, &inner)].concat())
}

/// Components within components, each of which instantiates the one within four times: a few hundred bytes that are
/// hundreds of millions of instances.
fn instances(levels: usize) -> Vec<u8> {
    let innermost = [COMPONENT, &section(1, &core(&[])), &section(2, &[1, 0, 0, 0])].concat();
    let four = section(5, &[&[4][..], &[0; 12]].concat());
    (0..levels).fold(innermost, |inner, _| [COMPONENT, &section(4, &inner), &four].concat())
}

/// What is known to hurt.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let blocks = [vec![0], [0x02, 0x40].repeat(100_000), vec![0x0b; 100_001]].concat();
    let many_types = section(1, &[leb(1_000_000), [0x60, 0, 0].repeat(1_000_000)].concat());
    let many_tables = section(4, &[leb(100_000), [0x70, 0, 1].repeat(100_000)].concat());
    let huge_locals = [vec![1], leb(4_000_000_000), vec![0x7f, 0x0b]].concat();
    let many_locals = [vec![1], leb(50_000), vec![0x7f, 0x0b]].concat();
    vec![
        ("nested-components", nested(40)),
        ("doubling-types", doubling(60)),
        ("instances", instances(14)),
        ("sibling-components", siblings(5_000)),
        ("deep-components", nested(1_000)),
        ("nested-blocks", functions(1, &blocks)),
        ("many-functions", functions(100_000, &[0, 0x0b])),
        ("huge-locals", functions(1, &huge_locals)),
        ("many-locals", functions(200, &many_locals)),
        ("many-types", core(&[many_types])),
        ("many-tables", core(&[many_tables])),
        ("zeros", vec![0; 16 << 20]),
        ("zeros-of-a-module", [core(&[]), vec![0; (16 << 20) - 8]].concat()),
        ("zeros-of-a-component", [COMPONENT, &vec![0; (16 << 20) - 8]].concat()),
        ("too-large", [core(&[]), vec![0; 16 << 20]].concat()),
        ("wasi", core(&[section(2, &[&[1, 22][..], b"wasi_snapshot_preview1", &[2], b"fd", &[3, 0x7f, 0]].concat())])),
    ]
}

/// A guest in order that takes the compiler long: a function of so many additions.
fn slow(additions: usize) -> Vec<u8> {
    let line = "(local.set $a (i32.add (i32.mul (local.get $a) (local.get $b)) (i32.load (local.get $a))))\n\
                (if (local.get $a) (then (local.set $b (i32.xor (local.get $a) (local.get $b)))))\n";
    let start = include_str!("guests/rotation.wat").trim_end().strip_suffix(')').unwrap();
    let function = format!("(func (export \"slow\") (param $a i32) (param $b i32) {})", line.repeat(additions));
    module(&format!("{start}{function})"), "balancer")
}

/// A proxy with a folder of plugins, an origin, and services.
struct Run {
    folder: TempDir,
    origin: SocketAddr,
}

impl Run {
    fn new() -> Self {
        let run = Self { folder: tempfile::tempdir().unwrap(), origin: serve(|| {}) };
        fs::create_dir(run.folder.path().join("plugins")).unwrap();
        run
    }

    fn file(&self, policy: &str) -> PathBuf {
        self.folder.path().join("plugins").join(policy).with_extension("wasm")
    }

    /// Replaces a policy's file in one step.
    fn write(&self, policy: &str, content: &[u8]) {
        let beside = self.folder.path().join("beside");
        fs::write(&beside, content).unwrap();
        fs::rename(&beside, self.file(policy)).unwrap();
    }

    /// The configuration with a service for each of these policies, and `users` with a built-in one.
    fn configure(&self, keys: &str, policies: &[&str]) -> PathBuf {
        let mut text = format!(
            "{keys}\nplugins = 'plugins'\nworkers = 1\ndrain = '1s'\nadmin.address = '127.0.0.1:0'\n\
             [[listener]]\naddress = '127.0.0.1:0'\n[service.users]\nendpoints = ['{}']\n",
            self.origin
        );
        for policy in policies {
            text.push_str(&format!("[service.{policy}]\nbalancer = '{policy}'\nendpoints = ['{}']\n", self.origin));
        }
        let path = self.folder.path().join("heddle.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, keys: &str, policies: &[&str]) -> Proxy {
        let path = self.configure(keys, policies);
        let mut command = command(&["run", "--config", path.to_str().unwrap()]);
        command.env("HEDDLE_LOG", "info").env("NO_COLOR", "1");
        let heddle = Heddle::start(command);
        let address = heddle.address("listening on ");
        let admin = heddle.address("health and metrics on ");
        Proxy { heddle, address, admin }
    }
}

struct Proxy {
    heddle: Heddle,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Proxy {
    fn status(&self, service: &str) -> u16 {
        ask(self.address, "GET", "/", service).unwrap().status
    }

    /// Waits until the lines that say what became of a policy's files are this many; the last of them.
    fn settled(&self, policy: &str, count: usize) -> String {
        let name = format!("policy=\"{policy}\"");
        wait_for(&format!("{policy} is settled {count} times"), || {
            let said = self.heddle.said();
            let of = |line: &&String| line.contains(&name) && (line.contains("refused: ") || line.contains("loaded "));
            said.iter().filter(of).nth(count - 1).cloned()
        })
    }

    /// Waits until a service is served, and so has its policy.
    fn served(&self, service: &str) {
        wait_for(&format!("{service} is served"), || (self.status(service) == 200).then_some(()));
    }

    fn stop(self) -> Vec<String> {
        self.heddle.signal(Signal::TERM);
        let (code, said) = self.heddle.wait();
        assert_eq!(code, Some(0), "{said:#?}");
        said
    }

    /// The processes that it has started and that still run.
    fn children(&self) -> Vec<Pid> {
        let own = self.heddle.id();
        let processes =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_child = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            parent == Some(own)
        };
        processes.filter(is_child).filter_map(Pid::from_raw).collect()
    }
}

/// Issue 10, 7: each named bomb is refused with its reason, by a proxy that serves meanwhile and loads a good file after.
#[test]
fn bombs_are_refused_with_a_reason_and_nobody_notices() {
    let run = Run::new();
    let bombs = bombs();
    for (name, content) in &bombs {
        run.write(name, content);
    }
    let names: Vec<&str> = bombs.iter().map(|(name, _)| *name).collect();
    let proxy = run.start("plugin_compile = { cpu = '5s', memory = '256MiB' }", &names);
    let before = proxy.heddle.peak_memory();
    let mut reasons = Vec::new();
    for name in &names {
        let line = proxy.settled(name, 1);
        assert_eq!(proxy.status("users"), 200, "while {name} is judged");
        assert!(line.contains("refused: "), "{line}");
        assert_eq!(proxy.status(name), 503);
        reasons.push(line.split_once("refused: ").unwrap().1.to_owned());
    }
    let reason = |name: &str| &reasons[names.iter().position(|of| *of == name).unwrap()];
    for (name, part) in [
        ("nested-components", "components"),
        ("instances", "a larger plugin_compile."),
        ("sibling-components", "too many modules and components: expected at most 256"),
        ("nested-blocks", "too many blocks within blocks"),
        ("many-functions", "too many functions"),
        ("many-types", "too many types"),
        ("many-tables", "too many tables"),
        ("zeros", "not WebAssembly"),
        ("too-large", "expected at most 16777216"),
        ("wasi", "policies have no WASI"),
    ] {
        assert!(reason(name).contains(part), "{name}: {}", reason(name));
    }
    let grown = proxy.heddle.peak_memory().saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB more at the most");
    assert!(figure(proxy.admin, "heddle_plugin_refusals_total") >= names.len() as f64);
    run.write("nested-blocks", &answering(0));
    proxy.served("nested-blocks");
    proxy.stop();
}

/// Issue 10, 6: cuts and mutations through the real compiler of a running proxy.
#[test]
fn cuts_and_mutations_leave_the_proxy_as_it_was() {
    const SERVICES: usize = 12;
    let run = Run::new();
    let (smallest, mut numbers) = (guest(&[]), Numbers(77));
    let kinds = [smallest.clone(), component(&smallest), RETRY.to_vec()];
    let cuts = (0..64).map(|n| smallest[..smallest.len() * n / 64].to_vec());
    let mutations: Vec<_> = (0..200).map(|n| mutated(&kinds[n % kinds.len()], &mut numbers)).collect();
    let files: Vec<Vec<u8>> = cuts.chain(mutations).collect();
    let names: Vec<String> = (0..SERVICES).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (name, content) in names.iter().zip(&files) {
        run.write(name, content);
    }
    let proxy = run.start("", &names);
    for (round, files) in (1..).zip(files.chunks(SERVICES)) {
        for (name, content) in names.iter().zip(files) {
            run.write(name, content);
        }
        for (name, _) in names.iter().zip(files) {
            proxy.settled(name, round);
        }
        assert_eq!(proxy.status("users"), 200);
    }
    run.write("p0", &answering(0));
    proxy.served("p0");
    assert!(proxy.heddle.count("panicked") == 0, "{:#?}", proxy.heddle.said());
    proxy.stop();
}

/// Issue 10, 6: a copy that pauses half-way, which is what a cut file is in practice.
#[test]
fn a_copy_that_pauses_ends_with_the_good_file() {
    let run = Run::new();
    run.write("own", &answering(9));
    let proxy = run.start("", &["own"]);
    proxy.settled("own", 1);
    for (n, slot) in (0..3).enumerate() {
        let content = answering(slot);
        let (first, rest) = content.split_at(content.len() / 2);
        fs::write(run.file("own"), first).unwrap();
        let line = proxy.settled("own", 2 * n + 2);
        assert!(line.contains("cut short"), "{line}");
        fs::write(run.file("own"), [first, rest].concat()).unwrap();
        let line = proxy.settled("own", 2 * n + 3);
        assert!(line.contains("loaded from"), "{line}");
        assert_eq!(proxy.status("own"), 200);
    }
    assert_eq!(figure(proxy.admin, "heddle_plugin_refusals_total"), 3.0);
    proxy.stop();
}

/// Issue 10, 7: a service whose policy is not there yet refuses, and is named; the limits end the compilation, and their
/// settings are named.
#[test]
fn limits_are_named_and_a_service_without_its_policy_refuses() {
    for (limits, name) in [("cpu = '1s'", "plugin_compile.cpu"), ("memory = '32MiB'", "plugin_compile.memory")] {
        let run = Run::new();
        run.write("own", &slow(60_000));
        let proxy = run.start(&format!("plugin_compile = {{ {limits} }}"), &["own"]);
        assert_eq!(proxy.status("users"), 200, "listeners open first");
        let refused = ask(proxy.address, "GET", "/", "own").unwrap();
        assert_eq!(refused.status, 503);
        assert!(refused.head.contains("\r\nretry-after: 1"), "{}", refused.head);
        let line = proxy.settled("own", 1);
        assert!(line.contains("refused: ") && line.contains(name), "{line}");
        let ready = get(proxy.admin, "/ready");
        assert_eq!(ready.status, 200, "the others are served");
        assert!(ready.body.contains("service own") && ready.body.contains(name), "{}", ready.body);
        assert_eq!(proxy.status("own"), 503);
        run.write("own", &answering(0));
        proxy.served("own");
        assert_eq!(get(proxy.admin, "/ready").body, "ready\n");
        proxy.stop();
    }
}

/// Issue 10, 7: whatever compiles, the process stops in its time, and no child outlives it.
#[test]
fn a_compilation_keeps_nobody_from_stopping() {
    for stops_with in [Signal::TERM, Signal::KILL] {
        let run = Run::new();
        run.write("own", &slow(200_000));
        let proxy = run.start("plugin_compile = { cpu = '600s' }", &["own"]);
        let children = wait_for("it compiles", || Some(proxy.children()).filter(|children| !children.is_empty()));
        let ready = get(proxy.admin, "/ready");
        assert_eq!(ready.status, 503, "{}", ready.body);
        assert!(ready.body.contains("own"), "{}", ready.body);
        let start = Instant::now();
        proxy.heddle.signal(stops_with);
        let (code, said) = proxy.heddle.wait();
        assert_eq!(code, (stops_with == Signal::TERM).then_some(0), "{said:#?}");
        // The drain is a second; the rest is for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        let runs = |pid: &Pid| {
            fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
                .is_ok_and(|line| line.contains("compile-plugin"))
        };
        wait_for("its children end", || (!children.iter().any(runs)).then_some(()));
    }
}

/// Issue 10, 7: the judge runs in another process, which is killed at any moment.
#[test]
fn killed_children_change_nothing() {
    let run = Run::new();
    run.write("own", &answering(0));
    let proxy = run.start("", &["own"]);
    proxy.served("own");
    let mut numbers = Numbers(7);
    let mut killed = 0;
    for slot in 1..=8 {
        run.write("own", &answering(slot));
        let until = Instant::now() + Duration::from_millis(u64::try_from(numbers.below(400)).unwrap());
        while Instant::now() < until {
            for child in proxy.children() {
                killed += usize::from(kill_process(child, Signal::KILL).is_ok());
            }
        }
        assert_eq!(proxy.status("users"), 200);
        assert_eq!(proxy.status("own"), 200, "by the generation before");
    }
    assert!(killed > 0);
    run.write("own", &answering(9));
    let hash = heddle::plugin::ContentHash::of(&answering(9)).to_string();
    wait_for("the last one is in force", || get(proxy.admin, "/state").body.contains(&hash).then_some(()));
    proxy.stop();
}

/// Issue 10, 7: files of policies that no service uses cost nothing, until one comes to use them.
#[test]
fn only_what_is_used_is_compiled() {
    let run = Run::new();
    run.write("own", &answering(0));
    run.write("other", &answering(1));
    for n in 0..100 {
        run.write(&format!("unused{n}"), &slow(10));
    }
    let proxy = run.start("", &["own"]);
    proxy.served("own");
    assert_eq!(proxy.heddle.count("loaded from"), 1, "{:#?}", proxy.heddle.said());
    run.write("broken", b"nonsense");
    run.configure("", &["own", "broken"]);
    proxy.heddle.after("broken.wasm cannot be used: not WebAssembly", 0);
    assert_eq!(proxy.status("own"), 200);
    run.configure("", &["own", "other"]);
    proxy.heddle.after("goes on with the configuration in", 0);
    assert_eq!(proxy.status("other"), 200, "what a reload names is there when it is in force");
    proxy.stop();
}

/// Issue 10, 7: a restart compiles nothing, unless the cache is not to be trusted.
#[test]
fn compiled_plugins_are_kept() {
    const AGAIN: &str = "loaded as it was compiled before";
    let run = Run::new();
    let state = run.folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let cache = state.join("plugins");
    run.write("own", &answering(0));
    let lines = |proxy: Proxy| {
        proxy.served("own");
        proxy.stop().into_iter().filter(|line| line.contains("policy=\"own\"")).collect::<Vec<_>>().join("\n")
    };
    let start = || run.start("state = 'state'", &["own"]);
    assert!(!lines(start()).contains(AGAIN));
    assert!(lines(start()).contains(AGAIN));
    let compiled = || {
        let entries = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|of| of == "compiled")).collect::<Vec<_>>()
    };
    assert_eq!(compiled().len(), 2, "the built-in policy of users, too");
    // Another file, that is refused: the last good one serves meanwhile and after.
    run.write("own", b"nonsense");
    let proxy = start();
    assert!(proxy.settled("own", 1).contains(AGAIN));
    assert!(proxy.settled("own", 2).contains("not WebAssembly"));
    assert_eq!(proxy.status("own"), 200);
    proxy.stop();
    run.write("own", &answering(0));
    for path in compiled() {
        let mut content = fs::read(&path).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(&path, content).unwrap();
    }
    assert!(!lines(start()).contains(AGAIN), "a changed file is not believed");
    assert!(lines(start()).contains(AGAIN));
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!lines(start()).contains(AGAIN), "nor a folder that others can write to");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(lines(start()).contains(AGAIN));
    fs::write(cache.join("key"), [7; 32]).unwrap();
    assert!(!lines(start()).contains(AGAIN), "nor what was written under another key");
}

/// Issue 10, 7: compiling leaves the proxy's memory alone.
#[test]
fn memory_grows_by_the_compiled_module() {
    let run = Run::new();
    let state = run.folder.path().join("state");
    fs::create_dir(&state).unwrap();
    run.write("own", &answering(0));
    let proxy = run.start("state = 'state'\nplugin_compile = { cpu = '60s' }", &["own"]);
    proxy.served("own");
    let before = proxy.heddle.peak_memory();
    run.write("own", &slow(5_000));
    let line = proxy.settled("own", 2);
    assert!(line.contains("loaded from"), "{line}");
    let after = proxy.heddle.peak_memory();
    let sizes = fs::read_dir(state.join("plugins")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let compiled = sizes.max().unwrap() >> 10;
    assert!(after <= before + compiled + (4 << 10), "{before} KiB before, {after} after, {compiled} compiled");
    proxy.stop();
}

/// Issue 10, 7: `cargo xtask fuzz plugins HOW_MANY`. Mutations of three kinds of guest, each through a child of its own;
/// nothing but a load or a refusal comes of them.
#[test]
#[ignore = "takes minutes; see cargo xtask fuzz"]
fn fuzz() {
    heddle::plugin::compile_in_children(env!("CARGO_BIN_EXE_heddle").into());
    let count: usize = std::env::var("HEDDLE_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let smallest = guest(&[]);
    let kinds = [smallest.clone(), component(&smallest), RETRY.to_vec()];
    let reasons: Mutex<BTreeMap<String, usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (kinds, reasons) = (&kinds, &reasons);
            scope.spawn(move || {
                let host = plugins::Host::new("", "");
                let mut numbers = Numbers(4711 + thread);
                for n in 0..count / 2 {
                    let result = host.load(&mutated(&kinds[n % kinds.len()], &mut numbers));
                    let reason = match result {
                        Ok(_) => "loaded".to_owned(),
                        Err(error) if error.is_passing() => panic!("mutation {n} of thread {thread}: {error}"),
                        Err(error) => error.to_string().chars().take(40).collect(),
                    };
                    *reasons.lock().unwrap().entry(reason).or_default() += 1;
                }
            });
        }
    });
    println!("{:#?}", reasons.into_inner().unwrap());
}
