use super::*;

mod defaults;
mod health;
mod problems;
mod transports;
mod variables;

/// Reads `text` as `heddle.toml` and says its problems, one line each.
fn problems_of(text: &str) -> String {
    match parse(text, Path::new("heddle.toml"), &[]) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

fn config_of(text: &str) -> checked::Config {
    parse(text, Path::new("heddle.toml"), &[]).unwrap_or_else(|problems| panic!("{problems}")).config
}

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:4140\"\n";
