//! Compiles a plugin of anyone's, with whichever toolchain the built-in ones are compiled with.

use std::fs;
use std::path::Path;

use crate::setup;
use crate::step::{self, Failure};
use crate::toolchain::TARGET;

/// Compiles the package in `folder` to a module of the package's name in `into`.
pub fn run(folder: &Path, into: &Path) -> Result<(), Failure> {
    let failed = |what: &Path, error| Failure::new(format!("{}: {error}", what.display()));
    let folder = folder.canonicalize().map_err(|error| failed(folder, error))?;
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|error| failed(&manifest, error))?;
    let name = package_name(&text).ok_or_else(|| Failure::new(format!("{}: no name", manifest.display())))?;
    let target = step::target().join("wasm-plugins");

    let toolchain = setup::for_build()?;
    step::run(&format!("compile {name}"), &mut toolchain.build(&step::cargo_path(), &folder, &target))?;

    // Renamed into place, so that a proxy that watches the folder never reads half of it.
    let module = target.join(TARGET).join("release").join(name.replace('-', "_")).with_extension("wasm");
    let part = into.join(format!(".{name}.wasm.part"));
    let place = into.join(format!("{name}.wasm"));
    fs::create_dir_all(into).map_err(|error| failed(into, error))?;
    fs::copy(&module, &part).map_err(|error| failed(&module, error))?;
    fs::rename(&part, &place).map_err(|error| failed(&place, error))?;
    step::say(&format!("{} is ready", place.display()));
    Ok(())
}

/// The first name in a manifest, which is the package's where it is written as `cargo new` does.
fn package_name(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
}
