//! A weight in whatever spelling a registration has it.
//!
//! Writers are many: JSON encoders of dynamic languages write `2.0`, some write `1e2`, `"100"` or `null`. A whole number
//! is one in any spelling, and `null` is as good as absent. What cannot be read keeps the endpoint, with weight 1 and a
//! warning: an endpoint that is registered most likely serves, and its weight is the least of what is known of it.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The weight of an endpoint for which none is given.
pub const DEFAULT: u32 = 1;

/// A weight as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Weight {
    /// None is given.
    #[default]
    Absent,
    Is(u32),
    /// Something that is no weight, cut short.
    Unreadable(String),
}

impl Weight {
    /// The weight that holds, and a warning where it is not the one that was meant.
    pub fn or_warning(self) -> (u32, Option<String>) {
        match self {
            Self::Absent => (DEFAULT, None),
            Self::Is(weight) => (weight, None),
            Self::Unreadable(what) => {
                (DEFAULT, Some(format!("the weight {what} is no whole number from 0 to {}; 1 is used", u32::MAX)))
            }
        }
    }

    fn of_number(number: f64) -> Option<Self> {
        let is_one = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
        // In the range by the line above, so nothing is cut off.
        is_one.then_some(Self::Is(number as u32))
    }

    fn of_text(text: &str) -> Self {
        let text = text.trim();
        // Words such as "inf" are numbers to Rust only.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        let number = text.parse::<f64>().ok().filter(|_| is_number);
        number.and_then(Self::of_number).unwrap_or_else(|| Self::Unreadable(format!("{:?}", super::shown(text))))
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WeightVisitor)
    }
}

struct WeightVisitor;

impl<'de> Visitor<'de> for WeightVisitor {
    type Value = Weight;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a weight")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Weight, E> {
        Ok(u32::try_from(number).map_or_else(|_| Weight::Unreadable(number.to_string()), Weight::Is))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Weight, E> {
        Ok(u32::try_from(number).map_or_else(|_| Weight::Unreadable(number.to_string()), Weight::Is))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Weight, E> {
        Ok(Weight::of_number(number).unwrap_or_else(|| Weight::Unreadable(format!("{number:e}"))))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Weight, E> {
        Ok(Weight::of_text(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Weight, E> {
        Ok(Weight::Absent)
    }

    fn visit_none<E: de::Error>(self) -> Result<Weight, E> {
        Ok(Weight::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Weight, D::Error> {
        Weight::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Weight, E> {
        Ok(Weight::Unreadable(flag.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Weight, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Weight::Unreadable("(a list)".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Weight, A::Error> {
        while pairs.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Weight::Unreadable("(an object)".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Weight {
        serde_json::from_str(json).expect(json)
    }

    /// Issue 10, 14: whole numbers in any spelling, and null as absent.
    #[test]
    fn whole_numbers_in_any_spelling() {
        for (text, weight) in [
            ("0", 0),
            ("2", 2),
            ("2.0", 2),
            ("1e2", 100),
            ("20e-1", 2),
            ("-0", 0),
            ("-0.0", 0),
            ("4294967295", u32::MAX),
            ("4.294967295e9", u32::MAX),
            ("\"7\"", 7),
            ("\" 1e2 \"", 100),
            ("\"2.0\"", 2),
        ] {
            assert_eq!(read(text), Weight::Is(weight), "{text}");
        }
        assert_eq!(read("null").or_warning(), (1, None));
    }

    #[test]
    fn what_is_no_weight_is_1_with_a_warning() {
        for text in [
            "-1",
            "1.5",
            "4294967296",
            "1e99",
            "99999999999999999999",
            "true",
            "[1]",
            "{\"a\":[1]}",
            "\"\"",
            "\"heavy\"",
            "\"inf\"",
            "\"-1\"",
        ] {
            let (weight, warning) = read(text).or_warning();
            assert!(weight == 1 && warning.is_some(), "{text}");
        }
    }
}
