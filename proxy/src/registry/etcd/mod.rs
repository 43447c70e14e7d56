//! The etcd source (v3 API, 3.4 and later).
//!
//! # How nothing is lost
//!
//! A *session* with one member is: log in, read every watched prefix at one revision, page by page, hand each on as a
//! `Reset`, and follow changes from the next revision on. Whatever interrupts it (the connection, a compaction, a
//! leader that is gone, silence, a token that is no longer taken) ends it, and the next session begins with a complete
//! reading again. A watch is never resumed from a revision remembered from before, so there is no way in which a
//! wrongly remembered revision could hide a change: not after a compaction, and not when the cluster was restored from
//! an older backup and its revision fell. The catalog turns a complete reading into the difference, so it is free of
//! side effects when nothing changed.
//!
//! # Whom it listens to
//!
//! Members are tried in turn, each by a client of its own: behind one balanced channel the reading and the watch could
//! go to different members, and a dead one could not be told from a slow one. Reads are linearizable and the watch asks
//! for a leader (`hasleader`), so a member that lost its quorum answers neither for long, and is left. A member that is
//! silent, although progress was asked for twice, is left too.
//!
//! # What belongs to which watch
//!
//! Servers number watches as they like: etcd takes the numbers that it is given, `etcd grpc-proxy` and others give their
//! own. So watches are opened one after the other, and the id of each is the one that its `created` answer has. An event
//! under another id means that this session has understood something wrong, and ends it; so does whatever else cannot be
//! assigned. Ignored, it would count as a sign of life, and the endpoints would be frozen for as long.
//!
//! # Pages
//!
//! A response of more than [`checked::Etcd::largest`] bytes is not taken. Keys are read in pages of so many keys, and a page
//! that is too large in bytes is asked for again with half as many, down to one key. The key that is too large by itself
//! is named and passed over; what was known of it stays.
//!
//! # What is not asked for
//!
//! Fragments: etcd-client does not show whether a response is a part, and a watch that is not fragmented gets each
//! response whole, which is what applying it as one needs. One that is too large ends the session, and the next complete
//! reading has what it held. Previous values: the catalog knows what every key announced. Progress before a third of
//! `liveness` is over: servers lose requests for it that come before a watch is in step (etcd#17507).

mod connect;
mod reading;
mod session;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Feed, Source};
use crate::config::checked;
use session::SessionError;

/// The wait after the first failed round over all members; doubled after each further one. Also the wait after a
/// session that worked, so that the clients of a member that dies do not all reach the next one at the same instant.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Follows an etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    config: checked::Etcd,
}

/// The store that a session has read: by these a restored or replaced cluster is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Store {
    cluster: u64,
    revision: i64,
}

impl Etcd {
    /// Follows the cluster that is configured; each of its watches is one part of the [`Feed`], in order.
    pub fn new(config: checked::Etcd) -> Self {
        Self { config }
    }
}

impl Source for Etcd {
    async fn run(self, feed: Feed) {
        let random = RandomState::new();
        let mut complaints = Complaints::default();
        let mut last = None;
        let mut failures = 0_u32;
        let mut turn = 0;
        while let Some(member) = self.config.members.get(turn) {
            let ended = session::run(&self.config, member, &feed, &mut last).await;
            let own = feed.own();
            own.connected.store(false, Relaxed);
            own.set_member(None);
            own.reconnects.fetch_add(1, Relaxed);
            if ended.followed.is_some() {
                complaints.forget();
            }
            complaints.log(member, &ended.error);

            let worked = ended.followed.is_some_and(|time| time >= self.config.backoff);
            failures = if worked { 0 } else { failures.saturating_add(1) };
            // A member that compacted what the watch had yet to tell is in good health.
            if !matches!(ended.error, SessionError::Compacted | SessionError::Room) {
                turn = (turn + 1) % self.config.members.len();
            }
            let wait = wait(failures, self.config.members.len(), self.config.backoff);
            if !wait.is_zero() {
                tokio::time::sleep(jitter(wait, random.hash_one((failures, turn)))).await;
            }
        }
    }
}

/// How long to wait before the next session, after this many failures in a row: not at all within a round over all
/// members; after each round twice as long as after the one before, at most `longest`.
fn wait(failures: u32, members: usize, longest: Duration) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX).max(1);
    if !failures.is_multiple_of(members) {
        return Duration::ZERO;
    }
    let doublings = (failures / members).saturating_sub(1);
    FIRST_WAIT.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(longest)
}

/// Between half of `wait` and all of it, by a random number: the exponential backoff with "equal jitter" of
/// M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
fn jitter(wait: Duration, random: u64) -> Duration {
    let share = (random >> 32) as f64 / f64::from(u32::MAX);
    wait.mul_f64(0.5 + share / 2.0)
}

/// What was last said about each member, so that a cluster which is away for an hour is told of once.
#[derive(Debug, Default)]
struct Complaints(HashMap<String, String>);

impl Complaints {
    fn log(&mut self, member: &str, error: &SessionError) {
        let error = error.to_string();
        if self.0.get(member) == Some(&error) {
            tracing::debug!(target: "heddle::registry", "etcd: {member}: {error}");
        } else {
            tracing::warn!(target: "heddle::registry", "etcd: {member}: {error}");
            self.0.insert(member.to_owned(), error);
        }
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_after_each_round_up_to_the_longest() {
        let longest = Duration::from_secs(1);
        let waits: Vec<_> = (0..=12).map(|failures| wait(failures, 2, longest).as_millis()).collect();
        assert_eq!(waits, [50, 0, 50, 0, 100, 0, 200, 0, 400, 0, 800, 0, 1000]);
        assert_eq!(wait(u32::MAX, 1, longest), longest);
        assert_eq!(wait(0, 3, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn jitter_takes_at_most_half_away() {
        let wait = Duration::from_millis(100);
        assert_eq!(jitter(wait, 0), wait / 2);
        assert_eq!(jitter(wait, u64::MAX), wait);
    }
}
