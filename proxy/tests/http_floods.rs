//! Clients that mean harm, or might as well: floods of frames, of resets and of slow connections, and what is no request
//! in HTTP/2. Each is stopped, and leaves other clients served.

#![cfg(test)]

#[path = "support/http.rs"]
mod http;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    _silent: Endpoint,
    fine: Endpoint,
}

fn stage(listener: &str) -> Stage {
    let silent = Endpoint::start(|_, mut wire| while wire.exactly(1).is_ok() {});
    let fine = Endpoint::saying(OK);
    let fine_service = format!("[service.fine]\nendpoints = [\"{}\"]\n", fine.address);
    let proxy = Proxy::start(&format!("{}{}{fine_service}", one_listener(listener), users(&[&silent], "")));
    Stage { proxy, _silent: silent, fine }
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
    for asked in [frame(PING, 0, 0, b"flooding"), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])] {
        let flood = asked.repeat(1000);
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

/// A field as HPACK has it without tables or compression (RFC 7541, 6.2.2).
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text");
    [&[0, length(name)], name, &[length(value)], value].concat()
}

/// The block of `GET http://fine/` with these fields after it.
fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let fields = fields.iter().flat_map(|(name, value)| literal(name, value));
    [0x82, 0x86, 0x84].into_iter().chain(literal(b":authority", b"fine")).chain(fields).collect()
}

/// How a request was answered: 1xx to 5xx where it was, none where the stream or the connection was ended.
fn answer_to(stage: &Stage, frames: Vec<u8>) -> Option<u8> {
    let mut client = Frames::connect(&stage.proxy);
    client.0.send(frames);
    loop {
        match client.next() {
            // The statuses of the static table: 200, 204, 206, 304, 400, 404 and 500 (RFC 7541, appendix A).
            Some((HEADERS, _, 1, payload)) => {
                return payload.first().map(|index| [2, 2, 2, 3, 4, 4, 5][*index as usize - 0x88]);
            }
            Some((RST_STREAM, _, 1, _) | (GOAWAY, ..)) | None => return None,
            Some(_) => {}
        }
    }
}

/// RFC 9113, 8.1.1 and 8.2: what would mean something else in HTTP/1 is not passed on (request smuggling).
#[test]
fn what_is_no_request_of_http2_is_not_passed_on() {
    let stage = stage("");
    let malformed: &[(&[u8], &[u8])] = &[
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"x-own"),
        (b"connection", b"close"),
        (b"proxy-connection", b"close"),
        (b"keep-alive", b"timeout=5"),
        (b"upgrade", b"websocket"),
        (b"te", b"gzip"),
        (b"x", b"a\r\nx-smuggled: b"),
        (b"x", b"a\rb"),
        (b"x", b"a\nb"),
        (b"x", b"a\0b"),
        (b"X-Upper", b"a"),
        (b"x\r\ny", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b":authority", b"users"),
        (b":path", b"/other"),
        (b":status", b"200"),
        (b":unknown", b"a"),
        (b"content-length", b"-1"),
        (b"content-length", b"1, 1"),
        (b"content-length", b"+0"),
        (b"content-length", b"99999999999999999999999"),
    ];
    for field in malformed {
        let name = (String::from_utf8_lossy(field.0), String::from_utf8_lossy(field.1));
        for flags in [END_HEADERS | END_STREAM, END_HEADERS] {
            let data = if flags & END_STREAM == 0 { frame(DATA, END_STREAM, 1, b"x") } else { Vec::new() };
            let answer = answer_to(&stage, [frame(HEADERS, flags, 1, &block(&[*field])), data].concat());
            assert!(matches!(answer, None | Some(4)), "{name:?} was answered with {answer:?}xx");
        }
    }
    // A pseudo-header that comes after a header, one that is missing, and lengths that contradict each other.
    let late = [block(&[(b"x", b"a")]), vec![0x84]].concat();
    let pathless = [&[0x82, 0x86][..], &literal(b":authority", b"fine")].concat();
    let lengths = block(&[(b"content-length", b"1"), (b"content-length", b"2")]);
    for block in [late, pathless, lengths] {
        let answer = answer_to(&stage, frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        assert!(matches!(answer, None | Some(4)), "{block:?} was answered with {answer:?}xx");
    }
    assert_eq!(stage.fine.connections(), 0);
}

/// The endpoint may have begun to read a body whose length turns out to be another; it never gets a whole request.
#[test]
fn a_body_of_another_length_is_no_request_of_http2() {
    let stage = stage("");
    for (said, sent) in [(&b"5"[..], &b"four"[..]), (b"5", b""), (b"3", b"four"), (b"0", b"four")] {
        let head = frame(HEADERS, END_HEADERS, 1, &block(&[(b"content-length", said)]));
        let answer = answer_to(&stage, [head, frame(DATA, END_STREAM, 1, sent)].concat());
        assert!(matches!(answer, None | Some(4)), "{sent:?} was answered with {answer:?}xx");
    }
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(b"content-length", b"5")]));
    assert!(matches!(answer_to(&stage, head), None | Some(4)), "no body at all was one of 5 bytes");
    wait_until("nothing is under way", || stage.proxy.in_flight() == 0 && stage.proxy.upstream_connections() == 0);
    assert!(stage.fine.requests().is_empty(), "{:?}", stage.fine.requests());
}

/// As in HTTP/1: two are refused, and where the target names a host, that is the one.
#[test]
fn http2_has_one_host() {
    let stage = stage("");
    let ask =
        |fields: &[(&[u8], &[u8])]| answer_to(&stage, frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields)));
    assert_eq!(ask(&[(b"host", b"fine"), (b"host", b"fine")]), Some(4));
    assert_eq!(ask(&[(b"host", b"fine"), (b"host", b"users")]), Some(4));
    assert_eq!(stage.fine.connections(), 0);
    assert_eq!(ask(&[(b"host", b"users")]), Some(2));
    assert_eq!(stage.fine.last().header("host").as_deref(), Some("fine"));
}

#[test]
fn heads_of_http2_that_are_not_finished_in_time_end_the_connection() {
    let stage = stage("header_timeout = \"300ms\"");
    let mut patient = Frames::connect(&stage.proxy);
    assert!(patient.ping());
    let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
    let whole = [&hello[..], &get("fine", 1, END_STREAM)].concat();
    let continued = [&hello[..], &frame(HEADERS, END_STREAM, 1, &[0x82]), &frame(CONTINUATION, 0, 1, &[0x86])].concat();
    for start in [&hello[..24], &hello[..30], &whole[..whole.len() - 1], &continued] {
        let mut client = Frames(stage.proxy.client());
        client.0.send(start);
        client.ended();
        client.0.expect_end();
    }
    assert!(patient.ping(), "who has said hello may be silent");
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

/// Issue 10, 17: a connection that ends while streams are open is no reason for anybody to panic, in debug builds neither,
/// on either side of the proxy. The library asserts that there are none.
#[test]
fn a_connection_with_open_streams_may_end_at_any_time() {
    let panics = Arc::new(AtomicUsize::new(0));
    let (counter, before) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        // Other tests of this process have panics of their own.
        if info.to_string().contains("has_streams") {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        before(info);
    }));
    // Reads, and never answers.
    let silent = Endpoint::start(|_, mut wire| while wire.exactly(1).is_ok() {});
    for protocol in ["http1", "http2"] {
        for way in ["stopped", "gone", "abused", "late"] {
            let service = users(&[&silent], &format!("protocol = \"{protocol}\""));
            let proxy = Proxy::start(&format!("{}{service}", one_listener("header_timeout = \"300ms\"")));
            let mut client = Frames::connect(&proxy);
            for stream in [1, 3, 5, 7] {
                // With a body that is yet to come, and without one.
                let flags = if stream < 5 { END_STREAM } else { 0 };
                client.0.send(get("users", stream, flags));
            }
            assert!(client.ping());
            wait_until("streams are open", || proxy.upstream_connections() > 0);
            match way {
                "stopped" => {}
                "gone" => {
                    client.0.send(frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
                    drop(client);
                }
                "abused" => {
                    // A frame that breaks the protocol, behind resets that are not answered yet.
                    let reset = frame(RST_STREAM, 0, 3, &8_u32.to_be_bytes());
                    let broken = frame(DATA, 0, 0, b"for no stream");
                    let _it_may_end_at_once = client.0.try_send([reset, broken].concat());
                    while client.next().is_some() {}
                }
                _ => {
                    client.0.send(frame(HEADERS, 0, 9, &[0x82]));
                    while client.next().is_some() {}
                }
            }
            proxy.stop();
        }
    }
    assert_eq!(panics.load(Ordering::SeqCst), 0);
}
