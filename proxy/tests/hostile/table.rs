//! Runs `http.txt`, whose head says how its lines are read. Each line has connections of its own; what fails is reported
//! with its line's number, all at once.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, STATUS_200};
use crate::http1::{Endpoint, Message, Proxy, Wire, one_listener, users, wait_until};
use crate::notation::{self, Case, Checks, cases, expected, frame, frames, literal, unescape};

/// How long an answer may take that comes at all.
const TIME: Duration = Duration::from_secs(10);

const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: users\r\n\r\n";

/// The stream of HTTP/2 on which the probe is sent.
const PROBE_STREAM: u32 = 101;

/// Issue 10, "What must hold".
#[test]
fn every_line_of_the_table_holds() {
    let stage = Stage::start();
    let (mut failed, mut lines) = (Vec::new(), 0);
    for case in cases() {
        lines += 1;
        let run = || match case.side {
            ">1" => stage.request_of_http1(&case),
            "<1" => stage.response(&case, "users"),
            ">2" => stage.request_of_http2(&case),
            "<2" => stage.response(&case, "two"),
            side => panic!("no side: {side}"),
        };
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            Err(said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
        });
        stage.script.lock().unwrap().case = None;
        if let Err(what) = result {
            let bytes: String = case.bytes.chars().take(150).collect();
            failed.push(format!("line {}: {} | {} | {bytes}\n    {what}", case.number, case.side, case.expected));
        }
    }
    assert!(failed.is_empty(), "{} of {lines} lines failed:\n{}", failed.len(), failed.join("\n"));
    assert!(lines >= 200, "{lines} lines");
}

/// What the endpoints do, and what they saw.
#[derive(Default)]
pub struct Script {
    /// The bytes that answer a request, and whether the connection ends after them; none to answer well.
    case: Option<(Vec<u8>, bool)>,
    /// The heads, each with the number of its connection.
    seen: Vec<(usize, Vec<u8>)>,
}

struct Stage {
    proxy: Proxy,
    script: Arc<Mutex<Script>>,
    _endpoints: [Endpoint; 2],
}

impl Stage {
    fn start() -> Self {
        let script: Arc<Mutex<Script>> = Arc::default();
        let (one, two) = (script.clone(), script.clone());
        let one = Endpoint::start(move |number, wire| serve_http1(number, wire, &one));
        let two = Endpoint::start(move |_, wire| serve_http2(wire, &two));
        let service = format!("[service.two]\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n", two.address);
        let proxy = Proxy::start(&format!("{}{}{service}", one_listener(""), users(&[&one], "")));
        Self { proxy, script, _endpoints: [one, two] }
    }

    fn client(&self) -> Wire {
        let client = self.proxy.client();
        client.stream.set_read_timeout(Some(TIME)).unwrap();
        client
    }

    /// The heads that an endpoint has seen once nothing is under way, the probe's left out.
    fn seen(&self) -> Vec<Vec<u8>> {
        wait_until("nothing is under way", || self.proxy.in_flight() == 0);
        let heads = std::mem::take(&mut self.script.lock().unwrap().seen);
        heads.into_iter().map(|(_, head)| head).filter(|head| !head.starts_with(b"GET /probe ")).collect()
    }

    fn request_of_http1(&self, case: &Case) -> Result<(), String> {
        let (words, checks) = expected(case.expected);
        let &[statuses, state, count] = words.as_slice() else { panic!("no expectation: {words:?}") };
        let mut client = self.client();
        let _it_may_be_refused_on_the_way = client.try_send([&unescape(case.bytes), PROBE.as_bytes()].concat());
        let (mut answers, mut is_open) = (Vec::new(), false);
        while let Ok(answer) = client.try_response() {
            if answer.text() == "GET /probe " {
                is_open = true;
                break;
            }
            if answer.status() >= 200 {
                answers.push(answer);
            }
        }
        let seen = self.seen();
        let got: Vec<String> = answers.iter().map(|answer| answer.status().to_string()).collect();
        let got = if got.is_empty() { "-".to_owned() } else { got.join(",") };
        let got_state = if is_open { "open" } else { "closed" };
        if got != statuses || state != "*" && state != got_state || count != "*" && count != seen.len().to_string() {
            return Err(format!("got {got} {got_state} {}; {:?}", seen.len(), texts(&seen)));
        }
        if let Some(body) = &checks.body
            && answers.first().is_none_or(|answer| answer.body != *body)
        {
            return Err(format!("got the body {:?}", answers.first().map(Message::text)));
        }
        holds(&checks, &seen.concat())
    }

    /// What a client gets where an endpoint of this service answers so.
    fn response(&self, case: &Case, service: &str) -> Result<(), String> {
        let (mut words, checks) = expected(case.expected);
        let method = if words.first() == Some(&"HEAD") { words.remove(0) } else { "GET" };
        let wants = |word: &str| words.contains(&word);
        self.script.lock().unwrap().case = Some(if service == "two" {
            (case.bytes.as_bytes().to_vec(), false)
        } else {
            let bytes = case.bytes.strip_suffix("\\$");
            (unescape(bytes.unwrap_or(case.bytes)), bytes.is_some())
        });
        let mut client = self.client();
        client.send(format!("{method} /case HTTP/1.1\r\nHost: {service}\r\n\r\n"));
        let (raw, head) = loop {
            let raw = client.until(b"\r\n\r\n")?;
            let head = parsed(&raw);
            if head.status() >= 200 {
                break (raw, head);
            }
        };
        let status = head.status();
        let whole =
            if method == "HEAD" || matches!(status, 204 | 304) { Ok(head) } else { client.with_body(head, true) };
        // The same client goes on if it may, and is never given what was not for it.
        self.script.lock().unwrap().case = None;
        let probe = format!("GET /probe HTTP/1.1\r\nHost: {service}\r\n\r\n");
        let probed = match &whole {
            Ok(_) => client.try_send(&probe).map_err(|error| error.to_string()).and_then(|()| client.try_response()),
            Err(_) => Err("its connection has ended".to_owned()),
        };
        let probed = probed.or_else(|_| {
            client = self.client();
            client.send(&probe);
            client.try_response()
        })?;
        if !probed.text().starts_with("GET /probe") {
            return Err(format!("the next request got {:?}", probed.text()));
        }
        let is_fresh = {
            let seen = std::mem::take(&mut self.script.lock().unwrap().seen);
            let of = |path: &str| seen.iter().rfind(|(_, head)| String::from_utf8_lossy(head).contains(path));
            of(" /case ").map(|seen| seen.0) != of(" /probe ").map(|seen| seen.0)
        };
        let cut = if whole.is_err() { " cut" } else { "" };
        let state = if is_fresh { "fresh" } else { "reused" };
        let got = format!("got {status}{cut} {state}: {:?}", whole.as_ref().map(Message::text));
        let is_as_expected =
            wants(&status.to_string()) && wants("cut") == whole.is_err() && (service == "two" || wants(state));
        if !is_as_expected {
            return Err(got);
        }
        if let (Some(body), Ok(message)) = (&checks.body, &whole)
            && message.body != *body
        {
            return Err(got);
        }
        holds(&checks, &raw)
    }

    fn request_of_http2(&self, case: &Case) -> Result<(), String> {
        let (words, checks) = expected(case.expected);
        let &[outcome, count] = words.as_slice() else { panic!("no expectation: {words:?}") };
        let mut client = self.client();
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "users"), (":path", "/probe")];
        let probe: Vec<u8> =
            fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect();
        let bytes = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frames(case.bytes, 1),
            &frame(HEADERS, END_HEADERS | END_STREAM, PROBE_STREAM, &probe),
        ]
        .concat();
        let mut stream = client.stream.try_clone().unwrap();
        let sending = thread::spawn(move || stream.write_all(&bytes).is_ok());
        let Seen { status, reset, goaway, probed, body } = Seen::read(&mut client);
        let _ = client.stream.shutdown(std::net::Shutdown::Both);
        let _it_may_be_refused_on_the_way = sending.join();
        let seen = self.seen();
        let (kind, code) = outcome.split_once(':').map_or((outcome, None), |(kind, code)| (kind, code.parse().ok()));
        let is_code = |got: Option<u32>| code.is_none() || got.is_none() || got == code;
        let is_stream_error = probed && (reset.is_some() || status.is_some_and(|status| (400..500).contains(&status)));
        let is_connection_error = !probed && status.is_none_or(|status| status >= 400);
        let is_as_expected = match kind {
            "stream" => is_stream_error && is_code(reset),
            "connection" => is_connection_error && is_code(goaway),
            "refused" => is_stream_error || is_connection_error,
            number => probed && status.is_some_and(|status| status.to_string() == number),
        };
        if !is_as_expected || count != "*" && count != seen.len().to_string() {
            return Err(format!(
                "got status {status:?}, reset {reset:?}, GOAWAY {goaway:?}, the probe answered: {probed}; {:?}",
                texts(&seen)
            ));
        }
        if checks.body.as_ref().is_some_and(|expected| *expected != body) {
            return Err(format!("got the body {:?}", String::from_utf8_lossy(&body)));
        }
        holds(&checks, &seen.concat())
    }
}

/// What a client of HTTP/2 saw of its request and of the probe.
#[derive(Default)]
struct Seen {
    status: Option<u16>,
    reset: Option<u32>,
    goaway: Option<u32>,
    probed: bool,
    body: Vec<u8>,
}

impl Seen {
    /// Reads until both requests have ended, or the connection has.
    fn read(client: &mut Wire) -> Self {
        let (mut this, mut has_ended) = (Self::default(), false);
        let code = |payload: &[u8]| payload.last_chunk().copied().map(u32::from_be_bytes);
        while let Ok(head) = client.exactly(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Ok(payload) = client.exactly(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let ends = head[4] & END_STREAM != 0;
            match (head[3], stream) {
                (HEADERS, PROBE_STREAM) => this.probed = notation::status(&payload) == Some(200),
                // A later head holds trailers.
                (HEADERS, 1) => {
                    this.status = this.status.or(notation::status(&payload).filter(|status| *status >= 200));
                    has_ended |= ends;
                }
                (DATA, 1) => {
                    this.body.extend(&payload);
                    has_ended |= ends;
                }
                (RST_STREAM, 1) => {
                    this.reset = code(&payload);
                    has_ended = true;
                }
                (GOAWAY, _) => this.goaway = payload.get(4..8).and_then(code),
                _ => {}
            }
            if this.probed && has_ended {
                break;
            }
        }
        this
    }
}

fn holds(checks: &Checks, head: &[u8]) -> Result<(), String> {
    let lower = head.to_ascii_lowercase();
    let is_in = |part: &[u8], text: &[u8]| text.windows(part.len()).any(|window| window == part);
    for part in &checks.has {
        if !is_in(part, head) {
            return Err(format!("{:?} is not in {:?}", String::from_utf8_lossy(part), String::from_utf8_lossy(head)));
        }
    }
    for part in &checks.has_not {
        if is_in(&part.to_ascii_lowercase(), &lower) {
            return Err(format!("{:?} is in {:?}", String::from_utf8_lossy(part), String::from_utf8_lossy(head)));
        }
    }
    Ok(())
}

fn texts(heads: &[Vec<u8>]) -> Vec<String> {
    heads.iter().map(|head| String::from_utf8_lossy(head).into_owned()).collect()
}

pub fn parsed(head: &[u8]) -> Message {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.trim_end().split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    Message { start, headers: lines.filter_map(field).collect(), ..Message::default() }
}

/// An endpoint that says what it understood, or sends what the script says to every request but the probe.
fn serve_http1(number: usize, mut wire: Wire, script: &Mutex<Script>) {
    while let Ok(raw) = wire.until(b"\r\n\r\n") {
        let head = parsed(&raw);
        script.lock().unwrap().seen.push((number, raw));
        if head.header("expect").is_some() && wire.try_send("HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return;
        }
        let Ok(request) = wire.with_body(head, false) else { return };
        let target = request.start.rsplit_once(' ').map_or("", |(target, _)| target);
        let scripted = script.lock().unwrap().case.clone().filter(|_| !target.starts_with("GET /probe"));
        let (answer, ends) = scripted.unwrap_or_else(|| {
            let said = [target.as_bytes(), b" ", &request.body].concat();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", said.len());
            ([head.as_bytes(), &said].concat(), false)
        });
        if wire.try_send(answer).is_err() || ends {
            return;
        }
    }
}

/// An endpoint of HTTP/2 that answers with the frames of the script, or else well.
pub fn serve_http2(mut wire: Wire, script: &Mutex<Script>) {
    if wire.exactly(PREFACE.len()).is_err() || wire.try_send(frame(SETTINGS, 0, 0, &[])).is_err() {
        return;
    }
    while let Ok(head) = wire.exactly(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if wire.exactly(length).is_err() {
            return;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] != HEADERS {
            continue;
        }
        let answer = match &script.lock().unwrap().case {
            Some((column, _)) => frames(std::str::from_utf8(column).unwrap(), stream),
            None => {
                [frame(HEADERS, END_HEADERS, stream, &[STATUS_200]), frame(DATA, END_STREAM, stream, b"GET /probe ")]
                    .concat()
            }
        };
        if wire.try_send(answer).is_err() {
            return;
        }
    }
}
