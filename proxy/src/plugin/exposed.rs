//! Which of a request's credentials a policy may read.
//!
//! A policy comes from somewhere else than the proxy, and what it reads can leave through its choice of endpoints or its log
//! lines. So headers that carry credentials read as absent, unless the operator named them in the settings of that policy:
//! as the key of a hash (`by = "header:authorization"`, `by = "cookie:session"`), as the value of a setting of its own
//! (`header = "cookie"`), or in `expose_headers`, a list that is for the proxy alone: the guest's own settings come without
//! it.

use std::borrow::Cow;

use serde_json::Value;

/// Headers that carry credentials.
const HIDDEN: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];

/// The setting that lists exceptions.
pub const EXPOSE_HEADERS: &str = "expose_headers";

/// The hidden headers that a policy may read all the same, by their place in [`HIDDEN`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exposed([bool; HIDDEN.len()]);

impl Exposed {
    /// What a policy's settings, a JSON object, expose; and the settings as the guest gets them.
    pub fn by_settings(config: &str) -> (Self, Cow<'_, str>) {
        let mut exposed = Self::default();
        let Ok(mut settings) = serde_json::from_str(config) else { return (exposed, config.into()) };
        exposed.add(&settings);
        let removed = match &mut settings {
            Value::Object(settings) => settings.remove(EXPOSE_HEADERS),
            _ => None,
        };
        match removed {
            Some(_) => (exposed, settings.to_string().into()),
            None => (exposed, config.into()),
        }
    }

    /// Exposes what any text within these settings names.
    fn add(&mut self, settings: &Value) {
        match settings {
            Value::String(text) => self.add_named(text),
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(settings) => settings.values().for_each(|value| self.add(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn add_named(&mut self, text: &str) {
        let name = match text.split_once(':') {
            Some(("header", name)) => name.trim(),
            Some(("cookie", _)) => "cookie",
            _ => text.trim(),
        };
        if let Some(place) = place(name)
            && let Some(exposed) = self.0.get_mut(place)
        {
            *exposed = true;
        }
    }

    /// Whether a policy may read the header of this name.
    pub fn allows(&self, name: &str) -> bool {
        place(name).is_none_or(|place| self.0.get(place) == Some(&true))
    }
}

fn place(name: &str) -> Option<usize> {
    HIDDEN.iter().position(|hidden| hidden.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(config: &str) -> Vec<&'static str> {
        let (exposed, _) = Exposed::by_settings(config);
        assert!(exposed.allows("x-user") && exposed.allows("Authorizations"));
        HIDDEN.into_iter().filter(|name| exposed.allows(&name.to_uppercase())).collect()
    }

    /// Issue 10, 9: credentials are absent unless the policy's settings name them.
    #[test]
    fn credentials_are_for_policies_whose_settings_name_them() {
        assert!(allowed("{}").is_empty() && allowed(r#"{"by":"header:x-user"}"#).is_empty());
        assert!(allowed("no JSON: authorization").is_empty());
        assert_eq!(allowed(r#"{"by":"header:Authorization"}"#), ["authorization"]);
        assert_eq!(allowed(r#"{"by":"cookie:session"}"#), ["cookie"]);
        assert_eq!(allowed(r#"{"keys":["path",{"header":"proxy-authorization"}]}"#), ["proxy-authorization"]);
        assert_eq!(allowed(r#"{"expose_headers":["Set-Cookie","Cookie"],"by":"path"}"#), ["cookie", "set-cookie"]);
    }

    #[test]
    fn the_list_of_exceptions_is_not_among_the_guests_settings() {
        let config = r#"{"by":"path","expose_headers":["cookie"]}"#;
        assert_eq!(Exposed::by_settings(config).1, r#"{"by":"path"}"#);
        assert_eq!(Exposed::by_settings(r#"{"by": 1}"#).1, r#"{"by": 1}"#);
    }
}
