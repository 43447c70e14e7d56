//! The real binary, servers behind it and a client before it.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::wait::DEADLINE;

/// A server that answers every request alike.
pub fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                while read_head(&mut stream).is_some_and(|head| !head.is_empty()) {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    if stream.get_mut().write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The lines of a message's head; none at the connection's end.
fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

/// A client with one connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        #[allow(clippy::disallowed_methods, reason = "a client with a thread of its own")]
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Asks a service for a path.
    ///
    /// # Errors
    ///
    /// What was answered, unless it was 200.
    pub fn get(&mut self, service: &str, path: &str) -> Result<(), String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {service}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let head = read_head(&mut self.stream).ok_or("the connection ended")?;
        let length = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).map_err(|error| error.to_string())?;
        let is_good = head.first().is_some_and(|line| line.starts_with("HTTP/1.1 200"));
        if is_good { Ok(()) } else { Err(format!("{head:?} {}", String::from_utf8_lossy(&body))) }
    }
}

/// The proxy's process.
pub struct Proxy {
    process: Child,
    pub address: SocketAddr,
    lines: Receiver<String>,
    seen: RefCell<Vec<String>>,
}

impl Proxy {
    /// Starts the proxy, and waits until it listens.
    pub fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
        command.args(["run", "--config"]).arg(config).env("HEDDLE_LOG", "info").env("NO_COLOR", "1");
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let log = BufReader::new(process.stderr.take().unwrap());
        thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut proxy =
            Self { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), lines, seen: RefCell::default() };
        let line = proxy.wait_for_line("listening on ");
        proxy.address = line.rsplit(' ').next().unwrap().parse().unwrap();
        proxy
    }

    /// Waits for the next line with this part.
    pub fn wait_for_line(&self, part: &str) -> String {
        loop {
            let line = self.next_line(&[part]);
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Waits until each of these parts was in a line, in whatever order: threads log beside each other.
    pub fn wait_for_lines(&self, parts: &[&str]) {
        let mut missing = parts.to_vec();
        while !missing.is_empty() {
            let line = self.next_line(&missing);
            missing.retain(|part| !line.contains(part));
        }
    }

    fn next_line(&self, expected: &[&str]) -> String {
        let line = self.lines.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|_| panic!("no line with {expected:?} after {:#?}", self.seen.borrow()));
        self.seen.borrow_mut().push(line.clone());
        line
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim_end_matches("kB").trim().parse().unwrap()
    }

    /// All lines of the log.
    pub fn stop(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let mut lines = self.seen.take();
        lines.extend(self.lines.iter());
        lines
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _ = self.process.wait();
    }
}
