//! How many descriptors the process may have: as many as the system lets it.
//!
//! Every connection of a client is one, and the connection to an endpoint that its request goes over is another. Systems
//! start processes with a low soft limit, for the sake of programs that use select(2), and a high hard one up to which a
//! process may help itself (getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::checked::Config;

/// Raises the limit to what is allowed, and warns where that is not enough for what the listeners may accept.
pub fn raise(config: &Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(target: "heddle", "the limit on descriptors stays as it is: {error}");
    }
    let connections = config.listeners.iter().map(|listener| listener.max_connections);
    if let Some((has, needs)) = shortage(getrlimit(Resource::Nofile).current, connections) {
        tracing::warn!(
            target: "heddle",
            "this process may have {has} descriptors; max_connections may need {needs}: raise the hard limit (ulimit -Hn, \
             LimitNOFILE= of systemd), or lower max_connections"
        );
    }
}

/// How many descriptors there may be and how many are needed, where that is more: two for each connection.
fn shortage(limit: Option<u64>, connections: impl Iterator<Item = usize>) -> Option<(u64, u64)> {
    let each = connections.map(|most| u64::try_from(most).unwrap_or(u64::MAX).saturating_mul(2));
    let needs = each.fold(0, u64::saturating_add);
    // None: any number.
    limit.filter(|has| *has < needs).map(|has| (has, needs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_may_need_two() {
        let shortage = |limit, connections: &[usize]| shortage(limit, connections.iter().copied());
        assert_eq!(shortage(Some(300), &[100, 50]), None);
        assert_eq!(shortage(Some(299), &[100, 50]), Some((299, 300)));
        assert_eq!(shortage(Some(1), &[usize::MAX, 1]), Some((1, u64::MAX)));
        assert_eq!(shortage(None, &[usize::MAX]), None);
        assert_eq!(shortage(Some(0), &[]), None);
    }
}
