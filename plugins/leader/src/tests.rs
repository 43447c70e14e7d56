use heddle_plugin::testing::{Registration, Request, Service};

use super::Leader;

/// Endpoints that came in the order c, a, b.
fn service(config: &str) -> Service<Leader> {
    let mut service = Service::new(config, 1).expect("the settings are right");
    service.register([("a", 20), ("b", 30), ("c", 10)].map(|(name, order)| Registration::new(name).order(order)));
    service
}

fn pick(service: &mut Service<Leader>, tried: &[&str]) -> Option<String> {
    service.pick(&Request::get("/").tried(tried)).map(|endpoint| endpoint.address.clone())
}

#[track_caller]
fn expect(service: &mut Service<Leader>, tried: &[&str], expected: &str) {
    assert_eq!(pick(service, tried).as_deref(), Some(expected));
}

#[test]
fn the_oldest_takes_everything() {
    let mut service = service("{}");
    (0..10).for_each(|_| expect(&mut service, &[], "c"));
}

#[test]
fn the_next_oldest_stands_in_until_the_leader_is_back() {
    let mut service = service("{}");
    service.set_eligible(|endpoint| endpoint.address != "c");
    expect(&mut service, &[], "a");
    service.set_eligible(|endpoint| endpoint.address == "b");
    expect(&mut service, &[], "b");
    service.set_eligible(|_| true);
    expect(&mut service, &[], "c");
    service.remove(&["c"]);
    expect(&mut service, &[], "a");
    service.register([Registration::new("c").order(40)]);
    expect(&mut service, &[], "a");
    service.set_eligible(|_| false);
    assert_eq!(pick(&mut service, &[]), None);
}

#[test]
fn a_request_goes_on_past_what_it_has_tried() {
    let mut service = service("{}");
    expect(&mut service, &["c"], "a");
    expect(&mut service, &["c", "a"], "b");
    expect(&mut service, &["a"], "c");
    expect(&mut service, &["c", "a", "b"], "c");
}

#[test]
fn a_master_comes_before_older_ones() {
    let mut service = service("{}");
    service.register([Registration::new("b").order(30).metadata("role", "master")]);
    expect(&mut service, &[], "b");
    service.register([Registration::new("d").order(40).metadata("role", "master")]);
    expect(&mut service, &[], "b");
    expect(&mut service, &["b"], "d");
    service.set_eligible(|endpoint| endpoint.metadata("role").is_none());
    expect(&mut service, &[], "c");
    service.set_eligible(|_| true);
    service.register([Registration::new("b").order(30).metadata("role", "slave")]);
    expect(&mut service, &[], "d");
}

#[test]
fn the_mark_can_be_another() {
    let mut service = service(r#"{"mark": "leader=true"}"#);
    service.register([Registration::new("a").order(20).metadata("role", "master")]);
    expect(&mut service, &[], "c");
    service.register([Registration::new("b").order(30).metadata("leader", "true")]);
    expect(&mut service, &[], "b");
}

/// Proxies number slots differently, and a file's entries may all have the same order.
#[test]
fn proxies_agree_where_the_order_does_not_decide() {
    for names in [["x", "y", "z"], ["z", "y", "x"]] {
        let mut service = Service::<Leader>::new("{}", 1).expect("no settings are fine");
        service.register(names.map(|name| Registration::new(name).order(0)));
        expect(&mut service, &[], "x");
    }
}

#[test]
fn settings_are_refused_with_what_is_expected() {
    let refusal = |config| Service::<Leader>::new(config, 1).err().unwrap_or_default();
    assert_eq!(refusal(r#"{"mark": "master"}"#), "mark = \"master\": expected NAME=VALUE, such as role=master");
    assert!(refusal(r#"{"mark": "=x"}"#).contains("expected"));
    assert!(refusal(r#"{"by": "path"}"#).contains("unknown field `by`"));
}
