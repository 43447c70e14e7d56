//! Reads a table key by key. Every problem is recorded and reading goes on, so that all of them come out at once; a key
//! that was bad is not reported as missing too.

use super::problem::{Place, Problem, Problems};
use super::tree::{Node, Table, Value};

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub value: T,
    pub place: Place,
    /// The path of its key.
    pub key: String,
}

impl<T> At<T> {
    /// A problem with this value.
    pub fn problem(&self, found: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem { place: self.place.clone(), key: self.key.clone(), found: found.into(), remedy: remedy.into() }
    }
}

/// Why a value cannot be taken: what was found, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub found: String,
    pub remedy: String,
}

/// A table being read.
pub(super) struct Section<'a> {
    pub key: String,
    pub place: Place,
    rest: Table,
    known: Vec<&'static str>,
    pub problems: &'a mut Problems,
}

impl Section<'_> {
    /// Reads a table with `body`, then reports the keys that `body` did not ask for. None if it is no table, which is
    /// reported too.
    pub fn read<T>(
        node: Node,
        key: String,
        problems: &mut Problems,
        body: impl FnOnce(&mut Section<'_>) -> T,
    ) -> Option<T> {
        let Value::Table(rest) = node.value else {
            let found = format!("{} is not a table", super::value::shown(&node));
            problems.add(Problem {
                place: node.place,
                key,
                found,
                remedy: "expected a table of keys and values".into(),
            });
            return None;
        };
        let mut section = Section { key, place: node.place, rest, known: Vec::new(), problems };
        let read = body(&mut section);
        section.report_unknown();
        Some(read)
    }

    /// The value of a key; None if it is absent or was refused.
    pub fn get<T>(&mut self, key: &'static str, read: impl FnOnce(&Node) -> Result<T, Refusal>) -> Option<T> {
        self.at(key, read).map(|at| at.value)
    }

    /// The value of a key with its place; None if it is absent or was refused.
    pub fn at<T>(&mut self, key: &'static str, read: impl FnOnce(&Node) -> Result<T, Refusal>) -> Option<At<T>> {
        let (node, key) = self.take(key)?;
        take_item(node, key, self.problems, read)
    }

    /// As [`Section::at`]; its absence is reported with what was `expected`.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Node) -> Result<T, Refusal>,
    ) -> Option<At<T>> {
        if !self.has(key) {
            self.missing(key, expected);
        }
        self.at(key, read)
    }

    /// A table within this one.
    pub fn section<T>(&mut self, key: &'static str, body: impl FnOnce(&mut Section<'_>) -> T) -> Option<T> {
        let (node, key) = self.take(key)?;
        Section::read(node, key, self.problems, body)
    }

    /// The items of a list, each read by `item`; those that it refuses are left out. None if the key is absent or is no
    /// list.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        mut item: impl FnMut(Node, String, &mut Problems) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (node, key) = self.take(key)?;
        let Value::List(items) = node.value else {
            let found = format!("{} is not a list", super::value::shown(&node));
            let remedy = "expected a list, in square brackets".into();
            self.problems.add(Problem { place: node.place, key, found, remedy });
            return None;
        };
        let read =
            items.into_iter().enumerate().filter_map(|(i, node)| item(node, format!("{key}[{i}]"), self.problems));
        Some(read.collect())
    }

    /// Whether the key is there and has not been read yet.
    pub fn has(&self, key: &str) -> bool {
        self.rest.contains_key(key)
    }

    /// What kind of value the key has, for one that may have several shapes.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.rest.get(key).map(|entry| &entry.node.value)
    }

    /// The value of a key and the path to it.
    pub fn take(&mut self, key: &'static str) -> Option<(Node, String)> {
        self.known.push(key);
        self.rest.remove(key).map(|entry| (entry.node, self.path(key)))
    }

    /// All that is left, for a table whose keys are names.
    pub fn take_rest(&mut self) -> Table {
        std::mem::take(&mut self.rest)
    }

    /// The path of a key of this table.
    pub fn path(&self, key: &str) -> String {
        join(&self.key, key)
    }

    /// Reports a list that is absent or empty.
    pub fn needs_items(&mut self, key: &str, expected: &str) {
        match self.peek(key) {
            None => self.missing(key, expected),
            Some(Value::List(items)) if items.is_empty() => {
                self.refuse(key, "an empty list", &format!("expected {expected}"));
            }
            Some(_) => {}
        }
    }

    /// Where a key stands that has not been read yet; of the table, if it is not there.
    pub fn place_of(&self, key: &str) -> Place {
        self.rest.get(key).map_or(&self.place, |entry| &entry.key).clone()
    }

    /// Reports what is wrong with a key that is there and has not been read yet.
    pub fn refuse(&mut self, key: &str, found: &str, remedy: &str) {
        let place = self.place_of(key);
        let key = self.path(key);
        self.problems.add(Problem { place, key, found: found.into(), remedy: remedy.into() });
    }

    /// Reports that a key is absent.
    pub fn missing(&mut self, key: &str, expected: &str) {
        let (place, key) = (self.place.clone(), self.path(key));
        self.problems.add(Problem { place, key, found: "missing".into(), remedy: format!("expected {expected}") });
    }

    fn report_unknown(mut self) {
        for (name, entry) in self.take_rest() {
            let remedy = match nearest(&name, &self.known) {
                Some(known) => format!("did you mean {known:?}?"),
                None => format!("expected one of {}", self.known.join(", ")),
            };
            let key = self.path(&name);
            self.problems.add(Problem { place: entry.key, key, found: "unknown key".into(), remedy });
        }
    }
}

/// The path of a key in the table at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Reads one value, or reports why not.
pub(super) fn take_item<T>(
    node: Node,
    key: String,
    problems: &mut Problems,
    read: impl FnOnce(&Node) -> Result<T, Refusal>,
) -> Option<At<T>> {
    match read(&node) {
        Ok(value) => Some(At { value, place: node.place, key }),
        Err(Refusal { found, remedy }) => {
            problems.add(Problem { place: node.place, key, found, remedy });
            None
        }
    }
}

/// The known key that `name` was probably meant to be: less than half of it mistyped.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name: Vec<char> = name.chars().take(40).collect();
    let (edits, key) = known.iter().map(|key| (edits(&name, key), *key)).min()?;
    (edits * 2 < name.len().max(key.len())).then_some(key)
}

/// How many characters must be put in, left out or changed to make one of the other (Wagner and Fischer, 1974).
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (above, ca) in row.iter_mut().zip(std::iter::once(None).chain(a.iter().map(Some))) {
            let best = match ca {
                None => i + 1,
                Some(ca) => (diagonal + usize::from(*ca != cb)).min(*above + 1).min(left + 1),
            };
            diagonal = std::mem::replace(above, best);
            left = best;
        }
    }
    row.last().copied().unwrap_or(0)
}
