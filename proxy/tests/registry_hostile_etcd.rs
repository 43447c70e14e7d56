//! The etcd source against a server that speaks gRPC and misbehaves: whatever it says, what was known stays in force,
//! and the next good answer counts. Answers are written byte by byte (etcd's `rpc.proto`), since no well-behaved etcd
//! gives them.

#![cfg(test)]

#[path = "support/etcd.rs"]
mod etcd;
mod registry_driver;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use heddle::config::checked::{self, EtcdWatch, Layout};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use registry_driver::Driver;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// A protobuf message, built field by field.
#[derive(Default, Clone)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
}

fn header(cluster: u64, revision: u64) -> Message {
    Message::default().number(1, cluster).number(2, 7).number(3, revision).number(4, 2)
}

fn key_value(key: &str, address: &str, version: u64) -> Message {
    let value = format!(r#"{{"address":"{address}"}}"#);
    Message::default().bytes(1, key.as_bytes()).number(2, 5).number(3, 5).number(4, version).bytes(5, value.as_bytes())
}

/// The answer to a reading: one endpoint of `users`.
fn range(cluster: u64, revision: u64) -> Message {
    let kv = key_value("/services/users/a", "10.0.0.1:80", 1);
    Message::default().bytes(1, &header(cluster, revision).0).bytes(2, &kv.0).number(4, 1)
}

fn watch(cluster: u64, revision: u64) -> Message {
    Message::default().bytes(1, &header(cluster, revision).0).number(2, 1)
}

fn created() -> Message {
    watch(1, 10).number(3, 1)
}

/// What one connection is answered.
#[derive(Clone)]
struct Script {
    range: Message,
    /// After these the watch stays open and silent.
    watch: Vec<Message>,
}

/// Frames, and then either the trailers of a good end or silence.
struct Answer {
    frames: VecDeque<Frame<Bytes>>,
    ends: bool,
}

impl Answer {
    fn new(messages: impl IntoIterator<Item = Message>, ends: bool) -> Self {
        let frame = |Message(message): Message| {
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
            framed.extend_from_slice(&message);
            Frame::data(Bytes::from(framed))
        };
        let mut frames: VecDeque<_> = messages.into_iter().map(frame).collect();
        if ends {
            frames.push_back(Frame::trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )])));
        }
        Self { frames, ends }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// A server that plays one script a connection, the last one over and over. It answers HTTP/2 pings all the while.
fn serve(scripts: Vec<Script>) -> String {
    serve_and_record(scripts).0
}

/// The same, with what clients send on watches.
fn serve_and_record(scripts: Vec<Script>) -> (String, Arc<Mutex<Vec<u8>>>) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let recorded = requests.clone();
    let (address, started) = std::sync::mpsc::channel();
    // Ends with the test's process.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            address.send(listener.local_addr().expect("its address")).expect("a test that waits");
            let scripts = Arc::new(Mutex::new(VecDeque::from(scripts)));
            while let Ok((stream, _)) = listener.accept().await {
                let (scripts, recorded) = (scripts.clone(), recorded.clone());
                tokio::spawn(async move {
                    let script = {
                        let mut scripts = scripts.lock().expect("no panic");
                        if scripts.len() > 1 { scripts.pop_front() } else { scripts.front().cloned() }
                    };
                    let script = script.expect("a script");
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let answer = match request.uri().path() {
                            "/etcdserverpb.KV/Range" => Answer::new([script.range.clone()], true),
                            "/etcdserverpb.Watch/Watch" => Answer::new(script.watch.clone(), false),
                            other => panic!("{other}"),
                        };
                        let (is_watch, recorded) = (request.uri().path().ends_with("/Watch"), recorded.clone());
                        // Held, so that the client's half of a watch stays open.
                        tokio::spawn(async move {
                            let mut body = request.into_body();
                            while let Some(Ok(frame)) =
                                std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
                            {
                                if let (true, Ok(data)) = (is_watch, frame.into_data()) {
                                    recorded.lock().expect("no panic").extend_from_slice(&data);
                                }
                            }
                            std::future::pending::<()>().await;
                        });
                        let answer = Response::builder().header("content-type", "application/grpc").body(answer);
                        std::future::ready(Ok::<_, io::Error>(answer.expect("a response")))
                    });
                    let _ = hyper::server::conn::http2::Builder::new(Spawn).serve_connection(Io(stream), service).await;
                });
            }
        });
    });
    (format!("http://{}", started.recv().expect("a server")), requests)
}

#[derive(Clone)]
struct Spawn;

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

struct Io(TcpStream);

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut to: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = [0; 4096];
        let length = to.remaining().min(buffer.len());
        let mut read = ReadBuf::new(&mut buffer[..length]);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut read))?;
        to.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn registry(member: String, liveness: Duration) -> checked::Registry {
    let etcd = checked::Etcd {
        members: vec![member],
        login: None,
        tls: None,
        watches: vec![EtcdWatch { prefix: b"/services/".to_vec(), layout: Layout::Heddle }],
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(20),
        liveness,
        backoff: Duration::from_millis(10),
        page: 1_000,
        largest: 64 << 20,
        rules: checked::SourceRules::default(),
        limits: checked::RegistryLimits::default(),
    };
    checked::Registry { etcd: Some(etcd), ..checked::Registry::default() }
}

/// Longer than the test: only what the server says ends a session.
const PATIENT: Duration = Duration::from_secs(3600);

#[test]
fn a_server_that_answers_pings_and_says_nothing_is_left() {
    let url = serve(vec![Script { range: range(1, 10), watch: vec![created()] }]);
    let driver = Driver::start(&registry(url, Duration::from_millis(200)), None);
    driver.wait_status("it is left twice", |report| report.sources[0].reconnects >= 2);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    assert_eq!(driver.told().changes.len(), 1);
}

#[test]
fn what_makes_no_sense_ends_the_session_and_changes_nothing() {
    let good = Script { range: range(1, 10), watch: vec![created()] };
    let said = |message: Message| Script { watch: vec![created(), message], ..good.clone() };
    let read = |range: Message| Script { range, ..good.clone() };
    let scripts = [
        // The first is good until it cancels, so that there is something to lose.
        said(watch(1, 11).number(4, 1).bytes(6, b"go away")),
        read(Message(b"\xff\xff\xff\xff".to_vec())),
        read(Message(range(1, 10).0[..20].to_vec())),
        read(Message::default()),
        said(Message(b"\xff\xff".to_vec())),
        said(Message::default().number(2, 1)),
        said(watch(2, 11)),
        said(watch(1, 9)),
        said(watch(1, 0).number(4, 1).number(5, 20)),
    ];
    let bad = scripts.len() as u64;
    let url = serve([&scripts[..], &[good]].concat());
    let driver = Driver::start(&registry(url, PATIENT), None);
    driver.wait_status("all was tried", |report| report.sources[0].reconnects == bad && report.sources[0].connected);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
    assert_eq!(driver.told().changes.len(), 1);
}

#[test]
fn odd_events_are_passed_over() {
    let event = |kind: u64, kv: &Message| Message::default().number(1, kind).bytes(2, &kv.0);
    let events = [
        // A kind that nobody knows, for a key that has a version: something was put.
        event(9, &key_value("/services/users/b", "10.0.0.2:80", 1)),
        // Without a key and value.
        Message::default().number(1, 0),
        // Outside of the prefix.
        event(0, &key_value("/else/users/c", "10.0.0.3:80", 1)),
        event(1, &key_value("/services/unknown", "", 0)),
    ];
    let told = events.iter().fold(watch(1, 11), |message, event| message.bytes(11, &event.0));
    // Progress of all watches is of none, and has no events.
    let progress = Message::default().bytes(1, &header(1, 11).0).number(2, u64::MAX);
    let last = watch(1, 12).bytes(11, &event(0, &key_value("/services/last/a", "10.0.0.9:80", 1)).0);
    let watch = vec![created(), told, progress, last];
    let url = serve(vec![Script { range: range(1, 10), watch }]);
    let driver = Driver::start(&registry(url, PATIENT), None);
    driver.wait_for("last", &["10.0.0.9:80"]);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80", "10.0.0.2:80"]);
    let report = driver.report();
    // The event without a key, and the key outside of the prefix: named, and not passed over in silence.
    assert_eq!((report.sources[0].reconnects, report.sources[0].skipped), (0, 2));
    let [skipped] = &report.sources[0].skipped_keys[..] else { panic!("{report:#?}") };
    assert_eq!((skipped.key.as_str(), skipped.kept), ("/else/users/c", false));
    assert!(skipped.reason.contains("not below the prefix"), "{}", skipped.reason);
}

/// Issue 10, 14: servers number watches as they like (`etcd grpc-proxy` from 0), and the ids of `created` answers count.
#[test]
fn events_are_followed_under_the_ids_that_the_server_gave() {
    let of = |id: u64, message: Message| {
        let mut with_id = Message::default().bytes(1, &header(1, 11).0).number(2, id);
        with_id.0.extend_from_slice(&message.0);
        with_id
    };
    let put = |key: &str, address: &str| {
        Message::default().bytes(11, &Message::default().bytes(2, &key_value(key, address, 1).0).0)
    };
    for ids in [[0, 1], [1, 0], [7, i64::MAX as u64]] {
        let created = |id| of(id, Message::default().number(3, 1));
        let watch = vec![
            created(ids[0]),
            of(ids[0], put("/services/users/b", "10.0.0.2:80")),
            created(ids[1]),
            of(ids[1], put("/other/more/a", "10.0.0.3:80")),
            of(ids[0], put("/services/users/c", "10.0.0.4:80")),
        ];
        let url = serve(vec![Script { range: range(1, 10), watch }]);
        let mut registry = registry(url, PATIENT);
        let etcd = registry.etcd.as_mut().expect("etcd");
        etcd.watches.push(EtcdWatch { prefix: b"/other/".to_vec(), layout: Layout::Heddle });
        let driver = Driver::start(&registry, None);
        driver.wait_for("users", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]);
        driver.wait_for("more", &["10.0.0.3:80"]);
        assert_eq!(driver.report().sources[0].reconnects, 0);
    }
}

/// Issue 10, 14: an event of a watch that was not opened ends the session; it is no sign of life.
#[test]
fn an_event_under_an_unknown_id_ends_the_session() {
    let event = Message::default().bytes(2, &key_value("/services/users/d", "10.0.0.4:80", 1).0);
    let scripts = [i64::MIN as u64, i64::MAX as u64, 0, 2].map(|id| {
        let other = Message::default().bytes(1, &header(1, 11).0).number(2, id).bytes(11, &event.0);
        Script { range: range(1, 10), watch: vec![created(), other] }
    });
    // One that announces the same watch twice.
    let twice = Script { range: range(1, 10), watch: vec![created(), created()] };
    let good = Script { range: range(1, 10), watch: vec![created()] };
    let url = serve([&scripts[..], &[twice, good]].concat());
    let driver = Driver::start(&registry(url, PATIENT), None);
    driver.wait_status("all was tried", |report| report.sources[0].reconnects == 5 && report.sources[0].connected);
    assert_eq!(driver.told().addresses("users"), ["10.0.0.1:80"]);
}

/// Issue 10, 14: progress is first asked for after a third of `liveness` (etcd#17507).
#[test]
fn progress_is_not_asked_for_at_once() {
    let put = |n: u64| {
        let kv = key_value(&format!("/services/users/{n}"), &format!("10.0.1.{n}:80"), 1);
        watch(1, 10 + n).bytes(11, &Message::default().bytes(2, &kv.0).0)
    };
    let watch: Vec<Message> = std::iter::once(created()).chain((1..=50).map(put)).collect();
    let (url, requests) = serve_and_record(vec![Script { range: range(1, 10), watch }]);
    let driver = Driver::start(&registry(url, PATIENT), None);
    driver.wait("all is followed", |told| told.addresses("users").len() == 51);
    let requests = requests.lock().expect("no panic");
    // A message of the stream: a byte, a length of four bytes, and the number of the kind of request.
    assert_eq!(requests.get(5), Some(&0x0a), "the watch is opened");
    let length = usize::from(requests[4]);
    assert_eq!(requests.len(), 5 + length, "and nothing else is asked for");
}
