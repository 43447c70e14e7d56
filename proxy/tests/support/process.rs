//! The real binary: started, spoken to over HTTP, stopped. Everything blocks and waits with a deadline.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything takes on a machine that is busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer; panics after the [`DEADLINE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        #[expect(clippy::disallowed_methods, reason = "a test has nothing else to do")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `heddle` with these arguments.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
    command.args(args).stdin(Stdio::null());
    command
}

/// What a command that ended by itself left behind: exit code, standard output, standard error.
pub fn run(args: &[&str]) -> (i32, String, String) {
    let output = command(args).output().expect("heddle starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("ended by itself"), text(output.stdout), text(output.stderr))
}

/// A running process; killed when it is dropped.
pub struct Heddle {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Heddle {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("heddle starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let readers = vec![read_lines(out, said.clone()), read_lines(err, said.clone())];
        Self { child, said, readers }
    }

    /// All lines so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().expect("no reader panicked").clone()
    }

    /// Waits for a line that has this in it, the `skip` first such lines not counted; what comes after it.
    #[track_caller]
    pub fn after(&self, part: &str, skip: usize) -> String {
        wait_for(&format!("a line says {part:?}"), || {
            let said = self.said();
            let mut found = said.iter().filter_map(|line| line.split_once(part));
            found.nth(skip).map(|(_, rest)| rest.to_owned())
        })
    }

    /// How many lines have this in them.
    pub fn count(&self, part: &str) -> usize {
        self.said().iter().filter(|line| line.contains(part)).count()
    }

    /// The address after the first such text.
    #[track_caller]
    pub fn address(&self, part: &str) -> SocketAddr {
        let rest = self.after(part, 0);
        rest.trim().parse().unwrap_or_else(|_| panic!("{rest:?} is no address"))
    }

    /// The most memory that it has ever had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The memory that it has now, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // The name in parentheses, of any characters, is the second of the fields (proc(5)).
        let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
        let ticks: u32 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("ticks")).sum();
        Duration::from_millis(10) * ticks
    }

    /// How many entries a folder of its `/proc` has: `fd` for open descriptors, `task` for threads.
    pub fn count_of(&self, folder: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{folder}", self.child.id())).expect("it runs").count()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.child.id().try_into().expect("a process number")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end: the exit code and everything that it said.
    #[track_caller]
    pub fn wait(mut self) -> (Option<i32>, Vec<String>) {
        let status = wait_for("it ends", || self.child.try_wait().expect("a child"));
        self.readers.drain(..).for_each(|reader| reader.join().expect("no reader panicked"));
        (status.code(), self.said())
    }
}

impl Drop for Heddle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(from: impl Read + Send + 'static, into: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("no reader panicked").push(line);
        }
    })
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Connects with a time for reading.
pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "a test has nothing else to do")]
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// The sum of a figure's samples among the metrics that this admin server has.
pub fn figure(admin: SocketAddr, name: &str) -> f64 {
    let metrics = ask(admin, "GET", "/metrics", "localhost").expect("metrics").body;
    let of = |line: &str| {
        let (sample, value) = line.rsplit_once(' ')?;
        (sample.split('{').next()? == name).then(|| value.parse::<f64>().ok())?
    };
    metrics.lines().filter_map(of).sum()
}

/// The admin server gives a report to everybody who asks within a second: waits until this process gets another one than
/// before from this place.
fn wait_for_new_report(place: &str, target: &str) {
    static READ: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());
    if !matches!(target, "/metrics" | "/state") {
        return;
    }
    let key = format!("{place} {target}");
    let mut all = READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let last = all.iter().position(|(known, _)| *known == key).map(|at| all.swap_remove(at).1);
    let wait = last.and_then(|at| (at + Duration::from_millis(1050)).checked_duration_since(Instant::now()));
    all.push((key, Instant::now() + wait.unwrap_or_default()));
    drop(all);
    #[expect(clippy::disallowed_methods, reason = "a test has nothing else to do")]
    std::thread::sleep(wait.unwrap_or_default());
}

/// Sends a request with a connection of its own and reads until the other side closes.
pub fn ask(to: SocketAddr, method: &str, target: &str, host: &str) -> std::io::Result<Answer> {
    wait_for_new_report(&to.to_string(), target);
    exchange(connect(to)?, method, target, host)
}

/// The same over a Unix socket.
pub fn ask_unix(to: &Path, method: &str, target: &str) -> std::io::Result<Answer> {
    wait_for_new_report(&to.display().to_string(), target);
    let stream = UnixStream::connect(to)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    exchange(stream, method, target, "heddle")
}

/// A command that is answered: the status, and what the answer says.
#[track_caller]
pub fn post(to: &Path, target: &str) -> (u16, serde_json::Value) {
    let answer = ask_unix(to, "POST", target).unwrap_or_else(|error| panic!("POST {target}: {error}"));
    let said = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    (answer.status, said)
}

fn exchange(mut stream: impl Read + Write, method: &str, target: &str, host: &str) -> std::io::Result<Answer> {
    write!(stream, "{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.ok_or(std::io::ErrorKind::InvalidData)?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

/// A GET that is answered: of `/` or a URL by a proxy, of another path by an admin server.
#[track_caller]
pub fn get(to: SocketAddr, target: &str) -> Answer {
    let host = if target == "/" || target.starts_with("http") { "users" } else { "localhost" };
    ask(to, "GET", target, host).unwrap_or_else(|error| panic!("GET {target} at {to}: {error}"))
}

/// A server that answers each request with its first line. `before` is called before each answer, one at a time.
pub fn serve(before: impl FnMut() + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    let before = Arc::new(Mutex::new(before));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let before = before.clone();
            std::thread::spawn(move || serve_connection(stream, &before));
        }
    });
    address
}

fn serve_connection(mut stream: TcpStream, before: &Mutex<impl FnMut()>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(first) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        (before.lock().expect("no other panicked"))();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{first}", first.len())?;
    }
    Ok(())
}
