//! Long streams through the real binary: an endpoint that takes and sends as much as it is told to, and clients that
//! reach it in every way that there is. Needs `process` beside it.

#![allow(dead_code, reason = "each user has a part of it")]
#![allow(clippy::disallowed_methods, reason = "threads of their own to block")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::process::{DEADLINE, Heddle, command};

/// How a client reaches the endpoint.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// Over a TCP listener.
    Tcp,
    /// In a tunnel.
    Connect,
    /// With a request and a response.
    Http,
    /// The same within TLS that ends at the proxy. The client is curl.
    Tls,
    /// With a request and a response of HTTP/2, which the endpoint does not speak. The client is curl.
    Http2,
}

/// A first byte that is the beginning of no protocol: what follows is to be counted up to its end, and the count sent.
const SINK: u8 = 1;

/// The same: eight bytes follow, and so many are to be sent.
const SOURCE: u8 = 2;

const PIECE: usize = 256 * 1024;

/// An endpoint.
pub struct Far {
    pub address: SocketAddr,
    /// Bytes that were taken of what it sends.
    pub sent: Arc<AtomicU64>,
}

impl Far {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, sent) = (listener.local_addr().expect("an address"), Arc::<AtomicU64>::default());
        let counter = sent.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = counter.clone();
                thread::spawn(move || serve(stream, &counter));
            }
        });
        Self { address, sent }
    }
}

fn serve(stream: TcpStream, sent: &AtomicU64) -> std::io::Result<()> {
    let mut read = BufReader::new(&stream);
    match read.fill_buf()?.first() {
        Some(&SINK) => {
            read.consume(1);
            let count = count(&mut read)?;
            write!(&stream, "{count}")
        }
        Some(&SOURCE) => {
            read.consume(1);
            let mut length = [0; 8];
            read.read_exact(&mut length)?;
            send(&stream, u64::from_le_bytes(length), sent)
        }
        _ => {
            let head = read_head(&mut read)?;
            if let Some(length) = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()) {
                write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n")?;
                return send(&stream, length.parse().expect("a length"), sent);
            }
            let count = count(&mut (&mut read).take(length_of(&head)))?.to_string();
            write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}", count.len())
        }
    }
}

fn read_head(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && from.read_line(&mut head)? > 0 {}
    Ok(head)
}

fn length_of(head: &str) -> u64 {
    let head = head.to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:")).expect("a length");
    value.trim().parse().expect("a number")
}

/// Reads to the end: how many bytes there were.
fn count(from: &mut impl Read) -> std::io::Result<u64> {
    let (mut piece, mut count) = (vec![0; PIECE], 0);
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(count),
            length => count += length as u64,
        }
    }
}

fn send(mut to: &TcpStream, length: u64, sent: &AtomicU64) -> std::io::Result<()> {
    let piece = vec![b'x'; PIECE];
    let mut left = length;
    while left > 0 {
        let part = piece.get(..usize::try_from(left).unwrap_or(PIECE).min(PIECE)).unwrap_or_default();
        let taken = to.write(part)? as u64;
        sent.fetch_add(taken, Relaxed);
        left -= taken;
    }
    Ok(())
}

/// A proxy in front of an endpoint.
pub struct Proxy {
    pub heddle: Heddle,
    address: SocketAddr,
    way: Way,
    folder: tempfile::TempDir,
}

impl Proxy {
    pub fn start(way: Way, far: &Far) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = match way {
            Way::Tcp => "protocol = \"tcp\"\nservice = \"far\"",
            Way::Tls => "tls = { certificate = \"far.pem\", key = \"far.key\" }",
            Way::Connect | Way::Http | Way::Http2 => "",
        };
        let made = rcgen::generate_simple_self_signed(["far".to_owned()]).expect("a certificate");
        std::fs::write(folder.path().join("far.pem"), made.cert.pem()).expect("written");
        std::fs::write(folder.path().join("far.key"), made.signing_key.serialize_pem()).expect("written");
        let config = folder.path().join("heddle.toml");
        let text = format!(
            "admin = false\nworkers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n\
             [service.far]\nendpoints = [\"{}\"]\n",
            far.address
        );
        std::fs::write(&config, text).expect("written");
        let heddle = Heddle::start(command(&["run", "--config", config.to_str().expect("UTF-8")]));
        let address = heddle.address("listening on ");
        Self { heddle, address, way, folder }
    }

    /// Runs curl, as TLS or HTTP/2 has it: its exit code and what it printed.
    fn curl(&self, path: &str, args: &[&str]) -> (Option<i32>, String) {
        let port = self.address.port();
        let (scheme, version) = match self.way {
            Way::Tls => ("https", "--http1.1"),
            Way::Http2 => ("http", "--http2-prior-knowledge"),
            Way::Tcp | Way::Connect | Way::Http => panic!("a client of our own"),
        };
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", &DEADLINE.as_secs().to_string(), "--noproxy", "*", version]);
        command.args(["--resolve", &format!("far:{port}:127.0.0.1"), "-H", "Expect:", "-H", "Host: far"]);
        command.arg("--cacert").arg(self.folder.path().join("far.pem"));
        let output = command.args(args).arg(format!("{scheme}://far:{port}/{path}")).output().expect("curl starts");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    }

    /// What curl was asked to print of a transfer that has to go well.
    #[track_caller]
    fn curled(&self, path: &str, args: &[&str]) -> u64 {
        let (code, printed) = self.curl(path, args);
        assert_eq!(code, Some(0), "curl {path} {args:?}: {printed}");
        printed.parse().unwrap_or_else(|_| panic!("{printed:?}"))
    }

    /// A connection that leads to the endpoint, or to the proxy where requests are sent.
    fn open(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        if matches!(self.way, Way::Connect) {
            write!(&stream, "CONNECT far:1 HTTP/1.1\r\nHost: far:1\r\n\r\n").expect("sent");
            let head = read_head(&mut BufReader::with_capacity(1, &stream)).expect("a head");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        }
        stream
    }

    /// Sends so many bytes: how many the endpoint says that it received.
    pub fn upload(&self, length: u64) -> u64 {
        if matches!(self.way, Way::Tls | Way::Http2) {
            // Of zeros that are nowhere on the disk.
            let path = self.folder.path().join("upload");
            File::create(&path).and_then(|file| file.set_len(length)).expect("a file");
            return self.curled("", &["-T", path.to_str().expect("UTF-8")]);
        }
        let stream = self.open();
        let mut read = BufReader::new(&stream);
        if matches!(self.way, Way::Http) {
            write!(&stream, "POST / HTTP/1.1\r\nHost: far\r\nContent-Length: {length}\r\n\r\n").expect("sent");
            send(&stream, length, &AtomicU64::default()).expect("sent");
            let length = length_of(&read_head(&mut read).expect("a head"));
            return read_number(&mut read.take(length));
        }
        (&stream).write_all(&[SINK]).expect("sent");
        send(&stream, length, &AtomicU64::default()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("ended");
        read_number(&mut read)
    }

    /// A stream on which so many bytes arrive.
    fn ask(&self, length: u64) -> impl Read + use<> {
        let stream = self.open();
        if matches!(self.way, Way::Http) {
            write!(&stream, "GET /{length} HTTP/1.1\r\nHost: far\r\n\r\n").expect("sent");
        } else {
            (&stream).write_all(&[&[SOURCE][..], &length.to_le_bytes()].concat()).expect("sent");
        }
        let mut read = BufReader::with_capacity(1024, stream);
        if matches!(self.way, Way::Http) {
            assert_eq!(length_of(&read_head(&mut read).expect("a head")), length);
        }
        read.take(length)
    }

    /// Has so many bytes sent by the endpoint: how many arrive.
    pub fn download(&self, length: u64) -> u64 {
        if matches!(self.way, Way::Tls | Way::Http2) {
            return self.curled(&length.to_string(), &["-o", "/dev/null", "-w", "%{size_download}"]);
        }
        count(&mut self.ask(length)).expect("bytes")
    }

    /// The same, of which one 10 KB a second are taken for so many tenths of a second.
    pub fn sip(&self, length: u64, tenths: u32) {
        if matches!(self.way, Way::Tls | Way::Http2) {
            let time = (f64::from(tenths) / 10.0).to_string();
            let slowly = ["--limit-rate", "10240", "--max-time", &time, "-o", "/dev/null", "-w", "%{size_download}"];
            let (code, printed) = self.curl(&length.to_string(), &slowly);
            // 28: the time was over.
            assert_eq!(code, Some(28), "{printed}");
            assert!(printed.parse::<u64>().is_ok_and(|taken| taken > 0 && taken < length), "{printed}");
            return;
        }
        let mut read = self.ask(length);
        for _ in 0..tenths {
            read.read_exact(&mut [0; 1024]).expect("bytes");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn read_number(from: &mut impl Read) -> u64 {
    let mut text = String::new();
    from.read_to_string(&mut text).expect("a count");
    text.parse().unwrap_or_else(|_| panic!("{text:?}"))
}
