//! The one place with `unsafe`: machine code that another process has compiled becomes part of this one.
//!
//! wasmtime runs what it deserializes without looking at it, so `Component::deserialize_file` asks for two things: the
//! content was made by the same wasmtime from the same settings, and it never changes while it is mapped.
//!
//! - **Where the content is from.** A [`Sealed`] file is filled in two places only. [`super::compile`] gives the memory
//!   file to a child process that it started itself, from this process's own executable, as standard output; what a
//!   hostile plugin could make that child write, it could equally make a compiler write in this process. [`super::cache`]
//!   copies a file into it whose message authentication code holds under a key that only this user can read, so it
//!   is what such a child wrote before. wasmtime checks version, settings and processor features again by itself.
//! - **That it does not change.** The file has no name, and is sealed before it is mapped: the kernel refuses every
//!   further write, also through descriptors that are still open elsewhere, and refuses to take a seal off.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use wasmtime::component::Component;

/// A memory file that is being filled.
pub struct Unsealed(File);

impl Unsealed {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When the system has none.
    pub fn new() -> io::Result<Self> {
        Ok(Self(memfd_create("heddle-plugin", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into()))
    }

    /// Another descriptor of the same file.
    ///
    /// # Errors
    ///
    /// Where there are no further descriptors.
    pub fn try_clone(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// Makes it immutable.
    ///
    /// # Errors
    ///
    /// When the system does not allow it.
    pub fn seal(self) -> io::Result<Sealed> {
        fcntl_add_seals(&self.0, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Sealed(self.0))
    }
}

impl Write for Unsealed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A compiled plugin that nobody can change any more.
pub struct Sealed(File);

impl Sealed {
    /// Maps it.
    ///
    /// # Errors
    ///
    /// When it is of another version of wasmtime, has other settings, or needs a processor with other features.
    #[allow(unsafe_code, reason = "the module's documentation argues why this is sound")]
    pub fn component(&self, engine: &wasmtime::Engine) -> wasmtime::Result<Component> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        // SAFETY: see above. The path leads to this very file, whose descriptor is open for as long as `self` is borrowed;
        // the mapping outlives the descriptor.
        unsafe { Component::deserialize_file(engine, path) }
    }

    /// Its content, from the start.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn reader(&self) -> io::Result<&File> {
        (&self.0).seek(SeekFrom::Start(0))?;
        Ok(&self.0)
    }
}
