//! Steps: a line that says what is being done, then a command, whose failure ends the run.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Why xtask ends early, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Announces a step.
pub fn say(what: &str) {
    eprintln!("==> {what}");
}

/// Announces a command and runs it with our own terminal.
pub fn run(what: &str, command: &mut Command) -> Result<(), Failure> {
    say(what);
    let status = command.status().map_err(|error| Failure::new(format!("{what}: did not start: {error}")))?;
    ended(what, status)
}

/// Runs a command with what others leave of the machine, and announces it once it has ended. What it says is shown if it
/// fails.
pub fn run_beside(what: &str, command: &Command) -> Result<(), Failure> {
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    let output = nice.output().map_err(|error| Failure::new(format!("{what}: did not start: {error}")))?;
    say(what);
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    }
    ended(what, output.status)
}

/// What the end of a command says. Its exit code becomes ours when it failed.
pub fn ended(what: &str, status: ExitStatus) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Failure { message: format!("{what}: failed ({status})"), code })
}

/// Announces a command and becomes it. Ctrl-C is then the command's affair, and its exit code is ours.
pub fn become_command(what: &str, command: &mut Command) -> Result<(), Failure> {
    say(what);
    let error = command.exec();
    Err(Failure::new(format!("{what}: did not start: {error}")))
}

/// Cargo in the project's folder, as the one that runs us.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(cargo_path());
    command.current_dir(root()).args(args);
    command
}

pub fn cargo_path() -> OsString {
    env::var_os("CARGO").unwrap_or("cargo".into())
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where builds and fetched tools go.
pub fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into()))
}
