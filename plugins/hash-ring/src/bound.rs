use heddle_plugin::{Endpoint, Endpoints, Slot};

/// Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, SODA 2018): of all that is under way, the
/// new request counted, no endpoint has more than `factor` times its weight's share, rounded up. One that has passes the
/// key on to the next. Some endpoint always has room, since the factor is above 1.
pub struct Bound {
    factor: f64,
    eligible: Vec<Slot>,
    all_weights: u64,
}

impl Bound {
    /// A bound of so many times the fair share.
    ///
    /// # Errors
    ///
    /// What can be said, where the number is not above 1.
    pub fn new(factor: f64) -> Result<Self, String> {
        if factor > 1.0 && factor.is_finite() {
            Ok(Self { factor, eligible: Vec::new(), all_weights: 0 })
        } else {
            Err(format!("bounded_load = {factor}: expected a number above 1, such as 1.25"))
        }
    }

    /// To be called when the set of eligible endpoints has changed.
    pub fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.eligible.clear();
        self.eligible.extend(endpoints.eligible().map(|endpoint| endpoint.slot));
        self.all_weights = endpoints.eligible().map(|endpoint| u64::from(endpoint.weight)).sum();
    }

    /// Says of an eligible endpoint whether it may have one more request now.
    pub fn room(&self, endpoints: &Endpoints) -> impl Fn(&Endpoint) -> bool {
        let in_flight = endpoints.in_flight_all();
        let all: u64 = self.eligible.iter().map(|&slot| u64::from(in_flight[slot])).sum::<u64>() + 1;
        let share = self.factor * all as f64 / self.all_weights as f64;
        // A whole number is below another one rounded up where it is below that one itself.
        move |endpoint| f64::from(in_flight[endpoint.slot]) < share * f64::from(endpoint.weight)
    }
}
