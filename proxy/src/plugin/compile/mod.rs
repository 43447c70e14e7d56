//! Compilation in a process of its own.
//!
//! A file sets the cost of its compilation: 471 bytes of nested components take gigabytes, a 300 KB module of nested
//! blocks takes minutes, and a damaged file can make the encoder panic. Within the proxy none of this can be bounded: a
//! thread cannot be ended, and memory that the compiler took is not given back. So a file is judged, wrapped, compiled
//! and probed by a child process, which runs the same binary and therefore has the same compiler and host functions.
//!
//! - The child limits itself before it reads the file: address space ([`Compile::memory`]), CPU time
//!   ([`Compile::cpu`]), size of the result. The kernel ends it first when memory is short (`oom_score_adj` 1000), it
//!   yields to traffic (`nice` 10), and it ends with its parent.
//! - The parent copies the file to the child's standard input in pieces, so it never holds it. Standard output is a
//!   memory file that becomes immutable when the child has ended, and is then mapped: the proxy's memory grows by the
//!   compiled module and nothing else. Standard error carries the answer, or what a dying process said.
//! - At most `PLACES` children run at a time. Whoever waits for one, or for a place, notices within
//!   `POLL` that it is no longer wanted. A child that was killed by somebody else is started again.
//! - What was compiled is kept in a `Cache`, if the configuration has a `state` folder.
//!
//! The binary switches this on ([`compile_in_children`]). A program that embeds the library and does not is compiled for
//! within its own process, after the same judgement but without these bounds.

pub mod child;
mod wire;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use self::wire::{Answer, Request};
use super::cache::Cache;
use super::engine::Engine;
use super::fault::one_line;
use super::generation::{ContentHash, LoadError};
use super::judge;
use super::precompiled::{Sealed, Unsealed};
use crate::cgroup;
use crate::config::checked::{self, Compile};
use crate::policy::Role;

/// The hidden subcommand that the child is started with.
pub const COMMAND: &str = "compile-plugin";

/// Children at a time.
const PLACES: usize = 2;

/// How often a wait looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// How often a child is started that ends for no reason of its file's.
const STARTS: usize = 3;

/// Memory of a compilation where nobody has set it.
const DEFAULT_MEMORY: u64 = 512 << 20;

/// The smallest memory that is worth trying, where the cgroup leaves next to nothing.
const LEAST_MEMORY: u64 = 32 << 20;

/// What is kept of a child's standard error, in bytes.
const MAX_SAID: u64 = 64 << 10;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Has every [`Engine`] that is made from now on compile in children that run this program, which must be `heddle` of
/// this very build. The first call holds.
pub fn compile_in_children(program: PathBuf) {
    // A second program would be another compiler.
    let _ = PROGRAM.set(program);
}

/// The smaller of 512 MiB and half of what the cgroup leaves, in bytes.
fn memory_for_a_child() -> u64 {
    cgroup::memory_left().map_or(DEFAULT_MEMORY, |left| (left / 2).min(DEFAULT_MEMORY))
}

/// Where a plugin's content is.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Bytes(&'a [u8]),
    /// A file, and the hash of its content when it was last read.
    File(&'a Path, ContentHash),
}

/// Ends a compilation that nobody waits for any more; clones are the same.
#[derive(Debug, Default, Clone)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A plugin that can be instantiated.
pub struct Compiled {
    pub component: Component,
    pub hash: ContentHash,
    /// Whether it has passed the probe.
    pub probed: bool,
}

/// Starts children, and keeps what they have compiled.
pub struct Compiler {
    /// None: compiles in this process.
    program: Option<PathBuf>,
    limits: Mutex<Compile>,
    pub(super) cache: Option<Cache>,
    free: Mutex<usize>,
    freed: Condvar,
    stopped: Arc<AtomicBool>,
}

impl Compiler {
    /// A compiler that is stopped with the one before, if there is one.
    pub fn new(settings: &checked::Plugins, before: Option<&Self>) -> Self {
        let program = PROGRAM.get().cloned();
        let cache = settings.cache.as_deref().filter(|_| program.is_some() && settings.compile.cache > 0);
        Self {
            cache: cache.and_then(|folder| Cache::open(folder, settings)),
            program,
            limits: Mutex::new(settings.compile),
            free: Mutex::new(PLACES),
            freed: Condvar::new(),
            stopped: before.map(|before| before.stopped.clone()).unwrap_or_default(),
        }
    }

    /// Compiles within the calling process, whatever [`compile_in_children`] says: for the child.
    fn here() -> Self {
        Self {
            program: None,
            limits: Mutex::default(),
            cache: None,
            free: Mutex::new(PLACES),
            freed: Condvar::new(),
            stopped: Arc::default(),
        }
    }

    /// Whether this process needs no compiler.
    pub fn is_elsewhere(&self) -> bool {
        self.program.is_some()
    }

    /// Sets the limits of later compilations.
    pub fn set_limits(&self, limits: Compile) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Ends all compilations, and refuses further ones: the process is stopping.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.freed.notify_all();
    }

    fn check(&self, cancel: &Cancel) -> Result<(), LoadError> {
        if cancel.is_cancelled() || self.stopped.load(Relaxed) { Err(LoadError::Cancelled) } else { Ok(()) }
    }

    /// What was compiled of this content before, if it is in the cache.
    pub fn cached(&self, engine: &Engine, hash: ContentHash) -> Option<Compiled> {
        let sealed = self.cache.as_ref()?.get(hash)?;
        // Of another build, or for another processor, although its name says otherwise: as if it were not there.
        let component = sealed.component(&engine.wasm).ok()?;
        Some(Compiled { component, hash, probed: false })
    }

    /// Compiles a plugin, which blocks the calling thread for as long as that takes.
    ///
    /// # Errors
    ///
    /// Why the file is refused, or why it could not be compiled now ([`LoadError::is_passing`]).
    pub fn compile(
        &self,
        engine: &Engine,
        source: Source<'_>,
        uses: &[(Role, Arc<str>)],
        cancel: &Cancel,
    ) -> Result<Compiled, LoadError> {
        let Some(program) = &self.program else { return in_this_process(engine, source) };
        let hash = match source {
            Source::Bytes(bytes) => ContentHash::of(bytes),
            Source::File(_, hash) => hash,
        };
        if let Some(cached) = self.cached(engine, hash) {
            return Ok(cached);
        }
        self.check(cancel)?;
        let _place = self.place(cancel)?;
        let mut starts = 0;
        let (sealed, hash) = loop {
            starts += 1;
            match self.start(program, engine, source, uses, cancel) {
                Err(LoadError::Died(_)) if starts < STARTS => {}
                ended => break ended?,
            }
        };
        let component =
            sealed.component(&engine.wasm).map_err(|error| LoadError::Compile(super::fault::reason(&error)))?;
        if let Some(cache) = &self.cache {
            cache.put(hash, &sealed);
        }
        Ok(Compiled { component, hash, probed: true })
    }

    fn place(&self, cancel: &Cancel) -> Result<Place<'_>, LoadError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            self.check(cancel)?;
            (free, _) = self.freed.wait_timeout(free, POLL).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Ok(Place(self))
    }

    /// One child's life.
    fn start(
        &self,
        program: &Path,
        engine: &Engine,
        source: Source<'_>,
        uses: &[(Role, Arc<str>)],
        cancel: &Cancel,
    ) -> Result<(Sealed, ContentHash), LoadError> {
        self.check(cancel)?;
        let limits = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = limits.memory.unwrap_or_else(memory_for_a_child).max(LEAST_MEMORY);
        let unable = |what: &str, error: &dyn std::fmt::Display| LoadError::NoCompiler(format!("{what}: {error}"));
        let content = Content::open(source)?;
        let request =
            Request { cpu: limits.cpu, memory, bytes: content.length, plugins: engine.limits.clone(), uses }.line();
        let output = Unsealed::new().map_err(|error| unable("no memory file", &error))?;
        let stdout = output.try_clone().map_err(|error| unable("no memory file", &error))?;
        let mut command = Command::new(program);
        command.arg0("heddle").arg(COMMAND).process_group(0);
        // Address space that the allocator takes ahead of need would be outside the limit.
        command.env_clear().env("MIMALLOC_ARENA_RESERVE", "0");
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| unable("no process can be started", &error))?;
        drop(command);
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let deadline = Instant::now() + limits.cpu * 6 + Duration::from_secs(10);
        let ended = thread::scope(|scope| {
            let thread = || thread::Builder::new().name("heddle-compile-io".into());
            let fed = thread().spawn_scoped(scope, move || content.feed(stdin, &request));
            let heard = thread().spawn_scoped(scope, move || listen(stderr));
            let status = self.wait(&mut child, deadline, cancel, fed.is_ok() && heard.is_ok());
            let fed = fed.map(|thread| thread.join().unwrap_or(Err(LoadError::NoCompiler("a thread ended".into()))));
            let heard = heard.map(|thread| thread.join().unwrap_or_default());
            Ok::<_, io::Error>((status, fed?, heard?))
        });
        let (status, fed, heard) = ended.map_err(|error| unable("no thread can be started", &error))?;
        let (status, (hash, is_whole)) = (status?, fed?);
        let answer = verdict(status, &heard, limits.cpu, memory, limits.memory.is_some());
        if let Err(refused) = answer.and_then(|answer| answer.result) {
            // What is known to be refused is what was asked for, not what the file was for a moment.
            let is_other = is_whole && matches!(source, Source::File(_, asked) if asked != hash);
            return Err(if is_other { LoadError::Unreadable("it changed while it was read".into()) } else { refused });
        }
        Ok((output.seal().map_err(|error| unable("no memory file", &error))?, hash))
    }

    /// Waits for a child's end, and brings it about when it takes too long or is no longer wanted.
    fn wait(
        &self,
        child: &mut Child,
        deadline: Instant,
        cancel: &Cancel,
        is_complete: bool,
    ) -> Result<ExitStatus, LoadError> {
        let (started, mut pause) = (Instant::now(), Duration::from_millis(1));
        let why = loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => break LoadError::NoCompiler(error.to_string()),
            }
            if let Err(cancelled) = self.check(cancel) {
                break cancelled;
            }
            if !is_complete || Instant::now() >= deadline {
                let limit = Duration::from_secs(deadline.saturating_duration_since(started).as_secs());
                break LoadError::NoCompiler(format!("not done within {limit:?}, while others used the processor"));
            }
            thread::park_timeout(pause);
            pause = (pause * 2).min(POLL);
        };
        // Both fail only for a process that has ended.
        let _ = child.kill();
        let _ = child.wait();
        Err(why)
    }
}

/// The right to run one child.
struct Place<'a>(&'a Compiler);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// A plugin's content on its way to a child.
struct Content<'a> {
    reader: Box<dyn Read + Send + 'a>,
    length: u64,
}

impl<'a> Content<'a> {
    fn open(source: Source<'a>) -> Result<Self, LoadError> {
        match source {
            Source::Bytes(bytes) => Ok(Self { reader: Box::new(bytes), length: bytes.len() as u64 }),
            Source::File(path, _) => {
                let unreadable = |error: io::Error| LoadError::Unreadable(error.to_string());
                let file = File::open(path).map_err(unreadable)?;
                let length = file.metadata().map_err(unreadable)?.len();
                Ok(Self { reader: Box::new(file), length })
            }
        }
    }

    /// Writes the request and the content; the hash of what was written, and whether that is all. A child that ends before
    /// it has read all of it has its reasons.
    fn feed(mut self, pipe: Option<impl Write>, request: &[u8]) -> Result<(ContentHash, bool), LoadError> {
        let Some(mut pipe) = pipe else { return Err(LoadError::NoCompiler("no pipe".into())) };
        let mut is_open = pipe.write_all(request).is_ok();
        let mut hasher = Sha256::new();
        let mut piece = [0; 64 << 10];
        // More than may be is for the child to refuse.
        let mut left = super::generation::MAX_BYTES + 1;
        while is_open && left > 0 {
            let length = match self.reader.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LoadError::Unreadable(error.to_string())),
            };
            left = left.saturating_sub(length as u64);
            let piece = piece.get(..length).unwrap_or_default();
            hasher.update(piece);
            is_open = pipe.write_all(piece).is_ok();
        }
        Ok((ContentHash(hasher.finalize().into()), is_open))
    }
}

/// Reads a child's standard error to its end, and keeps the last part.
fn listen(pipe: Option<impl Read>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = pipe.read(&mut piece) {
        kept.extend_from_slice(piece.get(..length).unwrap_or_default());
        if kept.len() as u64 > 2 * MAX_SAID {
            kept.drain(..kept.len() - MAX_SAID as usize);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// What the end of a child means.
fn verdict(status: ExitStatus, said: &str, cpu: Duration, memory: u64, is_set: bool) -> Result<Answer, LoadError> {
    if status.success()
        && let Some(answer) = Answer::find(said)
    {
        return match answer.result {
            Err(LoadError::OutOfMemory { .. }) => Err(LoadError::OutOfMemory { limit: memory, is_set }),
            _ => Ok(answer),
        };
    }
    let signal = status.signal();
    let is = |of: Signal| signal == Some(of.as_raw());
    if is(Signal::XCPU) {
        return Err(LoadError::OutOfTime { limit: cpu });
    }
    if said.contains("memory allocation of") || said.contains("mimalloc: error: unable to allocate") {
        return Err(LoadError::OutOfMemory { limit: memory, is_set });
    }
    if said.contains("overflowed its stack") || is(Signal::SEGV) || is(Signal::BUS) {
        return Err(LoadError::Compile("it is nested too deeply for the compiler".into()));
    }
    if is(Signal::XFSZ) {
        return Err(LoadError::Compile("its compiled form is too large".into()));
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(LoadError::Died(one_line(&match signal {
        Some(9) => "it was killed, by the kernel for want of memory or by somebody".to_owned(),
        Some(signal) => format!("ended by signal {signal} {last}"),
        None => format!("ended with {status} {last}"),
    })))
}

fn in_this_process(engine: &Engine, source: Source<'_>) -> Result<Compiled, LoadError> {
    let mut read = Vec::new();
    let bytes = match source {
        Source::Bytes(bytes) => bytes,
        Source::File(path, _) => {
            let unreadable = |error: io::Error| LoadError::Unreadable(error.to_string());
            let file = File::open(path).map_err(unreadable)?;
            file.take(super::generation::MAX_BYTES + 1).read_to_end(&mut read).map_err(unreadable)?;
            &read
        }
    };
    let component = judge::component_of(bytes)?;
    let component =
        Component::new(&engine.wasm, component).map_err(|error| LoadError::Compile(super::fault::reason(&error)))?;
    Ok(Compiled { component, hash: ContentHash::of(bytes), probed: false })
}
