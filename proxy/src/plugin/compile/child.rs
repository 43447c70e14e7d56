//! The child: judges, wraps, compiles and probes one file, and writes what came of it.
//!
//! It is started by [`super::Compiler`] alone, and takes what precedes the file on trust. Everything about the file may be
//! hostile; the worst that it can do here is to end this process.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};

use super::super::engine::Engine;
use super::super::fault::one_line;
use super::super::generation::{Generation, LoadError, MAX_BYTES, Origin};
use super::wire::{Answer, Received};
use super::{Compiler, Source, in_this_process};
use crate::clock::Clock;

/// The compiler recurses over types and blocks.
const STACK: usize = 16 << 20;

/// The compiled form of a file, in bytes.
const MAX_OUTPUT: u64 = 256 << 20;

/// Address space around each memory of an instance, which nothing is ever in.
const GUARDS: u64 = 96 << 20;

/// Memories that the probe may make.
const MEMORIES: u64 = 4;

/// Serves one request.
pub fn main() -> ExitCode {
    let thread = thread::Builder::new().name("compile".into()).stack_size(STACK).spawn(serve);
    match thread.map(|thread| thread.join()) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// True when there is an answer.
fn serve() -> bool {
    // Where this is not allowed, the parent still ends what takes too long.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = nice(10);
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line).is_err() {
        return false;
    }
    let Some(request) = Received::read(&line) else { return false };
    let probing = limit(&request);
    // What a panic says is part of the answer.
    panic::set_hook(Box::new(|_| {}));
    let done = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut file = Vec::with_capacity(usize::try_from(request.bytes.min(MAX_BYTES + 1)).unwrap_or_default());
        let read = input.take(MAX_BYTES + 1).read_to_end(&mut file);
        read.map_err(|error| LoadError::Unreadable(error.to_string()))?;
        compile(&request, &file, probing)
    }));
    let done = done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(LoadError::Compile(one_line(&format!("the compiler panicked: {}", text.unwrap_or("for no reason")))))
    });
    let result = done.and_then(|compiled| {
        let write = || File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(&compiled);
        write().map_err(|error| LoadError::Compile(format!("its compiled form cannot be passed on: {error}")))
    });
    let answer = Answer { result: result.map_err(out_of_memory) };
    io::stderr().write_all(answer.line().as_bytes()).is_ok()
}

fn compile(request: &Received, file: &[u8], probing: Option<Rlimit>) -> Result<Vec<u8>, LoadError> {
    let engine = Engine::with(request.plugins.clone(), Clock::running(), Compiler::here())
        .map_err(|error| LoadError::Compile(format!("{error:#}")))?;
    let compiled = in_this_process(&engine, Source::Bytes(file))?;
    if let Some(probing) = probing {
        // An instance reserves address space that it does not use.
        let _ = setrlimit(Resource::As, probing);
    }
    let name: Arc<str> = "probe".into();
    Generation::of_compiled(&engine, &name, &compiled, Origin::BuiltIn, &request.uses)?;
    compiled.component.serialize().map_err(|error| LoadError::Compile(format!("{error:#}")))
}

/// Sets the limits of this process; what is returned is the limit of address space for the probe.
fn limit(request: &Received) -> Option<Rlimit> {
    let seconds = request.cpu.as_micros().div_ceil(Duration::from_secs(1).as_micros());
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    let set = |resource, current, maximum| {
        // A lower limit of whoever started the proxy holds as well.
        let _ = setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) });
    };
    set(Resource::Core, 0, 0);
    set(Resource::Fsize, MAX_OUTPUT, MAX_OUTPUT);
    set(Resource::Cpu, seconds, seconds.saturating_add(1));
    let own = own_size();
    let compiling = own.saturating_add(request.memory);
    let probing = (request.plugins.memory as u64).saturating_add(GUARDS).saturating_mul(MEMORIES);
    let probing = compiling.saturating_add(probing);
    set(Resource::As, compiling, probing);
    Some(Rlimit { current: Some(probing), maximum: Some(probing) })
}

/// The address space of this process at its start, in bytes: the program itself, in the main.
fn own_size() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

/// wasmtime reports memory that it could not have as an error of its own.
fn out_of_memory(error: LoadError) -> LoadError {
    match &error {
        LoadError::Compile(why) if why.contains("Cannot allocate memory") || why.contains("os error 12") => {
            LoadError::OutOfMemory { limit: 0, is_set: false }
        }
        _ => error,
    }
}
