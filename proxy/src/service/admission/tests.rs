//! Lines that are fair and lose nobody.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::service::Load;

/// What the turn has brought so far.
fn turn<W, G>(waiting: &mut Waiting<'_, W, G>) -> Option<G> {
    match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(given) => Some(given.expect("lines stay")),
        Poll::Pending => None,
    }
}

fn wanted(load: &Load, limit: u32, limit_of_service: u32) -> Wanted {
    Wanted { load: load.clone(), limit, limit_of_service, client: client(1), home: 1, reuse: Reuse::None }
}

fn client(n: u8) -> Client {
    Client::of([127, 0, 0, n].into())
}

fn permit(turn: Option<Turn>) -> Option<Permit> {
    match turn {
        Some(Turn::Permit(permit)) => Some(permit),
        Some(Turn::Home) => panic!("nothing came home"),
        None => None,
    }
}

#[test]
fn requests_are_admitted_in_the_order_in_which_they_came() {
    let requests = Arc::new(Requests::default());
    let first = requests.try_admit(1).expect("there is room");
    assert!(requests.try_admit(1).is_none());
    let [mut second, mut third] = [(); 2].map(|()| requests.wait(1, 2).expect("there is room in the queue"));
    assert!(requests.wait(1, 2).is_none(), "the queue is full");
    assert_eq!((requests.under_way(), requests.pending()), (1, 2));
    drop(first);
    // Whoever comes now does not overtake.
    assert!(requests.try_admit(1).is_none());
    assert!(turn(&mut third).is_none());
    let second = turn(&mut second).expect("its turn");
    drop(second);
    let third = turn(&mut third).expect("its turn");
    assert_eq!((requests.under_way(), requests.pending()), (1, 0));
    drop(third);
    assert!(requests.try_admit(1).is_some());
}

#[test]
fn who_leaves_passes_the_turn_on() {
    let requests = Arc::new(Requests::default());
    let first = requests.try_admit(1).expect("there is room");
    let [gone, called, mut last] = [(); 3].map(|()| requests.wait(1, 9).expect("there is room in the queue"));
    drop(gone);
    assert_eq!(requests.pending(), 2);
    drop(first);
    // Its turn has come, and it leaves before it has noticed.
    drop(called);
    assert!(turn(&mut last).is_some());
    assert_eq!((requests.under_way(), requests.pending()), (0, 0));
}

#[test]
fn endpoints_do_not_stand_in_each_others_way() {
    let connections = Arc::new(Connections::default());
    let (a, b) = (Load::alone(), Load::alone());
    let _of_a = connections.try_take(&wanted(&a, 1, 9)).expect("there is room");
    let mut for_a = connections.wait(wanted(&a, 1, 9), 9).expect("there is room in the line");
    assert!(permit(turn(&mut for_a)).is_none());
    // Not without the line, but at once.
    assert!(connections.try_take(&wanted(&b, 1, 9)).is_none());
    let mut for_b = connections.wait(wanted(&b, 1, 9), 9).expect("there is room in the line");
    assert!(permit(turn(&mut for_b)).is_some());
    assert_eq!((connections.open(), connections.pending()), (1, 1));
}

#[test]
fn an_ending_connection_serves_who_is_next() {
    let connections = Arc::new(Connections::default());
    let (a, b) = (Load::alone(), Load::alone());
    let any = |_| true;
    assert_eq!(connections.ending(&a, 1, any), Ending::Nobody);
    let held = connections.try_take(&wanted(&a, 1, 1)).expect("there is room");

    // Of the same pool.
    let own = Wanted { reuse: Reuse::Any, ..wanted(&a, 1, 1) };
    let mut waiting = connections.wait(own.clone(), 9).expect("there is room in the line");
    assert_eq!(connections.awaiting(&a), 1);
    assert_eq!(connections.ending(&a, 1, |_| false), Ending::Another, "it has to be closed");
    assert_eq!(connections.ending(&a, 1, any), Ending::Own(waiting.number()));
    assert!(matches!(turn(&mut waiting), Some(Turn::Home)));
    assert!(!connections.is_awaited());

    // Of another pool, which came first, if only the limit of the service is in its way.
    let other = connections.wait(wanted(&b, 1, 1), 9).expect("there is room in the line");
    let waiting = connections.wait(own.clone(), 9).expect("there is room in the line");
    let elsewhere = Wanted { home: 2, ..own };
    assert_eq!(connections.ending(&a, 1, |reuse| reuse == Reuse::Any), Ending::Another);
    // What is shared is nobody else's.
    assert_eq!(connections.share(1, |reuse| reuse == Reuse::Any), Some(waiting.number()));
    assert_eq!(connections.share(1, |reuse| reuse == Reuse::Any), None);
    drop((other, waiting));
    let _elsewhere = connections.wait(elsewhere, 9).expect("there is room in the line");
    assert_eq!(connections.ending(&a, 1, any), Ending::Another);
    assert_eq!(connections.ending(&b, 1, any), Ending::Nobody, "the endpoint itself has no room");
    drop(held);
    assert_eq!(connections.pending(), 0);
}

#[test]
fn keepers_are_asked_once_until_they_look() {
    let connections = Arc::new(Connections::default());
    let (inbox, mut asked) = unbounded_channel();
    let name: Arc<str> = Arc::from("users");
    let keeper = connections.keeper(&name, &inbox);
    drop(connections.keeper(&name, &inbox));
    let load = Load::alone();
    let _held = connections.try_take(&wanted(&load, 1, 9)).expect("there is room");
    assert!(asked.try_recv().is_err(), "nobody waits");
    let _one = connections.wait(wanted(&load, 1, 9), 9);
    let _other = connections.wait(wanted(&load, 1, 9), 9);
    assert_eq!(asked.try_recv().as_deref(), Ok("users"));
    assert!(asked.try_recv().is_err());
    keeper.looks();
    let _another = connections.wait(wanted(&load, 1, 9), 9);
    assert_eq!(asked.try_recv().as_deref(), Ok("users"));
}

/// Issue 10, 4: a client that holds all connections gives up the slowest of its bodies, and its own requests wait behind
/// those of others.
#[test]
fn one_client_has_its_share_while_others_wait() {
    let (connections, load) = (Arc::new(Connections::default()), Load::alone());
    let of = |n: u8| Wanted { client: client(n), ..wanted(&load, 40, u32::MAX) };
    let mut held: Vec<_> = (0..40)
        .map(|place| {
            let holder = connections.holder(&load);
            holder.begin(client(1), 0, true);
            holder.moved(if place == 7 { 1000 } else { 2000 + place });
            (connections.try_take(&of(1)).expect("there is room"), holder)
        })
        .collect();
    let ended = |held: &Vec<(Permit, Arc<Holder>)>| held.iter().position(|(_, holder)| holder.is_ended());

    let mut own = connections.wait(of(1), 1024).expect("room in the line");
    connections.share_out(25, 10);
    assert_eq!(ended(&held), None, "nobody else waits");
    let mut other = connections.wait(of(2), 1024).expect("room in the line");
    connections.share_out(25, 10);
    assert_eq!(ended(&held), None, "it was looked at a moment ago");
    connections.share_out(25, 11);
    assert_eq!(ended(&held), Some(7));
    held[7].1.end();
    drop(held.swap_remove(7));
    assert!(turn(&mut own).is_none());
    assert!(permit(turn(&mut other)).is_some());
    connections.share_out(25, 12);
    assert_eq!(ended(&held), None, "one was enough");
}

/// Issue 10, 4: nobody can take all places of the line either.
#[test]
fn a_full_line_has_room_for_another_client() {
    let (connections, load) = (Arc::new(Connections::default()), Load::alone());
    let of = |n: u8| Wanted { client: client(n), ..wanted(&load, 1, u32::MAX) };
    let _held = connections.try_take(&of(1)).expect("there is room");
    let mut own: Vec<_> = (0..4).map(|_| connections.wait(of(1), 4).expect("room in the line")).collect();
    assert!(connections.wait(of(1), 4).is_none());
    let _other = connections.wait(of(2), 4).expect("room in the line");
    let waker = Context::from_waker(Waker::noop());
    let mut last = own.pop().expect("four");
    assert!(matches!(Pin::new(&mut last).poll(&mut { waker }), Poll::Ready(None)), "it has no place any more");
    assert_eq!(connections.pending(), 4);
}

#[test]
fn no_turn_is_lost_between_threads() {
    const LIMIT: u32 = 2;
    let (requests, connections) = (Arc::new(Requests::default()), Arc::new(Connections::default()));
    let loads = [Load::alone(), Load::alone()];
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (requests, connections, loads, most) = (&requests, &connections, &loads, &most);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                runtime.block_on(async {
                    for round in 0..2000 {
                        let admitted = match requests.try_admit(LIMIT) {
                            Some(admitted) => admitted,
                            None => requests.wait(LIMIT, 9).expect("room in the queue").await.expect("a turn"),
                        };
                        most.fetch_max(requests.under_way(), SeqCst);
                        // One endpoint has room for one, the service for one alike.
                        let wanted = wanted(&loads[(thread + round) % 2], 1, 1 + (thread as u32 % 2) * 8);
                        let permit = match connections.try_take(&wanted) {
                            Some(permit) => Turn::Permit(permit),
                            None => connections.wait(wanted, 9).expect("room in the line").await.expect("a turn"),
                        };
                        tokio::task::yield_now().await;
                        drop((permit, admitted));
                    }
                });
            });
        }
    });
    assert!(most.into_inner() <= LIMIT);
    assert_eq!((requests.under_way(), requests.pending()), (0, 0));
    assert_eq!((connections.open(), connections.pending()), (0, 0));
    assert_eq!(loads.map(|load| load.connections()), [0, 0]);
}

proptest! {
    /// Whoever comes, goes and leaves: no limit is exceeded, nobody waits who could be served, and nobody is served
    /// before one who came earlier for the same endpoint.
    #[test]
    fn the_line_is_fair_and_never_stuck(
        steps in prop::collection::vec((0_u8..3, 0_usize..3, 0_usize..8), 1..120),
        limits in [1_u32..3, 1_u32..3, 1_u32..3],
        of_service in 1_u32..5,
    ) {
        let connections = Arc::new(Connections::default());
        let loads = [(); 3].map(|()| Load::alone());
        let mut held: Vec<(usize, Permit)> = Vec::new();
        let mut line: VecDeque<(usize, Waiting<'_, Wanted, Turn>)> = VecDeque::new();
        for (step, endpoint, which) in steps {
            match step {
                0 => {
                    let wanted = wanted(&loads[endpoint], limits[endpoint], of_service);
                    match connections.try_take(&wanted) {
                        Some(permit) => held.push((endpoint, permit)),
                        None => line.extend(connections.wait(wanted, 8).map(|waiting| (endpoint, waiting))),
                    }
                }
                1 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                2 if !line.is_empty() => drop(line.remove(which % line.len())),
                _ => {}
            }
            let mut passed_over = [false; 3];
            for (endpoint, mut waiting) in std::mem::take(&mut line) {
                match permit(turn(&mut waiting)) {
                    Some(permit) => {
                        prop_assert!(!passed_over[endpoint], "overtaken");
                        held.push((endpoint, permit));
                    }
                    None => {
                        passed_over[endpoint] = true;
                        line.push_back((endpoint, waiting));
                    }
                }
            }
            let open = |of: usize| held.iter().filter(|(endpoint, _)| *endpoint == of).count() as u32;
            for endpoint in 0..3 {
                prop_assert_eq!(loads[endpoint].connections(), open(endpoint));
                prop_assert!(open(endpoint) <= limits[endpoint]);
            }
            prop_assert!(connections.open() == held.len() as u32 && connections.open() <= of_service);
            prop_assert_eq!(connections.pending(), line.len());
            let stuck = line.iter().any(|(endpoint, _)| open(*endpoint) < limits[*endpoint]);
            prop_assert!(!stuck || connections.open() == of_service);
        }
    }
}
