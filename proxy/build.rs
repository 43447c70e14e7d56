//! Compiles the built-in policies to WebAssembly, to be carried inside the binary.
//!
//! Every package in `plugins/` that makes a module (a `cdylib`) is a policy of its folder's name. The result is
//! `builtin.rs` in `OUT_DIR`: `BUILTIN`, pairs of a policy's name and its module, sorted by name.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::exit;

use toolchain::{TARGET, Toolchain, has_protoc, is_plugin, what_to_install};

fn main() {
    if let Err(message) = run() {
        eprintln!("\n{message}\n");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let plugins = root.join("plugins");
    let packages = packages(&plugins)?;
    let toolchain = Toolchain::find(&variable("RUSTC")?);
    let (Some(toolchain), true) = (&toolchain, has_protoc()) else {
        let what = what_to_install(toolchain.is_none(), !has_protoc());
        return Err(format!("Heddle cannot be built here yet.\n{what}`cargo xtask demo` does this by itself."));
    };
    let target_dir = target_dir(&out);
    let mut cargo = toolchain.build(&variable("CARGO")?, &plugins, &target_dir);
    let status = cargo.arg("--locked").status().map_err(|error| format!("cargo did not start: {error}"))?;
    if !status.success() {
        return Err(format!("the plugins in {} were not built: {status}", plugins.display()));
    }
    embed(&packages, &target_dir.join(TARGET).join("release"), &out)?;
    watch(&root, &plugins, &packages);
    let lock = root.join("Cargo.lock");
    println!("cargo::rustc-env=HEDDLE_WASMTIME_VERSION={}", version("wasmtime", &lock)?);
    println!("cargo::rerun-if-changed={}", lock.display());
    Ok(())
}

/// The version of a package in a lock file: what it compiles is of no use to another one.
fn version(package: &str, lock: &Path) -> Result<String, String> {
    let text = fs::read_to_string(lock).map_err(cannot("read", lock))?;
    let mut lines = text.lines().skip_while(|line| *line != format!("name = \"{package}\""));
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = "));
    version.map(|version| version.trim_matches('"').to_owned()).ok_or(format!("{}: no {package}", lock.display()))
}

/// The folders of the packages, sorted.
fn packages(plugins: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(plugins).map_err(cannot("read", plugins))?;
    let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut packages = paths.map_err(cannot("read", plugins))?;
    packages.retain(|path| path.join("Cargo.toml").is_file());
    packages.sort();
    Ok(packages)
}

/// Runs this script again when something that the modules are made from has changed. Not `plugins` as a whole, where
/// compiled plugins may be dropped; a package that comes or goes also changes the lock file.
fn watch(root: &Path, plugins: &Path, packages: &[PathBuf]) {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/toolchain.rs");
    let parts = |folder: PathBuf| ["Cargo.toml", "build.rs", "src", "wit"].map(|part| folder.join(part));
    let workspaces = [root.join("Cargo.toml"), plugins.join("Cargo.toml"), plugins.join("Cargo.lock")];
    let packages = packages.iter().cloned().chain([root.join("plugin-sdk")]).flat_map(parts);
    for path in workspaces.into_iter().chain(packages).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// Where the plugins are compiled: beside the profiles' folders, so that debug and release builds, Clippy and coverage
/// tools share one standard library (a minute's work where it comes as source) instead of keeping one in each
/// `OUT_DIR`. Cargo marks the folder that all of them are in; without the mark it is `OUT_DIR` after all.
fn target_dir(out: &Path) -> PathBuf {
    let shared = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    shared.unwrap_or(out).join("wasm-plugins")
}

/// Copies the modules to `OUT_DIR`, since another build may be at work in the shared folder, and lists them there.
fn embed(packages: &[PathBuf], built: &Path, out: &Path) -> Result<(), String> {
    let mut list = String::from("/// The built-in policies: name and module, sorted by name.\n");
    list.push_str("pub static BUILTIN: &[(&str, &[u8])] = &[\n");
    for folder in packages.iter().filter(|folder| is_plugin(folder)) {
        let name = folder.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| format!("{} is not a policy's name", folder.display()))?;
        let file = format!("{}.wasm", name.replace('-', "_"));
        let module = fs::read(built.join(&file)).map_err(cannot("read", &built.join(&file)))?;
        write_if_changed(&out.join(&file), &module)?;
        writeln!(list, "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"))),")
            .map_err(|error| error.to_string())?;
    }
    list.push_str("];\n");
    write_if_changed(&out.join("builtin.rs"), list.as_bytes())
}

/// Leaves a file alone that is as it should be: a new time would make Cargo compile the proxy again.
fn write_if_changed(path: &Path, contents: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    fs::write(path, contents).map_err(cannot("write", path))
}

fn cannot(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let prefix = format!("cannot {what} {}", path.display());
    move |error| format!("{prefix}: {error}")
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("Cargo did not set {name}"))
}
