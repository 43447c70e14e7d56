//! A server in a process of its own, which does what it is told on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What it does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Well,
    /// Takes its time, less than an attempt has.
    Slow,
    /// Answers 500, to the health check too.
    Errors,
    /// Resets the connection.
    Resets,
}

const BEHAVIOURS: [Behaviour; 4] = [Behaviour::Well, Behaviour::Slow, Behaviour::Errors, Behaviour::Resets];

const SLOW: Duration = Duration::from_millis(200);

/// A server as the test sees it. Dropped, it is killed.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn start() -> Self {
        Self::start_at(0)
    }

    fn start_at(port: u16) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["serve", &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: line.trim().parse().unwrap_or_else(|_| panic!("{line:?} is no address")), child }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        *self = Self::start_at(self.address.port());
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn behave(&mut self, behaviour: Behaviour) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{}", behaviour as u8).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The life of the process.
pub fn serve() {
    static BEHAVIOUR: AtomicU8 = AtomicU8::new(0);
    let port = std::env::args().nth(2).and_then(|port| port.parse().ok()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    println!("{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A proxy that goes away ends the connection.
            thread::spawn(|| answer(stream, || BEHAVIOURS[usize::from(BEHAVIOUR.load(Relaxed))]).ok());
        }
    });
    // Ends with the test.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        BEHAVIOUR.store(line.parse().unwrap(), Relaxed);
    }
}

fn answer(stream: TcpStream, behaviour: impl Fn() -> Behaviour) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    while let Some(first) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        match behaviour() {
            Behaviour::Well => {}
            Behaviour::Slow => thread::sleep(SLOW),
            Behaviour::Errors => {
                stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")?;
                continue;
            }
            Behaviour::Resets => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
        }
        let status = if first.contains("/missing") { "404 Not Found" } else { "200 OK" };
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok")?;
    }
    Ok(())
}
