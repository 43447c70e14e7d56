//! The endpoint that has been registered longest takes everything, and the next oldest stands by: one primary, and
//! replicas in the order in which they came.
//!
//! Drop it into the demo under the name of the balancer in use, and from the next request on one server answers all.
//! Take that server away, and the next oldest does.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request, Slot};

struct Oldest {
    by_age: Vec<Slot>,
}

impl Balancer for Oldest {
    fn new(config: Config<'_>, _seed: u64) -> Result<Self, String> {
        config.expect_empty()?;
        Ok(Self { by_age: Vec::new() })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        let mut eligible: Vec<&Endpoint> = endpoints.eligible().collect();
        eligible.sort_by_key(|endpoint| endpoint.order);
        self.by_age = eligible.iter().map(|endpoint| endpoint.slot).collect();
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let tried = request.tried();
        let untried = self.by_age.iter().find(|&&slot| !tried.contains_slot(slot));
        endpoints.get(*untried.or(self.by_age.first())?)
    }
}

heddle_plugin::export_balancer!(Oldest);

#[cfg(test)]
mod tests {
    use heddle_plugin::testing::{Registration, Request, Service};

    use super::Oldest;

    fn pick(service: &mut Service<Oldest>, request: &Request) -> Option<String> {
        service.pick(request).map(|endpoint| endpoint.address.clone())
    }

    fn service() -> Service<Oldest> {
        let mut service = Service::new("{}", 1).expect("no settings are fine");
        service.register([
            Registration::new("10.0.0.1:80").order(30),
            Registration::new("10.0.0.2:80").order(10),
            Registration::new("10.0.0.3:80").order(20),
        ]);
        service
    }

    #[test]
    fn the_oldest_takes_all_until_it_is_gone() {
        let mut service = service();
        let request = Request::get("/");
        assert_eq!(pick(&mut service, &request).as_deref(), Some("10.0.0.2:80"));
        assert_eq!(pick(&mut service, &request).as_deref(), Some("10.0.0.2:80"));
        service.set_eligible(|endpoint| endpoint.address != "10.0.0.2:80");
        assert_eq!(pick(&mut service, &request).as_deref(), Some("10.0.0.3:80"));
        service.set_eligible(|_| false);
        assert_eq!(pick(&mut service, &request), None);
    }

    #[test]
    fn a_retry_goes_to_the_next_oldest() {
        let mut service = service();
        assert_eq!(pick(&mut service, &Request::get("/").tried(&["10.0.0.2:80"])).as_deref(), Some("10.0.0.3:80"));
        let all = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
        assert_eq!(pick(&mut service, &Request::get("/").tried(&all)).as_deref(), Some("10.0.0.2:80"));
    }
}
