//! The plugins folder: `NAME.wasm` is the policy `NAME`.
//!
//! Changes are noticed through the operating system and, as some mounts announce nothing, by a slow rescan. Either way
//! files are read and compared by content, so that a file written in place, a rename over it, and the symlink swap of a
//! mounted ConfigMap are all the same, and a file that was merely touched is not loaded again.
//!
//! Only the files of policies that services use are read. A file becomes a generation on a thread of its own, which waits
//! for the compiler; meanwhile the folder is still followed. When the file changes again, the compilation is cancelled
//! and the new content takes its place: a copy that pauses half-way is refused as it is and loaded when it is whole. What
//! was refused is remembered with its content and is not tried again until that changes; what could not be compiled for
//! reasons of its surroundings is tried again, at growing intervals.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::compile::Cancel;
use super::generation::{ContentHash, LoadError, MAX_BYTES, Origin, shown};
use super::registry::{Plugin, Plugins};
use crate::watch::Changes;

/// Threads that load files. The compiler has fewer places.
const MAX_LOADING: usize = 8;

/// How long after a failure that may pass a file is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What the folder held when it was last read.
pub struct Folder {
    path: PathBuf,
    seen: BTreeMap<Arc<str>, Seen>,
    /// What is being loaded, and with what content; without one, what takes the place of a file that is gone.
    loading: BTreeMap<Arc<str>, (Option<ContentHash>, Cancel)>,
}

/// What is known of a file.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Gone,
    /// Loaded, or refused for good.
    Settled(ContentHash),
    Unreadable(Mark),
    /// Failed so often in a row; to be tried again at this time.
    Failed(ContentHash, u32, Instant),
}

/// Size, inode and times of a file: what changes with it, although it cannot be read.
pub type Mark = (u64, u64, i64, i64, i64, i64);

/// What a look at a policy's file finds.
pub enum Look {
    /// There is no such file.
    Gone,
    Unreadable(Mark, LoadError),
    Content(PathBuf, ContentHash),
}

/// Something to be done on a thread of its own.
enum Job {
    Load { name: Arc<str>, path: PathBuf, hash: ContentHash, cancel: Cancel },
    Remove { name: Arc<str> },
}

/// What became of a job: of which policy, with what content, and which content is in force; none of a file that is gone.
type Loaded = (Arc<str>, Option<(ContentHash, Result<ContentHash, LoadError>)>);

/// Looks at the file of a policy, and hashes its content. This reads it: not for a worker.
pub fn look(folder: &Path, name: &str) -> Look {
    let path = folder.join(format!("{name}.wasm"));
    let unreadable = |mark, error: io::Error| Look::Unreadable(mark, LoadError::Unreadable(error.to_string()));
    let metadata = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Look::Gone,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Look::Gone;
        }
        Err(error) => return unreadable(Mark::default(), error),
    };
    let of = &metadata;
    let mark = (of.len(), of.ino(), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    if of.len() > MAX_BYTES {
        return Look::Unreadable(mark, LoadError::TooLarge { bytes: of.len() });
    }
    match hash_of(&path) {
        Ok(hash) => Look::Content(path, hash),
        Err(error) => unreadable(mark, error),
    }
}

/// The hash of a file, without its content in memory.
fn hash_of(path: &Path) -> io::Result<ContentHash> {
    let mut file = File::open(path)?.take(MAX_BYTES + 1);
    let (mut hasher, mut piece) = (Sha256::new(), [0; 64 << 10]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(ContentHash(hasher.finalize().into())),
            Ok(length) => hasher.update(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: BTreeMap::new(), loading: BTreeMap::new() }
    }

    /// Whether there is a file that is the policy of this name, or may be one.
    pub fn has(folder: &Path, name: &str) -> bool {
        match fs::metadata(folder.join(format!("{name}.wasm"))) {
            Ok(metadata) => metadata.is_file(),
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Path and content of the file that is the policy of this name; none where there is no such file.
    ///
    /// # Errors
    ///
    /// When the folder or the file cannot be read, or the file is too large.
    pub fn read(folder: &Path, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, LoadError> {
        match look(folder, name) {
            Look::Gone => Ok(None),
            Look::Unreadable(_, error) => Err(error),
            Look::Content(path, _) => match fs::read(&path) {
                Ok(bytes) => Ok(Some((path, bytes))),
                Err(error) => Err(LoadError::Unreadable(error.to_string())),
            },
        }
    }

    /// Looks at the files of the policies that services use: what is to be loaded, and what is gone.
    fn scan(&mut self, plugins: &Plugins) -> Vec<Job> {
        let mut names: Vec<Arc<str>> = plugins.used().iter().map(|plugin| plugin.name.clone()).collect();
        names.extend(self.seen.keys().cloned());
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|name| self.look_at(plugins, name)).collect()
    }

    fn look_at(&mut self, plugins: &Plugins, name: Arc<str>) -> Option<Job> {
        let found = look(&self.path, &name);
        if let Some((loading, cancel)) = self.loading.get(&name) {
            // Its result comes, and the file is looked at again then.
            let is_wanted = match (&found, loading) {
                (Look::Content(_, hash), Some(loading)) => hash == loading,
                (_, None) => true,
                _ => false,
            };
            if !is_wanted {
                cancel.cancel();
            }
            return None;
        }
        let plugin = plugins.get(&name);
        match found {
            Look::Gone => {
                let is_in_force = |plugin: Arc<Plugin>| is_of_file(&plugin, &self.path);
                if let Some(plugin) = plugin.as_ref().filter(|plugin| plugin.is_awaited()) {
                    plugin.wait_for_file();
                }
                let was_there = match self.seen.insert(name.clone(), Seen::Gone) {
                    Some(Seen::Gone) => false,
                    Some(_) => true,
                    None => plugin.is_some_and(is_in_force),
                };
                was_there.then(|| {
                    self.loading.insert(name.clone(), (None, Cancel::default()));
                    Job::Remove { name }
                })
            }
            Look::Unreadable(mark, why) => {
                if self.seen.insert(name.clone(), Seen::Unreadable(mark)) != Some(Seen::Unreadable(mark)) {
                    plugin.inspect(|plugin| plugin.refuse(&why, None));
                    self.report(&name, &why);
                }
                None
            }
            // Services have used it once, and may again.
            Look::Content(..) if !plugin.as_ref().is_some_and(|plugin| plugin.is_used()) => None,
            Look::Content(path, hash) => {
                match self.seen.get(&name) {
                    Some(Seen::Settled(seen)) if *seen == hash => return None,
                    Some(Seen::Failed(seen, _, due)) if *seen == hash && *due > Instant::now() => return None,
                    _ => {}
                }
                let origin = Origin::File(path.clone());
                // A changed configuration has tried it already, and said what came of it.
                let is_refused = plugin.as_ref().is_some_and(|plugin| plugin.has_refused(hash));
                let current = plugin.and_then(|plugin| plugin.current());
                if is_refused || current.is_some_and(|current| current.hash == hash && current.origin == origin) {
                    self.seen.insert(name, Seen::Settled(hash));
                    return None;
                }
                if self.loading.len() >= MAX_LOADING {
                    return None;
                }
                let cancel = Cancel::default();
                self.loading.insert(name.clone(), (Some(hash), cancel.clone()));
                Some(Job::Load { name, path, hash, cancel })
            }
        }
    }

    /// Takes note of what became of a file.
    fn loaded(&mut self, (name, done): Loaded) {
        self.loading.remove(&name);
        let Some((asked, result)) = done else { return };
        let seen = match &result {
            Ok(hash) => Seen::Settled(*hash),
            Err(LoadError::Cancelled) => return,
            Err(error) if error.is_passing() => {
                let failures = match self.seen.get(&name) {
                    Some(Seen::Failed(hash, failures, _)) if *hash == asked => failures.saturating_add(1),
                    _ => 1,
                };
                let wait = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
                Seen::Failed(asked, failures, Instant::now() + wait)
            }
            Err(_) => Seen::Settled(asked),
        };
        self.seen.insert(name.clone(), seen);
        if let Err(error) = result {
            self.report(&name, &error);
        }
    }

    fn report(&self, name: &str, why: &LoadError) {
        let file = self.path.join(format!("{name}.wasm"));
        tracing::error!(target: "heddle::plugin", policy = name, file = %shown(&file), "refused: {why}");
    }

    /// When something is tried again.
    fn next_retry(&self) -> Option<Instant> {
        let due = |seen: &Seen| if let Seen::Failed(_, _, due) = seen { Some(*due) } else { None };
        self.seen.values().filter_map(due).min()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.loading.values().for_each(|(_, cancel)| cancel.cancel());
    }
}

fn is_of_file(plugin: &Plugin, folder: &Path) -> bool {
    let origin = plugin.current().map(|current| current.origin.clone());
    matches!(origin, Some(Origin::File(path)) if path.parent() == Some(folder))
}

impl Job {
    /// Does it on a thread that the process does not wait for when it stops.
    fn begin(self, plugins: &Arc<Plugins>, loaded: &UnboundedSender<Loaded>) {
        let (name, hash) = match &self {
            Self::Load { name, hash, .. } => (name.clone(), Some(*hash)),
            Self::Remove { name } => (name.clone(), None),
        };
        let (plugins, answer) = (plugins.clone(), loaded.clone());
        let ended = (name.clone(), hash.map(|hash| (hash, Err(LoadError::NoCompiler("its thread panicked".into())))));
        let work = move || {
            let done = catch_unwind(AssertUnwindSafe(|| match self {
                Self::Load { name, path, hash, cancel } => {
                    let result = plugins.load_file(&name, &path, hash, &cancel);
                    if let Ok(generation) = &result {
                        tracing::info!(target: "heddle::plugin", policy = &*name, generation = generation.number,
                            sha256 = %generation.hash, "loaded from {}", shown(&path));
                    }
                    (name, Some((hash, result.map(|generation| generation.hash))))
                }
                Self::Remove { name } => {
                    plugins.remove(&name);
                    (name, None)
                }
            }));
            // Otherwise nobody follows the folder any more.
            let _ = answer.send(done.unwrap_or(ended));
        };
        if let Err(error) = thread::Builder::new().name("heddle-load".into()).spawn(work) {
            let failed = hash.map(|hash| (hash, Err(LoadError::NoCompiler(error.to_string()))));
            // As above.
            let _ = loaded.send((name, failed));
        }
    }
}

/// Follows the folder for ever, reading it after each change, every `rescan`, and when services come to use other
/// policies.
pub async fn watch(mut folder: Folder, plugins: Arc<Plugins>, rescan: Duration) {
    let mut changes = Changes::of_folder(folder.path.clone());
    let (sender, mut results) = unbounded_channel();
    loop {
        let retry = folder.next_retry().map_or(rescan, |due| due.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = changes.next(rescan) => {}
            () = plugins.wanted() => {}
            () = tokio::time::sleep(retry.max(RETRY.0 / 10)), if retry < rescan => {}
            Some(result) = results.recv() => {
                folder.loaded(result);
                while let Ok(result) = results.try_recv() {
                    folder.loaded(result);
                }
            }
        }
        let path = folder.path.clone();
        let (all, mut read) = (plugins.clone(), folder);
        let scanned = tokio::task::spawn_blocking(move || {
            let jobs = read.scan(&all);
            (read, jobs)
        });
        folder = match scanned.await {
            Ok((read, jobs)) => {
                jobs.into_iter().for_each(|job| job.begin(&plugins, &sender));
                read
            }
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                tracing::error!(target: "heddle::plugin", folder = %path.display(), "reading it failed: {error}");
                tokio::time::sleep(RETRY.0).await;
                Folder::new(path)
            }
        };
    }
}
