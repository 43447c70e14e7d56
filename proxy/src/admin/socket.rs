//! The Unix socket on which commands are taken, as a file that belongs to this process while it runs.
//!
//! Who may connect is who may write to the file, which is its owner, from the first moment: it gets its mode before it
//! gets its name. And a peer that is neither this user nor root is turned away all the same, should somebody have
//! changed the mode.
//!
//! A process that dies leaves its file behind, which nobody answers on; that one is replaced. One on which somebody
//! answers is left alone. Between the look and the replacement the folder is locked, so that of two processes that
//! start at once only one finds nobody there. Whoever may read the folder may lock it, so nobody waits for the lock for
//! good: a folder of the proxy's own, of mode 0700, is the place for the socket.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Type};
use tokio::net::UnixStream;

/// For its owner only.
const MODE: u32 = 0o600;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// How long another process may hold the folder's lock: it does so for a few system calls.
const LOCK: Duration = Duration::from_secs(5);

/// Why there is no socket for commands.
#[derive(Debug, thiserror::Error)]
#[error("cannot take commands on {}: {source}", path.display())]
pub struct SocketError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// A listening socket, and its file, which is removed when this is dropped.
pub struct Socket {
    path: PathBuf,
    /// Device and inode of the file. It cannot be another file's as long as the socket is open.
    identity: (u64, u64),
    listener: socket2::Socket,
    /// Whether the file goes with the socket: another process may have it too.
    is_own: bool,
}

impl Socket {
    /// Binds a socket of mode 0600.
    ///
    /// # Errors
    ///
    /// When somebody answers there, something other than a socket is there, none may be made, or another process holds
    /// the lock of the folder for 5 s.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::claim(path, LOCK).map_err(|source| SocketError { path: path.to_owned(), source })
    }

    fn claim(path: &Path, patience: Duration) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(folder)?;
        lock(&folder, patience)?;
        let listener = match bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_if_dead(path)?;
                bind(path)?
            }
            bound => bound?,
        };
        let identity = identity(&fs::symlink_metadata(path)?);
        // From here on the file is removed again if something fails.
        let socket = Self { path: path.to_owned(), identity, listener, is_own: true };
        socket.listener.listen(BACKLOG)?;
        Ok(socket)
    }

    /// A socket that another process has bound there and handed over; none where its file is no longer the one of this
    /// identity. The file is that process' until [`Socket::own`].
    pub fn inherit(path: &Path, found: (u64, u64), listener: OwnedFd) -> Option<Self> {
        let is_it = Self::identity(path) == Some(found);
        is_it.then(|| Self { path: path.to_owned(), identity: found, listener: listener.into(), is_own: false })
    }

    /// By which a file is told from another one in its place: device and inode.
    pub fn identity(path: &Path) -> Option<(u64, u64)> {
        Some(identity(&fs::symlink_metadata(path).ok()?))
    }

    /// A further descriptor, for another process.
    ///
    /// # Errors
    ///
    /// When there can be none.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.listener.try_clone()?.into())
    }

    /// From now on the file goes with this socket.
    pub fn own(&mut self) {
        self.is_own = true;
    }

    /// Leaves the file to another process.
    pub fn leave(mut self) {
        self.is_own = false;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another process may have put its own in this one's place.
        if self.is_own && fs::symlink_metadata(&self.path).is_ok_and(|there| identity(&there) == self.identity) {
            let _who_else_may_have_removed_it = fs::remove_file(&self.path);
        }
    }
}

fn identity(of: &Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

/// Locks a folder until it is closed.
fn lock(folder: &File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(ErrorKind::TimedOut, "another process holds the lock of its folder"));
            }
            #[expect(clippy::disallowed_methods, reason = "at the start nothing is served yet")]
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A socket that is bound and does not listen. On Linux its file is given the mode that the socket has.
fn bind(path: &Path) -> io::Result<socket2::Socket> {
    let file = File::from(OwnedFd::from(socket()?));
    file.set_permissions(Permissions::from_mode(MODE))?;
    let socket = socket2::Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn socket() -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // So that nobody has to be waited for who does not accept.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn remove_if_dead(path: &Path) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(ErrorKind::AddrInUse, why));
    match socket()?.connect(&SockAddr::unix(path)?) {
        // ENOENT: its owner has just removed it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            if is_socket { fs::remove_file(path) } else { in_use("what is there is no socket") }
        }
        // Its queue is full: somebody has it open.
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => in_use("another process answers there"),
    }
}

/// Whether commands of this peer are taken.
pub fn is_allowed(stream: &UnixStream) -> io::Result<bool> {
    Ok(is_trusted(stream.peer_cred()?.uid()))
}

/// Whether this user may tell this process what to do, or hand something over to it: its own, and root.
pub fn is_trusted(uid: u32) -> bool {
    may_command(uid, rustix::process::geteuid().as_raw())
}

fn may_command(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        (folder, path)
    }

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_with_the_socket() {
        let (_folder, path) = place();
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    /// Whatever the mask of new files is, and although nothing is done to the file once it is there.
    #[test]
    fn the_file_has_its_mode_from_the_first_moment() {
        let (_folder, path) = place();
        let _bound = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let (_folder, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = Socket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_on_which_somebody_answers_and_other_files_are_left_alone() {
        let (_folder, path) = place();
        let _other = UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path).err().unwrap().to_string();
        assert!(error.ends_with("admin.sock: another process answers there"), "{error}");
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).err().unwrap().to_string();
        assert!(error.ends_with("what is there is no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_folder_that_somebody_keeps_locked_is_waited_for_only_so_long() {
        let (folder, path) = place();
        let held = File::open(folder.path()).unwrap();
        held.lock().unwrap();
        let error = Socket::claim(&path, Duration::from_millis(20)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains("holds the lock"), "{error}");
        drop(held);
        Socket::claim(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn the_file_of_another_process_is_not_removed() {
        let (_folder, path) = place();
        let socket = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        UnixStream::connect(&path).unwrap();
    }

    /// A process that is to take over and does not come that far leaves everything as it was.
    #[test]
    fn the_file_stays_until_the_last_who_owns_it_is_gone() {
        let (_folder, path) = place();
        let socket = Socket::bind(&path).unwrap();
        let found = Socket::identity(&path).unwrap();
        let inherit = || Socket::inherit(&path, found, socket.descriptor().unwrap()).unwrap();
        drop(inherit());
        UnixStream::connect(&path).unwrap();
        let mut heir = inherit();
        heir.own();
        socket.leave();
        UnixStream::connect(&path).unwrap();
        drop(heir);
        assert!(!path.exists());
    }

    #[test]
    fn a_stranger_may_not_command() {
        assert!(may_command(1000, 1000) && may_command(0, 1000) && may_command(0, 0));
        assert!(!may_command(1001, 1000) && !may_command(1000, 0));
    }
}
