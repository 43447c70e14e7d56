//! How many descriptors the process may have: as many as the system lets it.
//!
//! Systems start processes with a low soft limit, for the sake of programs that use select(2), and a high hard one up to
//! which a process may help itself (getrlimit(2)). What becomes of them is for [`crate::descriptors`] to say.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to what is allowed.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(target: "heddle", "the limit on descriptors stays as it is: {error}");
    }
}
