//! Peers that are written in Python.

use std::process::Command;

/// A Python that has this module, of the packages that `cargo xtask test` installs. Debian's own sees Debian's packages,
/// also where another Python comes first on the `PATH`.
#[track_caller]
pub fn python_with(module: &str) -> &'static str {
    let imports = |python: &str| {
        let import = Command::new(python).args(["-c", &format!("import {module}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let pythons = ["python3", "/usr/bin/python3"];
    let found = pythons.into_iter().find(|python| imports(python));
    found.unwrap_or_else(|| panic!("no Python has the module {module}; cargo xtask test installs it"))
}
