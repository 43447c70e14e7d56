//! Each eligible endpoint in turn, as often as its weight says, and spread evenly: with weights 5, 1 and 1 never five
//! of the first in a row.
//!
//! The schedule is nginx's smooth weighted round robin (`ngx_http_upstream_round_robin.c`, Maxim Dounin,
//! 2012, commit 52327e0627f4): at each pick everybody's lead grows by its weight, the one
//! with the greatest lead is picked, and its lead falls by the sum of the weights. Here it runs over groups of endpoints
//! with the same weight, each with its members' weights together, and the members of a group take its turns in rotation.
//! Each endpoint still gets exactly its weight's share of any round, and a pick costs time for each different weight
//! instead of each endpoint. Where all weights differ it is nginx's schedule.

use std::cmp::Reverse;
use std::mem;

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random, Request, Slot};

struct WeightedRoundRobin {
    random: Random,
    /// By falling weight.
    groups: Vec<Group>,
}

/// The eligible endpoints of one weight.
struct Group {
    weight: u32,
    /// By rising slot; never empty.
    members: Vec<Slot>,
    /// Which member is next.
    turn: usize,
    /// How many picks the group is owed, times the sum of all weights.
    lead: i64,
}

impl Group {
    fn share(&self) -> i64 {
        i64::from(self.weight) * self.members.len() as i64
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
        let skipped = self.random.below(MOST_SKIPPED.min(self.total() as u64));
        for _ in 0..skipped {
            self.next();
        }
    }
}

impl Balancer for WeightedRoundRobin {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { random: Random::new(seed), groups: Vec::new() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        let mut eligible: Vec<&Endpoint> = endpoints.eligible().collect();
        eligible.sort_by_key(|endpoint| Reverse(endpoint.weight));
        let groups = eligible.chunk_by(|one, other| one.weight == other.weight).map(|members| Group {
            weight: members.first().map_or(1, |endpoint| endpoint.weight),
            members: members.iter().map(|endpoint| endpoint.slot).collect(),
            turn: 0,
            lead: 0,
        });
        let before = mem::replace(&mut self.groups, groups.collect());
        if before.is_empty() {
            return self.begin();
        }
        let total = self.total();
        for group in &mut self.groups {
            let same = before.binary_search_by_key(&Reverse(group.weight), |group| Reverse(group.weight));
            if let Some(before) = same.ok().and_then(|index| before.get(index)) {
                group.follow(before, total);
            }
        }
    }

    fn pick<'a>(&mut self, _: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        endpoints.get(self.next()?)
    }
}

heddle_plugin::export_balancer!(WeightedRoundRobin);

#[cfg(test)]
mod tests;
