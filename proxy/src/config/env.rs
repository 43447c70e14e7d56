//! Overrides from the environment, laid over the tree before it is read.
//!
//! `HEDDLE__ADMIN__ADDRESS=127.0.0.1:0` sets `admin.address`. The names between double underscores are keys in capitals;
//! a number picks an item of a list that the file has (`HEDDLE__LISTENER__0__ADDRESS`). The value is TOML if it reads as
//! such (`HEDDLE__WORKERS=2`, `HEDDLE__REGISTRY__ETCD__ENDPOINTS=["http://etcd:2379"]`), else a string.

use std::ffi::OsString;
use std::sync::Arc;

use super::problem::{Place, Problem, Problems};
use super::tree::{self, Entry, Node, Table, Value};

const PREFIX: &str = "HEDDLE__";

/// More levels than any key has; it bounds the depth of the tree.
const LEVELS: usize = 16;

/// The variables of this process that are meant for the configuration.
pub fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes())).collect()
}

/// Sets what the variables say, in the order of their names; those that do not begin with `HEDDLE__` are left alone.
pub(super) fn overlay(root: &mut Node, variables: &[(OsString, OsString)], problems: &mut Problems) {
    let mut variables: Vec<_> = variables.iter().collect();
    variables.sort();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        let Some(levels) = name.strip_prefix(PREFIX) else { continue };
        let levels: Vec<String> = levels.split("__").map(str::to_lowercase).collect();
        let place = Place::Variable { name: Arc::from(&*name) };
        let set = match value.to_str() {
            Some(value) => set(root, &levels, tree::variable(value, place.clone())),
            None => Err(Refused::new("the value is not UTF-8", "expected text")),
        };
        if let Err(Refused { found, remedy }) = set {
            problems.add(Problem { place, key: String::new(), found, remedy });
        }
    }
}

struct Refused {
    found: String,
    remedy: String,
}

impl Refused {
    fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refused { found: found.into(), remedy: remedy.into() }
    }
}

fn set(root: &mut Node, levels: &[String], value: Node) -> Result<(), Refused> {
    if levels.len() > LEVELS || levels.iter().any(String::is_empty) {
        return Err(Refused::new("the name says no key", "expected HEDDLE__SECTION__KEY"));
    }
    let place = value.place.clone();
    let mut node = root;
    for (depth, level) in levels.iter().enumerate() {
        let above = || levels.get(..depth).unwrap_or_default().join(".");
        node = match &mut node.value {
            Value::Table(table) => {
                let empty = Node { place: place.clone(), value: Value::Table(Table::new()), raw: None };
                &mut table.entry(level.clone()).or_insert(Entry { key: place.clone(), node: empty }).node
            }
            Value::List(items) => {
                let count = items.len();
                level.parse::<usize>().ok().and_then(|i| items.get_mut(i)).ok_or_else(|| {
                    Refused::new(
                        format!("{} has no item {level}: it has {count}, counted from 0", above()),
                        "expected the number of an item, or the whole list as TOML in one variable",
                    )
                })?
            }
            _ => {
                return Err(Refused::new(
                    format!("{} is a single value and has no keys", above()),
                    format!("expected [{}] as a table in the file, or the whole value in one variable", above()),
                ));
            }
        };
    }
    *node = value;
    Ok(())
}
