//! Everything that CI runs, in this order: what fails soonest, then the tests, then the lints.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup;
use crate::step::{self, Failure, cargo, root, run, say};
use crate::toolchain::{Toolchain, is_plugin};

/// The SDK is built by itself: with its dependencies' features, wasmtime would be built a second time.
const MAIN: &[&str] = &["--workspace", "--exclude", "heddle-plugin"];
const SDK: &[&str] = &["--package", "heddle-plugin"];
const LINT: &[&str] = &["clippy", "--locked", "--all-targets"];
const DENY: &[&str] = &["--", "--deny", "warnings"];

/// Runs all checks; with arguments only the tests of the main workspace, with these arguments.
pub fn run_all(args: &[OsString]) -> Result<(), Failure> {
    let toolchain = setup::for_build()?;
    let path = setup::for_tests()?;
    if !args.is_empty() {
        return test(&path, args);
    }
    let others = others();
    if component("fmt")? {
        run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
        for other in &others {
            run(&format!("format of {}", other.name), &mut other.cargo(&["fmt", "--all", "--check"]))?;
        }
    }
    test(&path, args)?;
    run("tests of plugin-sdk", cargo(&["test", "--locked"]).args(SDK))?;
    // As the tests have built it: by itself, with its own dependencies' features, it would be built once more.
    let mut demo = Command::new(step::target().join("debug/heddle"));
    run("demo --check", demo.current_dir(root()).args(["demo", "--check"]))?;
    for other in &others {
        other.test(&toolchain)?;
    }
    if component("clippy")? {
        run("clippy", cargo(LINT).args(MAIN).args(DENY))?;
        run("clippy of plugin-sdk", cargo(LINT).args(SDK).args(DENY))?;
        for other in &others {
            let mut lint = other.cargo(LINT);
            lint.args(["--workspace", "--target-dir"]).arg(native());
            run(&format!("clippy of {}", other.name), lint.args(DENY))?;
        }
    }
    for packages in [MAIN, SDK] {
        let mut doc = cargo(&["doc", "--locked", "--no-deps"]);
        run("documentation", doc.args(packages).env("RUSTDOCFLAGS", "--deny warnings"))?;
    }
    say("all checks passed");
    Ok(())
}

fn test(path: &OsStr, args: &[OsString]) -> Result<(), Failure> {
    run("tests", cargo(&["test", "--locked"]).args(MAIN).args(args).env("PATH", path))
}

/// A workspace or package beside the main one: the built-in plugins, and each example.
struct Other {
    name: String,
    folder: PathBuf,
}

impl Other {
    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = cargo(args);
        command.current_dir(&self.folder);
        command
    }

    /// Its tests, which run natively; an example that is a plugin is compiled as one too.
    fn test(&self, toolchain: &Toolchain) -> Result<(), Failure> {
        let mut test = self.cargo(&["test", "--locked", "--workspace"]);
        run(&format!("tests of {}", self.name), test.arg("--target-dir").arg(native()))?;
        if !is_plugin(&self.folder) {
            return Ok(());
        }
        let target = step::target().join("wasm-plugins");
        run(&format!("compile {}", self.name), &mut toolchain.build(&step::cargo_path(), &self.folder, &target))
    }
}

/// All of them share one folder of dependencies.
fn native() -> PathBuf {
    step::target().join("plugins")
}

fn others() -> Vec<Other> {
    let examples = fs::read_dir(root().join("examples")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = examples.filter(|path| is_package(path)).collect();
    folders.push(root().join("plugins"));
    folders.sort();
    folders.into_iter().map(|folder| Other { name: name(&folder), folder }).collect()
}

fn is_package(folder: &Path) -> bool {
    folder.join("Cargo.toml").is_file()
}

fn name(folder: &Path) -> String {
    folder.strip_prefix(root()).unwrap_or(folder).display().to_string()
}

/// Whether a part of the toolchain is there that not everybody has. CI must not pass without it.
fn component(name: &str) -> Result<bool, Failure> {
    let present = cargo(&[name, "--version"]).output().is_ok_and(|output| output.status.success());
    if !present && env::var_os("CI").is_some() {
        return Err(Failure::new(format!("cargo {name} is missing")));
    }
    if !present {
        say(&format!("cargo {name} is missing here: left to CI"));
    }
    Ok(present)
}
