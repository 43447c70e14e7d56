//! What is wrong with a configuration, one line for each thing to mend.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::log::Clean;

/// Where a part of the configuration was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere in particular: something is absent from the file, or holds by default.
    File { file: Arc<Path> },
    /// Line and column count from 1, the column in characters.
    Text { file: Arc<Path>, line: usize, column: usize },
    /// An environment variable (`HEDDLE__...`).
    Variable { name: Arc<str> },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file } => write!(f, "{}", file.display()),
            Place::Text { file, line, .. } => write!(f, "{}:{line}", file.display()),
            Place::Variable { name } => f.write_str(name),
        }
    }
}

/// One thing to mend. Displayed as one line: `heddle.toml:12: listener[0].address: "foo" is not an address; expected
/// IP:PORT such as "127.0.0.1:4140"`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    /// The path of the key, list items counted from 0: `listener[0].address`. Empty where no key is concerned.
    pub key: String,
    /// What was found there: `"foo" is not an address`.
    pub found: String,
    /// What would do instead: `expected IP:PORT such as "127.0.0.1:4140"`.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", Clean(&self.key))?;
        }
        write!(f, "{}; {}", Clean(&self.found), Clean(&self.remedy))
    }
}

/// Everything that is wrong with a configuration, in the order of the file; variables come last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In order, each once.
    pub(super) fn sorted(mut self) -> Problems {
        self.0.sort();
        self.0.dedup();
        self
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
