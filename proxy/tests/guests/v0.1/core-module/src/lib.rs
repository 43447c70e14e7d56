//! The endpoint whose address a header names, else the least loaded one: what a balancer can know, in one guest.

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Level, Request, log, now};

struct Named {
    header: String,
}

impl Balancer for Named {
    fn new(config: Config<'_>, _seed: u64) -> Result<Self, String> {
        let header = config.json().split('"').nth(3).unwrap_or("x-endpoint");
        if header.is_empty() {
            return Err("header: expected a name".to_owned());
        }
        Ok(Self { header: header.to_owned() })
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        if let Some(address) = request.header(&self.header) {
            return endpoints.eligible().find(|endpoint| endpoint.address.as_bytes() == address);
        }
        if request.path().is_some_and(|path| path == "/log") {
            log(Level::Information, &format!("{:?} {:?} at {:?}", request.service(), request.client_ip(), now()));
        }
        let (in_flight, tried) = (endpoints.in_flight_all(), request.tried());
        let untried = endpoints.eligible().filter(|endpoint| !tried.contains(endpoint));
        untried.min_by_key(|endpoint| (in_flight[endpoint.slot], endpoint.order))
    }
}

heddle_plugin::export_balancer!(Named);
