//! The share of an endpoint's connections that one client address may have.
//!
//! A client can be slow for many reasons, and nothing is wrong with that while connections are left. Once others wait
//! for one, whoever has more than its share gives some up, the slowest of its bodies first: a connection on which little
//! moves is worth least to its client. A request that waits for its endpoint is not ended, since it is not the client
//! that holds it; nor is anything of a client below its share, or for others of the same client.
//!
//! This module only decides. [`super::holders`] knows who holds what.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

/// However few connections an endpoint may have: so many may be one client's.
const AT_LEAST: u32 = 8;

/// A client address, or with IPv6 its network of 64 bits: what `max_connections_per_client` counts as one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(u64);

impl Client {
    /// The client of an address.
    pub fn of(address: IpAddr) -> Self {
        // Of these networks (0:1::/32 and 0:2::/64) nobody has one: they stand for what has no number of its own.
        match address.to_canonical() {
            IpAddr::V4(address) => Self(1 << 32 | u64::from(address.to_bits())),
            IpAddr::V6(address) => Self(match (address.to_bits() >> 64) as u64 {
                0 => 2 << 32,
                network => network,
            }),
        }
    }

    /// From what [`Client::number`] was; none from 0.
    pub(super) fn from_number(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// Never 0.
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// What somebody holds of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub client: Client,
    /// The pace of its body, in bytes a tick; none where there is no body that could be ended.
    pub pace: Option<u64>,
    /// It is being ended already.
    pub is_ended: bool,
}

/// What follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is to be ended, as places in what is held.
    pub ended: Vec<usize>,
    /// Clients that have their share: others are served before them.
    pub over: Vec<Client>,
}

/// What follows where connections up to `capacity` are held, and these clients wait for one, if a client's share is so
/// many percent of them.
pub(super) fn judge(capacity: u32, percent: u32, waiting: &[Client], held: &[Held]) -> Verdict {
    let share = share(capacity, percent);
    let counts = count(held.iter().filter(|held| !held.is_ended).map(|held| held.client));
    let of = |client: &Client| counts.get(client).copied().unwrap_or(0);
    let mut verdict = Verdict {
        over: counts.iter().filter(|(_, count)| **count >= share).map(|(client, _)| *client).collect(),
        ended: Vec::new(),
    };
    let others = waiting.iter().filter(|client| of(client) < share).count();
    // Connections that are idle, or being opened, and those that are being ended are somebody's soon.
    let free = (capacity as usize).saturating_sub(held.len()) + held.iter().filter(|held| held.is_ended).count();
    let needed = others.saturating_sub(free);
    if needed == 0 {
        return verdict;
    }
    let mut bodies: HashMap<Client, Vec<(u64, usize)>> = HashMap::new();
    for (place, held) in held.iter().enumerate().filter(|(_, held)| !held.is_ended && of(&held.client) > share) {
        bodies.entry(held.client).or_default().extend(held.pace.map(|pace| (pace, place)));
    }
    // The slowest is the last of each.
    bodies.values_mut().for_each(|bodies| bodies.sort_unstable_by(|a, b| b.cmp(a)));
    let mut excess: HashMap<Client, u32> = bodies.keys().map(|client| (*client, of(client) - share)).collect();
    while verdict.ended.len() < needed {
        let most = excess.iter_mut().filter(|(_, excess)| **excess > 0).max_by_key(|(_, excess)| **excess);
        let Some((client, excess)) = most else { break };
        match bodies.get_mut(client).and_then(Vec::pop) {
            Some((_, place)) => {
                verdict.ended.push(place);
                *excess -= 1;
            }
            None => *excess = 0,
        }
    }
    verdict
}

/// Whose place in a full line somebody else gets: the client with the most places, if the one who comes has fewer even
/// with the new one.
pub(super) fn displaced(waiting: impl Iterator<Item = Client>, comes: Client) -> Option<Client> {
    let counts = count(waiting);
    let own = counts.get(&comes).copied().unwrap_or(0);
    let (most, places) = counts.into_iter().max_by_key(|(_, places)| *places)?;
    (places > own + 1).then_some(most)
}

fn share(capacity: u32, percent: u32) -> u32 {
    let share = u64::from(capacity) * u64::from(percent) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(AT_LEAST)
}

fn count<T: Eq + Hash>(of: impl Iterator<Item = T>) -> HashMap<T, u32> {
    let mut counts = HashMap::new();
    for one in of {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> Client {
        Client::of(IpAddr::from([127, 0, 0, n]))
    }

    fn held(of: u8, paces: impl IntoIterator<Item = u64>) -> Vec<Held> {
        paces.into_iter().map(|pace| Held { client: client(of), pace: Some(pace), is_ended: false }).collect()
    }

    #[test]
    fn a_network_is_one_client_and_an_address_is_itself() {
        let of = |address: &str| Client::of(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        let all = ["10.0.0.1", "10.0.0.2", "0.0.0.0", "::1"].map(|address| of(address).number());
        assert!(!all.contains(&0) && all.iter().all(|n| all.iter().filter(|m| *m == n).count() == 1));
    }

    /// Issue 10, 4: the slowest body of a client with more than its share is ended for somebody else.
    #[test]
    fn the_slowest_body_makes_room() {
        let all = held(1, 0..100);
        let verdict = judge(100, 25, &[client(2)], &all);
        assert_eq!(verdict, Verdict { ended: vec![0], over: vec![client(1)] });
        assert_eq!(judge(100, 25, &[client(2), client(3)], &all).ended, [0, 1]);
        // For another request of its own nothing is ended.
        assert_eq!(judge(100, 25, &[client(1)], &all).ended, [0_usize; 0]);
    }

    #[test]
    fn nobody_falls_below_the_share() {
        let all = [held(1, 0..30), held(2, 100..125), held(3, 200..245)].concat();
        let others: Vec<Client> = (0..90).map(|_| client(4)).collect();
        let ended = judge(100, 25, &others, &all).ended;
        let of = |n: u8| ended.iter().filter(|place| all[**place].client == client(n)).count();
        assert_eq!((of(1), of(2), of(3)), (5, 0, 20));
        // Who waits and has its share is no reason.
        assert_eq!(judge(100, 25, &[client(2)], &all).ended.len(), 0);
        assert_eq!(judge(10, 25, &[client(2)], &held(1, 0..8)).ended.len(), 0, "eight are anybody's");
        assert_eq!(judge(10, 25, &[client(2)], &held(1, 0..10)).ended.len(), 1);
    }

    #[test]
    fn what_is_free_soon_is_waited_for() {
        let mut all = held(1, 0..99);
        assert_eq!(judge(100, 25, &[client(2)], &all).ended.len(), 0);
        all.extend(held(1, [7]));
        all[5].is_ended = true;
        assert_eq!(judge(100, 25, &[client(2)], &all).ended.len(), 0);
        assert_eq!(judge(100, 25, &[client(2), client(3)], &all).ended, [0]);
    }

    #[test]
    fn only_bodies_are_ended() {
        let mut all = held(1, 0..100);
        all[..99].iter_mut().for_each(|held| held.pace = None);
        assert_eq!(judge(100, 25, &[client(2), client(3)], &all).ended, [99]);
    }

    #[test]
    fn a_full_line_has_room_for_who_has_fewer_places() {
        let line = || [1, 1, 1, 2, 2].into_iter().map(client);
        assert_eq!(displaced(line(), client(3)), Some(client(1)));
        assert_eq!(displaced(line(), client(2)), None);
        assert_eq!(displaced(line(), client(1)), None);
        assert_eq!(displaced([].into_iter(), client(1)), None);
    }
}
