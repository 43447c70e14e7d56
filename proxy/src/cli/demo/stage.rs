//! The demo's folder: the configuration, the services file, the folder of plugins, and what to copy into them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::SERVICE;
use super::servers::{Server, Servers};
use crate::config::{self, Problems, checked};
use crate::plugin::{builtin_names, builtin_policy};

/// The policy of the service.
pub const POLICY: &str = "weighted-round-robin";

/// The server that is taken away.
pub const TAKEN_AWAY: &str = "users-2";

/// The folder and what is in it. Dropped, it is removed.
pub struct Stage {
    folder: TempDir,
}

/// Why the folder is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the demo's configuration does not hold:\n{0}")]
    Config(#[from] Problems),
}

impl Stage {
    /// Makes the folder.
    ///
    /// # Errors
    ///
    /// When something cannot be written.
    pub fn set(servers: &Servers, proxy: SocketAddr, admin: SocketAddr) -> Result<Self, StageError> {
        let failed = |source| StageError::Write { path: std::env::temp_dir(), source };
        let stage = Self { folder: tempfile::Builder::new().prefix("heddle-demo-").tempdir().map_err(failed)? };
        for folder in ["plugins", "policies"] {
            let path = stage.path().join(folder);
            fs::create_dir(&path).map_err(|source| StageError::Write { path, source })?;
        }
        for name in builtin_names() {
            stage.write(&format!("policies/{name}.wasm"), builtin_policy(name).unwrap_or_default())?;
        }
        let all = services(servers.iter());
        stage.write("services.toml", all.as_bytes())?;
        stage.write("all-servers.toml", all.as_bytes())?;
        let others = services(servers.iter().filter(|server| server.name != TAKEN_AWAY));
        stage.write(&format!("without-{TAKEN_AWAY}.toml"), others.as_bytes())?;
        stage.write("heddle.toml", config(proxy, admin).as_bytes())?;
        Ok(stage)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the proxy runs by.
    ///
    /// # Errors
    ///
    /// When the file that was written does not hold.
    pub fn config(&self) -> Result<checked::Config, StageError> {
        Ok(config::load(&self.path().join("heddle.toml"), &[])?.config)
    }

    /// Puts a built-in policy, as a file, in the place of the service's.
    ///
    /// # Errors
    ///
    /// When it cannot be copied.
    pub fn drop_plugin(&self, name: &str) -> Result<(), StageError> {
        self.copy(&format!("policies/{name}.wasm"), &format!("plugins/{POLICY}.wasm"))
    }

    /// Puts what is no plugin in the place of the service's policy.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn drop_nonsense(&self) -> Result<(), StageError> {
        self.write(&format!("plugins/{POLICY}.wasm"), b"nonsense\n")
    }

    /// Removes the file again.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn remove_plugin(&self) -> Result<(), StageError> {
        let path = self.path().join(format!("plugins/{POLICY}.wasm"));
        fs::remove_file(&path).map_err(|source| StageError::Write { path, source })
    }

    /// Takes [`TAKEN_AWAY`] out of the services file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn take_server_away(&self) -> Result<(), StageError> {
        self.copy(&format!("without-{TAKEN_AWAY}.toml"), "services.toml")
    }

    /// Brings [`TAKEN_AWAY`] back.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn bring_server_back(&self) -> Result<(), StageError> {
        self.copy("all-servers.toml", "services.toml")
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), StageError> {
        let path = self.path().join(name);
        fs::write(&path, content).map_err(|source| StageError::Write { path, source })
    }

    /// As `cp` does: in place.
    fn copy(&self, from: &str, to: &str) -> Result<(), StageError> {
        let path = self.path().join(to);
        fs::copy(self.path().join(from), &path).map(drop).map_err(|source| StageError::Write { path, source })
    }
}

fn services<'a>(servers: impl Iterator<Item = &'a Server>) -> String {
    let line = |server: &Server| {
        format!(
            "    {{ address = \"{}\", weight = {}, metadata = {{ name = \"{}\" }} }},\n",
            server.address, server.weight, server.name
        )
    };
    let endpoints: String = servers.map(line).collect();
    format!("[services.{SERVICE}]\nendpoints = [\n{endpoints}]\n")
}

fn config(proxy: SocketAddr, admin: SocketAddr) -> String {
    format!(
        "plugins = \"plugins\"

[admin]
address = \"{admin}\"

[[listener]]
address = \"{proxy}\"

[registry.file]
path = \"services.toml\"

[service.{SERVICE}]
balancer = \"{POLICY}\"
"
    )
}
