//! Where endpoints are announced, and how announcements become changes of services.

/// One endpoint as its registration announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Stable across updates and restarts: the key, percent-encoded, then `#`, then the address.
    pub id: String,
    /// `host:port`, an IPv6 host in brackets.
    pub address: String,
    /// 0: registered, but out of use.
    pub weight: u32,
    /// The registry's order of creation: smaller is older.
    pub order: u64,
    pub metadata: Vec<(String, String)>,
}

/// How the endpoints of one service changed. An endpoint whose registration changed is in both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub service: String,
    /// Ids.
    pub removed: Vec<String>,
    pub added: Vec<Registered>,
}
