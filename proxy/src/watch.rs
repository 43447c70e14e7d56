//! Learning of changes to files and folders.
//!
//! Folders are watched, not files, so that every way of replacing a file is seen: written in place, renamed over, and
//! the swap of the `..data` link of a mounted ConfigMap. Where a path leads over symbolic links, the folder that each
//! link is in is watched too: whoever points a link elsewhere changes nothing in the folder that it pointed to. A folder
//! may be deleted or moved away and made anew, as those do who replace it as a whole: a watch follows what was watched and
//! not its name. So its own end is a change, and while there is none of that name, the nearest folder above it that there
//! is has to announce it. Some mounts announce nothing, so whoever follows something also looks by itself once in a while;
//! what counts is the content.
//!
//! A folder on a mount that hangs blocks even a look at it, so folders are looked at by [`blocking`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::supervise::blocking;

/// A change is told of once all has been quiet for this long: a file written in place is not read half-way.
const QUIET: Duration = Duration::from_millis(30);

/// However restless the folders are, a change is told of after this time.
const RESTLESS: Duration = Duration::from_millis(500);

/// Links that a path may lead over, as Linux has it.
const MAX_LINKS: usize = 40;

/// The folders that are watched, with device and number of each.
type Places = BTreeMap<PathBuf, Place>;

#[derive(Debug, PartialEq, Eq)]
struct Place {
    id: Option<(u64, u64)>,
    /// The only things in it that matter, where it stands in for folders below it that are not there; none for all.
    only: Option<BTreeSet<PathBuf>>,
}

/// Tells of changes, for as long as it lives.
#[derive(Debug)]
pub struct Changes {
    what: Arc<What>,
    /// What is watched.
    places: Option<Places>,
    watcher: Option<RecommendedWatcher>,
    announced: Arc<Notify>,
}

#[derive(Debug)]
enum What {
    Files(Vec<PathBuf>),
    Folder(PathBuf),
}

impl Changes {
    /// Of these files, which need not exist yet.
    pub fn of_files(files: Vec<PathBuf>) -> Self {
        Self::of(What::Files(files))
    }

    /// Of what is in this folder, which need not exist yet. Not of what is below it.
    pub fn of_folder(folder: PathBuf) -> Self {
        Self::of(What::Folder(folder))
    }

    fn of(what: What) -> Self {
        Self { what: Arc::new(what), places: None, watcher: None, announced: Arc::default() }
    }

    /// Waits for a change, at most until it is time to look anyway. Ready at once when it is called first, and when
    /// other folders have to be watched than before: what changed before they were watched is found then.
    pub async fn next(&mut self, rescan: Duration) {
        let what = self.what.clone();
        let places = blocking(move || what.find_places()).await;
        if self.places.as_ref() != Some(&places) {
            let announced = self.announced.clone();
            (self.places, self.watcher) = blocking(move || {
                let watcher = watch(&places, &announced);
                (Some(places), watcher)
            })
            .await;
        } else if timeout(rescan, self.announced.notified()).await.is_ok() {
            let quiet = async { while timeout(QUIET, self.announced.notified()).await.is_ok() {} };
            let _as_quiet_as_it_gets = timeout(RESTLESS, quiet).await;
        }
    }
}

impl What {
    fn find_places(&self) -> Places {
        let folders: BTreeSet<PathBuf> = match self {
            Self::Files(files) => files.iter().flat_map(|file| folders_of(file)).collect(),
            Self::Folder(folder) => folders_of(&folder.join("any")),
        };
        let mut places = Places::new();
        for folder in folders {
            if let Some(id) = place(&folder) {
                places.insert(folder, Place { id: Some(id), only: None });
            } else if let Some((above, id, missing)) = nearest(&folder) {
                let place = places.entry(above).or_insert_with(|| Place { id: Some(id), only: Some(BTreeSet::new()) });
                if let Some(only) = &mut place.only {
                    only.insert(missing);
                }
            }
        }
        places
    }
}

/// The nearest folder above a missing one that there is, and what is missing in it.
fn nearest(folder: &Path) -> Option<(PathBuf, (u64, u64), PathBuf)> {
    let mut missing = folder;
    loop {
        let above = missing.parent()?;
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        if let Some(id) = place(above) {
            return Some((above.to_owned(), id, missing.to_owned()));
        }
        if above == Path::new(".") {
            return None;
        }
        missing = above;
    }
}

/// Has every change in these folders announced; none where that cannot be done, and looking anyway has to do.
fn watch(places: &Places, announced: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let announced = announced.clone();
    let stand_ins: Vec<(PathBuf, BTreeSet<PathBuf>)> =
        places.iter().filter_map(|(folder, place)| Some((folder.clone(), place.only.clone()?))).collect();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| is_read(&event) || is_beside(&event, &stand_ins)) {
            announced.notify_one();
        }
    });
    let report = |what: &Path, error: notify::Error| {
        tracing::warn!(target: "heddle::watch", "{}: changes are not announced, and noticed later: {error}", what.display());
    };
    let mut watcher = watcher.map_err(|error| report(Path::new("files"), error)).ok()?;
    for folder in places.keys() {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            report(folder, error);
        }
    }
    Some(watcher)
}

/// Reading must not announce a change.
fn is_read(event: &notify::Event) -> bool {
    event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
}

/// Whether all that an event is about lies beside what is missing in a folder that only stands in for others. Such a
/// folder may be as busy as `/tmp` is.
fn is_beside(event: &notify::Event, stand_ins: &[(PathBuf, BTreeSet<PathBuf>)]) -> bool {
    let is_beside = |path: &PathBuf| {
        let mut of = stand_ins.iter().filter(|(folder, _)| path.parent().is_some_and(|parent| is_same(parent, folder)));
        of.next().is_some_and(|(_, only)| !only.iter().any(|missing| missing.file_name() == path.file_name()))
    };
    !event.paths.is_empty() && event.paths.iter().all(is_beside)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let is_here = |path: &Path| path.as_os_str().is_empty() || path == Path::new(".");
    one == other || is_here(one) && is_here(other)
}

/// Device and number of a folder; none while there is none.
fn place(folder: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The folder that a file is in, and that of each symbolic link on the way to it.
fn folders_of(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::from([folder_of(file)]);
    let mut left: Vec<PathBuf> = parts(file);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = left.pop() {
        let next = at.join(part);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                folders.insert(folder_of(&next));
                left.extend(parts(&target));
            }
            _ => at = next,
        }
    }
    folders.insert(folder_of(&at));
    folders
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components().rev().map(|part: Component<'_>| PathBuf::from(part.as_os_str())).collect()
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Far beyond any test: what is noticed is announced.
    const NEVER: Duration = Duration::from_secs(3600);

    /// Waits for changes until there is what is looked for.
    async fn until(changes: &mut Changes, is_there: impl Fn() -> bool) {
        let looked = async {
            while !is_there() {
                changes.next(NEVER).await;
            }
        };
        timeout(Duration::from_secs(30), looked).await.expect("the change is announced");
    }

    /// Has everything watched as it is now.
    async fn settle(changes: &mut Changes) {
        while changes.places.as_ref() != Some(&changes.what.find_places()) {
            changes.next(NEVER).await;
        }
    }

    /// Issue 10, 14: a watched folder that is deleted, or moved away, and made anew is followed at once.
    #[tokio::test]
    async fn a_folder_that_is_made_anew_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let (folder, file) = (root.path().join("a/b"), root.path().join("a/b/file"));
        for of_folder in [true, false] {
            let mut changes =
                if of_folder { Changes::of_folder(folder.clone()) } else { Changes::of_files(vec![file.clone()]) };
            fs::create_dir_all(&folder).unwrap();
            settle(&mut changes).await;
            for round in 0..6 {
                let gone = if round % 2 == 0 { folder.clone() } else { root.path().join("a") };
                if round < 4 {
                    fs::remove_dir_all(&gone).unwrap();
                } else {
                    fs::rename(&folder, root.path().join(format!("away{of_folder}{round}"))).unwrap();
                }
                until(&mut changes, || !folder.exists()).await;
                settle(&mut changes).await;
                // Nothing has been announced since, nor will be: it comes by what is done below.
                fs::create_dir_all(&folder).unwrap();
                changes.next(NEVER).await;
                settle(&mut changes).await;
                fs::write(&file, round.to_string()).unwrap();
                let content = || fs::read_to_string(&file).unwrap_or_default();
                assert_eq!(content(), round.to_string());
                let noticed = timeout(Duration::from_secs(30), changes.next(NEVER)).await;
                assert!(noticed.is_ok(), "round {round}");
            }
            fs::remove_dir_all(root.path().join("a")).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_missing_is_waited_for_above_it() {
        let root = tempfile::tempdir().unwrap();
        let changes = Changes::of_folder(root.path().join("a/b/c"));
        let places = changes.what.find_places();
        let only = BTreeSet::from([root.path().join("a")]);
        let expected = Place { id: place(root.path()), only: Some(only.clone()) };
        assert_eq!(places, Places::from([(root.path().to_owned(), expected)]));
        let stand_ins = [(root.path().to_owned(), only)];
        let event = |name: &str| notify::Event::new(EventKind::Any).add_path(root.path().join(name));
        assert!(is_beside(&event("other"), &stand_ins) && !is_beside(&event("a"), &stand_ins));
        assert!(!is_beside(&notify::Event::new(EventKind::Any), &stand_ins), "one about the folder itself");
    }

    #[test]
    fn the_folders_of_all_links_are_watched() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        fs::create_dir_all(at("store/v1")).unwrap();
        fs::create_dir_all(at("mounted/..1")).unwrap();
        fs::write(at("mounted/..1/file"), "1").unwrap();
        symlink("..1", at("mounted/..data")).unwrap();
        symlink("..data/file", at("mounted/file")).unwrap();
        symlink(at("store/v1"), at("current")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let of = |path: &str| folders_of(&at(path)).into_iter().collect::<Vec<_>>();
        assert_eq!(of("mounted/file"), [at("mounted"), at("mounted/..1")]);
        assert_eq!(of("current/file"), [root.clone(), at("current"), at("store/v1")]);
        assert_eq!(of("store/none"), [at("store")]);
        assert!(of("loop/file").contains(&root));
        assert_eq!(folders_of(Path::new("file")).into_iter().collect::<Vec<_>>(), [Path::new(".")]);
    }
}
