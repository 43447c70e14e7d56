//! What parent and child tell each other: one line of JSON each way.
//!
//! The request is followed by the file; the answer is the last line of standard error that begins with [`MARK`].

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::fault::{Fault, FaultKind};
use super::super::generation::LoadError;
use crate::config::checked::{Compile, Plugins};
use crate::policy::Role;

const MARK: &str = "heddle:compiled ";

const ROLES: [Role; 3] = [Role::Balancer, Role::RetryPolicy, Role::CircuitBreaker];

/// What the child is to do.
pub struct Request<'a> {
    pub cpu: Duration,
    /// Address space beyond what the process has at its start, in bytes.
    pub memory: u64,
    /// Of the file that follows, as far as it is known.
    pub bytes: u64,
    /// The bounds of guests, which are part of what is compiled.
    pub plugins: Plugins,
    pub uses: &'a [(Role, Arc<str>)],
}

/// The same, as the child has it.
pub struct Received {
    pub cpu: Duration,
    pub memory: u64,
    pub bytes: u64,
    pub plugins: Plugins,
    pub uses: Vec<(Role, Arc<str>)>,
}

impl Request<'_> {
    pub fn line(&self) -> Vec<u8> {
        let uses: Vec<Value> = self.uses.iter().map(|(role, config)| json!([role.world(), &**config])).collect();
        let line = json!({
            "cpu": micros(self.cpu), "memory": self.memory, "bytes": self.bytes, "uses": uses,
            "decision": micros(self.plugins.decision), "change": micros(self.plugins.change),
            "guest_memory": self.plugins.memory, "faults": self.plugins.faults,
        });
        format!("{line}\n").into_bytes()
    }
}

impl Received {
    /// None where it is not understood.
    pub fn read(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let number = |key: &str| line.get(key)?.as_u64();
        let time = |key: &str| number(key).map(Duration::from_micros);
        let one_use = |of: &Value| Some((role(of.get(0)?.as_str()?)?, of.get(1)?.as_str()?.into()));
        Some(Self {
            cpu: time("cpu")?,
            memory: number("memory")?,
            bytes: number("bytes")?,
            plugins: Plugins {
                folder: None,
                cache: None,
                rescan: Duration::ZERO,
                decision: time("decision")?,
                change: time("change")?,
                memory: usize::try_from(number("guest_memory")?).ok()?,
                // The process's own limit bounds it.
                memory_total: usize::MAX,
                share: 100,
                faults: u32::try_from(number("faults")?).ok()?,
                compile: Compile::default(),
            },
            uses: line.get("uses")?.as_array()?.iter().map(one_use).collect::<Option<_>>()?,
        })
    }
}

/// What became of a file.
#[derive(Debug)]
pub struct Answer {
    pub result: Result<(), LoadError>,
}

impl Answer {
    pub fn line(&self) -> String {
        let value = match &self.result {
            Ok(()) => json!({}),
            Err(error) => json!({ "error": write_error(error) }),
        };
        format!("\n{MARK}{value}\n")
    }

    /// None where there is none.
    pub fn find(said: &str) -> Option<Self> {
        let line = said.lines().rev().find_map(|line| line.strip_prefix(MARK))?;
        let value: Value = serde_json::from_str(line).ok()?;
        let result = match value.get("error") {
            None => Ok(()),
            Some(error) => Err(read_error(error)?),
        };
        Some(Self { result })
    }
}

fn write_error(error: &LoadError) -> Value {
    let (kind, why) = match error {
        LoadError::NotWasm => ("not-wasm", ""),
        LoadError::NotWrappable(why) => ("not-wrappable", why.as_str()),
        LoadError::Compile(why) => ("compile", why.as_str()),
        LoadError::Contract(why) => ("contract", why.as_str()),
        LoadError::OutOfMemory { .. } => ("memory", ""),
        LoadError::TooLarge { bytes } => return json!({ "kind": "too-large", "bytes": bytes }),
        LoadError::Role { found, wanted } => {
            return json!({ "kind": "role", "found": found.world(), "wanted": wanted.world() });
        }
        LoadError::Probe { config, fault } => {
            return json!({
                "kind": "probe", "config": &**config, "fault": fault.kind.name(), "why": fault.cause,
                "weight": fault.weight,
            });
        }
        other => return json!({ "kind": "compile", "why": other.to_string() }),
    };
    json!({ "kind": kind, "why": why })
}

fn read_error(value: &Value) -> Option<LoadError> {
    let text = |key: &str| value.get(key)?.as_str();
    let why = || Some(text("why")?.to_owned());
    Some(match text("kind")? {
        "not-wasm" => LoadError::NotWasm,
        "not-wrappable" => LoadError::NotWrappable(why()?),
        "contract" => LoadError::Contract(why()?),
        "memory" => LoadError::OutOfMemory { limit: 0, is_set: false },
        "too-large" => LoadError::TooLarge { bytes: value.get("bytes")?.as_u64()? },
        "role" => LoadError::Role { found: role(text("found")?)?, wanted: role(text("wanted")?)? },
        "probe" => LoadError::Probe {
            config: text("config")?.into(),
            fault: Fault {
                kind: FaultKind::ALL.into_iter().find(|kind| Some(kind.name()) == text("fault"))?,
                cause: why()?,
                weight: usize::try_from(value.get("weight")?.as_u64()?).ok()?,
            },
        },
        _ => LoadError::Compile(why()?),
    })
}

fn role(world: &str) -> Option<Role> {
    ROLES.into_iter().find(|role| role.world() == world)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_arrives_as_it_was_sent() {
        let fault = Fault { kind: FaultKind::Deadline, cause: "a \"cause\"".into(), weight: 10 };
        let refusals = [
            LoadError::NotWasm,
            LoadError::NotWrappable("cut short".into()),
            LoadError::Compile("why".into()),
            LoadError::Contract("no export".into()),
            LoadError::TooLarge { bytes: 17 << 20 },
            LoadError::Role { found: Role::RetryPolicy, wanted: Role::Balancer },
            LoadError::Probe { config: "{\"by\":\"path\"}".into(), fault },
        ];
        for refusal in refusals {
            let said = format!("noise{}", Answer { result: Err(refusal.clone()) }.line());
            let found = Answer::find(&said).unwrap().result.unwrap_err();
            assert_eq!(format!("{found:?}"), format!("{refusal:?}"));
        }
        assert!(Answer::find(&Answer { result: Ok(()) }.line()).unwrap().result.is_ok());
        assert!(Answer::find("thread 'main' panicked").is_none());
    }
}
