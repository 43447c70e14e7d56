use serde::de::DeserializeOwned;

/// A policy's settings: what the service's configuration says beside the name of the plugin.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a>(&'a str);

impl<'a> Config<'a> {
    /// Settings from the text of one JSON object.
    #[must_use]
    pub fn new(json: &'a str) -> Self {
        Self(json)
    }

    /// The text: one JSON object, `{}` where the configuration says nothing.
    #[must_use]
    pub fn json(self) -> &'a str {
        self.0
    }

    /// For a policy that has no settings: nothing may be set.
    ///
    /// # Errors
    ///
    /// A text that says so, where the object is not empty.
    pub fn expect_empty(self) -> Result<(), String> {
        let inside = self.0.trim_ascii().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match inside {
            Some(inside) if inside.trim_ascii().is_empty() => Ok(()),
            _ => Err("this policy takes no settings; found ".to_owned() + self.0),
        }
    }

    /// The settings as a type of the policy's own. Give it `#[serde(deny_unknown_fields)]`, so that a mistyped name is
    /// refused and not ignored.
    ///
    /// # Errors
    ///
    /// What is wrong and where, for the person who wrote the configuration.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, String> {
        serde_json::from_str(self.0).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn an_empty_object_is_empty_with_any_space() {
        for json in ["{}", " { } ", "{\n\t}\n"] {
            assert_eq!(Config::new(json).expect_empty(), Ok(()), "{json}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for json in ["", "[]", "{", "}", "null", r#"{"a": {}}"#, "{}{}"] {
            assert!(Config::new(json).expect_empty().is_err(), "{json}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let refusal = Config::new("{\"a\": x}").parse::<std::collections::HashMap<String, u32>>();
        assert_eq!(refusal, Err("expected value at line 1 column 7".to_owned()));
    }
}
