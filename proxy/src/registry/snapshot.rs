//! The last answer of the registry on disk, so that a proxy which restarts while the registry is away still serves.
//!
//! One JSON file in the state folder, replaced as a whole: written beside its place, flushed, and renamed over, so that
//! a crash leaves the old one or the new one. It says its version, and a file of another version, a broken one or none
//! is the same as knowing nothing: reported, and left to be overwritten by the next answer. Contents are kept by the
//! name of the watch or file that they came from, and only what is still configured is put in force.
//!
//! It holds what the layouts understood, not the registry's raw values, so it is read without the layouts. It is
//! written at most once a second and when the proxy stops.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::address::{AddressError, NameError, address, service_name};
use super::apply::{Content, Entry, decode_key, encode_key};
use super::layout::{Announced, Endpoint};
use crate::regular;

/// The name of the file in the state folder.
pub const FILE: &str = "registry.json";

/// The version of the format that this code writes and reads.
const VERSION: u32 = 1;

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is not a registry snapshot: {0}")]
    Format(#[from] serde_json::Error),
    #[error("it has version {0}; expected {VERSION}")]
    Version(u32),
    #[error(transparent)]
    Service(#[from] NameError),
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Where the snapshot is kept.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Written {
    sources: HashMap<String, Vec<WrittenEntry>>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct WrittenEntry {
    /// Percent-encoded.
    key: String,
    order: u64,
    service: String,
    endpoints: Vec<WrittenEndpoint>,
    /// Absent in files of earlier versions.
    #[serde(default)]
    pauses: bool,
}

#[derive(Serialize, Deserialize)]
struct WrittenEndpoint {
    address: String,
    weight: u32,
    metadata: Vec<(String, String)>,
}

impl Store {
    /// The snapshot of a state folder; the folder is made when the first one is written.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// What was kept, by the name of the source's part. Nothing where there is no snapshot or none that can be read,
    /// of which the second is logged.
    pub fn load(&self) -> HashMap<String, Vec<Entry>> {
        if let Some(folder) = self.path.parent()
            && folder.exists()
            && let Err(error) = regular::private_folder(folder)
        {
            tracing::warn!(target: "heddle::registry", "{}: others may look into it: {error}", folder.display());
        }
        match self.read() {
            Ok(entries) => entries,
            Err(SnapshotError::Read(error)) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(target: "heddle::registry", "{path}: the registry's snapshot is ignored: {error}");
                HashMap::new()
            }
        }
    }

    fn read(&self) -> Result<HashMap<String, Vec<Entry>>, SnapshotError> {
        let content = regular::read(&self.path, regular::DATA)?;
        // The version first: another version may have another shape.
        let Versioned { version } = serde_json::from_slice(&content)?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let written: Written = serde_json::from_slice(&content)?;
        let entries = |entries: Vec<WrittenEntry>| entries.into_iter().map(WrittenEntry::check).collect();
        Ok(written.sources.into_iter().map(|(name, written)| (name, entries(written))).collect())
    }

    /// Replaces the file; a failure is logged, and the next change tries again.
    pub(super) fn save(&self, content: serde_json::Result<Vec<u8>>) {
        if let Err(error) = content.map_err(io::Error::from).and_then(|content| self.replace(&content)) {
            let path = self.path.display();
            tracing::warn!(target: "heddle::registry", "{path}: cannot keep the registry's snapshot: {error}");
        }
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        regular::private_folder(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_data()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

/// Builds the file's content, entry by entry, so that the one who does it can pause.
#[derive(Debug)]
pub(super) struct Encoder {
    content: Vec<u8>,
    has_part: bool,
    has_entry: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        let content = format!(r#"{{"version":{VERSION},"sources":{{"#).into_bytes();
        Self { content, has_part: false, has_entry: false }
    }
}

impl Encoder {
    /// What follows is of the part of this name.
    pub fn begin(&mut self, part: &str) -> serde_json::Result<()> {
        if std::mem::replace(&mut self.has_part, true) {
            self.content.extend_from_slice(b"],");
        }
        serde_json::to_writer(&mut self.content, part)?;
        self.content.extend_from_slice(b":[");
        self.has_entry = false;
        Ok(())
    }

    pub fn add(&mut self, key: &[u8], order: u64, announced: &Announced) -> serde_json::Result<()> {
        if std::mem::replace(&mut self.has_entry, true) {
            self.content.push(b',');
        }
        let entry = WrittenEntry {
            key: encode_key(key),
            order,
            service: announced.service.clone(),
            endpoints: announced.endpoints.iter().map(WrittenEndpoint::from).collect(),
            pauses: announced.pauses,
        };
        serde_json::to_writer(&mut self.content, &entry)
    }

    pub fn end(mut self) -> serde_json::Result<Vec<u8>> {
        self.content.extend_from_slice(if self.has_part { b"]}}" } else { b"}}" });
        Ok(self.content)
    }
}

impl WrittenEntry {
    /// An entry that is not taken any more, such as one whose service has a name that is none, is left out by itself: its
    /// key is known, and the others are as good as before.
    fn check(self) -> Entry {
        let key = decode_key(&self.key);
        let order = self.order;
        let content = self.announced().map_or_else(|error| Content::Unreadable(error.to_string()), Content::Announced);
        Entry { key, order, content }
    }

    fn announced(self) -> Result<Announced, SnapshotError> {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for WrittenEndpoint { address: text, weight, metadata } in self.endpoints {
            endpoints.push(Endpoint { address: address(&text)?, weight, metadata });
        }
        let announced = Announced::endpoints(service_name(&self.service)?, endpoints);
        Ok(Announced { pauses: self.pauses, ..announced })
    }
}

impl From<&Endpoint> for WrittenEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { address: endpoint.address.clone(), weight: endpoint.weight, metadata: endpoint.metadata.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &[u8]) -> Entry {
        let endpoint =
            Endpoint { address: "10.0.0.5:80".into(), weight: 0, metadata: vec![("zone".into(), "a".into())] };
        let announced = Announced::endpoints("users".into(), vec![endpoint]);
        Entry { key: key.to_vec(), order: 7, content: Content::Announced(announced) }
    }

    fn mark() -> Entry {
        Entry {
            key: b"/s/users/paused".to_vec(),
            order: 8,
            content: Content::Announced(Announced::pause("users".into())),
        }
    }

    fn save(store: &Store, entry: &Entry) {
        let Content::Announced(announced) = &entry.content else { panic!("no content") };
        let mut encoder = Encoder::default();
        encoder.begin("file of another").expect("text");
        encoder.begin("etcd /s/").expect("text");
        encoder.add(&entry.key, entry.order, announced).expect("an entry");
        store.save(encoder.end());
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(&folder.path().join("made/when/needed"));
        assert!(store.load().is_empty());
        for entry in [entry(b"/s/users/1"), entry(b"\x00\xff"), mark()] {
            save(&store, &entry);
            let expected =
                HashMap::from([("file of another".to_owned(), Vec::new()), ("etcd /s/".to_owned(), vec![entry])]);
            assert_eq!(store.load(), expected);
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_read_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path());
        for broken in ["", "{", "[]", r#"{"version":2,"sources":"of another shape"}"#] {
            std::fs::write(&store.path, broken).expect("write");
            assert!(store.read().is_err(), "{broken}");
            assert!(store.load().is_empty(), "{broken}");
        }
        save(&store, &entry(b"k"));
        assert_eq!(store.load().len(), 2);
    }

    /// Issue 10, 13: the snapshot of an earlier version may hold names that are none any more.
    #[test]
    fn an_entry_that_is_not_taken_takes_no_other_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path());
        let content = r#"{"version":1,"sources":{"a":[
            {"key":"k1","order":1,"service":"localhost","endpoints":[]},
            {"key":"k2","order":1,"service":"s","endpoints":[{"address":"a","weight":1,"metadata":[]}]},
            {"key":"k3","order":1,"service":"s","endpoints":[{"address":"a:1","weight":1,"metadata":[]}]}]}}"#;
        std::fs::write(&store.path, content).expect("write");
        let entries = store.load().remove("a").expect("the part");
        let is_read: Vec<bool> = entries.iter().map(|entry| matches!(entry.content, Content::Announced(_))).collect();
        assert_eq!(is_read, [false, false, true]);
    }
}
