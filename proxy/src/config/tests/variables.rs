//! Overrides from the environment.

use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

fn with(text: &str, variables: &[(&str, &str)]) -> Result<checked::Config, String> {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    parse(text, Path::new("heddle.toml"), &variables)
        .map(|checked| checked.config)
        .map_err(|problems| problems.to_string())
}

#[test]
fn variables_override_keys() {
    let config = with(
        LISTENER,
        &[
            ("HEDDLE__ADMIN__ADDRESS", "127.0.0.1:0"),
            ("HEDDLE__WORKERS", "3"),
            ("HEDDLE__SUFFIX", ""),
            ("HEDDLE__LISTENER__0__FORWARDED", "legacy"),
            ("HEDDLE__SERVICE__USERS__BALANCER", r#"{ plugin = "url-hash", by = "path" }"#),
            ("HEDDLE__SERVICE__USERS__POOL__MAX_IDLE", "5"),
            ("HEDDLE_WORKERS", "of another program"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.admin.unwrap().port(), 0);
    assert_eq!((config.workers, config.suffix.as_str()), (3, ""));
    assert_eq!(config.listeners[0].forwarded, checked::Forwarded::Legacy);
    let users = config.services.get("users");
    assert_eq!((&*users.balancer.config, users.pool.max_idle), (r#"{"by":"path"}"#, 5));
}

#[test]
fn a_whole_configuration_can_be_variables() {
    let config = with("", &[("HEDDLE__LISTENER", r#"[{ address = "127.0.0.1:0" }]"#)]).unwrap();
    assert_eq!(config.listeners.len(), 1);
}

/// A password of digits is one, although the value reads as a TOML integer.
#[test]
fn text_needs_no_quotes() {
    let etcd = format!(
        "{LISTENER}[registry.etcd]\nendpoints = [\"http://a:1\"]\nuser = \"u\"\nwatch = [{{ prefix = \"/\" }}]"
    );
    for (value, password) in [("0123", "0123"), ("12e1", "12e1"), ("true", "true"), ("a\"b", "a\"b"), ("\"q\"", "q")] {
        let config = with(&etcd, &[("HEDDLE__REGISTRY__ETCD__PASSWORD", value)]).unwrap();
        assert_eq!(config.registry.etcd.unwrap().login.unwrap().password, password.into());
    }
}

#[test]
fn problems_name_the_variable() {
    for ((name, value), expected) in [
        (("HEDDLE__WORKERS", "no"), "HEDDLE__WORKERS: workers: \"no\" is not an integer; expected 1 to 1024"),
        (("HEDDLE__WORKRES", "1"), "HEDDLE__WORKRES: workres: unknown key; did you mean \"workers\"?"),
        (("HEDDLE__", "1"), "HEDDLE__: the name says no key; expected HEDDLE__SECTION__KEY"),
        (
            ("HEDDLE__ADMIN____ADDRESS", "1"),
            "HEDDLE__ADMIN____ADDRESS: the name says no key; expected HEDDLE__SECTION__KEY",
        ),
        (
            ("HEDDLE__LISTENER__1__ADDRESS", "127.0.0.1:1"),
            "HEDDLE__LISTENER__1__ADDRESS: listener has no item 1: it has 1, counted from 0; expected the number of an item, or the whole list as TOML in one variable",
        ),
        (
            ("HEDDLE__LISTENER__0__ADDRESS__X", "1"),
            "HEDDLE__LISTENER__0__ADDRESS__X: listener.0.address is a single value and has no keys; expected [listener.0.address] as a table in the file, or the whole value in one variable",
        ),
        (
            ("HEDDLE__REGISTRY__FILE__RESCAN", "1s"),
            "HEDDLE__REGISTRY__FILE__RESCAN: registry.file.path: missing; expected the path of a .toml or .json file",
        ),
    ] {
        assert_eq!(with(LISTENER, &[(name, value)]).unwrap_err(), expected);
    }
    let bytes = OsString::from_vec(vec![0xff]);
    let problems = parse(LISTENER, Path::new("heddle.toml"), &[("HEDDLE__VIA".into(), bytes)]).unwrap_err();
    assert_eq!(problems.to_string(), "HEDDLE__VIA: the value is not UTF-8; expected text");
}

#[test]
fn depth_is_bounded() {
    let name = format!("HEDDLE{}", "__A".repeat(100_000));
    let problems = with(LISTENER, &[(&name, "1")]).unwrap_err();
    assert!(problems.ends_with(": the name says no key; expected HEDDLE__SECTION__KEY"));
}

proptest! {
    #[test]
    fn any_variable_is_answered(name in "HEDDLE__([A-Z0-9]{0,4}_{0,3}){0,6}", value in "\\PC*") {
        let _ = with(LISTENER, &[(&name, &value)]);
    }

    #[test]
    fn any_value_is_answered(
        name in prop::sample::select(&["LISTENER", "LISTENER__0", "ADMIN", "PLUGINS", "REGISTRY", "SERVICE__A__BALANCER", "SERVICE"][..]),
        value in "[\\[\\]{}=\"a-c0-9., ]{0,30}",
    ) {
        let _ = with(LISTENER, &[(&format!("HEDDLE__{name}"), &value)]);
    }
}
