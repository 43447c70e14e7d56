//! Each eligible endpoint in turn, as often as its weight says, and spread evenly: with weights 5, 1 and 1 never five
//! of the first in a row.
//!
//! The schedule is nginx's smooth weighted round robin (`ngx_http_upstream_round_robin.c`, Maxim Dounin,
//! 2012, commit 52327e0627f4): at each pick everybody's lead grows by its weight, the one
//! with the greatest lead is picked, and its lead falls by the sum of the weights. Here it runs over groups of endpoints
//! with the same weight, each with its members' weights together, and the members of a group take its turns in rotation.
//! Each endpoint still gets exactly its weight's share of any round, and a pick costs time for each different weight
//! instead of each endpoint. Where all weights differ it is nginx's schedule.
//!
//! # When the set of eligible endpoints changes
//!
//! What a group is owed is kept in picks, not in weights times picks as nginx has it: a group that is owed half a pick
//! beside an endpoint of weight 100,000 is owed half a pick when that endpoint is gone, and not thousands in a row. So
//! nothing has to be cut when the sum of the weights changes, and a group without an eligible endpoint keeps what it is
//! owed, or owes, until it has one again. Otherwise an endpoint that is ejected and restored again and again (each time
//! with nothing on its account) would take the turns of the light endpoints for good. A group of which no endpoint is
//! registered any more leaves its account to the others, in proportion to their shares. The members' rotation continues
//! after the slot that was picked last.
//!
//! `{slow_start = "30s"}` lets the weight of a new endpoint grow, as [`weights`] says. Endpoints that were registered at
//! the same time are a group of their own until the next change: its weight grows, and what it is owed stays.

use std::cmp::Reverse;
use std::mem;
use std::time::Duration;

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request, Slot, now};
use weights::{FULL, SlowStart};

/// One pick, in the unit of [`Group::owed`], rounded down to a multiple of the sum of the weights: shares are exact for
/// as long as weights stay, and the unit changes by less than a millionth with them.
const PICK: i128 = 1 << 80;

struct WeightedRoundRobin {
    random: Random,
    slow_start: SlowStart,
    /// By falling weight, then by when their start began.
    groups: Vec<Group>,
    /// Whether there has been an eligible endpoint.
    has_begun: bool,
}

/// The registered endpoints of one weight; those that are starting apart.
struct Group {
    weight: u32,
    began: Option<Duration>,
    /// The weight of one member at this moment, in thousandths.
    grown: u64,
    /// The eligible ones by rising slot.
    members: Vec<Slot>,
    /// Which member is next.
    turn: usize,
    /// The member that was picked last; none before the first pick.
    last: Option<Slot>,
    /// What the group gets of each pick.
    rate: i128,
    /// What the group has got of all picks, less those that it was picked for.
    owed: i128,
}

impl Group {
    fn share(&self) -> i128 {
        i128::from(self.grown) * self.members.len() as i128
    }

    /// Takes over from the group that had this weight before a change, at the same point of the rotation.
    fn follow(&mut self, before: &Self) {
        self.owed = before.owed;
        self.last = before.last;
        let next = match self.last {
            Some(last) => self.members.partition_point(|&slot| slot <= last),
            None => before.turn,
        };
        self.turn = next % self.members.len().max(1);
    }
}

impl WeightedRoundRobin {
    fn total(&self) -> i128 {
        self.groups.iter().map(Group::share).sum()
    }

    fn next(&mut self) -> Option<Slot> {
        let mut pick = 0;
        let mut first: Option<&mut Group> = None;
        for group in self.groups.iter_mut().filter(|group| !group.members.is_empty()) {
            pick += group.rate;
            group.owed += group.rate;
            if first.as_ref().is_none_or(|first| group.owed > first.owed) {
                first = Some(group);
            }
        }
        let group = first?;
        group.owed -= pick;
        group.last = group.members.get(group.turn).copied();
        group.turn = (group.turn + 1) % group.members.len();
        group.last
    }

    /// Begins somewhere in the round, so that not every worker's first pick is the heaviest endpoint.
    fn begin(&mut self) {
        const MOST_SKIPPED: u64 = 1024;
        self.has_begun = true;
        for group in &mut self.groups {
            group.turn = self.random.below(group.members.len() as u64) as usize;
        }
        let round = u64::try_from(self.total()).unwrap_or(u64::MAX) / FULL;
        for _ in 0..self.random.below(MOST_SKIPPED.min(round)) {
            self.next();
        }
    }

    fn grow(&mut self, now: Duration) {
        for group in &mut self.groups {
            group.grown = self.slow_start.weight(group.weight, group.began, now);
        }
        let unit = PICK / self.total().max(1);
        for group in &mut self.groups {
            group.rate = group.share() * unit;
        }
        let is_starting = |group: &Group| group.began.is_some_and(|began| !self.slow_start.is_over(began, now));
        let is_starting = self.groups.iter().any(is_starting);
        self.slow_start.wait(now, is_starting);
    }

    /// Shares what groups that are gone have left, so that all accounts together are even again.
    fn settle(&mut self) {
        let (left, all) = (self.groups.iter().map(|group| group.owed).sum::<i128>(), self.total());
        for group in self.groups.iter_mut().filter(|_| all > 0) {
            // In picks divided by 2^20, whose product with any share is far below 2^127.
            group.owed -= ((left >> 20) * group.share() / all) << 20;
        }
    }
}

impl Balancer for WeightedRoundRobin {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        let (random, slow_start) = (Random::new(seed), SlowStart::new(config)?);
        Ok(Self { random, slow_start, groups: Vec::new(), has_begun: false })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        let key = |endpoint: &Endpoint| (Reverse(endpoint.weight), self.slow_start.began(endpoints, endpoint));
        let mut registered: Vec<_> = endpoints.iter().map(|endpoint| (key(endpoint), endpoint.slot)).collect();
        registered.sort_unstable();
        let groups = registered.chunk_by(|(one, _), (other, _)| one == other).filter_map(|same| {
            let &((Reverse(weight), began), _) = same.first()?;
            let slots = same.iter().map(|&(_, slot)| slot);
            let members = slots.filter(|&slot| endpoints.get_eligible(slot).is_some()).collect();
            let grown = u64::from(weight) * FULL;
            Some(Group { weight, began, grown, members, turn: 0, last: None, rate: 0, owed: 0 })
        });
        let before = mem::replace(&mut self.groups, groups.collect());
        self.grow(now());
        if !self.has_begun {
            if self.total() > 0 {
                self.begin();
            }
            return;
        }
        for group in &mut self.groups {
            let key = |group: &Group| (Reverse(group.weight), group.began);
            let same = before.binary_search_by_key(&key(group), key);
            if let Some(before) = same.ok().and_then(|index| before.get(index)) {
                group.follow(before);
            }
        }
        self.settle();
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        if let Some(now) = self.slow_start.due() {
            self.grow(now);
        }
        endpoints.get(self.next()?)
    }
}

heddle_plugin::export_balancer!(WeightedRoundRobin);

#[cfg(test)]
mod tests;
