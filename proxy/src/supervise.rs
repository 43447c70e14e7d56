//! Supervision of long-lived tasks: one that panics or ends is logged, counted and started again.
//!
//! # Why it is shaped like this
//!
//! A task such as the watcher of the plugins folder lives as long as the process. Without a supervisor, a panic inside
//! it ends it without a word, and every later change of the folder goes unseen. [`keep`] starts it again, after a wait
//! that doubles from 100 ms to 30 s and begins anew once a run has lasted longer than 30 s.
//!
//! Starting again is not enough: the file that made it panic is still there. So a task says what it works on, and with
//! which content, by [`input`]. The guard that this returns is dropped by the unwinding of the panic itself, sees that,
//! and sets the input aside. The next run is refused a guard for it, and skips it, until its content changes. Nothing
//! is allocated or hashed as long as nothing has gone wrong, so an input can be as small as a registry key.
//!
//! The task that an [`input`] belongs to is a thread-local that [`keep`] sets while it polls and [`blocking`] hands on
//! to its thread. Pure code deep inside a task can thus name its inputs without a parameter for them; outside a
//! supervised task every input is accepted.
//!
//! [`blocking`] runs a call that may block for ever (a file on a hung mount) on a thread of its own. A pool of threads
//! has a limit, and four hung reads would then stop everything else that reads files; and a runtime that shuts down
//! waits for its pool.
//!
//! Counters belong to the process, as panics do. `heddle_task_panics_total` has one series for each task name.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep};

/// The wait before the first restart.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait. A run that has lasted longer than this begins with the first wait again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Inputs of one task that are set aside at once. Beyond that, one of them is tried again.
const MOST_ASIDE: usize = 256;

/// Threads at once for the [`blocking`] calls of one task. A task waits for each call, but may give one up that takes too
/// long, and come again.
const THREADS: usize = 4;

/// The same for calls outside all tasks.
const THREADS_OUTSIDE: usize = 64;

static OUTSIDE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(THREADS_OUTSIDE)));

/// What is kept of the name of an input, in bytes.
const NAME: usize = 1024;

static PANICS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// So that nobody can make an input that looks like one that was set aside.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often each task has panicked or ended since the process began.
pub fn panics() -> Vec<(&'static str, u64)> {
    lock(&PANICS).iter().map(|(task, count)| (*task, *count)).collect()
}

/// Counts a panic on this thread as one of a client's connection, or of something else, unless it is in a supervised
/// task, whose supervisor counts it. For the panic hook. The runtime keeps a panic inside a connection's task from all
/// others.
pub fn count_unsupervised() {
    let is_supervised = CURRENT.try_with(|current| current.try_borrow().is_ok_and(|task| task.is_some()));
    if !is_supervised.unwrap_or(false) {
        let is_worker = thread::current().name().is_some_and(|name| name.starts_with("heddle-worker"));
        count(if is_worker { "connection" } else { "other" });
    }
}

fn count(task: &'static str) {
    let mut panics = lock(&PANICS);
    let count = panics.entry(task).or_insert(0);
    *count = count.saturating_add(1);
}

/// Makes a task's series exist with the value 0.
fn register(task: &'static str) {
    lock(&PANICS).entry(task).or_insert(0);
}

/// A supervised task, over all its runs.
#[derive(Debug)]
struct Task {
    aside: Mutex<Aside>,
    /// Whether `aside` has any, so that the common case takes no lock.
    has_aside: AtomicBool,
    threads: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Aside {
    /// Name and content's hash of each input that is set aside.
    inputs: HashMap<String, u64>,
    /// What the last panic was about.
    last: Option<String>,
}

impl Task {
    fn new() -> Arc<Self> {
        let threads = Arc::new(Semaphore::new(THREADS));
        Arc::new(Self { aside: Mutex::default(), has_aside: AtomicBool::new(false), threads })
    }

    fn set_aside(&self, name: String, hash: u64) {
        let mut aside = lock(&self.aside);
        if aside.inputs.len() >= MOST_ASIDE
            && !aside.inputs.contains_key(&name)
            && let Some(other) = aside.inputs.keys().next().cloned()
        {
            aside.inputs.remove(&other);
        }
        aside.last = Some(name.clone());
        aside.inputs.insert(name, hash);
        self.has_aside.store(true, Relaxed);
    }

    /// Whether this input may be worked on: it is not set aside, or its content has changed since.
    fn accepts(&self, name: &dyn fmt::Display, content: &[u8]) -> bool {
        if !self.has_aside.load(Relaxed) {
            return true;
        }
        let name = bounded(name);
        let mut aside = lock(&self.aside);
        if aside.inputs.get(&name).is_some_and(|hash| *hash == HASHER.hash_one(content)) {
            return false;
        }
        aside.inputs.remove(&name);
        self.has_aside.store(!aside.inputs.is_empty(), Relaxed);
        true
    }

    fn take_last(&self) -> Option<String> {
        lock(&self.aside).last.take()
    }
}

fn bounded(name: &dyn fmt::Display) -> String {
    let mut name = name.to_string();
    name.truncate(name.floor_char_boundary(NAME));
    name
}

/// What the current task works on, from [`input`] until this is dropped. If a panic drops it, it is set aside.
#[must_use]
pub struct Input<'a> {
    task: Option<Arc<Task>>,
    name: &'a (dyn fmt::Display + Sync + 'a),
    content: &'a [u8],
}

/// Says that the current task works on something: its name for the log, such as the path of a file, and its content, by
/// which a changed one is told from the one that was set aside. None: it was set aside, and has to be skipped.
pub fn input<'a>(name: &'a (dyn fmt::Display + Sync + 'a), content: &'a [u8]) -> Option<Input<'a>> {
    let task = CURRENT.with(|current| current.borrow().clone());
    let accepted = task.as_ref().is_none_or(|task| task.accepts(name, content));
    accepted.then_some(Input { task, name, content })
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(task) = &self.task
        {
            task.set_aside(bounded(self.name), HASHER.hash_one(self.content));
        }
    }
}

/// Makes a task the current one until it is dropped.
struct Entered(Option<Arc<Task>>);

impl Entered {
    fn new(task: Option<Arc<Task>>) -> Self {
        Self(CURRENT.with(|current| current.replace(task)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(self.0.take()));
    }
}

/// Why a run of a task is over although it should not be.
enum Fault {
    Panicked(String),
    Ended,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(what) => write!(f, "panicked: {what}"),
            Self::Ended => f.write_str("ended"),
        }
    }
}

/// The waits between the runs of a task.
struct Backoff(Duration);

impl Backoff {
    const NEW: Self = Self(FIRST_WAIT);

    /// The wait after a run that has lasted this long.
    fn after(&mut self, run: Duration) -> Duration {
        if run > LONGEST_WAIT {
            *self = Self::NEW;
        }
        let wait = self.0;
        self.0 = wait.saturating_mul(2).min(LONGEST_WAIT);
        wait
    }
}

/// Runs a task for ever: `begin` makes each run of it. A run that panics or ends is logged and counted under the task's
/// name, and after a wait of 100 ms to 30 s the next one begins. What the run had named by [`input`] when it panicked is
/// set aside.
pub async fn keep<F: Future<Output = ()>>(task: &'static str, mut begin: impl FnMut() -> F) {
    register(task);
    let (this, mut backoff) = (Task::new(), Backoff::NEW);
    loop {
        let began = Instant::now();
        let fault = match Guarded::new(this.clone(), &mut begin).await {
            Ok(()) => Fault::Ended,
            Err(what) => Fault::Panicked(what),
        };
        let wait = backoff.after(began.elapsed());
        report(task, &this, &fault, Some(wait));
        sleep(wait).await;
    }
}

/// Runs a task that ends by itself. After a panic it is started again as in [`keep`].
pub async fn finish<F: Future<Output = ()>>(task: &'static str, mut begin: impl FnMut() -> F) {
    register(task);
    let (this, mut backoff) = (Task::new(), Backoff::NEW);
    loop {
        let began = Instant::now();
        let Err(what) = Guarded::new(this.clone(), &mut begin).await else { return };
        let wait = backoff.after(began.elapsed());
        report(task, &this, &Fault::Panicked(what), Some(wait));
        sleep(wait).await;
    }
}

/// Runs a future once; none if it panics, which is logged and counted under the task's name.
pub async fn caught<F: Future>(task: &'static str, future: F) -> Option<F::Output> {
    let this = Task::new();
    match Guarded::new(this.clone(), || future).await {
        Ok(output) => Some(output),
        Err(what) => {
            report(task, &this, &Fault::Panicked(what), None);
            None
        }
    }
}

/// The same for a call.
pub fn caught_call<T>(task: &'static str, call: impl FnOnce() -> T) -> Option<T> {
    let this = Task::new();
    let entered = Entered::new(Some(this.clone()));
    let result = catch_unwind(AssertUnwindSafe(call));
    drop(entered);
    result.map_err(|panic| report(task, &this, &Fault::Panicked(message(&*panic)), None)).ok()
}

fn report(task: &'static str, this: &Task, fault: &Fault, wait: Option<Duration>) {
    count(task);
    let input = this.take_last();
    let about = input.as_ref().map(|input| format!(" on {input:?}, which is set aside until it changes"));
    let about = about.unwrap_or_default();
    match wait {
        Some(wait) => tracing::error!(
            target: "heddle", task, "the task {fault}{about}; it starts again in {} ms", wait.as_millis()
        ),
        None => tracing::error!(target: "heddle", task, "the task {fault}{about}"),
    }
}

/// What a panic says, on one line of at most 1 KiB.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("with a value that is no text");
    let text = text.get(..text.floor_char_boundary(NAME)).unwrap_or_default();
    text.replace(|c: char| c.is_control(), " ")
}

/// Runs a call that may block for ever on a thread of its own, as a part of the current task. A panic inside it goes on
/// in the caller. If the future is dropped, the thread goes on and its result is lost; the end of the process does not
/// wait for it. A task has four such threads at most: while all of them hang, a further call waits. Where no thread can be
/// started, the call runs on one of the runtime's.
///
/// # Panics
///
/// When the call does.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let task = CURRENT.with(|current| current.borrow().clone());
    let threads = task.as_ref().map_or(&*OUTSIDE, |task| &task.threads).clone();
    // It is never closed.
    let permit = threads.acquire_owned().await.ok();
    let (answer, answered) = oneshot::channel();
    let run = move || {
        let _permit = permit;
        let _entered = Entered::new(task);
        // Nobody may be waiting any more.
        let _ = answer.send(catch_unwind(AssertUnwindSafe(call)));
    };
    let run = Arc::new(Mutex::new(Some(run)));
    let on_thread = {
        let run = run.clone();
        move || {
            let run = lock(&run).take();
            run.into_iter().for_each(|run| run());
        }
    };
    if thread::Builder::new().name("heddle-io".into()).spawn(on_thread).is_err() {
        tokio::task::spawn_blocking(move || {
            let run = lock(&run).take();
            run.into_iter().for_each(|run| run());
        });
    }
    match answered.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => resume_unwind(panic),
        // Only a runtime that is shutting down drops the call, and then drops this future too.
        Err(_) => std::future::pending().await,
    }
}

/// A future made and polled as a part of a task: its output, or what it panicked with.
struct Guarded<F> {
    task: Arc<Task>,
    future: Result<Pin<Box<F>>, Option<Box<dyn Any + Send>>>,
}

impl<F: Future> Guarded<F> {
    fn new<I: IntoFuture<IntoFuture = F>>(task: Arc<Task>, begin: impl FnOnce() -> I) -> Self {
        let entered = Entered::new(Some(task.clone()));
        let future = catch_unwind(AssertUnwindSafe(|| Box::pin(begin().into_future())));
        drop(entered);
        Self { task, future: future.map_err(Some) }
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { task, future } = &mut *self;
        let _entered = Entered::new(Some(task.clone()));
        let panic = match future {
            Ok(running) => match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
                Ok(polled) => return polled.map(Ok),
                Err(panic) => Some(panic),
            },
            Err(panic) => panic.take(),
        };
        let what = panic.as_deref().map(message).unwrap_or_default();
        // What is left of it is dropped here, where a second panic ends nothing else.
        let left = std::mem::replace(future, Err(None));
        let _ = catch_unwind(AssertUnwindSafe(|| drop(left)));
        Poll::Ready(Err(what))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn panics_of(task: &str) -> u64 {
        panics().into_iter().find_map(|(name, count)| (name == task).then_some(count)).unwrap_or_default()
    }

    /// Lets a task run until this is true.
    async fn run_until(task: impl Future<Output = ()>, mut is_done: impl FnMut() -> bool) {
        let wait = async {
            while !is_done() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = task => {}
            () = wait => {}
        }
    }

    /// Issue 10, 10: after a panic the task starts again, without the input that caused it until that changes.
    #[tokio::test]
    async fn what_made_a_task_panic_is_skipped_until_it_changes() {
        let bad: Arc<Mutex<&[u8]>> = Arc::new(Mutex::new(b"panic"));
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let begin = || {
            let (bad, seen) = (bad.clone(), seen.clone());
            async move {
                loop {
                    let now = *lock(&bad);
                    for (name, content) in [("good", &b"1"[..]), ("bad", now)] {
                        let Some(_input) = input(&name, content) else { continue };
                        assert!(!content.starts_with(b"panic"), "a bad input");
                        lock(&seen).push(format!("{name} {}", content.escape_ascii()));
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let count = |what: &str| lock(&seen).iter().filter(|seen| *seen == what).count();
        let task = keep("test-inputs", begin);
        let mut task = std::pin::pin!(task);
        run_until(&mut task, || count("good 1") > 9).await;
        assert_eq!(panics_of("test-inputs"), 1, "it was not tried again");
        *lock(&bad) = b"panic as well";
        let before = count("good 1");
        run_until(&mut task, || count("good 1") > before + 9).await;
        assert_eq!(panics_of("test-inputs"), 2, "it was tried once");
        *lock(&bad) = b"mended";
        run_until(&mut task, || count("bad mended") > 0).await;
        assert_eq!(panics_of("test-inputs"), 2);
    }

    /// Issue 10, 10: restarts back off to 30 s.
    #[test]
    fn the_wait_doubles_up_to_30_s_and_begins_anew_after_a_long_run() {
        let mut backoff = Backoff::NEW;
        let waits: Vec<u128> = (0..12).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.after(Duration::from_secs(30)).as_millis(), 30_000);
        assert_eq!(backoff.after(Duration::from_secs(31)).as_millis(), 100);
        assert_eq!(backoff.after(Duration::ZERO).as_millis(), 200);
    }

    /// Issue 10, 10: an end counts as a panic does.
    #[tokio::test]
    async fn a_task_that_ends_is_started_again() {
        let runs = AtomicUsize::new(0);
        let begin = || {
            runs.fetch_add(1, Relaxed);
            async {}
        };
        run_until(keep("test-ends", begin), || runs.load(Relaxed) == 3).await;
        assert_eq!(panics_of("test-ends"), 3);
    }

    #[tokio::test]
    async fn making_a_run_may_panic_and_a_task_may_finish() {
        let tries = AtomicUsize::new(0);
        finish("test-finish", || {
            let tries = tries.fetch_add(1, Relaxed);
            assert!(tries > 0, "not at first");
            async move { assert!(tries > 1, "nor then") }
        })
        .await;
        assert_eq!((tries.load(Relaxed), panics_of("test-finish")), (3, 2));
        assert_eq!(caught("test-caught", async { 7 }).await, Some(7));
        assert_eq!(caught("test-caught", async { panic!("no") }).await, None::<()>);
        assert_eq!(caught_call("test-caught", || -> u8 { panic!("no") }), None);
        assert_eq!(panics_of("test-caught"), 2);
    }

    /// A panic on another thread belongs to the task that waits for it, and so does its input.
    #[tokio::test]
    async fn a_blocking_call_is_a_part_of_its_task() {
        let runs = Arc::new(AtomicUsize::new(0));
        let begin = || {
            let runs = runs.clone();
            async move {
                let read = || input(&"hung", b"x").map(|_input| -> u8 { panic!("while it was read") });
                assert_eq!(blocking(read).await, None);
                runs.fetch_add(1, Relaxed);
                std::future::pending::<()>().await;
            }
        };
        run_until(keep("test-blocking", begin), || runs.load(Relaxed) > 0).await;
        assert_eq!(panics_of("test-blocking"), 1);
    }

    /// Issue 10, 10: any number of calls that hang keep neither others nor the end of a runtime waiting.
    #[test]
    fn a_call_that_hangs_keeps_nobody_waiting() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let hung = Arc::new(Mutex::new(hung));
        runtime.block_on(async {
            for _ in 0..8 {
                let hung = hung.clone();
                tokio::spawn(blocking(move || lock(&hung).recv()));
            }
            assert_eq!(blocking(|| 7).await, 7);
        });
        drop(runtime);
        drop(release);
    }

    /// Issue 10, 10: whoever gives up a call that hangs, and comes again, leaves no more than a few threads behind.
    #[tokio::test]
    async fn a_task_has_a_bounded_number_of_calls_that_hang() {
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let (hung, begun) = (Arc::new(Mutex::new(hung)), Arc::new(AtomicUsize::new(0)));
        let tries = Arc::new(AtomicUsize::new(0));
        let begin = || {
            let (hung, begun, tries) = (hung.clone(), begun.clone(), tries.clone());
            async move {
                loop {
                    let (hung, begun) = (hung.clone(), begun.clone());
                    let call = blocking(move || {
                        begun.fetch_add(1, Relaxed);
                        lock(&hung).recv()
                    });
                    let given_up = tokio::time::timeout(Duration::from_millis(20), call).await;
                    assert!(given_up.is_err());
                    tries.fetch_add(1, Relaxed);
                }
            }
        };
        run_until(keep("test-hung", begin), || tries.load(Relaxed) > 8 && begun.load(Relaxed) >= THREADS).await;
        assert_eq!((begun.load(Relaxed), panics_of("test-hung")), (THREADS, 0));
        drop(release);
    }

    #[test]
    fn a_message_is_one_short_line() {
        let panic: Box<dyn Any + Send> = Box::new(format!("a\nb{}", "x".repeat(5000)));
        let text = message(&*panic);
        assert!(text.starts_with("a b") && text.len() == NAME, "{text}");
        assert_eq!(message(&7_u8), "with a value that is no text");
    }
}
