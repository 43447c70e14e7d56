//! What is linked into `heddle`: the licences of it all, and what must not be among it.
//!
//! Cargo says what is linked (`cargo tree`, without what only tests and builds need) and where its sources are
//! (`cargo metadata`); both without the network. The built-in policies are compiled into the binary, so what is linked
//! into these counts too. The texts are the files that packages bring with them, each distinct text once. A package
//! without one has the texts of another one of its repository, or of one under the same terms; without such a one there
//! is a failure, not a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::step::{Failure, cargo, root, say};

/// What must not be linked, and why.
const BANNED: &[(&str, &str)] = &[("ring", "the proxy has one cryptographic library, aws-lc-rs")];

/// How files begin that hold licences, in capitals.
const NAMES: [&str; 7] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE", "PATENTS"];

/// How deep below a package they are looked for: C libraries come in folders of their own.
const DEPTH: usize = 4;

/// A package, by name and version.
type Id = (String, String);

#[derive(Debug)]
struct Package {
    licence: String,
    repository: String,
    folder: PathBuf,
    is_own: bool,
}

/// Fails if something is linked that must not be.
pub fn check_linked() -> Result<(), Failure> {
    say("what is linked");
    let linked = linked()?;
    for (banned, why) in BANNED {
        if linked.iter().any(|(name, _)| name == banned) {
            let see = format!("cargo tree --package heddle --edges normal --invert {banned}");
            return Err(Failure::new(format!("{banned} is linked into heddle, but {why}; see {see}")));
        }
    }
    // So that it shows here, and not when an image is made.
    text().map(drop)
}

/// Writes the licences of all that is linked to a file.
pub fn write(path: &Path) -> Result<(), Failure> {
    let text = text()?;
    let failed = |error| Failure::new(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

/// All packages that are linked into the binary, and into the policies inside it.
fn linked() -> Result<BTreeSet<Id>, Failure> {
    let tree = ["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let mut proxy = cargo(&tree);
    let mut policies = cargo(&tree);
    policies.current_dir(plugins()).args(["--workspace", "--target", WASM]);
    let mut lines = output(proxy.args(["--package", "heddle"]))?;
    lines.push_str(&output(&mut policies)?);
    Ok(lines.lines().filter_map(parse).collect())
}

const WASM: &str = "wasm32-unknown-unknown";

fn plugins() -> PathBuf {
    root().join("plugins")
}

/// `serde v1.0.228 (proc-macro) (*)`.
fn parse(line: &str) -> Option<Id> {
    let mut words = line.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
}

fn output(command: &mut Command) -> Result<String, Failure> {
    let what = format!("{} {:?}", command.get_program().display(), command.get_args().collect::<Vec<_>>());
    let output = command.output().map_err(|error| Failure::new(format!("{what}: did not start: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    String::from_utf8(output.stdout).map_err(|error| Failure::new(format!("{what}: {error}")))
}

/// Where the sources of packages are.
fn packages() -> Result<BTreeMap<Id, Package>, Failure> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::new("rustc -vV names no host"))?;
    let mut packages = BTreeMap::new();
    for (folder, platform) in [(root().to_owned(), host), (plugins(), WASM)] {
        let mut metadata = cargo(&["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform"]);
        let text = output(metadata.current_dir(folder).arg(platform))?;
        let metadata: Value =
            serde_json::from_str(&text).map_err(|error| Failure::new(format!("cargo metadata: {error}")))?;
        let found = metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
        packages.extend(found.filter_map(package));
    }
    Ok(packages)
}

fn package(of: &Value) -> Option<(Id, Package)> {
    let text = |key: &str| Some(of.get(key)?.as_str()?.to_owned());
    let repository = text("repository").unwrap_or_default();
    let package = Package {
        licence: text("license").unwrap_or_else(|| "see the text".to_owned()),
        // Some name a folder of it.
        repository: repository.split("/tree/").next().unwrap_or_default().trim_end_matches(".git").to_owned(),
        folder: Path::new(&text("manifest_path")?).parent()?.to_owned(),
        is_own: of.get("source").is_none_or(Value::is_null),
    };
    Some(((text("name")?, text("version")?), package))
}

/// The licences of all that is linked.
fn text() -> Result<String, Failure> {
    let (linked, packages) = (linked()?, packages()?);
    let mut known: BTreeMap<&Id, (&Package, Vec<usize>)> = BTreeMap::new();
    let mut texts: Vec<(String, String)> = Vec::new();
    for id in &linked {
        let package = packages.get(id).ok_or_else(|| Failure::new(format!("{} {}: no sources", id.0, id.1)))?;
        if package.is_own {
            continue;
        }
        let mut of_package = Vec::new();
        for (name, text) in files(&package.folder) {
            let number = texts.iter().position(|(_, known)| *known == text).unwrap_or_else(|| {
                texts.push((format!("{name} of {} {}", id.0, id.1), text));
                texts.len() - 1
            });
            if !of_package.contains(&number) {
                of_package.push(number);
            }
        }
        known.insert(id, (package, of_package));
    }
    let mut list = String::new();
    for ((name, version), (package, own)) in &known {
        let numbers = if own.is_empty() { stand_in(package, &known) } else { Some(own) };
        let numbers = numbers.ok_or_else(|| Failure::new(format!("{name} {version}: no licence text")))?;
        let numbers: Vec<String> = numbers.iter().map(|number| (number + 1).to_string()).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(list, "{name} {version}: {} (text {})", package.licence, numbers.join(", "));
    }
    texts.extend(standard_library()?);
    let mut all = format!("{INTRODUCTION}\n\n{list}");
    for (number, (origin, text)) in texts.iter().enumerate() {
        let _ = write!(all, "\n\n======== Text {}: {origin}\n\n{}\n", number + 1, text.trim_end());
    }
    Ok(all)
}

const INTRODUCTION: &str = "\
The program heddle contains code of the following packages, and of the Rust standard library. Behind each stand its
terms, as the package has them, and the texts below that belong to it.";

/// The texts of another package of the same repository, or under the same terms.
fn stand_in<'a>(of: &Package, known: &'a BTreeMap<&Id, (&Package, Vec<usize>)>) -> Option<&'a Vec<usize>> {
    let with_texts = || known.values().filter(|(_, texts)| !texts.is_empty());
    let of_repository = |other: &Package| !of.repository.is_empty() && other.repository == of.repository;
    let same = with_texts().find(|(other, _)| of_repository(other) && other.licence == of.licence);
    let near = || with_texts().find(|(other, _)| of_repository(other));
    let alike = || with_texts().find(|(other, _)| other.licence == of.licence);
    same.or_else(near).or_else(alike).map(|(_, texts)| texts)
}

/// Name and text of each licence in a package, in the order of their paths.
fn files(package: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![(package.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if path.is_file() && is_licence(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    let read = |path: PathBuf| {
        let text = String::from_utf8_lossy(&fs::read(&path).ok()?).replace("\r\n", "\n");
        Some((path.strip_prefix(package).ok()?.display().to_string(), text))
    };
    found.into_iter().filter_map(read).collect()
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_uppercase();
    let code = [".RS", ".C", ".H", ".PY", ".TOML", ".JSON", ".SH"];
    NAMES.iter().any(|start| name.starts_with(start)) && !code.iter().any(|end| name.ends_with(end))
}

/// The texts that come with the compiler, whose library is in every binary. None where it is installed without them.
fn standard_library() -> Result<Vec<(String, String)>, Failure> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let folder = Path::new(sysroot.trim()).join("share/doc/rust");
    let of = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        Some((format!("{name} of the Rust standard library"), text))
    };
    Ok(STANDARD.iter().copied().filter_map(of).collect())
}

/// The standard library is under MIT or Apache-2.0; compiler-builtins, and tables of characters in it, have terms of
/// their own. Where the texts are depends on the version.
const STANDARD: &[&str] = &[
    "COPYRIGHT",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "licenses/Apache-2.0.txt",
    "licenses/MIT.txt",
    "licenses/LLVM-exception.txt",
    "licenses/Unicode-3.0.txt",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, 17: `ring` is linked by nothing, and everything that is linked has a licence.
    #[test]
    fn what_is_linked_is_known() {
        let linked = linked().unwrap_or_else(|failure| panic!("{failure}"));
        let names: BTreeSet<&str> = linked.iter().map(|(name, _)| name.as_str()).collect();
        assert!(["rustls", "aws-lc-sys", "wasmtime", "tokio"].iter().all(|name| names.contains(name)), "{names:?}");
        assert!(["rcgen", "criterion", "proptest"].iter().all(|name| !names.contains(name)), "{names:?}");
        check_linked().unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// Issue 10, 17: what the image ships.
    #[test]
    fn the_texts_of_all_that_is_linked_are_there() {
        let text = text().unwrap_or_else(|failure| panic!("{failure}"));
        for part in [
            "\naws-lc-sys ",
            "\nwasmtime ",
            "\nlibmimalloc-sys ",
            "Apache License",
            "LLVM Exceptions to the Apache 2.0 License",
            "Permission is hereby granted, free of charge",
            // Of C code inside packages.
            "LICENSE of libmimalloc-sys",
            "aws-lc/LICENSE of aws-lc-sys",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("\nheddle "), "our own code is under our own licence");
    }

    #[test]
    fn a_line_of_the_tree_is_a_name_and_a_version() {
        let id = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
        assert_eq!(parse("serde v1.0.228 (*)"), id("serde", "1.0.228"));
        assert_eq!(parse("heddle v0.1.0 (/heddle/proxy)"), id("heddle", "0.1.0"));
        assert_eq!(parse(""), None);
    }
}
