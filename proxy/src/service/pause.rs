//! What is registered and is not to be picked, because somebody said so.
//!
//! A registry says so to every proxy, and an operator to one of them, by its admin socket. Neither speaks for the other:
//! what both have paused has to be resumed by both. Requests under way are not touched.

use std::fmt;

/// Who has paused a service or an endpoint.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub by_registry: bool,
    /// By a command to this proxy. It holds for as long as the endpoint, or this process, stays.
    pub by_admin: bool,
}

impl Pause {
    pub fn is_paused(self) -> bool {
        self.by_registry || self.by_admin
    }

    /// Their names: `registry`, `admin`.
    pub fn by(self) -> impl Iterator<Item = &'static str> {
        let all = [(self.by_registry, "registry"), (self.by_admin, "admin")];
        all.into_iter().filter_map(|(paused, name)| paused.then_some(name))
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.by_registry, self.by_admin) {
            (false, false) => f.write_str("not paused"),
            (true, false) => f.write_str("paused by the registry"),
            (false, true) => f.write_str("paused by command"),
            (true, true) => f.write_str("paused by the registry and by command"),
        }
    }
}
