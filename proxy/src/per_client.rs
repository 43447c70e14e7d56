//! How many connections each client address has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of each client. Who has none takes no room.
#[derive(Debug, Default)]
pub struct PerClient(Mutex<HashMap<IpAddr, u64>>);

/// One of a client's connections, until it is dropped.
#[derive(Debug)]
pub struct OneOfClient {
    all: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    /// Counts a connection of a client; none where it has `limit` of them already.
    pub fn enter(self: &Arc<Self>, address: IpAddr, limit: u64) -> Option<OneOfClient> {
        let client = one_client(address);
        let mut all = self.lock();
        let count = all.get(&client).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        all.insert(client, count + 1);
        Some(OneOfClient { all: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one client: with IPv6 all of a network of 64 bits, the smallest that anybody is given (RFC 6177).
fn one_client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for OneOfClient {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.all.lock().entry(self.client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client() {
        let of = |address: &str| one_client(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn a_client_has_as_many_as_it_may_and_is_forgotten() {
        let all = Arc::<PerClient>::default();
        let address = |n: u8| IpAddr::from([127, 0, 0, n]);
        let held: Vec<_> = (0..3).map(|_| all.enter(address(1), 3).expect("room")).collect();
        assert!(all.enter(address(1), 3).is_none() && all.enter(address(2), 3).is_some());
        drop(held);
        assert!(all.lock().is_empty());
    }
}
