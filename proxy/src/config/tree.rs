//! The configuration as a tree in which each value knows where it was written.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, Problems};

/// A value and where it was written.
#[derive(Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
    /// The text of a variable whose value reads as a TOML number, date or truth value. A key that wants a string takes
    /// this, so that a password of digits needs no quotes.
    pub raw: Option<String>,
}

/// A TOML value.
#[derive(Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Flag(bool),
    List(Vec<Node>),
    Table(Table),
    /// What no key takes, as it was written: a date, or an integer of more than 64 bits.
    Other(String),
}

/// The entries of a table, by key.
pub(super) type Table = BTreeMap<String, Entry>;

/// One entry of a table.
#[derive(Clone)]
pub(super) struct Entry {
    /// Where the key was written.
    pub key: Place,
    pub node: Node,
}

/// Reads a document. None if its text is not TOML: what the rest of it would mean is a guess, so that nothing else is
/// reported then, and each line once. Keys that stand twice leave no doubt about the rest.
pub(super) fn document(text: &str, file: &Arc<Path>, problems: &mut Problems) -> Option<Node> {
    let lines = Lines::new(text, file);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<_> = errors.iter().map(|e| (e.span().map_or(0, |span| span.start), e.message())).collect();
    errors.sort();
    errors.dedup_by_key(|(at, _)| lines.index(*at));
    let readable = errors.iter().all(|(_, message)| *message == DOUBLE);
    for (at, message) in errors {
        let (found, wanted) = message.split_once(", expected ").unwrap_or((message, "TOML as on https://toml.io"));
        let wanted = match found {
            DOUBLE => "each key once",
            "invalid boolean" => "true or false, or text in quotes",
            "string values must be quoted" => "text in quotes",
            _ => wanted,
        };
        problems.add(Problem {
            place: lines.place(at),
            key: String::new(),
            found: format!("not TOML: {}", one_line(found)),
            remedy: format!("expected {}", one_line(wanted)),
        });
    }
    let convert = || Value::Table(convert_table(table.into_inner(), &|at| lines.place(at)));
    readable.then(|| Node { place: Place::File { file: file.clone() }, value: convert(), raw: None })
}

/// How the parser calls a key that stands twice.
const DOUBLE: &str = "duplicate key";

/// The value of a variable: TOML if it reads as such, else a string.
pub(super) fn variable(text: &str, place: Place) -> Node {
    let value = match DeValue::parse(text) {
        Ok(value) => convert(value.into_inner(), &|_| place.clone()),
        Err(_) => Value::Text(text.to_owned()),
    };
    let raw = match value {
        Value::Text(_) | Value::List(_) | Value::Table(_) => None,
        Value::Integer(_) | Value::Float(_) | Value::Flag(_) | Value::Other(_) => Some(text.to_owned()),
    };
    Node { place, value, raw }
}

fn convert(value: DeValue<'_>, place: &dyn Fn(usize) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other(integer.to_string()),
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Other(float.to_string()),
        },
        DeValue::Boolean(flag) => Value::Flag(flag),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(mut list) => Value::List(
            list.iter_mut()
                .map(|item| Node {
                    place: place(item.span().start),
                    value: convert(std::mem::replace(item.get_mut(), DeValue::Boolean(false)), place),
                    raw: None,
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(convert_table(table, place)),
    }
}

fn convert_table(table: DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let node = Node { place: place(value.span().start), value: convert(value.into_inner(), place), raw: None };
            let at = place(key.span().start);
            (key.into_inner().into_owned(), Entry { key: at, node })
        })
        .collect()
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Finds lines and columns in a text.
pub(super) struct Lines<'a> {
    text: &'a str,
    file: &'a Arc<Path>,
    /// Where each line begins, in bytes.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn new(text: &'a str, file: &'a Arc<Path>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, file, starts }
    }

    /// The line, counted from 1, of the byte at `at`.
    fn index(&self, at: usize) -> usize {
        self.starts.partition_point(|&start| start <= at)
    }

    /// The place of the byte at `at`.
    pub fn place(&self, at: usize) -> Place {
        let line = self.index(at);
        let start = line.checked_sub(1).and_then(|i| self.starts.get(i)).copied().unwrap_or(0);
        let before = self.text.get(start..at).unwrap_or_default();
        Place::Text { file: self.file.clone(), line, column: before.chars().count() + 1 }
    }
}
