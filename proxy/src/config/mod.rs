//! One TOML file says how a proxy runs; variables of the environment may override it.
//!
//! On the way from text to [`checked::Config`] everything that is wrong is collected, with the line and what was
//! expected: `tree` parses the text so that each value knows its place, `env` lays the variables over it, `file`,
//! `listener`, `service`, `health` and `tls` say which keys there are and which go together, `value` what each may be, and `check`
//! fills in defaults and looks at what several tables or other files say together.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

pub mod checked;

mod bypasses;
mod check;
mod env;
mod file;
mod health;
mod listener;
pub mod names;
mod problem;
mod read;
mod service;
#[cfg(test)]
mod tests;
mod tls;
mod tree;
mod value;

use crate::policy::Role;
use crate::regular;
pub use bypasses::bypasses;
pub use env::environment;
pub use problem::{Place, Problem, Problems};
pub use read::Refusal;
pub use value::is_service_name;

/// A configuration that holds, and where its policies were written.
#[derive(Debug, Clone)]
pub struct Checked {
    pub config: checked::Config,
    /// Each address that the file has the proxy listen on.
    pub listening: Vec<Listening>,
    /// Each policy that the file names, and the default balancer. Whether there are such plugins, and whether they take
    /// these settings, is for the plugin host to say: see [`Checked::check_policies`].
    pub policies: Vec<Written>,
}

/// A policy and where it was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// `service.users.balancer`.
    pub key: String,
    pub place: Place,
    pub policy: checked::Policy,
    pub role: Role,
}

/// An address to listen on, and where it was written.
#[derive(Debug, Clone)]
pub struct Listening {
    /// `listener[0].address`.
    pub key: String,
    pub place: Place,
    pub address: SocketAddr,
}

impl Checked {
    /// Asks `accepts` about every policy. Its `Err` says what is wrong and what would do.
    pub fn check_policies(
        &self,
        mut accepts: impl FnMut(&checked::Policy, Role) -> Result<(), Refusal>,
    ) -> Result<(), Problems> {
        let mut problems = Problems::default();
        for Written { key, place, policy, role } in &self.policies {
            if let Err(Refusal { found, remedy }) = accepts(policy, *role) {
                problems.add(Problem { place: place.clone(), key: key.clone(), found, remedy });
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.sorted()) }
    }
}

/// Reads and checks a file. `variables` are those of the environment, as [`environment`] gives them, or `&[]`.
///
/// # Errors
///
/// All that is wrong with the file and the variables. Text that is not TOML, or not UTF-8, is reported for that alone.
pub fn load(path: &Path, variables: &[(OsString, OsString)]) -> Result<Checked, Problems> {
    let alone = |place: Place, found: String, remedy: &str| {
        let mut problems = Problems::default();
        problems.add(Problem { place, key: String::new(), found, remedy: remedy.to_owned() });
        problems
    };
    let file: Arc<Path> = Arc::from(path);
    let bytes = regular::read(path, regular::TEXT).map_err(|error| {
        alone(Place::File { file: file.clone() }, format!("cannot be read: {error}"), "expected a TOML file")
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes().get(..good).unwrap_or_default());
        let place = tree::Lines::new(&text, &file).place(good);
        alone(place, "not UTF-8".to_owned(), "expected text")
    })?;
    parse(&text, path, variables)
}

/// As [`load`], from text. `origin` names it in problems, and relative paths start from the folder that `origin` is in.
///
/// # Errors
///
/// As [`load`].
pub fn parse(text: &str, origin: &Path, variables: &[(OsString, OsString)]) -> Result<Checked, Problems> {
    let file: Arc<Path> = Arc::from(origin);
    let mut problems = Problems::default();
    let Some(mut root) = tree::document(text, &file, &mut problems) else { return Err(problems.sorted()) };
    env::overlay(&mut root, variables, &mut problems);
    let place = root.place.clone();
    let base = origin.parent().unwrap_or(Path::new(""));
    let checked = read::Section::read(root, String::new(), &mut problems, |s| file::File::read(s, base))
        .map(|written| check::check(written, place, &mut problems));
    match checked {
        Some(checked) if problems.is_empty() => Ok(checked),
        _ => Err(problems.sorted()),
    }
}
