//! What a build of Heddle needs beside Cargo, and what to install where it is missing.
//!
//! Shared by the build script, which stops with a message, and by xtask, which installs.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the plugins are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's packages that compile for [`TARGET`] together.
pub const WASM_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "lld-19"];

/// The packages with `protoc` and the standard `.proto` files, which the etcd client's code is generated from.
pub const PROTOC_PACKAGES: &[&str] = &["protobuf-compiler", "libprotobuf-dev"];

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINKER: &str = "wasm-ld-19";

/// Variables for the outer build, or its target, that would lead the plugins' build astray: Clippy's and coverage
/// tools' wrappers, flags, profiles, target folders, and what Cargo tells a build script about its own package.
const OUTER: &[&str] = &["CARGO_", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];

/// The exceptions: where Cargo keeps its files, how it reaches the registry, and the job server.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_MAKEFLAGS"];

/// A compiler for the plugins.
pub enum Toolchain {
    /// The one of the running build; it has the target's standard library.
    Own { rustc: PathBuf },
    /// Debian's. Its standard library comes as source, and is built along with the plugins.
    Debian,
}

impl Toolchain {
    /// The toolchain to use: the one that `rustc` belongs to, if it can, else Debian's.
    pub fn find(rustc: &OsStr) -> Option<Self> {
        let own = sysroot(rustc).filter(|root| root.join("lib/rustlib").join(TARGET).join("lib").is_dir());
        if let Some(root) = own {
            // Past rustup's proxy, which would choose by the folder that it runs in.
            let direct = root.join("bin/rustc");
            let rustc = if direct.is_file() { direct } else { PathBuf::from(rustc) };
            return Some(Self::Own { rustc });
        }
        let debian = sysroot(OsStr::new(DEBIAN_RUSTC)).is_some_and(|root| root.join("lib/rustlib/src/rust").is_dir())
            && is_new_enough(OsStr::new(DEBIAN_RUSTC))
            && on_path(DEBIAN_LINKER).is_some();
        debian.then_some(Self::Debian)
    }

    /// `cargo build` of plugins in release mode, undisturbed by the environment of an outer build. `folder` holds their
    /// `Cargo.toml`. The modules will be in `release`, below [`TARGET`] in `target_dir`.
    pub fn build(&self, cargo: &OsStr, folder: &Path, target_dir: &Path) -> Command {
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os() {
            let starts_with = |prefix: &&str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            if OUTER.iter().any(starts_with) && !KEPT.iter().any(starts_with) {
                command.env_remove(name);
            }
        }
        // Empty rather than removed where a configuration file might say something else.
        command.env("CARGO_ENCODED_RUSTFLAGS", "").env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
        command.args(["build", "--release", "--target", TARGET]);
        command.arg("--target-dir").arg(target_dir).current_dir(folder);
        match self {
            Self::Own { rustc } => command.env("RUSTC", rustc),
            Self::Debian => command
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", DEBIAN_LINKER),
        };
        command
    }
}

/// Whether the package in this folder is a plugin, and not a library that plugins share.
pub fn is_plugin(folder: &Path) -> bool {
    fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|manifest| manifest.contains("\"cdylib\""))
}

/// Whether the etcd client's build will find the compiler for `.proto` files, and the files that come with it.
pub fn has_protoc() -> bool {
    let mut protoc = Command::new(env::var_os("PROTOC").unwrap_or("protoc".into()));
    if let Some(folder) = env::var_os("PROTOC_INCLUDE") {
        protoc.arg("-I").arg(folder);
    }
    protoc
        .args(["-o/dev/null", "google/protobuf/descriptor.proto"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The file that a command of this name would run.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What to type where a toolchain for the plugins or `protoc` is missing.
pub fn what_to_install(wasm: bool, protoc: bool) -> String {
    let mut message = String::new();
    if wasm {
        let packages = WASM_PACKAGES.join(" ");
        message += &format!("The plugins need a Rust toolchain for {TARGET}. Install one:\n");
        message += &format!("    rustup target add {TARGET}\n");
        message += &format!("or, on Debian where rustup cannot fetch it:\n    apt-get install {packages}\n");
    }
    if protoc {
        let packages = PROTOC_PACKAGES.join(" ");
        message += &format!("The etcd client needs protoc. Install it:\n    apt-get install {packages}\n");
    }
    message
}

/// Whether a compiler is of the version that this workspace asks for. Debian has had older ones under the same name.
fn is_new_enough(rustc: &OsStr) -> bool {
    let Ok(output) = Command::new(rustc).arg("--version").output() else { return false };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = printed.split_whitespace().nth(1).and_then(version);
    found >= version(env!("CARGO_PKG_RUST_VERSION"))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn sysroot(rustc: &OsStr) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let root = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(root.trim()))
}
