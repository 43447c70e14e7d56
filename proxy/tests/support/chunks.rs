//! Bodies in chunks of every size through the real binary: an endpoint, and clients with and without TLS. Needs
//! `process` beside it.

#![allow(dead_code, reason = "each user has a part of it")]
#![allow(clippy::disallowed_methods, reason = "threads of their own to block")]

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::process::{DEADLINE, Heddle, command};

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// With its length.
    Length,
    /// In chunks of so many bytes.
    Chunks(usize),
    /// In chunks of 1 to 64 bytes.
    Tiny,
}

const BLOCK: usize = 256 * 1024;

impl Shape {
    fn from_path(path: &str) -> Self {
        match path {
            "length" => Self::Length,
            "tiny" => Self::Tiny,
            size => Self::Chunks(size.parse().expect("a size")),
        }
    }

    fn path(self) -> String {
        match self {
            Self::Length => "length".to_owned(),
            Self::Tiny => "tiny".to_owned(),
            Self::Chunks(size) => size.to_string(),
        }
    }

    /// A part of a body as it is sent, and how many bytes of data are in it.
    fn block(self) -> (Vec<u8>, usize) {
        let sizes: Vec<usize> = match self {
            Self::Length => return (vec![b'x'; BLOCK], BLOCK),
            Self::Chunks(size) => vec![size; (BLOCK / size).max(1)],
            Self::Tiny => (1..=64).collect(),
        };
        let mut wire = Vec::new();
        for size in &sizes {
            write!(wire, "{size:x}\r\n").expect("written");
            wire.resize(wire.len() + size, b'x');
            wire.extend_from_slice(b"\r\n");
        }
        (wire, sizes.iter().sum())
    }

    /// Blocks that make up at least so many bytes.
    pub fn blocks(self, bytes: usize) -> usize {
        bytes.div_ceil(self.block().1)
    }

    fn header(self, blocks: usize) -> String {
        match self {
            Self::Length => format!("Content-Length: {}", blocks * BLOCK),
            _ => "Transfer-Encoding: chunked".to_owned(),
        }
    }

    /// Sends the body: how many bytes of data there were.
    fn send(self, to: &mut impl Write, blocks: usize, sent: &AtomicU64) -> io::Result<u64> {
        let (block, data) = self.block();
        // A write each for many small blocks at once.
        let many = (BLOCK / block.len()).max(1);
        let (group, mut left) = (block.repeat(many), blocks);
        while left > 0 {
            let now = left.min(many);
            let mut rest = group.get(..block.len() * now).unwrap_or_default();
            while !rest.is_empty() {
                let taken = to.write(rest)?;
                sent.fetch_add(taken as u64, Relaxed);
                rest = rest.get(taken..).unwrap_or_default();
            }
            left -= now;
        }
        if self != Self::Length {
            to.write_all(b"0\r\n\r\n")?;
        }
        to.flush()?;
        Ok((blocks * data) as u64)
    }
}

fn read_head(from: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && from.read_line(&mut head)? > 0 {}
    Ok(head)
}

/// Reads a body to its end: how many bytes of data there were.
fn count(from: &mut impl BufRead, head: &str) -> io::Result<u64> {
    let head = head.to_ascii_lowercase();
    let skip = |from: &mut dyn BufRead, mut left: u64| {
        while left > 0 {
            let length = left.min(from.fill_buf()?.len() as u64);
            if length == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof));
            }
            from.consume(length as usize);
            left -= length;
        }
        Ok(())
    };
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length:")) {
        let length = length.trim().parse().expect("a length");
        skip(from, length)?;
        return Ok(length);
    }
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let (mut total, mut line) = (0, String::new());
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
        skip(from, size + 2)?;
        total += size;
        if size == 0 {
            return Ok(total);
        }
    }
}

/// An endpoint. `GET /SHAPE/BLOCKS` is answered with such a body, `POST /count` with how long the request's was, and of
/// `POST /stall` nothing is read.
pub struct Endpoint {
    pub address: SocketAddr,
    /// Bytes that were taken of what it sends.
    pub sent: Arc<AtomicU64>,
}

impl Endpoint {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, sent) = (listener.local_addr().expect("an address"), Arc::<AtomicU64>::default());
        let counter = sent.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = counter.clone();
                thread::spawn(move || serve(&stream, &counter));
            }
        });
        Self { address, sent }
    }

    /// Waits until it cannot send any more: until nothing has been taken for two seconds, since a busy machine may let
    /// everybody wait for some of one.
    pub fn until_blocked(&self) {
        const SAMPLES: u32 = 5;
        let (mut before, mut same) = (u64::MAX, 0);
        while same < SAMPLES {
            let now = self.sent.load(Relaxed);
            same = if now == before && now > 0 { same + 1 } else { 0 };
            before = now;
            thread::sleep(Duration::from_millis(400));
        }
    }
}

fn serve(mut stream: &TcpStream, sent: &AtomicU64) -> io::Result<()> {
    let mut read = BufReader::with_capacity(BLOCK, stream);
    loop {
        let head = read_head(&mut read)?;
        let target = head.split(' ').nth(1).unwrap_or_default();
        if target == "/stall" {
            thread::sleep(10 * DEADLINE);
            return Ok(());
        }
        if let Some((shape, blocks)) = target.strip_prefix('/').and_then(|target| target.split_once('/')) {
            let (shape, blocks) = (Shape::from_path(shape), blocks.parse().expect("a number"));
            write!(stream, "HTTP/1.1 200 OK\r\n{}\r\n\r\n", shape.header(blocks))?;
            shape.send(&mut stream, blocks, sent)?;
        } else if head.is_empty() {
            return Ok(());
        } else {
            let count = count(&mut read, &head)?.to_string();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}", count.len())?;
        }
    }
}

/// Both directions of a client's connection.
pub trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

/// A proxy in front of an endpoint, with and without TLS.
pub struct Proxy {
    pub heddle: Heddle,
    pub plain: SocketAddr,
    tls: SocketAddr,
    client: Arc<ClientConfig>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    pub fn start(endpoint: &Endpoint) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = rcgen::generate_simple_self_signed(["far".to_owned()]).expect("a certificate");
        std::fs::write(folder.path().join("far.pem"), made.cert.pem()).expect("written");
        std::fs::write(folder.path().join("far.key"), made.signing_key.serialize_pem()).expect("written");
        let config = folder.path().join("heddle.toml");
        let text = format!(
            "admin = false\nworkers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
             tls = {{ certificate = \"far.pem\", key = \"far.key\" }}\n[service.far]\nendpoints = [\"{}\"]\n",
            endpoint.address
        );
        std::fs::write(&config, text).expect("written");
        let heddle = Heddle::start(command(&["run", "--config", config.to_str().expect("UTF-8")]));
        let address = |number| heddle.after("listening on ", number).trim().parse().expect("an address");
        let (plain, tls) = (address(0), address(1));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(made.cert.der().to_vec())).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = Arc::new(builder.expect("versions").with_root_certificates(roots).with_no_client_auth());
        Self { heddle, plain, tls, client, _folder: folder }
    }

    pub fn connect(&self, tls: bool) -> Box<dyn Duplex> {
        let stream = TcpStream::connect(if tls { self.tls } else { self.plain }).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        if !tls {
            return Box::new(stream);
        }
        let name = "far".try_into().expect("a name");
        Box::new(StreamOwned::new(ClientConnection::new(self.client.clone(), name).expect("TLS"), stream))
    }

    /// Has such a body sent by the endpoint: how many bytes of it arrive, and how many there are.
    #[track_caller]
    pub fn download(&self, tls: bool, shape: Shape, blocks: usize) {
        let mut read = BufReader::with_capacity(BLOCK, self.blocked(tls, shape, blocks));
        let head = read_head(&mut read).expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(count(&mut read, &head).expect("a body"), (blocks * shape.block().1) as u64, "{shape:?}");
    }

    /// Sends such a body.
    #[track_caller]
    pub fn upload(&self, tls: bool, shape: Shape, blocks: usize) {
        let mut stream = self.connect(tls);
        write!(stream, "POST /count HTTP/1.1\r\nHost: far\r\n{}\r\n\r\n", shape.header(blocks)).expect("sent");
        let length = shape.send(&mut stream, blocks, &AtomicU64::default()).expect("sent");
        let mut read = BufReader::new(stream);
        assert!(read_head(&mut read).expect("a head").starts_with("HTTP/1.1 200 "));
        let mut answer = vec![0; length.to_string().len()];
        read.read_exact(&mut answer).expect("a count");
        assert_eq!(String::from_utf8(answer).expect("text"), length.to_string(), "{shape:?}");
    }

    /// A reader that asks for such a body and reads nothing of it.
    pub fn blocked(&self, tls: bool, shape: Shape, blocks: usize) -> Box<dyn Duplex> {
        let mut stream = self.connect(tls);
        write!(stream, "GET /{}/{blocks} HTTP/1.1\r\nHost: far\r\n\r\n", shape.path()).expect("sent");
        stream.flush().expect("sent");
        stream
    }

    /// A writer that sends such a body for as long as it is taken, to an endpoint that reads nothing of it.
    pub fn blocked_upload(&self, shape: Shape, blocks: usize) -> TcpStream {
        let mut stream = TcpStream::connect(self.plain).expect("a connection");
        write!(stream, "POST /stall HTTP/1.1\r\nHost: far\r\n{}\r\n\r\n", shape.header(blocks)).expect("sent");
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let started = Instant::now();
        let error = shape.send(&mut stream, blocks, &AtomicU64::default()).expect_err("nobody reads it");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        assert!(started.elapsed() < DEADLINE);
        stream
    }
}
