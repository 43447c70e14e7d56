//! What the process logs.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

/// All that this process logs from `info` on, as text.
pub fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let writer = lines.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Writer(writer.clone())).init();
        Log(lines)
    })
}

pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The lines that have all of these parts.
    pub fn lines(&self, parts: &[&str]) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
