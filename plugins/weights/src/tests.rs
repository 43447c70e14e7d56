use std::time::Duration;

use heddle_plugin::testing::{Registration, Request, Service, fits};
use heddle_plugin::{Balancer, Config, Endpoint, Endpoints, Random};

use super::{Draw, FULL, Weighted, Weights};

/// Shows the weights through the calls of a balancer.
struct Shown {
    weights: Weights,
    computed: u32,
}

thread_local! {
    static SHOWN: std::cell::RefCell<(Vec<u64>, u32)> = std::cell::RefCell::default();
}

impl Balancer for Shown {
    fn new(config: Config<'_>, _: u64) -> Result<Self, String> {
        Ok(Self { weights: Weights::new(config)?, computed: 0 })
    }

    fn eligible_changed(&mut self, endpoints: &Endpoints) {
        self.weights.eligible_changed(endpoints);
    }

    fn pick<'a>(&mut self, _: &heddle_plugin::Request, endpoints: &'a Endpoints) -> Option<&'a Endpoint> {
        self.computed += u32::from(self.weights.grow());
        let weights = self.weights.all().iter().map(|weighted| weighted.weight).collect();
        SHOWN.set((weights, self.computed));
        endpoints.nth_eligible(0)
    }
}

fn service(config: &str) -> Service<Shown> {
    let mut service = Service::new(config, 1).expect("the settings are right");
    service.register([Registration::new("10.0.0.1:80").weight(2)]);
    service
}

/// The weights at a time, and how often they have been computed anew.
fn at(service: &mut Service<Shown>, millis: u64) -> (Vec<u64>, u32) {
    service.set_now(Duration::from_millis(millis));
    service.pick(&Request::get("/"));
    SHOWN.take()
}

#[test]
fn the_weight_of_a_new_endpoint_grows_from_a_tenth_to_the_whole() {
    let mut service = service(r#"{"slow_start": "10s"}"#);
    service.set_now(Duration::from_secs(100));
    service.register([Registration::new("10.0.0.2:80").weight(3)]);
    for (millis, thousandths) in [
        (100_000, 100),
        (100_500, 100),
        (101_000, 100),
        (102_000, 200),
        (105_000, 500),
        (109_900, 990),
        (110_001, 1000),
    ] {
        assert_eq!(at(&mut service, millis).0, [2 * FULL, 3 * thousandths], "{millis} ms");
    }
}

#[test]
fn weights_are_computed_a_hundred_times_and_then_never() {
    let mut service = service(r#"{"slow_start": "10s"}"#);
    service.set_now(Duration::from_secs(100));
    service.register(["10.0.0.2:80"]);
    let computed: Vec<u32> = (100_000..130_000).map(|millis| at(&mut service, millis).1).collect();
    assert_eq!((computed[0], computed[99], computed[100]), (0, 0, 1));
    assert_eq!((computed[10_000], computed[29_999]), (100, 100));
}

#[test]
fn a_change_of_who_is_eligible_does_not_begin_the_start_anew() {
    let mut service = service(r#"{"slow_start": "10s"}"#);
    service.set_now(Duration::from_secs(100));
    service.register(["10.0.0.2:80"]);
    service.set_now(Duration::from_secs(105));
    service.set_eligible(|_| true);
    assert_eq!(at(&mut service, 105_000).0, [2000, 500]);
    service.register([Registration::new("10.0.0.2:80").weight(4)]);
    assert_eq!(at(&mut service, 105_000).0, [2000, 2000]);
    service.set_now(Duration::from_secs(120));
    service.set_eligible(|endpoint| endpoint.weight == 4);
    assert_eq!(at(&mut service, 120_000), (vec![4000], 0));
}

#[test]
fn without_slow_start_weights_are_whole() {
    for config in ["{}", r#"{"slow_start": "0s"}"#] {
        let mut service = service(config);
        service.set_now(Duration::from_secs(100));
        service.register([Registration::new("10.0.0.2:80").weight(u32::MAX)]);
        assert_eq!(at(&mut service, 100_000), (vec![2000, u64::from(u32::MAX) * FULL], 0));
    }
}

#[test]
fn settings_are_refused() {
    for config in [r#"{"slow_start": 30}"#, r#"{"slow_start": "soon"}"#, r#"{"slowstart": "30s"}"#] {
        assert!(Service::<Shown>::new(config, 1).is_err(), "{config}");
    }
}

#[test]
fn another_is_drawn_in_proportion_to_the_weights_of_the_others() {
    let mut service = service("{}");
    service.register([Registration::new("10.0.0.2:80").weight(3), Registration::new("10.0.0.3:80").weight(5)]);
    let slot = service.pick(&Request::get("/")).expect("one is eligible").slot;
    let weighted: Vec<_> = SHOWN.take().0.into_iter().map(|weight| Weighted { slot, weight }).collect();
    let mut draw = Draw::default();
    draw.set(&weighted);
    assert_eq!(draw.total(), 10_000);
    let mut random = Random::new(2);
    for than in 0..3 {
        let mut counts = [0_u32; 3];
        (0..9000).for_each(|_| counts[draw.another(than, &mut random).expect("there are two more")] += 1);
        assert_eq!(counts[than], 0);
        let others: Vec<usize> = (0..3).filter(|&place| place != than).collect();
        let weights = others.iter().map(|&place| [2, 3, 5][place]).collect::<Vec<u32>>();
        assert!(fits(&others.iter().map(|&place| counts[place]).collect::<Vec<_>>(), &weights), "{counts:?}");
    }
    draw.set(&weighted[..1]);
    assert_eq!((draw.one(&mut random), draw.another(0, &mut random)), (Some(0), None));
    draw.set(&[]);
    assert_eq!((draw.one(&mut random), draw.another(0, &mut random)), (None, None));
}
