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
//! `{slow_start = "30s"}` lets the weight of a new endpoint grow, as [`weights`] says. Endpoints that were registered at
//! the same time are a group of their own until the next change: its weight grows, and what it is owed stays.

use std::cmp::Reverse;
use std::mem;
use std::time::Duration;

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request, Slot, now};
use weights::{FULL, SlowStart};

struct WeightedRoundRobin {
    random: Random,
    slow_start: SlowStart,
    /// By falling weight, then by when their start began.
    groups: Vec<Group>,
}

/// The eligible endpoints of one weight; those that are starting apart.
struct Group {
    weight: u32,
    began: Option<Duration>,
    /// The weight of one member at this moment, in thousandths.
    grown: u64,
    /// By rising slot; never empty.
    members: Vec<Slot>,
    /// Which member is next.
    turn: usize,
    /// How many picks the group is owed, times the sum of all weights.
    lead: i64,
}

impl Group {
    fn share(&self) -> i64 {
        self.grown as i64 * self.members.len() as i64
    }

    /// Takes over from the group that had this weight before a change, at the same point of the rotation. A lead from
    /// times with more or heavier endpoints is cut to one turn's worth.
    fn follow(&mut self, before: &Self, total: i64) {
        self.lead = before.lead.clamp(-total, total);
        if let Some(next) = before.members.get(before.turn) {
            self.turn = self.members.partition_point(|slot| slot < next) % self.members.len();
        }
    }
}

impl WeightedRoundRobin {
    fn total(&self) -> i64 {
        self.groups.iter().map(Group::share).sum()
    }

    fn next(&mut self) -> Option<Slot> {
        let mut total = 0;
        let mut first: Option<&mut Group> = None;
        for group in &mut self.groups {
            let share = group.share();
            total += share;
            group.lead += share;
            if first.as_ref().is_none_or(|first| group.lead > first.lead) {
                first = Some(group);
            }
        }
        let group = first?;
        group.lead -= total;
        let slot = group.members.get(group.turn).copied();
        group.turn = (group.turn + 1) % group.members.len();
        slot
    }

    /// Begins somewhere in the round, so that not every worker's first pick is the heaviest endpoint.
    fn begin(&mut self) {
        const MOST_SKIPPED: u64 = 1024;
        for group in &mut self.groups {
            group.turn = self.random.below(group.members.len() as u64) as usize;
        }
        let skipped = self.random.below(MOST_SKIPPED.min(self.total() as u64 / FULL));
        for _ in 0..skipped {
            self.next();
        }
    }

    fn grow(&mut self, now: Duration) {
        for group in &mut self.groups {
            group.grown = self.slow_start.weight(group.weight, group.began, now);
        }
        let is_starting = |group: &Group| group.began.is_some_and(|began| !self.slow_start.is_over(began, now));
        let is_starting = self.groups.iter().any(is_starting);
        self.slow_start.wait(now, is_starting);
    }
}

impl Balancer for WeightedRoundRobin {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self { random: Random::new(seed), slow_start: SlowStart::new(config)?, groups: Vec::new() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        let key = |endpoint: &Endpoint| (Reverse(endpoint.weight), self.slow_start.began(endpoints, endpoint));
        let mut eligible: Vec<_> = endpoints.eligible().map(|endpoint| (key(endpoint), endpoint.slot)).collect();
        eligible.sort_unstable();
        let groups = eligible.chunk_by(|(one, _), (other, _)| one == other).filter_map(|members| {
            let &((Reverse(weight), began), _) = members.first()?;
            let members = members.iter().map(|&(_, slot)| slot).collect();
            Some(Group { weight, began, grown: u64::from(weight) * FULL, members, turn: 0, lead: 0 })
        });
        let before = mem::replace(&mut self.groups, groups.collect());
        self.grow(now());
        if before.is_empty() {
            return self.begin();
        }
        let total = self.total();
        for group in &mut self.groups {
            let key = |group: &Group| (Reverse(group.weight), group.began);
            let same = before.binary_search_by_key(&key(group), key);
            if let Some(before) = same.ok().and_then(|index| before.get(index)) {
                group.follow(before, total);
            }
        }
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
