//! The plugins folder: `NAME.wasm` is the policy `NAME`.
//!
//! Changes are noticed through the operating system and, as some mounts announce nothing, by a slow rescan. Either way
//! the folder is read and compared by content, so that a file written in place, a rename over it, and the symlink
//! swap of a mounted ConfigMap are all the same, and a file that was merely touched is not loaded again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::generation::{ContentHash, MAX_BYTES, Origin, shown};
use super::registry::Plugins;
use crate::watch::Changes;

/// What the folder held when it was last read. A content that was refused is remembered too: it is not tried again.
#[derive(Default)]
pub struct Folder {
    path: PathBuf,
    seen: BTreeMap<String, ContentHash>,
    /// Files that could not be read, so that each is reported once.
    unreadable: BTreeSet<PathBuf>,
}

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// Path and content of the file that is the policy of this name; none where there is no such file.
    ///
    /// # Errors
    ///
    /// When the folder or the file cannot be read.
    pub fn read(folder: &Path, name: &str) -> io::Result<Option<(PathBuf, Vec<u8>)>> {
        let mut found = match list(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        found.remove(name).map(|path| read(&path).map(|bytes| (path, bytes))).transpose()
    }

    /// Reads the folder, loads what is new and forgets what is gone. This compiles: not for a worker.
    pub fn scan(&mut self, plugins: &Plugins) {
        let found = match list(&self.path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                // The files are most likely still there: nothing is unloaded on an error.
                if self.unreadable.insert(self.path.clone()) {
                    tracing::error!(target: "heddle::plugin", folder = %shown(&self.path), "cannot be read: {error}");
                }
                return;
            }
        };
        self.unreadable.remove(&self.path);
        for (name, path) in &found {
            match read(path) {
                Ok(bytes) => {
                    self.unreadable.remove(path);
                    self.load(plugins, name, path, &bytes);
                }
                Err(error) => {
                    if self.unreadable.insert(path.clone()) {
                        tracing::error!(target: "heddle::plugin", file = %shown(path), "refused: {error}");
                    }
                }
            }
        }
        let gone: Vec<String> = self.seen.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in gone {
            self.seen.remove(&name);
            plugins.remove(&name);
        }
    }

    fn load(&mut self, plugins: &Plugins, name: &str, path: &Path, bytes: &[u8]) {
        let hash = ContentHash::of(bytes);
        if self.seen.insert(name.to_owned(), hash) == Some(hash) {
            return;
        }
        match plugins.load(name, bytes, Origin::File(path.to_owned())) {
            Ok(generation) => tracing::info!(target: "heddle::plugin", policy = name, generation = generation.number,
                sha256 = %hash, "loaded from {}", shown(path)),
            Err(error) => {
                tracing::error!(target: "heddle::plugin", policy = name, file = %shown(path), "refused: {error}");
            }
        }
    }
}

/// Name and path of each `*.wasm` file, not of those below the folder.
fn list(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(name) = name
            && path.extension().is_some_and(|extension| extension == "wasm")
            && !name.starts_with('.')
            && path.is_file()
        {
            found.insert(name.to_owned(), path);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("{length} bytes; expected at most {MAX_BYTES}")));
    }
    fs::read(path)
}

/// Follows the folder for ever, reading it after each change and every `rescan`.
pub async fn watch(mut folder: Folder, plugins: Arc<Plugins>, rescan: Duration) {
    let mut changes = Changes::of_folder(folder.path.clone());
    loop {
        changes.next(rescan).await;
        let (all, mut read) = (plugins.clone(), folder);
        let scanned = tokio::task::spawn_blocking(move || {
            read.scan(&all);
            read
        });
        match scanned.await {
            Ok(read) => folder = read,
            Err(_shutting_down) => return,
        }
    }
}
