use heddle_plugin::testing::{Request, Service};

use super::UrlHash;

fn service(config: &str) -> Service<UrlHash> {
    let mut service = Service::new(config, 1).expect("the settings are right");
    service.register((0..10).map(|index| format!("10.0.0.1:{index}")));
    service
}

fn pick(service: &mut Service<UrlHash>, request: &Request) -> Option<String> {
    service.pick(request).map(|endpoint| endpoint.address.clone())
}

#[test]
fn a_path_keeps_its_endpoint_whoever_asks_and_with_any_query() {
    let mut service = service("{}");
    let mut different = 0;
    for path in 0..50 {
        let one = pick(&mut service, &Request::get(&format!("/{path}?a=1")).from_client("192.0.2.1"));
        assert_eq!(one, pick(&mut service, &Request::get(&format!("/{path}?a=2")).from_client("192.0.2.2")));
        different += usize::from(one != pick(&mut service, &Request::get("/other")));
    }
    assert!(different > 25, "{different}");
}

#[test]
fn the_key_can_be_another() {
    let mut service = service(r#"{"by": "url"}"#);
    let places: Vec<_> = (0..50).map(|query| pick(&mut service, &Request::get(&format!("/?{query}")))).collect();
    assert!(places.iter().any(|place| *place != places[0]));
}
