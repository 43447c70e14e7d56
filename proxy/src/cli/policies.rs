//! Whether the balancers that a configuration names are there and take their settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::checked::Policy;
use crate::config::{Checked, Problems, Refusal};
use crate::plugin::{Engine, Fault, FaultKind, Folder, Generation, LoadError, Origin, builtin_names, builtin_policy};
use crate::policy::Role;

/// Loads every balancer with its settings, and unloads it again.
///
/// # Errors
///
/// For each that cannot be used where the configuration names it, and why. A file in the folder of plugins stands in
/// the place of a built-in policy of its name, so it is the file that has to be in order.
pub fn check(checked: &Checked) -> Result<(), Problems> {
    let plugins = &checked.config.plugins;
    let engine = Engine::new(plugins.clone(), Clock::running());
    checked.check_policies(|policy, role| match &engine {
        Ok(engine) => accepts(engine, plugins.folder.as_deref(), policy, role),
        Err(error) => Err(Refusal {
            found: format!("plugins cannot be run here: {error:#}"),
            remedy: "expected a processor that WebAssembly can be compiled for".into(),
        }),
    })
}

fn accepts(engine: &Arc<Engine>, folder: Option<&Path>, policy: &Policy, role: Role) -> Result<(), Refusal> {
    let name = &policy.plugin;
    let uses = [(role, policy.config.clone())];
    let builtin = || builtin_policy(name).map(|bytes| Generation::load(engine, name, bytes, Origin::BuiltIn, &uses));
    let file = folder.map_or(Ok(None), |folder| Folder::read(folder, name));
    let loaded = match (file, folder) {
        (Ok(None), folder) => match builtin() {
            Some(loaded) => loaded.map_err(|error| (name.to_string(), error)),
            None => return Err(missing(folder, name)),
        },
        (file, folder) => {
            let path = folder.unwrap_or(Path::new("")).join(format!("{name}.wasm"));
            let load =
                |(path, bytes): (PathBuf, Vec<u8>)| Generation::load(engine, name, &bytes, Origin::File(path), &uses);
            match file.and_then(|found| found.map(load).transpose()) {
                Ok(_) => return Ok(()),
                Err(error) => match builtin() {
                    // As a start: the built-in policy is used.
                    Some(Ok(_)) => {
                        eprintln!("heddle: {} cannot be used: {error}; the built-in policy is used", path.display());
                        return Ok(());
                    }
                    _ => Err((path.display().to_string(), error)),
                },
            }
        }
    };
    loaded.map(drop).map_err(|(what, error)| refused(&what, error))
}

fn missing(folder: Option<&Path>, name: &str) -> Refusal {
    let names = builtin_names().join(", ");
    let remedy = match folder {
        Some(folder) => {
            format!("expected the file {}, or one of {names}", folder.join(format!("{name}.wasm")).display())
        }
        None => format!("expected one of {names}; other policies need a folder of plugins"),
    };
    Refusal { found: format!("no policy is called {name:?}"), remedy }
}

fn refused(what: &str, error: LoadError) -> Refusal {
    match error {
        LoadError::Probe { config, fault: Fault { kind: FaultKind::Configure, cause, .. } } => {
            Refusal { found: format!("{what} refuses its settings {config}"), remedy: cause }
        }
        error => Refusal {
            found: format!("{what} cannot be used: {error}"),
            remedy: "expected a policy that works with these settings".into(),
        },
    }
}
