//! Clients that mean harm, or might as well: floods of frames, of resets and of slow connections. Each is stopped, and
//! leaves other clients served.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use http::{Endpoint, OK, Proxy, Wire, one_listener, users, wait_until};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const ENHANCE_YOUR_CALM: u32 = 0xb;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET http://{host}/`: three fields of the static table and a literal (RFC 7541, appendix A and 6.2.2).
fn get(host: &str, stream: u32, flags: u8) -> Vec<u8> {
    let block = [&[0x82, 0x86, 0x84, 0x01, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

/// A client that speaks frames.
struct Frames(Wire);

impl Frames {
    fn connect(proxy: &Proxy) -> Self {
        let mut wire = proxy.client();
        wire.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat());
        Self(wire)
    }

    /// The next frame: kind, flags, stream and payload; none at the end.
    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.0.exactly(9).ok()?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        let payload = self.0.exactly(number(&head[..3]) as usize).ok()?;
        Some((head[3], head[4], number(&head[5..]), payload))
    }

    /// Sends a PING and waits for its answer: all that was sent before has been seen then. False at the end.
    fn ping(&mut self) -> bool {
        if self.0.try_send(frame(PING, 0, 0, b"sequence")).is_err() {
            return false;
        }
        loop {
            match self.next() {
                Some((PING, ACK, ..)) => return true,
                Some((GOAWAY, ..)) | None => return false,
                Some(_) => {}
            }
        }
    }

    /// The error code of the GOAWAY with which the connection ends; none where it breaks without.
    fn ended(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.next() {
            if kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}

/// Two services: `users` never answers, and `fine` always does.
struct Stage {
    proxy: Proxy,
    _endpoints: [Endpoint; 2],
}

fn stage(listener: &str) -> Stage {
    let silent = Endpoint::start(|_, mut wire| while wire.exactly(1).is_ok() {});
    let fine = Endpoint::saying(OK);
    let fine_service = format!("[service.fine]\nendpoints = [\"{}\"]\n", fine.address);
    let proxy = Proxy::start(&format!("{}{}{fine_service}", one_listener(listener), users(&[&silent], "")));
    Stage { proxy, _endpoints: [silent, fine] }
}

const FINE: &str = "GET / HTTP/1.1\r\nHost: fine\r\n\r\n";

impl Stage {
    /// Runs `flood` while another client goes on asking, which is answered each time.
    fn served_during<T>(&self, flood: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut client = self.proxy.client();
                let mut answers = 0;
                while !over.load(Ordering::SeqCst) || answers < 10 {
                    client.send(FINE);
                    assert_eq!(client.response().text(), "ok");
                    answers += 1;
                }
            });
            let result = flood();
            over.store(true, Ordering::SeqCst);
            other.join().expect("the other client is served");
            result
        })
    }
}

#[test]
fn streams_that_are_opened_and_reset_end_the_connection() {
    let stage = stage("");
    let (streams, code) = stage.served_during(|| {
        let mut client = Frames::connect(&stage.proxy);
        let mut streams = 0_u32;
        // One after the other, each seen before it is reset.
        while streams < 2000 {
            let id = 2 * streams + 1;
            if client.0.try_send(get("users", id, END_STREAM)).is_err() || !client.ping() {
                break;
            }
            streams += 1;
            if client.0.try_send(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())).is_err() {
                break;
            }
        }
        (streams, client.ended())
    });
    assert!((500..600).contains(&streams), "ended after {streams}");
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    wait_until("nothing is under way", || stage.proxy.in_flight() == 0 && stage.proxy.upstream_connections() == 0);
}

/// What comes back is read, so that nothing but the flood itself is to blame.
#[test]
fn a_flood_whose_answers_are_read_ends_the_connection_too() {
    let stage = stage("");
    let flood = frame(PING, 0, 0, b"flooding").repeat(1000);
    let (sent, code) = stage.served_during(|| {
        let mut client = Frames::connect(&stage.proxy);
        let mut sent = 0;
        while sent < 64 << 20 && client.0.try_send(&flood).is_ok() {
            sent += flood.len();
            for _ in 0..1000 {
                match client.next() {
                    Some((GOAWAY, _, _, payload)) => return (sent, Some(payload[7])),
                    Some(_) => {}
                    None => return (sent, None),
                }
            }
        }
        (sent, None)
    });
    assert!((1 << 20..64 << 20).contains(&sent), "ended after {sent} bytes");
    assert!(code.is_none_or(|code| u32::from(code) == ENHANCE_YOUR_CALM), "{code:?}");
}

/// Opens and resets streams in one breath: most are never seen.
#[test]
fn streams_that_are_reset_in_the_same_breath_end_the_connection() {
    let stage = stage("");
    let code = stage.served_during(|| {
        let mut client = Frames::connect(&stage.proxy);
        let pair =
            |n: u32| [get("users", 2 * n + 1, END_STREAM), frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes())];
        let flood: Vec<u8> = (0..20_000).flat_map(pair).flatten().collect();
        let _it_may_end_on_the_way = client.0.try_send(flood);
        client.ended()
    });
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    wait_until("nothing is under way", || stage.proxy.in_flight() == 0 && stage.proxy.upstream_connections() == 0);
}

#[test]
fn a_head_that_goes_on_for_ever_ends_the_connection() {
    let stage = stage("");
    // Literals of 1,000 bytes each, and none at all.
    let value = [&[0x00, 0x01, b'x', 0x7f, 0xe9, 0x06][..], &[b'y'; 1000]].concat();
    for block in [&value[..], &[]] {
        let sent = stage.served_during(|| {
            let mut client = Frames::connect(&stage.proxy);
            client.0.send(frame(HEADERS, END_STREAM, 1, &[0x82, 0x86, 0x84]));
            let more = frame(CONTINUATION, 0, 1, block).repeat(100);
            let mut sent = 0;
            while sent < 64 << 20 && client.0.try_send(&more).is_ok() {
                sent += more.len();
            }
            client.ended();
            sent
        });
        assert!(sent < 64 << 20, "{sent} bytes of one head were taken");
    }
    assert_eq!(stage.proxy.in_flight(), 0);
}

/// Frames that ask for nothing, from a client that reads no answers.
#[test]
fn frames_without_a_purpose_are_not_read_for_ever() {
    let stage = stage("");
    let setting = [0, 4, 0, 0, 0xff, 0xff];
    for (name, flood) in [
        ("PING", frame(PING, 0, 0, b"flooding")),
        ("SETTINGS", frame(SETTINGS, 0, 0, &setting)),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("of no known kind", frame(0x42, 0, 0, b"flooding")),
    ] {
        let taken = stage.served_during(|| {
            let mut client = Frames::connect(&stage.proxy);
            client.0.send(get("users", 1, 0));
            client.0.send_until_blocked(&flood.repeat((32 << 20) / flood.len()))
        });
        assert!(taken < 16 << 20, "{taken} bytes of {name} were taken");
        wait_until("it is given up", || stage.proxy.in_flight() <= 1);
    }
}

#[test]
fn two_thousand_slow_heads_leave_others_served() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = rustix::process::Rlimit { current: limit.maximum.min(Some(20_000)).or(Some(20_000)), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, enough).expect("enough descriptors");
    let stage = stage("header_timeout = \"3s\"");
    let mut slow: Vec<Wire> = stage.served_during(|| {
        (0..2000)
            .map(|n| {
                let mut client = stage.proxy.client();
                client.send(&b"GET / HTTP/1.1\r\nHost: users\r\nX: y"[..10 + n % 20]);
                client
            })
            .collect()
    });
    stage.served_during(|| {
        for client in &mut slow {
            client.response().assert_refused(408, "router", "http_request_error");
        }
    });
    drop(slow);
    wait_until("they are gone", || {
        let connections = &stage.proxy.app().state.workers.connections;
        connections.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>() == 0
    });
}
