//! Everything that CI runs: what fails soonest, then the tests of the main workspace, and beside them the rest. Those
//! tests wait for most of their time, and all that is left of the machine meanwhile is enough for the rest.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::licences;
use crate::setup;
use crate::step::{self, Failure, cargo, ended, root, run, run_beside, say};
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
        return run("tests", &mut tests(&path, args));
    }
    let others = others();
    if component("fmt")? {
        run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
        for other in &others {
            run(&format!("format of {}", other.name), &mut other.cargo(&["fmt", "--all", "--check"]))?;
        }
    }
    licences::check_linked()?;
    test_and(&path, || rest(&toolchain, &others))?;
    // As the tests have built it: by itself, with its own dependencies' features, it would be built once more.
    let mut demo = Command::new(step::target().join("debug/heddle"));
    run("demo --check", demo.current_dir(root()).args(["demo", "--check"]))?;
    say("all checks passed");
    Ok(())
}

fn tests(path: &OsStr, args: &[OsString]) -> Command {
    let mut tests = cargo(&["test", "--locked"]);
    tests.args(MAIN).args(args).env("PATH", path);
    tests
}

/// Runs the tests of the main workspace, and something else beside them: once they are compiled, as Cargo compiles one
/// thing at a time in a folder.
fn test_and(path: &OsStr, other: impl FnOnce() -> Result<(), Failure> + Send) -> Result<(), Failure> {
    say("tests");
    let failed = |error: io::Error| Failure::new(format!("tests: {error}"));
    let mut tests = tests(path, &[]).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut said = BufReader::new(tests.stderr.take().ok_or_else(|| Failure::new("tests: say nothing"))?);
    thread::scope(|scope| {
        let (mut other, mut beside, mut line) = (Some(other), None, Vec::new());
        while said.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            if line.trim_ascii_start().starts_with(b"Running") {
                beside = beside.or_else(|| other.take().map(|other| scope.spawn(other)));
            }
            io::stderr().write_all(&line).map_err(failed)?;
            line.clear();
        }
        ended("tests", tests.wait().map_err(failed)?)?;
        match (beside, other) {
            (Some(beside), _) => beside.join().unwrap_or_else(|panic| resume_unwind(panic)),
            (None, Some(other)) => other(),
            (None, None) => Ok(()),
        }
    })
}

/// What there is to check but for the tests of the main workspace.
fn rest(toolchain: &Toolchain, others: &[Other]) -> Result<(), Failure> {
    run_beside("tests of plugin-sdk", cargo(&["test", "--locked"]).args(SDK))?;
    for other in others {
        other.test(toolchain)?;
    }
    if component("clippy")? {
        run_beside("clippy", cargo(LINT).args(MAIN).args(DENY))?;
        run_beside("clippy of plugin-sdk", cargo(LINT).args(SDK).args(DENY))?;
        for other in others {
            let mut lint = other.cargo(LINT);
            lint.args(["--workspace", "--target-dir"]).arg(native());
            run_beside(&format!("clippy of {}", other.name), lint.args(DENY))?;
        }
    }
    for packages in [MAIN, SDK] {
        let mut doc = cargo(&["doc", "--locked", "--no-deps"]);
        run_beside("documentation", doc.args(packages).env("RUSTDOCFLAGS", "--deny warnings"))?;
    }
    Ok(())
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
        run_beside(&format!("tests of {}", self.name), test.arg("--target-dir").arg(native()))?;
        if !is_plugin(&self.folder) {
            return Ok(());
        }
        let target = step::target().join("wasm-plugins");
        run_beside(&format!("compile {}", self.name), &toolchain.build(&step::cargo_path(), &self.folder, &target))
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
