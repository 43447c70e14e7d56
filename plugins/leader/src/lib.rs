//! One endpoint for all requests: the one that the registry marks as the master, else the one that has been registered
//! longest.
//!
//! For work that only one instance may do, and for a primary with spares. The first eligible endpoint of this order
//! takes everything: marked ones before others, then older before newer (by the registry's order of creation, the same
//! in every proxy), then by id. While it is not eligible the next one stands in, and when it is back it takes over
//! again. A request that has tried it goes on to the next one too, while there is one.
//!
//! The mark is `role=master` in the endpoint's metadata, or what the settings say:
//! `{mark = "leader=true"}`.

use std::cmp::Reverse;

use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Request, Slot};
use serde::Deserialize;

/// The settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    mark: Option<String>,
}

struct Leader {
    /// A name and a value in the metadata.
    mark: (String, String),
    /// The registered endpoints, the leader first.
    order: Vec<Slot>,
}

impl Balancer for Leader {
    fn new(config: Config<'_>, _: u64) -> Result<Self, String> {
        let mark = config.parse::<Settings>()?.mark;
        let mark = mark.as_deref().unwrap_or("role=master");
        match mark.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { mark: (name.to_owned(), value.to_owned()), order: Vec::new() })
            }
            _ => Err(["mark = \"", mark, "\": expected NAME=VALUE, such as role=master"].concat()),
        }
    }

    fn registered_changed(&mut self, endpoints: &Endpoints) {
        let (name, value) = &self.mark;
        let is_marked = |endpoint: &Endpoint| endpoint.metadata(name) == Some(value);
        let mut all: Vec<&Endpoint> = endpoints.iter().collect();
        all.sort_by_cached_key(|endpoint| (Reverse(is_marked(endpoint)), endpoint.order, endpoint.id.clone()));
        self.order = all.into_iter().map(|endpoint| endpoint.slot).collect();
    }

    fn pick<'a>(&mut self, request: &Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        let tried = request.tried();
        let mut eligible = self.order.iter().filter_map(|&slot| endpoints.get_eligible(slot));
        let first = eligible.next()?;
        if !tried.contains(first) {
            return Some(first);
        }
        eligible.find(|endpoint| !tried.contains(endpoint)).or(Some(first))
    }
}

heddle_plugin::export_balancer!(Leader);

#[cfg(test)]
mod tests;
