use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::config::checked::SourceRules;
use crate::config::names::NamePattern;

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
            Event::Partial(entries) => entries.iter().for_each(|entry| self.put(origin, entry)),
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
            Content::Unreadable(_) => {
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
                    egress: Arc::default(),
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
        let mut services = BTreeSet::new();
        for change in changes {
            assert!(services.insert(change.service.clone()), "one change a service");
            let has_news = change.paused.is_some() || change.proxied.is_some();
            assert!(!change.removed.is_empty() || !change.added.is_empty() || has_news);
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
    let unreadable = |order| Entry { key: "k".into(), order, content: Content::Unreadable(String::new()) };
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

/// Takes a batch in by slices; the changes, and the operations of the largest slice and of all together.
fn sliced(catalog: &mut Catalog, events: Vec<Event>, slice: usize, piece: usize) -> (Vec<Vec<Change>>, u64, u64) {
    let mut batch = catalog.begin(0, events, piece);
    let (mut pieces, mut largest) = (Vec::new(), 0);
    loop {
        let before = batch.operations;
        let step = catalog.step(&mut batch, slice);
        largest = largest.max(batch.operations - before);
        match step {
            Step::More => {}
            Step::Changes(changes) => pieces.push(changes),
            Step::Done(changes) => {
                pieces.push(changes);
                return (pieces, largest, batch.operations);
            }
        }
    }
}

const COUNT: usize = 20_000;

/// Keys of one service each at an address of its own, keys that all claim one address, and each a service of its own.
fn many(kind: &str, count: usize) -> Vec<Entry> {
    let of = |i: usize| match kind {
        "same address" => entry(&format!("/s/users/{i}"), (i % 7) as u64, "a:1"),
        "services" => {
            let content = Content::Announced(announced(&format!("s{i}"), &[("a:1", 1)]));
            Entry { content, ..entry(&format!("/s/s{i}/1"), 1, "a:1") }
        }
        _ => entry(&format!("/s/users/{i}"), 1, &format!("h{i}:1")),
    };
    (0..count).map(of).collect()
}

/// Issue 10, 14: the work grows with the keys and not with their square, and no slice of it is longer than asked for by
/// more than one entry's work. Operations are what is counted; each costs at most a few searches in a tree.
#[test]
fn the_work_is_linear_and_in_slices() {
    let slice = 1_000;
    for kind in ["addresses", "same address", "services"] {
        let mut per_key = Vec::new();
        for count in [COUNT / 5, COUNT] {
            let mut catalog = Catalog::default();
            let mut all = 0;
            for events in [
                vec![Event::Reset(many(kind, count))],
                vec![Event::Reset(many(kind, count))],
                vec![Event::Reset(many(kind, count / 2))],
                (0..count / 2).map(|i| Event::Delete(many(kind, 1 + i).pop().expect("one").key)).take(500).collect(),
                vec![Event::Reset(Vec::new())],
            ] {
                let (_, largest, operations) = sliced(&mut catalog, events, slice, slice);
                assert!(largest <= 2 * slice as u64 + 16, "{kind}: a slice of {largest}");
                all += operations;
            }
            assert_eq!((catalog.endpoints(), catalog.services(), catalog.kept()), (0, 0, Kept::default()), "{kind}");
            per_key.push(all as f64 / count as f64);
        }
        assert!(per_key[1] < per_key[0] * 1.2 && per_key[1] < 20.0, "{kind}: {per_key:?} operations a key");
    }
}

/// Issue 10, 14: claims on one address come and go in any number without a walk over all of them.
#[test]
fn ten_thousand_claims_on_one_address_pass_it_on_in_order() {
    let mut catalog = Catalog::default();
    catalog.apply(0, [Event::Reset(many("same address", 10_000))]);
    assert_eq!(catalog.endpoints(), 1);
    let first = |catalog: &Catalog| catalog.services["users"]["a:1"].first.1.id.clone();
    assert_eq!(first(&catalog), "/s/users/0#a:1");
    for i in (0..10_000).step_by(7) {
        catalog.apply(0, [Event::Delete(format!("/s/users/{i}").into_bytes())]);
    }
    assert_eq!(first(&catalog), "/s/users/1#a:1", "the next oldest");
}

/// Issue 10, 14: a large change comes out in pieces of bounded size, what takes another's place together with it.
#[test]
fn a_large_change_is_reported_in_pieces() {
    let mut catalog = Catalog::default();
    let mut consumer = Consumer::default();
    for events in [
        vec![Event::Reset(many("addresses", 5_000))],
        // Each address is another key's by now.
        vec![Event::Reset((0..5_000).map(|i| entry(&format!("/s/users/x{i}"), 2, &format!("h{i}:1"))).collect())],
        vec![Event::Reset(Vec::new())],
    ] {
        let (pieces, _, _) = sliced(&mut catalog, events, 700, 1_000);
        assert!(pieces.len() >= 5, "{}", pieces.len());
        for changes in pieces {
            assert!(changes.iter().map(|change| change.added.len() + change.removed.len()).sum::<usize>() <= 2_000);
            consumer.take(changes);
        }
    }
    assert!(consumer.0.is_empty());
}

#[test]
fn nothing_is_seen_of_a_batch_before_its_end() {
    let mut catalog = Catalog::default();
    let mut batch = catalog.begin(0, [Event::Reset(many("addresses", 100))], 1_000);
    for _ in 0..19 {
        assert_eq!(catalog.step(&mut batch, 10), Step::More);
    }
}

/// Issue 10, 14: `max_endpoints` and `max_registry_bytes` bound what is kept; what is known stays, and there is a note.
#[test]
fn what_is_kept_is_bounded() {
    let limits = RegistryLimits { max_endpoints: 3, ..RegistryLimits::default() };
    let mut catalog = Catalog::new(limits);
    let keys = |range: std::ops::Range<usize>| range.map(|i| entry(&format!("k{i}"), 1, &format!("h{i}:1"))).collect();
    catalog.apply(0, [Event::Reset(keys(0..5))]);
    assert_eq!((catalog.endpoints(), catalog.kept().endpoints), (3, 3));
    let notes = |catalog: &Catalog| {
        let (notes, more) = catalog.notes(0);
        assert_eq!(more, 0);
        notes.map(|(key, note)| (String::from_utf8_lossy(key).into_owned(), note.reason.clone())).collect::<Vec<_>>()
    };
    let reason = "max_endpoints (3) is reached".to_owned();
    assert_eq!(notes(&catalog), [("k3".to_owned(), reason.clone()), ("k4".to_owned(), reason)]);
    assert!(!catalog.has_room_again());
    // One that is known may change, and leaves its place when it goes.
    assert_eq!(ids(&catalog.apply(0, [Event::Put(entry("k0", 1, "x:1"))])).1, ["k0#x:1"]);
    catalog.apply(0, [Event::Delete("k0".into())]);
    assert!(catalog.has_room_again() && !catalog.has_room_again());
    catalog.apply(0, [Event::Put(entry("k3", 1, "h3:1"))]);
    assert_eq!(notes(&catalog).len(), 1);

    let mut catalog = Catalog::new(RegistryLimits { max_bytes: 10_000, ..RegistryLimits::default() });
    catalog.apply(0, [Event::Reset(keys(0..100))]);
    assert!(catalog.endpoints() < 10 && catalog.kept().bytes <= 10_000);
    catalog.apply(0, [Event::Reset(Vec::new())]);
    assert_eq!(catalog.kept(), Kept::default());
}

/// A reading that names other keys needs no room for those of before.
#[test]
fn a_reset_needs_no_room_for_what_it_replaces() {
    let mut catalog = Catalog::new(RegistryLimits { max_endpoints: 100, ..RegistryLimits::default() });
    catalog.apply(0, [Event::Reset(many("addresses", 100))]);
    let others: Vec<Entry> = (0..100).map(|i| entry(&format!("x{i}"), 2, &format!("x{i}:1"))).collect();
    let changes = catalog.apply(0, [Event::Reset(others)]);
    assert_eq!((changes.len(), changes[0].added.len(), changes[0].removed.len()), (1, 100, 100));
    assert!(catalog.notes(0).0.next().is_none() && !catalog.has_room_again());
}

#[test]
fn notes_are_bounded() {
    let mut catalog = Catalog::default();
    let unreadable = |i| Entry { key: format!("k{i}").into(), order: 1, content: Content::Unreadable("no".into()) };
    let mut batch = catalog.begin(0, [Event::Reset((0..500).map(unreadable).collect())], 10);
    while !matches!(catalog.step(&mut batch, 10), Step::Done(_)) {}
    assert_eq!((batch.notes.len(), batch.noted), (NOTES, 500));
    let (notes, more) = catalog.notes(0);
    assert_eq!((notes.count(), more), (NOTES, 400));
    catalog.apply(0, [Event::Reset(Vec::new())]);
    let (notes, more) = catalog.notes(0);
    assert_eq!((notes.count(), more), (0, 0));
}

#[test]
fn a_partial_reading_takes_nothing_away() {
    let mut catalog = Catalog::default();
    catalog.apply(0, [Event::Reset(vec![entry("k1", 1, "a:1"), entry("k2", 1, "b:1")])]);
    let changes = catalog.apply(0, [Event::Partial(vec![entry("k3", 1, "c:1")])]);
    assert_eq!(ids(&changes), (vec![], vec!["k3#c:1"]));
    assert_eq!(catalog.endpoints(), 3);
}

/// Issue 10, 13: whether a service takes proxy requests is its sources' to say, as long as it is announced.
#[test]
fn proxy_requests_are_for_sources_to_allow() {
    let rules = |patterns: &[&str]| {
        let names = patterns.iter().map(|pattern| NamePattern::new(pattern).expect("a pattern")).collect();
        Rules::new(&SourceRules { names, ..SourceRules::default() })
    };
    let mut catalog = Catalog::default();
    catalog.set_rules(1, rules(&["use*"]));
    let proxied = |changes: Vec<Change>| changes.into_iter().next().and_then(|change| change.proxied);
    assert_eq!(proxied(catalog.apply(0, [Event::Put(entry("k1", 1, "a:1"))])), Some(false));
    assert_eq!(proxied(catalog.apply(1, [Event::Put(entry("k2", 1, "b:1"))])), Some(true));
    assert_eq!(proxied(catalog.apply(1, [Event::Delete("k2".into())])), Some(false));
    catalog.apply(1, [Event::Put(entry("k2", 1, "b:1"))]);
    catalog.apply(0, [Event::Delete("k1".into())]);
    assert_eq!(proxied(catalog.apply(1, [Event::Delete("k2".into())])), None, "a service without endpoints stays");
    // Other rules, and the same entry again.
    catalog.apply(1, [Event::Put(entry("k2", 1, "b:1"))]);
    assert!(catalog.set_rules(1, rules(&[])) && !catalog.set_rules(1, rules(&[])));
    let changes = catalog.apply(1, [Event::Put(entry("k2", 1, "b:1"))]);
    assert_eq!(proxied(changes), Some(false));
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let endpoints = prop::collection::vec((0..4u8, 0..3u32), 0..3);
    let content = (0..3u8, endpoints, prop::bool::weighted(0.2)).prop_map(|(service, endpoints, pauses)| {
        let endpoints = endpoints.into_iter().map(|(host, weight)| Endpoint {
            address: format!("h{host}:1"),
            weight,
            metadata: Vec::new(),
        });
        let announced = Announced::endpoints(format!("s{service}"), endpoints.collect());
        Content::Announced(Announced { pauses, ..announced })
    });
    let content = prop_oneof![5 => content, 1 => Just(Content::Unreadable(String::new()))];
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
