//! Compiled plugins on disk, so that a restart compiles nothing.
//!
//! What is in the cache runs as machine code in the proxy, so it is believed only if it was written by this user: the
//! folder and the file belong to this process's user and nobody else can write to them, and a message authentication
//! code (HMAC-SHA-256, under a random key in a file that only this user can read) covers the content and its name. The
//! name is a hash of the plugin's content, the versions of Heddle and wasmtime, the processor's features and the settings
//! that are compiled in, so a new build or another machine finds nothing and compiles anew. Whatever does not hold is as
//! if it were not there.
//!
//! Beside the compiled plugins a small file per policy names the content that was in force last: a start uses that until
//! the file in the folder has been compiled. The cache is bounded; what was used longest ago goes first.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hmac, rand};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use sha2::{Digest, Sha256};

use super::generation::ContentHash;
use super::precompiled::{Sealed, Unsealed};
use crate::config::checked;

/// Length of key and code in bytes.
const CODE: usize = 32;

const PIECE: usize = 64 << 10;

/// Bits that let the group or others write.
const WRITABLE: u32 = 0o022;

/// The cache of one state folder.
pub struct Cache {
    folder: PathBuf,
    /// Bytes of all compiled plugins together.
    limit: u64,
    key: hmac::Key,
    /// What everything that is compiled depends on beside the plugin.
    environment: [u8; 32],
}

impl Cache {
    /// Opens the cache in this folder, and makes the folder if there is none; none, with a line in the log, where it cannot
    /// be trusted or used.
    pub fn open(folder: &Path, settings: &checked::Plugins) -> Option<Self> {
        let key = make(folder).and_then(|()| read_key(&folder.join("key")));
        match key {
            Ok(key) => Some(Self {
                folder: folder.to_owned(),
                limit: settings.compile.cache,
                key,
                environment: environment(settings),
            }),
            Err(error) => {
                tracing::warn!(target: "heddle::plugin", folder = %folder.display(),
                    "compiled plugins are not kept: {error}");
                None
            }
        }
    }

    /// What was compiled of this content.
    pub fn get(&self, hash: ContentHash) -> Option<Sealed> {
        let name = self.name_of(hash);
        let path = self.folder.join(&name);
        let mut file = open_own(&path, WRITABLE).ok()?;
        let sealed = self.copy_checked(&mut file, &name).ok().flatten();
        if sealed.is_some() {
            // Only its place in the order of removal depends on it.
            let _ = file.set_modified(SystemTime::now());
        } else {
            let _ = fs::remove_file(&path);
        }
        sealed
    }

    /// Keeps what was compiled of this content. A disk that is full costs the next start a compilation, and nothing else.
    pub fn put(&self, hash: ContentHash, sealed: &Sealed) {
        if let Err(error) = self.try_put(hash, sealed) {
            tracing::warn!(target: "heddle::plugin", folder = %self.folder.display(),
                "a compiled plugin is not kept: {error}");
        }
    }

    fn try_put(&self, hash: ContentHash, sealed: &Sealed) -> io::Result<()> {
        let mut from = sealed.reader()?;
        let length = from.metadata()?.len();
        if length > self.limit {
            return Ok(());
        }
        self.make_room(length);
        let name = self.name_of(hash);
        let mut code = self.begin(&name);
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.folder)?;
        file.write_all(&[0; CODE])?;
        let mut piece = [0; PIECE];
        loop {
            let length = from.read(&mut piece)?;
            let piece = piece.get(..length).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            code.update(piece);
            file.write_all(piece)?;
        }
        file.seek(SeekFrom::Start(0))?;
        file.write_all(code.sign().as_ref())?;
        file.persist(self.folder.join(name)).map_err(|error| error.error)?;
        Ok(())
    }

    /// The content that was in force last as the policy of this name.
    pub fn last_good(&self, policy: &str) -> Option<ContentHash> {
        let name = name_of_policy(policy);
        let mut content = Vec::new();
        open_own(&self.folder.join(&name), WRITABLE).ok()?.take(128).read_to_end(&mut content).ok()?;
        let (code, hash) = content.split_at_checked(CODE)?;
        let mut expected = self.begin(&name);
        expected.update(hash);
        verify_slices_are_equal(expected.sign().as_ref(), code).ok()?;
        Some(ContentHash(hash.try_into().ok()?))
    }

    /// Remembers the content that is in force.
    pub fn set_last_good(&self, policy: &str, hash: ContentHash) {
        if self.last_good(policy) == Some(hash) {
            return;
        }
        let name = name_of_policy(policy);
        let mut code = self.begin(&name);
        code.update(&hash.0);
        let write = || {
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.folder)?;
            file.write_all(code.sign().as_ref())?;
            file.write_all(&hash.0)?;
            file.persist(self.folder.join(&name)).map_err(|error| error.error)
        };
        if let Err(error) = write() {
            tracing::debug!(target: "heddle::plugin", folder = %self.folder.display(), "cannot be written: {error}");
        }
    }

    /// Copies a file into memory that cannot change, and checks the copy; none where its code does not hold.
    fn copy_checked(&self, file: &mut File, name: &str) -> io::Result<Option<Sealed>> {
        let mut written = [0; CODE];
        file.read_exact(&mut written)?;
        let mut code = self.begin(name);
        let mut copy = Unsealed::new()?;
        let mut piece = [0; PIECE];
        let mut left = self.limit;
        loop {
            let length = file.read(&mut piece)?;
            let piece = piece.get(..length).unwrap_or_default();
            if piece.is_empty() {
                break;
            }
            let Some(rest) = left.checked_sub(length as u64) else { return Ok(None) };
            left = rest;
            code.update(piece);
            copy.write_all(piece)?;
        }
        let sealed = copy.seal()?;
        Ok(verify_slices_are_equal(code.sign().as_ref(), &written).is_ok().then_some(sealed))
    }

    fn begin(&self, name: &str) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.as_bytes());
        context
    }

    fn name_of(&self, hash: ContentHash) -> String {
        let mut of = Sha256::new();
        of.update(self.environment);
        of.update(hash.0);
        format!("{}.compiled", ContentHash(of.finalize().into()))
    }

    /// Removes what was used longest ago until so many bytes fit.
    fn make_room(&self, length: u64) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut found: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?;
                // A temporary file that is still there is of a process that was killed.
                let is_left_over = name.starts_with(".new-");
                let metadata = fs::symlink_metadata(&path).ok()?;
                let used = metadata.modified().ok()?;
                if is_left_over && used.elapsed().is_ok_and(|age| age.as_secs() > 60) {
                    let _ = fs::remove_file(&path);
                    return None;
                }
                (name.ends_with(".compiled") && metadata.is_file()).then_some((used, metadata.len(), path))
            })
            .collect();
        found.sort_unstable();
        let mut total = found.iter().fold(length, |total, (_, length, _)| total.saturating_add(*length));
        for (_, length, path) in found {
            if total <= self.limit {
                return;
            }
            let _ = fs::remove_file(path);
            total = total.saturating_sub(length);
        }
    }
}

/// Makes the folder, and checks that it is this user's alone to write.
fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(folder)?;
    let is_own = metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & WRITABLE == 0;
    if is_own { Ok(()) } else { Err(io::Error::other("the folder is not this user's alone to write to")) }
}

/// Opens a file that is this user's own, no link, and without these bits of its mode.
fn open_own(path: &Path, without: u32) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    let metadata = file.metadata()?;
    let is_own = metadata.is_file() && metadata.uid() == geteuid().as_raw() && metadata.mode() & without == 0;
    if is_own { Ok(file) } else { Err(io::Error::other(format!("{} is not this user's alone", path.display()))) }
}

/// The key, made where there is none.
fn read_key(path: &Path) -> io::Result<hmac::Key> {
    if !path.try_exists()? {
        let mut random = [0; CODE];
        rand::fill(&mut random).map_err(|_| io::Error::other("there is no randomness"))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        // Complete before it has its name; with the mode 0600, as all temporary files.
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        file.write_all(&random)?;
        match file.persist_noclobber(path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
            _ => {}
        }
    }
    let mut key = [0; CODE];
    open_own(path, 0o077)?.read_exact(&mut key)?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
}

fn name_of_policy(policy: &str) -> String {
    format!("{}.last", ContentHash::of(policy.as_bytes()))
}

/// A hash of what the compiler's result depends on, beside what it compiles.
fn environment(settings: &checked::Plugins) -> [u8; 32] {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{} {} {} {} {}",
        env!("CARGO_PKG_VERSION"),
        env!("HEDDLE_WASMTIME_VERSION"),
        std::env::consts::ARCH,
        settings.memory,
        cpu_features()
    );
    Sha256::digest(text).into()
}

/// The processor's features that the compiler makes use of.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    macro_rules! found {
        ($($feature:tt)*) => {
            [$(($feature, std::arch::is_x86_feature_detected!($feature))),*]
        };
    }
    let features = found!("sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "bmi1" "bmi2" "lzcnt" "cmpxchg16b"
        "avx512f" "avx512dq" "avx512vl" "avx512bitalg" "avx512vbmi");
    let has = features.into_iter().filter(|(_, has)| *has).map(|(feature, _)| feature);
    has.collect::<Vec<_>>().join(" ")
}

/// The processor's features, as the kernel lists them.
#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    let mut start = Vec::new();
    let read = File::open("/proc/cpuinfo").and_then(|file| file.take(PIECE as u64).read_to_end(&mut start));
    let text = String::from_utf8_lossy(&start);
    let line = text.lines().find(|line| line.starts_with("Features"));
    read.ok().and(line).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(folder: &Path, limit: u64) -> Option<Cache> {
        let text = "[[listener]]\naddress = '127.0.0.1:0'";
        let mut settings = crate::config::parse(text, "test".as_ref(), &[]).unwrap().config.plugins;
        settings.compile.cache = limit;
        Cache::open(folder, &settings)
    }

    fn sealed(content: &[u8]) -> Sealed {
        let mut file = Unsealed::new().unwrap();
        file.write_all(content).unwrap();
        file.seal().unwrap()
    }

    fn content(sealed: &Sealed) -> Vec<u8> {
        let mut content = Vec::new();
        sealed.reader().unwrap().read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn what_is_kept_is_bounded_and_found_again() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("plugins");
        let cache = open(&folder, 10_000).unwrap();
        let hash = |n: u8| ContentHash([n; 32]);
        for n in 0..20 {
            cache.put(hash(n), &sealed(&[n; 3_000]));
        }
        cache.put(hash(99), &sealed(&[0; 20_000]));
        let kept: Vec<u8> = (0..100).filter(|n| cache.get(hash(*n)).is_some()).collect();
        assert!(kept.len() <= 3 && kept.contains(&19), "{kept:?}");
        cache.set_last_good("own", hash(19));
        let again = open(&folder, 10_000).unwrap();
        assert_eq!(content(&again.get(hash(19)).unwrap()), [19; 3_000]);
        assert_eq!(again.last_good("own"), Some(hash(19)));
        assert_eq!(again.last_good("other"), None);
        // Under the name of another content it is not believed.
        fs::copy(folder.join(again.name_of(hash(19))), folder.join(again.name_of(hash(50)))).unwrap();
        assert!(again.get(hash(50)).is_none());
        fs::set_permissions(folder.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open(&folder, 10_000).is_none(), "others can read the key");
    }

    /// What is mapped never changes.
    #[test]
    fn a_sealed_file_cannot_be_written() {
        let file = Unsealed::new().unwrap();
        let mut other = file.try_clone().unwrap();
        other.write_all(b"before").unwrap();
        let sealed = file.seal().unwrap();
        assert!(other.write_all(b"after").is_err());
        assert!(other.set_len(0).is_err());
        assert_eq!(content(&sealed), b"before");
    }
}
