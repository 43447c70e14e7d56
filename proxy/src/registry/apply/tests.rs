use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The rules once more, by brute force: what is announced, and from scratch what follows from it.
#[derive(Debug, Default, Clone)]
struct Model {
    known: BTreeMap<(Origin, Vec<u8>), (u64, Announced)>,
}

impl Model {
    fn apply(&mut self, origin: Origin, event: &Event) {
        match event {
            Event::Reset(entries) => {
                let keys: Vec<_> = entries.iter().map(|entry| &entry.key).collect();
                self.known.retain(|(of, key), _| *of != origin || keys.contains(&key));
                entries.iter().for_each(|entry| self.put(origin, entry));
            }
            Event::Put(entry) => self.put(origin, entry),
            Event::Delete(key) => {
                self.known.remove(&(origin, key.clone()));
            }
        }
    }

    fn put(&mut self, origin: Origin, entry: &Entry) {
        let at = (origin, entry.key.clone());
        match &entry.content {
            Content::Announced(announced) => {
                self.known.insert(at, (entry.order, announced.clone()));
            }
            Content::Unreadable => {
                if self.known.get(&at).is_some_and(|(order, _)| *order != entry.order) {
                    self.known.remove(&at);
                }
            }
        }
    }

    /// Per service and address the registration in force.
    fn services(&self) -> BTreeMap<String, BTreeMap<String, Registered>> {
        let mut claims: Vec<_> = self.known.iter().collect();
        claims.sort_by_key(|((origin, key), (order, _))| (*order, *origin, key.clone()));
        let mut services: BTreeMap<String, BTreeMap<String, Registered>> = BTreeMap::new();
        for ((_, key), (order, announced)) in claims {
            for endpoint in &announced.endpoints {
                let registered = Registered {
                    id: format!("{}#{}", encode_key(key), endpoint.address),
                    address: endpoint.address.clone(),
                    weight: endpoint.weight,
                    order: *order,
                    metadata: endpoint.metadata.clone(),
                };
                let service = services.entry(announced.service.clone()).or_default();
                service.entry(endpoint.address.clone()).or_insert(registered);
            }
        }
        services
    }
}

impl Model {
    fn paused(&self) -> BTreeSet<String> {
        let pausing = self.known.values().filter(|(_, announced)| announced.pauses);
        pausing.map(|(_, announced)| announced.service.clone()).collect()
    }
}

/// A consumer of changes, which holds them to their contract: what is removed was there, what is added was not, and a
/// pause changes.
#[derive(Debug, Default)]
struct Consumer(BTreeMap<String, BTreeMap<String, Registered>>, BTreeSet<String>);

impl Consumer {
    fn take(&mut self, changes: Vec<Change>) {
        let mut services = FxHashSet::default();
        for change in changes {
            assert!(services.insert(change.service.clone()), "one change a service");
            assert!(!change.removed.is_empty() || !change.added.is_empty() || change.paused.is_some());
            match change.paused {
                Some(true) => assert!(self.1.insert(change.service.clone())),
                Some(false) => assert!(self.1.remove(&change.service)),
                None => {}
            }
            let service = self.0.entry(change.service).or_default();
            for id in change.removed {
                let address = service.iter().find(|(_, registered)| registered.id == id).expect("a known id").0.clone();
                let old = service.remove(&address);
                let new = change.added.iter().find(|registered| registered.address == address);
                assert_ne!(old.as_ref(), new, "an endpoint that did not change");
            }
            for registered in change.added {
                assert!(service.insert(registered.address.clone(), registered).is_none());
            }
        }
        self.0.retain(|_, service| !service.is_empty());
    }
}

fn announced(service: &str, addresses: &[(&str, u32)]) -> Announced {
    let endpoint = |(address, weight): &(&str, u32)| Endpoint {
        address: (*address).into(),
        weight: *weight,
        metadata: Vec::new(),
    };
    Announced::endpoints(service.into(), addresses.iter().map(endpoint).collect())
}

fn entry(key: &str, order: u64, address: &str) -> Entry {
    Entry { key: key.into(), order, content: Content::Announced(announced("users", &[(address, 1)])) }
}

fn ids(changes: &[Change]) -> (Vec<&str>, Vec<&str>) {
    let [change] = changes else { panic!("one service: {changes:?}") };
    (
        change.removed.iter().map(String::as_str).collect(),
        change.added.iter().map(|registered| registered.id.as_str()).collect(),
    )
}

#[test]
fn a_delete_finds_what_the_key_announced() {
    let mut catalog = Catalog::default();
    let changes = catalog.apply(0, [Event::Put(entry("/s/users/1", 5, "a:1"))]);
    assert_eq!(ids(&changes), (vec![], vec!["/s/users/1#a:1"]));
    assert_eq!((catalog.services(), catalog.endpoints()), (1, 1));
    assert_eq!(catalog.apply(0, [Event::Put(entry("/s/users/1", 5, "a:1"))]), [], "the same again");
    assert_eq!(catalog.apply(0, [Event::Delete("/s/users/2".into())]), [], "an unknown key");
    let changes = catalog.apply(0, [Event::Delete("/s/users/1".into())]);
    assert_eq!(ids(&changes), (vec!["/s/users/1#a:1"], vec![]));
    assert_eq!((catalog.services(), catalog.endpoints()), (0, 0));
}

#[test]
fn the_oldest_claim_is_in_force_and_the_next_takes_over() {
    let mut catalog = Catalog::default();
    catalog.apply(0, [Event::Put(entry("k2", 2, "a:1"))]);
    assert_eq!(catalog.apply(0, [Event::Put(entry("k3", 3, "a:1"))]), []);
    assert_eq!(ids(&catalog.apply(1, [Event::Put(entry("k1", 1, "a:1"))])), (vec!["k2#a:1"], vec!["k1#a:1"]));
    assert_eq!(catalog.endpoints(), 1);
    assert_eq!(catalog.apply(0, [Event::Delete("k2".into())]), []);
    assert_eq!(ids(&catalog.apply(1, [Event::Reset(vec![])])), (vec!["k1#a:1"], vec!["k3#a:1"]));
}

#[test]
fn an_unreadable_value_keeps_the_same_registration_and_no_other() {
    let unreadable = |order| Entry { key: "k".into(), order, content: Content::Unreadable };
    let mut catalog = Catalog::default();
    assert_eq!(catalog.apply(0, [Event::Put(unreadable(1))]), []);
    catalog.apply(0, [Event::Put(entry("k", 1, "a:1"))]);
    assert_eq!(catalog.apply(0, [Event::Put(unreadable(1))]), []);
    assert_eq!(catalog.apply(0, [Event::Reset(vec![unreadable(1)])]), []);
    assert_eq!(ids(&catalog.apply(0, [Event::Reset(vec![unreadable(2)])])), (vec!["k#a:1"], vec![]));
}

#[test]
fn a_batch_answers_the_net_change() {
    let mut catalog = Catalog::default();
    catalog.apply(0, [Event::Put(entry("k", 1, "a:1"))]);
    assert_eq!(catalog.apply(0, [Event::Delete("k".into()), Event::Put(entry("k", 1, "a:1"))]), []);
    assert_eq!(catalog.apply(0, [Event::Put(entry("l", 2, "b:1")), Event::Delete("l".into())]), []);
    let moved = catalog.apply(0, [Event::Delete("k".into()), Event::Put(entry("m", 3, "a:1"))]);
    assert_eq!(ids(&moved), (vec!["k#a:1"], vec!["m#a:1"]));
}

#[test]
fn ids_are_the_encoded_key_and_the_address() {
    let mut catalog = Catalog::default();
    let odd = Entry { key: b"/s/users/\x00#%\xff".to_vec(), ..entry("", 1, "a:1") };
    assert_eq!(ids(&catalog.apply(0, [Event::Put(odd)])).1, ["/s/users/%00%23%25%FF#a:1"]);
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let endpoints = prop::collection::vec((0..4u8, 0..3u32), 0..3);
    let content = (0..3u8, endpoints, prop::bool::weighted(0.2)).prop_map(|(service, endpoints, pauses)| {
        let endpoints = endpoints.into_iter().map(|(host, weight)| Endpoint {
            address: format!("h{host}:1"),
            weight,
            metadata: Vec::new(),
        });
        Content::Announced(Announced { service: format!("s{service}"), endpoints: endpoints.collect(), pauses })
    });
    let content = prop_oneof![5 => content, 1 => Just(Content::Unreadable)];
    (0..4u8, 0..3u64, content).prop_map(|(key, order, content)| Entry { key: vec![key], order, content })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => prop::collection::vec(any_entry(), 0..6).prop_map(Event::Reset),
        5 => any_entry().prop_map(Event::Put),
        2 => (0..4u8).prop_map(|key| Event::Delete(vec![key])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_changes_add_up_to_what_the_model_says(
        batches in prop::collection::vec((0..2usize, prop::collection::vec(any_event(), 1..4)), 1..12),
    ) {
        let mut catalog = Catalog::default();
        let mut model = Model::default();
        let mut consumer = Consumer::default();
        for (origin, events) in batches {
            events.iter().for_each(|event| model.apply(origin, event));
            consumer.take(catalog.apply(origin, events));
            let expected = model.services();
            prop_assert_eq!(&consumer.0, &expected);
            prop_assert_eq!(&consumer.1, &model.paused());
            prop_assert_eq!(catalog.services(), expected.len());
            prop_assert_eq!(catalog.endpoints(), expected.values().map(BTreeMap::len).sum::<usize>());
            for origin in 0..2 {
                let mut entries: Vec<_> =
                    catalog.entries(origin).map(|(key, order, said)| (key.to_vec(), (order, said.clone()))).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let known = model.known.iter().filter(|((of, _), _)| *of == origin);
                let known: Vec<_> = known.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                prop_assert_eq!(entries, known);
            }
        }
    }

    #[test]
    fn keys_round_trip_as_text(key in prop::collection::vec(any::<u8>(), 0..40)) {
        let text = encode_key(&key);
        prop_assert!(!text.contains('#'));
        prop_assert_eq!(decode_key(&text), key);
    }
}
