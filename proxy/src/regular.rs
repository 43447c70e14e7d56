//! Reading files that somebody else provides, without waiting for ever and without running out of memory.
//!
//! A path in the configuration can lead anywhere. Opening a FIFO waits until somebody writes to it, and a device such as
//! `/dev/zero` never ends. So a file is opened without waiting (`O_NONBLOCK` makes no difference to a regular file), is
//! read only if it is a regular file, and only up to a limit. A regular file on a mount that hangs still blocks: a task
//! reads it by [`blocking`](crate::supervise::blocking).

use std::fs::{self, DirBuilder, File, FileType, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The largest configuration, certificate, key or list of authorities that is read, in bytes.
pub const TEXT: u64 = 16 << 20;

/// The largest services file and snapshot of a registry that is read, in bytes.
pub const DATA: u64 = 256 << 20;

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
///
/// When it cannot be read, is larger, or is something else than a regular file: a folder, a FIFO, a socket, a device.
/// The error names the kind or the limit.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    read_open(file, limit)
}

/// The same from an open file.
///
/// # Errors
///
/// As [`read`].
pub fn read_open(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let kind = kind(metadata.file_type());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}; expected a regular file")));
    }
    let too_large = |found: u64| {
        let text = format!("it has {found} bytes or more; expected at most {limit}");
        Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
    };
    if metadata.len() > limit {
        return too_large(metadata.len());
    }
    let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    match content.len() as u64 {
        length if length > limit => too_large(length),
        _ => Ok(content),
    }
}

/// Makes a folder that only its owner may look into (mode 0700), with those above it, or has an existing one of our own
/// user be so. What it holds says which services there are, and where. One that belongs to another user, such as a
/// volume that a system has mounted, stays as it is, and so does one that all users share (with the sticky bit).
///
/// # Errors
///
/// When it cannot be made, or its mode cannot be changed.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let metadata = fs::metadata(folder)?;
    let mode = metadata.mode();
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    if is_own && mode & 0o077 != 0 && mode & 0o1000 == 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn kind(of: FileType) -> &'static str {
    match of {
        of if of.is_dir() => "a folder",
        of if of.is_fifo() => "a FIFO",
        of if of.is_socket() => "a socket",
        of if of.is_char_device() || of.is_block_device() => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    /// Issue 10, 10: a FIFO, a device or a file without end is refused at once, whoever may write to it.
    #[test]
    fn only_regular_files_up_to_a_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        mkfifoat(CWD, at("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read(&at(name), 7).unwrap(), b"content");
            let error = read(&at(name), 6).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(error.to_string(), "it has 7 bytes or more; expected at most 6");
        }
        let refused = |path: &Path| read(path, 100).unwrap_err().to_string();
        assert_eq!(refused(&at("fifo")), "it is a FIFO; expected a regular file");
        assert_eq!(refused(folder.path()), "it is a folder; expected a regular file");
        assert_eq!(refused(Path::new("/dev/zero")), "it is a device; expected a regular file");
        assert!(read(&at("socket"), 100).is_err());
        assert_eq!(read(&at("none"), 100).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// Issue 10, 15: the state folder is for its owner only, made now or before.
    #[test]
    fn a_private_folder_is_made_or_corrected() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let made = root.path().join("a/b");
        private_folder(&made).unwrap();
        assert_eq!((mode(&made), mode(&root.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&made, Permissions::from_mode(0o755)).unwrap();
        private_folder(&made).unwrap();
        assert_eq!(mode(&made), 0o700);
        fs::set_permissions(&made, Permissions::from_mode(0o1777)).unwrap();
        private_folder(&made).unwrap();
        assert_eq!(mode(&made), 0o1777, "a folder that all share is not taken away from them");
        fs::write(root.path().join("file"), "").unwrap();
        assert!(private_folder(&root.path().join("file")).is_err());
    }

    /// The size of such a file is given as 0.
    #[test]
    fn a_file_of_the_kernel_is_read_although_it_has_no_size() {
        assert!(!read(Path::new("/proc/self/stat"), 100_000).unwrap().is_empty());
        assert_eq!(read(Path::new("/proc/self/stat"), 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
