//! Clients and servers in Python, which are the peers that applications have: `peers/*.py`.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests have threads of their own to block")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running program. It is killed when dropped.
pub struct Peer {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    /// Starts `peers/NAME.py`, which imports this module.
    pub fn start(name: &str, module: &str, args: &[&str]) -> Self {
        let mut command = Command::new(python(module));
        // Proxies are what these tests are about: the machine's own must not come between.
        for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command.arg(format!("{}/tests/peers/{name}.py", env!("CARGO_MANIFEST_DIR"))).args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, lines) = (child.stdout.take().expect("piped"), said.clone());
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, said }
    }

    /// What comes after `prefix` in the first line that begins with it; waits for one.
    #[track_caller]
    pub fn wait_for(&self, prefix: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(rest) = self.said().iter().find_map(|line| line.strip_prefix(prefix)) {
                return rest.trim().to_owned();
            }
            assert!(Instant::now() < deadline, "waited in vain for {prefix:?}; so far: {:?}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// Sends a line.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{line}").expect("sent");
    }

    /// Waits for the end of a program that has to end well.
    #[track_caller]
    pub fn finish(mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                assert!(status.success(), "{status}; it said: {:?}", self.said());
                return;
            }
            assert!(Instant::now() < deadline, "it does not end; so far: {:?}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _nobody_asks = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Python that has the module. Debian's own sees Debian's packages, also where another Python comes first.
#[track_caller]
fn python(module: &str) -> &'static str {
    let imports = |python: &str| {
        let import = Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    ["python3", "/usr/bin/python3"].into_iter().find(|python| imports(python)).unwrap_or_else(|| {
        panic!("no Python with {module}; cargo xtask test installs it (Debian: python3-grpcio, python3-websockets)")
    })
}
