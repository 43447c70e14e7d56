//! Other people's programs: servers on ports of their own, clients run to their end.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// A server, killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts what `command` makes for a port of loopback, and waits until it takes connections.
    #[track_caller]
    pub fn start(name: &str, command: impl Fn(u16) -> Command) -> Self {
        let deadline = Instant::now() + START;
        // A port may be taken between being found free and the server's own bind.
        while Instant::now() < deadline {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address");
            let mut command = command(free.port());
            let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let mut server = Self { child: spawned.unwrap_or_else(|error| panic!("{name}: {error}")), address: free };
            while Instant::now() < deadline && server.child.try_wait().expect("a child").is_none() {
                if TcpStream::connect(free).is_ok() {
                    return server;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("{name} does not start");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, with this as its input; what it printed.
#[track_caller]
pub fn run(program: &str, args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(program);
    // Proxies are what these tests are about: the machine's own must not come between.
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
        command.env_remove(variable);
    }
    let spawned = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let Output { status, stdout, stderr } = thread::scope(|scope| {
        // A program that has heard enough closes its input.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("an end")
    });
    assert!(status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text")
}
