use heddle_plugin::testing::{Request, Service};

use super::IpHash;

fn service(config: &str) -> Service<IpHash> {
    let mut service = Service::new(config, 1).expect("the settings are right");
    service.register((0..10).map(|index| format!("10.0.0.1:{index}")));
    service
}

fn pick(service: &mut Service<IpHash>, request: &Request) -> Option<String> {
    service.pick(request).map(|endpoint| endpoint.address.clone())
}

#[test]
fn a_client_keeps_its_endpoint_whatever_it_asks_for() {
    let mut service = service("{}");
    let mut different = 0;
    for client in 0..50 {
        let ip = format!("192.0.2.{client}");
        let one = pick(&mut service, &Request::get("/a").from_client(&ip));
        assert_eq!(one, pick(&mut service, &Request::get("/b").from_client(&ip)));
        different += usize::from(one != pick(&mut service, &Request::get("/a").from_client("2001:db8::1")));
    }
    assert!(different > 25, "{different}");
}

#[test]
fn the_key_can_be_another() {
    let mut service = service(r#"{"by": "header:x-forwarded-for"}"#);
    let request = |ip| Request::get("/").from_client(ip).header("x-forwarded-for", "198.51.100.7");
    assert_eq!(pick(&mut service, &request("192.0.2.1")), pick(&mut service, &request("192.0.2.2")));
}
