//! A whole proxy in this process, endpoints that answer byte for byte as a test says, and a client of the same kind.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use heddle::app::App;
use heddle::config;

/// How long anything may take before a test has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until the condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running proxy; it is stopped when dropped.
pub struct Proxy {
    app: Option<App>,
    pub addresses: Vec<SocketAddr>,
}

impl Proxy {
    /// Starts a proxy with this configuration, to which one worker, no admin server and a short drain are added unless
    /// it says otherwise. Returns once the endpoints of the configuration are known.
    pub fn start(config: &str) -> Self {
        let app = App::start(parse(config)).expect("a proxy");
        wait_until("ready", || app.state.is_ready());
        Self { addresses: app.listeners.clone(), app: Some(app) }
    }

    /// A proxy with the service `users`, which these endpoints serve; `listener` and `service` are more settings.
    pub fn with(endpoints: &[&Endpoint], listener: &str, service: &str) -> Self {
        Self::start(&format!("{}\n{}", one_listener(listener), users(endpoints, service)))
    }

    /// The same, as it is by default.
    pub fn to(endpoint: &Endpoint) -> Self {
        Self::with(&[endpoint], "", "")
    }

    /// Goes on with another configuration, to which the same is added as at the start; else what is wrong with it.
    pub fn reload(&self, config: &str) -> Result<(), Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let reloaded = runtime.block_on(self.app().reload(parse(config)));
        reloaded.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().expect("a running proxy")
    }

    /// A connection to the first listener.
    pub fn client(&self) -> Wire {
        self.client_of(0)
    }

    pub fn client_of(&self, listener: usize) -> Wire {
        Wire::connect(self.addresses[listener])
    }

    /// Requests under way at the endpoints of `users`.
    pub fn in_flight(&self) -> u32 {
        let service = self.app().state.directory.get("users").expect("a service");
        service.snapshot().in_flight().iter().sum()
    }

    /// Connections to the endpoints of `users`.
    pub fn upstream_connections(&self) -> u32 {
        let service = self.app().state.directory.get("users").expect("a service");
        service.snapshot().endpoints().map(|endpoint| endpoint.load.connections()).sum()
    }

    /// Waits until clients' connections that were idle before are certainly put away: a connection that began later
    /// has run into a longer timeout of the same clock. The proxy needs [`SECOND_HAND`] as its last listener.
    pub fn until_parked(&self) {
        let mut slow = Wire::connect(*self.addresses.last().expect("a listener"));
        slow.send("GET / HTTP/1.1\r\n");
        assert_eq!(slow.response().status(), 408);
        slow.expect_end();
    }

    /// Stops it; true when nothing had to be cut off.
    pub fn stop(mut self) -> bool {
        self.app.take().expect("a running proxy").stop()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop();
        }
    }
}

fn parse(config: &str) -> config::checked::Config {
    let mut text = String::new();
    for (key, default) in [("admin", "false"), ("workers", "1"), ("drain", "\"100ms\"")] {
        if !config.lines().any(|line| line.starts_with(key)) {
            text += &format!("{key} = {default}\n");
        }
    }
    text += config;
    config::parse(&text, Path::new("test"), &[]).expect("a configuration").config
}

/// See [`Proxy::until_parked`].
pub const SECOND_HAND: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nheader_timeout = \"350ms\"\n";

pub fn one_listener(settings: &str) -> String {
    format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{settings}\n")
}

/// The service `users`.
pub fn users(endpoints: &[&Endpoint], settings: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    format!("[service.users]\nendpoints = {endpoints:?}\n{settings}\n")
}

/// A server whose every byte a test decides.
pub struct Endpoint {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Message>>>,
}

impl Endpoint {
    /// Serves each connection with `serve`, which is told how many there were before.
    pub fn start(serve: impl Fn(usize, Wire) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, serve) = (accepted.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                thread::spawn(move || serve(number, Wire::new(stream)));
            }
        });
        Self { address, accepted, requests: Arc::default() }
    }

    /// Reads requests to their end, and answers each with what `answer` gives.
    pub fn answering<A: AsRef<[u8]>>(answer: impl Fn(&Message) -> A + Send + Sync + 'static) -> Self {
        let requests: Arc<Mutex<Vec<Message>>> = Arc::default();
        let kept = requests.clone();
        let endpoint = Self::start(move |_, mut wire| {
            while let Some(request) = wire.request() {
                let answer = answer(&request);
                kept.lock().unwrap().push(request);
                if wire.try_send(answer).is_err() {
                    return;
                }
            }
        });
        Self { requests, ..endpoint }
    }

    /// Answers each request with these bytes.
    pub fn saying(answer: &'static str) -> Self {
        Self::answering(move |_| answer)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The requests of [`Endpoint::answering`] so far.
    pub fn requests(&self) -> Vec<Message> {
        self.requests.lock().unwrap().clone()
    }

    /// The last of them.
    #[track_caller]
    pub fn last(&self) -> Message {
        self.requests().pop().expect("a request")
    }
}

/// A short answer that leaves the connection open.
pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A request or a response as it was on the wire.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Message {
    #[track_caller]
    fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head).into_owned();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        Self { start, headers: fields(lines), ..Self::default() }
    }

    #[track_caller]
    pub fn status(&self) -> u16 {
        let code = self.start.split(' ').nth(1).unwrap_or_default();
        code.parse().unwrap_or_else(|_| panic!("not a status line: {:?}", self.start))
    }

    /// The values of a header, joined with ", "; none where it is missing.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> =
            self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether this is a refusal of the proxy's own, with this status, part and error type.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, part: &str, error: &str) {
        let said = self.header("proxy-status").unwrap_or_default();
        let expected = format!("heddle; error={error}; details=\"{part}: ");
        assert!(self.status() == status && said.starts_with(&expected), "expected {status} {expected}, got {self:?}");
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let field = |line: &str| line.split_once(':').map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
    lines.filter_map(field).collect()
}

/// One side of a connection.
pub struct Wire {
    pub stream: TcpStream,
    input: Vec<u8>,
}

/// A connection from this address of loopback, as another client has one.
pub fn connect_from(client: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((client, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("a connection"))
    }

    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, input: Vec::new() }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sent");
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a request with this target for `users`.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Message {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: users\r\n\r\n"));
        self.response()
    }

    /// Reads once; false at the end of the stream, or when it broke.
    #[track_caller]
    fn fill(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(length) => {
                self.input.extend_from_slice(&buffer[..length]);
                length > 0
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("nothing came in time; so far: {:?}", String::from_utf8_lossy(&self.input))
            }
            Err(_) => false,
        }
    }

    /// What comes up to and with `end`; an error says what there was instead.
    pub fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, String> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.input[searched..].windows(end.len()).position(|part| part == end) {
                return Ok(self.input.drain(..searched + at + end.len()).collect());
            }
            searched = self.input.len().saturating_sub(end.len());
            if !self.fill() {
                return Err(format!("ended after {:?}", String::from_utf8_lossy(&self.input)));
            }
        }
    }

    /// Exactly so many bytes.
    #[track_caller]
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.input.len() < length {
            if !self.fill() {
                return Err(format!("ended {} bytes too early", length - self.input.len()));
            }
        }
        Ok(self.input.drain(..length).collect())
    }

    /// A head without what follows it; none when the connection ended before it.
    #[track_caller]
    pub fn head(&mut self) -> Option<Message> {
        match self.until(b"\r\n\r\n") {
            Ok(head) => Some(Message::parse(&head)),
            Err(_) if self.input.is_empty() => None,
            Err(error) => panic!("no whole head: {error}"),
        }
    }

    /// A request with its body; none when the connection ended before it.
    #[track_caller]
    pub fn request(&mut self) -> Option<Message> {
        let head = self.head()?;
        self.with_body(head, false).ok()
    }

    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.try_response().expect("a whole response")
    }

    /// A response with its body, which ends where the head says. Interim responses are messages of their own.
    #[track_caller]
    pub fn try_response(&mut self) -> Result<Message, String> {
        let head = self.head().ok_or("ended without a response")?;
        self.with_body(head, true)
    }

    /// What follows a head.
    pub fn with_body(&mut self, mut head: Message, may_end_with_the_connection: bool) -> Result<Message, String> {
        let length = head.header("content-length").map(|length| length.parse::<usize>());
        if head.header("transfer-encoding").is_some() {
            loop {
                let line = self.until(b"\r\n")?;
                let line = String::from_utf8_lossy(&line);
                let size = usize::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
                    .map_err(|_| format!("not a chunk's size: {line:?}"))?;
                if size == 0 {
                    break;
                }
                let chunk = self.exactly(size + 2)?;
                head.body.extend_from_slice(chunk.strip_suffix(b"\r\n").ok_or("a chunk without an end")?);
            }
            let mut trailers = Vec::new();
            loop {
                let line = self.until(b"\r\n")?;
                if line == b"\r\n" {
                    break;
                }
                trailers.push(String::from_utf8_lossy(&line).trim().to_owned());
            }
            head.trailers = fields(trailers.iter().map(String::as_str));
        } else if let Some(length) = length {
            head.body = self.exactly(length.map_err(|error| error.to_string())?)?;
        } else if may_end_with_the_connection && !matches!(head.status(), 100..200 | 204 | 304) {
            while self.fill() {}
            head.body = std::mem::take(&mut self.input);
        }
        Ok(head)
    }

    /// Waits for the end of the connection, before which nothing more may come.
    #[track_caller]
    pub fn expect_end(&mut self) {
        while self.input.is_empty() {
            if !self.fill() {
                return;
            }
        }
        panic!("expected the end, got {:?}", String::from_utf8_lossy(&self.input));
    }

    /// Whether the connection is open and silent now.
    pub fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a mode");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a mode");
        self.input.is_empty() && peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends until the other side has taken nothing for half a second, which it may as well do because it is slow: how
    /// much it took. For upper bounds only.
    pub fn send_until_blocked(&mut self, bytes: &[u8]) -> usize {
        self.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut sent = 0;
        while let Ok(length @ 1..) = self.stream.write(&bytes[sent..]) {
            sent += length;
        }
        self.stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        sent
    }
}

/// Bytes that are the same in every run and different at every place.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}
