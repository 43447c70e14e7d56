//! When checks take an endpoint out of use, and when they put it back.
//!
//! HAProxy's rule: `fall` failures in a row take it out, `rise` passes in a row put it back, and a result of the other
//! kind starts the count anew. A new endpoint is in use at once, but on trial: its first check decides alone. An
//! endpoint that was ejected because of its traffic is proven well in the same way as one that failed its checks, by
//! `rise` passes in a row, of checks that began after the ejection.

/// Results in a row that change an endpoint's standing, at least 1 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub rise: u32,
    pub fall: u32,
}

/// What the checks of one endpoint have said so far.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    failing: bool,
    /// Whether the newest check passed, and how many have ended like it in a row.
    newest: Option<(bool, u32)>,
    /// The ejection that is being ended, and passes in a row since it began.
    ejection: Option<(u64, u32)>,
}

/// What comes of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// The endpoint is failing, or not failing, from now on.
    pub failing: Option<bool>,
    /// The endpoint was ejected, and has proven that it may be tried again.
    pub ends_ejection: bool,
}

impl Standing {
    /// One that is known to be failing its checks, or not to be; its first check decides alone in either case.
    pub fn of(failing: bool) -> Self {
        Self { failing, ..Self::default() }
    }

    /// Whether the endpoint is out of use because of its checks.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Takes a result into account. `ejection` tells the ejection during all of which the check was made from every
    /// other one; none where the endpoint was in use at some time of it.
    pub fn add(&mut self, passed: bool, ejection: Option<u64>, rule: Rule) -> Effect {
        let is_first = self.newest.is_none();
        let row = match self.newest {
            Some((before, row)) if before == passed => row.saturating_add(1),
            _ => 1,
        };
        self.newest = Some((passed, row));
        let needed = if passed { rule.rise } else { rule.fall };
        let turns = self.failing == passed && (is_first || row >= needed);
        if turns {
            self.failing = !passed;
        }

        self.ejection = ejection.filter(|_| passed).map(|of| match self.ejection {
            Some((before, passes)) if before == of => (of, passes.saturating_add(1)),
            _ => (of, 1),
        });
        let ends_ejection = self.ejection.is_some_and(|(_, passes)| passes >= rule.rise);
        Effect { failing: turns.then_some(self.failing), ends_ejection }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule { rise: 2, fall: 3 };

    /// After each result (`+` or `-`): `F` where the endpoint begins to fail, `P` where it is put back, `.` for nothing.
    fn effects(mut standing: Standing, results: &str) -> String {
        let effect = |result| match standing.add(result == '+', None, RULE).failing {
            Some(true) => 'F',
            Some(false) => 'P',
            None => '.',
        };
        results.chars().map(effect).collect()
    }

    #[test]
    fn it_takes_some_in_a_row() {
        assert_eq!(effects(Standing::default(), "+--+---"), "......F");
        assert_eq!(effects(Standing::default(), "+----+-++"), "...F....P");
        assert_eq!(effects(Standing::default(), "+---+++---"), "...F.P...F");
    }

    #[test]
    fn the_first_check_decides_alone() {
        assert_eq!(effects(Standing::default(), "-+-++"), "F...P");
        assert_eq!(effects(Standing::default(), "+--"), "...");
        assert_eq!(effects(Standing::of(true), "+--"), "P..");
        assert_eq!(effects(Standing::of(true), "-+-"), "...");
    }

    /// The number of each check that ends an ejection; each has the result, and the ejection that it is made during.
    fn ends(checks: &[(bool, Option<u64>)]) -> Vec<usize> {
        let mut standing = Standing::default();
        let ends = |(i, (passed, ejection)): (usize, &(bool, Option<u64>))| {
            standing.add(*passed, *ejection, RULE).ends_ejection.then_some(i)
        };
        checks.iter().enumerate().filter_map(ends).collect()
    }

    #[test]
    fn passes_since_an_ejection_end_it() {
        assert_eq!(ends(&[(true, None), (true, None), (true, Some(1)), (true, Some(1))]), [3]);
        assert_eq!(ends(&[(true, Some(1)), (false, Some(1)), (true, Some(1)), (true, Some(1))]), [3]);
        assert_eq!(ends(&[(true, Some(1)), (true, Some(2)), (true, Some(2))]), [2]);
        assert_eq!(ends(&[(true, Some(1)), (true, None), (true, Some(1)), (true, Some(1))]), [3]);
        assert_eq!(ends(&[(true, None), (true, None), (true, None)]), [0; 0]);
    }

    proptest! {
        /// What is in force is contradicted by fewer results in a row than it takes to change it.
        #[test]
        fn no_contradiction_lasts(
            results in prop::collection::vec(any::<bool>(), 1..100), rise in 1_u32..5, fall in 1_u32..5,
        ) {
            let mut standing = Standing::default();
            let mut contradictions = 0;
            for passed in results {
                let before = standing.is_failing();
                let effect = standing.add(passed, None, Rule { rise, fall });
                prop_assert_eq!(effect.failing.unwrap_or(before), standing.is_failing());
                prop_assert!(effect.failing.is_none_or(|failing| failing != passed && failing != before));
                contradictions = if standing.is_failing() == passed { contradictions + 1 } else { 0 };
                let most = if passed { rise } else { fall };
                prop_assert!(contradictions < most);
            }
        }
    }
}
