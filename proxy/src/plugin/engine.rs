//! The one wasmtime engine, and the thread that makes its clock tick.
//!
//! A call is bounded by epochs: the engine's epoch number rises four times in a decision's budget or more often, and
//! compiled code compares it with the store's deadline. Epochs measure wall time, and a thread that the operating system
//! did not run (a throttled container, a busy machine) must not be taken for a guest that loops. So the first deadline,
//! which is the next epoch, only notes the thread's CPU time, and a later one ends the call if the thread has spent the
//! budget since. Load alone thus ends no call, and one that loops is ended two epochs after its budget at the latest. A
//! decision pays one store for its bound, and reads no clock unless an epoch ends within it.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{Config, OptLevel};

use super::compile::Compiler;
use super::host::{self, LogLines, State};
use super::memory::GuestMemory;
use crate::clock::Clock;
use crate::config::checked;

/// Epochs in one decision's budget, or more.
const TICKS_A_DECISION: u32 = 4;

/// The longest epoch, however large the budget: the share of a service is estimated from it.
const LONGEST_TICK: Duration = Duration::from_micros(2_500);

/// Stack of a guest, in bytes.
pub(super) const STACK: usize = 256 << 10;

/// Without a call for this many ticks the tick thread goes to sleep, so that an idle proxy wakes nobody.
const IDLE_TICKS: u64 = 64;

/// Everything that generations of all plugins share.
pub struct Engine {
    pub(super) wasm: wasmtime::Engine,
    pub(super) linker: Linker<State>,
    pub(super) limits: checked::Plugins,
    /// Makes components of files.
    pub(super) compiler: Compiler,
    /// The clock that all guests see.
    pub clock: Clock,
    ticker: Arc<Ticker>,
    ticker_thread: Thread,
    /// The length of one epoch.
    pub(super) tick: Duration,
    /// What all guests have together.
    pub(super) memory: Arc<GuestMemory>,
    /// The log lines of each policy.
    lines: Mutex<HashMap<Arc<str>, Arc<LogLines>>>,
}

struct Ticker {
    /// Set by every call and at each of its deadlines, cleared by the tick thread.
    used: AtomicBool,
    asleep: AtomicBool,
    /// Epochs so far, while the tick thread was awake.
    number: AtomicU64,
    /// The tick thread goes to sleep after this many ticks without use: more than the longest call takes, though each of its
    /// deadlines counts as use, since a guest that loops would run for ever once nobody ticks.
    idle_ticks: u64,
}

impl Engine {
    /// An engine with these bounds, and its tick thread, which ends with the engine.
    ///
    /// # Errors
    ///
    /// When this machine cannot run what the compiler makes, or no thread can be started.
    pub fn new(limits: checked::Plugins, clock: Clock) -> Result<Arc<Self>, wasmtime::Error> {
        let compiler = Compiler::new(&limits, None);
        Self::with(limits, clock, compiler)
    }

    /// An engine with other bounds in the place of one: with the same clock, and stopped with it.
    ///
    /// # Errors
    ///
    /// As [`Engine::new`].
    pub fn after(before: &Self, limits: checked::Plugins) -> Result<Arc<Self>, wasmtime::Error> {
        let compiler = Compiler::new(&limits, Some(&before.compiler));
        Self::with(limits, before.clock.clone(), compiler)
    }

    pub(super) fn with(
        limits: checked::Plugins,
        clock: Clock,
        compiler: Compiler,
    ) -> Result<Arc<Self>, wasmtime::Error> {
        let mut config = Config::new();
        if compiler.is_elsewhere() {
            config.enable_compiler(false);
        } else {
            config.cranelift_opt_level(OptLevel::Speed);
        }
        // What follows must be the same in the process that compiles: wasmtime refuses what was compiled otherwise.
        config
            .wasm_component_model(true)
            .epoch_interruption(true)
            // A memory never grows beyond the bound, so no more than the bound is reserved for it: with the default of
            // 4 GiB, a thousand services on many cores would use up the address space.
            .memory_reservation(limits.memory as u64)
            .memory_may_move(false)
            .max_wasm_stack(STACK);
        let wasm = wasmtime::Engine::new(&config)?;
        let linker = host::linker(&wasm)?;
        let tick = (limits.decision / TICKS_A_DECISION).clamp(Duration::from_millis(1), LONGEST_TICK);
        let ticker = Arc::new(Ticker {
            used: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
            number: AtomicU64::new(0),
            idle_ticks: IDLE_TICKS + half_budget(limits.change.max(limits.decision), tick),
        });
        let ticker_thread = {
            let (wasm, ticker) = (wasm.weak(), Arc::downgrade(&ticker));
            thread::Builder::new().name("heddle-epoch".into()).spawn(move || run_ticker(&wasm, &ticker, tick))?
        };
        let ticker_thread = ticker_thread.thread().clone();
        let memory = Arc::new(GuestMemory::new(limits.memory_total));
        let lines = Mutex::default();
        Ok(Arc::new(Self { wasm, linker, limits, compiler, clock, ticker, ticker_thread, tick, memory, lines }))
    }

    /// Sets the limits of compilations that begin from now on.
    pub fn set_compile_limits(&self, limits: checked::Compile) {
        self.compiler.set_limits(limits);
    }

    /// Ends the compilations that run, and lets none begin: the process is stopping.
    pub fn stop_compiling(&self) {
        self.compiler.stop();
    }

    /// Says that a call is about to begin or still runs, so that epochs rise.
    pub(super) fn mark_used(&self) {
        if !self.ticker.used.load(Relaxed) {
            // Sequentially consistent with the tick thread, which writes `asleep` and then reads `used`: at least one
            // of the two sees the other's write.
            self.ticker.used.store(true, SeqCst);
            if self.ticker.asleep.load(SeqCst) {
                self.ticker_thread.unpark();
            }
        }
    }

    /// The number of the epoch under way.
    pub(super) fn tick_number(&self) -> u64 {
        self.ticker.number.load(Relaxed)
    }

    /// Memory of all guests in bytes, that included which they have declared and never touched.
    pub fn guest_memory(&self) -> usize {
        self.memory.bytes()
    }

    /// The log lines of a policy, whichever generation of it writes them.
    pub(super) fn log_lines(&self, policy: &Arc<str>) -> Arc<LogLines> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.entry(policy.clone()).or_default().clone()
    }
}

fn half_budget(budget: Duration, tick: Duration) -> u64 {
    let ticks = budget.as_micros() / tick.as_micros().max(1);
    u64::try_from(ticks / 2).unwrap_or(u64::MAX).max(1)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.ticker_thread.unpark();
    }
}

fn run_ticker(wasm: &wasmtime::EngineWeak, ticker: &Weak<Ticker>, tick: Duration) {
    let mut idle = 0_u64;
    loop {
        thread::park_timeout(tick);
        let (Some(wasm), Some(ticker)) = (wasm.upgrade(), ticker.upgrade()) else { return };
        wasm.increment_epoch();
        ticker.number.fetch_add(1, Relaxed);
        if ticker.used.swap(false, Relaxed) {
            idle = 0;
            ticker.asleep.store(false, Relaxed);
            continue;
        }
        idle = idle.saturating_add(1);
        if idle >= ticker.idle_ticks {
            ticker.asleep.store(true, SeqCst);
            let used = ticker.used.load(SeqCst);
            drop((wasm, ticker));
            if !used {
                thread::park();
            }
        }
    }
}
