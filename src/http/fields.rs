//! Reads a flat JSON object of texts without stopping at the first mistake. All errors of its fields are
//! collected, so that the client learns all of them at once, with the messages of the rules.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer;
use serde::de::{Deserialize, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode};

use super::problem::Failure;

/// Maximum number of unknown fields that an error names, and the maximum length of their names.
const OTHER_MAX: usize = 16;
const OTHER_NAME_MAX_CHARS: usize = 64;
/// Maximum nesting depth of objects and arrays; the body itself is the first level. No nested value is
/// expected, so this only bounds the cost of parsing.
const NESTING_MAX: usize = 16;
const TOO_DEEP: &str = "The body is nested too deep: at most 16 levels";

/// The fields of an object: the values of the expected ones, and the errors.
#[derive(Debug)]
pub(super) struct Fields<'a, const N: usize> {
    /// In the order of the names; `None` if missing, null, or of the wrong type.
    pub(super) values: [Option<Cow<'a, str>>; N],
    /// The value of the numeric field, if there is one.
    pub(super) number: Option<i64>,
    /// Which of the fields are null.
    pub(super) nulls: [bool; N],
    wrong: FieldErrors,
    /// Fields with a NUL, which are refused even if no rule does.
    with_nul: FieldErrors,
    other: BTreeMap<String, &'static str>,
}

impl<'a, const N: usize> Fields<'a, N> {
    /// Reads `body`, an object with the fields `names`.
    ///
    /// # Errors
    /// `Invalid`: the body is not JSON, or not an object.
    pub(super) fn read(body: &'a [u8], names: [&'static str; N]) -> Result<Self, Failure> {
        Self::read_with(body, names, None)
    }

    /// Like `read`; the field `number` is a whole number instead of a text.
    ///
    /// # Errors
    /// As for `read`.
    pub(super) fn read_with(
        body: &'a [u8],
        names: [&'static str; N],
        number: Option<&'static str>,
    ) -> Result<Self, Failure> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let read =
            Names { names, number }.deserialize(&mut json).and_then(|fields| json.end().map(|()| fields));
        read.map_err(|error| {
            // Do not use the parser's message: it could repeat the client's input.
            if let Some(wrong) = no_text(body) {
                return Failure::new(ErrorCode::Invalid, wrong);
            }
            let detail = match error.classify() {
                serde_json::error::Category::Data if error.to_string().starts_with(TOO_DEEP) => {
                    TOO_DEEP.to_owned()
                }
                serde_json::error::Category::Data => "The body must be a JSON object".to_owned(),
                _ => format!("The body is not JSON: see line {}, column {}", error.line(), error.column()),
            };
            Failure::new(ErrorCode::Invalid, detail)
        })
    }

    /// Returns the result of the rules, unless the fields themselves have errors.
    ///
    /// # Errors
    /// `Invalid`, with all errors.
    pub(super) fn checked<T>(self, ruled: Result<T, FieldErrors>) -> Result<T, Failure> {
        let mut errors = self.wrong;
        match ruled {
            Ok(value) if errors.is_empty() && self.with_nul.is_empty() && self.other.is_empty() => {
                return Ok(value);
            }
            Ok(_) => {}
            Err(by_rules) => {
                for (field, message) in by_rules {
                    errors.entry(field).or_insert(message);
                }
            }
        }
        for (field, message) in self.with_nul {
            errors.entry(field).or_insert(message);
        }
        let mut failure = Failure::from(Error::invalid_fields(errors));
        failure.other_fields = self.other;
        Err(failure)
    }
}

/// Returns why `body` is not a JSON text at all (RFC 8259, section 8.1), where a line and column would not
/// help.
fn no_text(body: &[u8]) -> Option<&'static str> {
    if body.trim_ascii().is_empty() {
        Some("The body is empty: it must be a JSON object")
    } else if body.starts_with(b"\xef\xbb\xbf") {
        Some("The body begins with a byte order mark (U+FEFF): send the JSON without it")
    } else if std::str::from_utf8(body).is_err() {
        Some("The body is not UTF-8")
    } else {
        None
    }
}

/// Error message for a text with a NUL: the databases cannot store one.
const NUL: &str = "Cannot contain the character U+0000";

struct Names<const N: usize> {
    names: [&'static str; N],
    number: Option<&'static str>,
}

impl<'de, const N: usize> DeserializeSeed<'de> for Names<N> {
    type Value = Fields<'de, N>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Names<N> {
    type Value = Fields<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields {
            values: [const { None }; N],
            number: None,
            nulls: [false; N],
            wrong: FieldErrors::new(),
            with_nul: FieldErrors::new(),
            other: BTreeMap::new(),
        };
        let mut seen = [false; N];
        while let Some(Text(name)) = map.next_key()? {
            let name = name.ok_or_else(|| A::Error::custom("a key is a text"))?;
            let Some(at) = self.names.iter().position(|expected| *expected == name) else {
                map.next_value_seed(Skipped { levels: NESTING_MAX - 1 })?;
                if fields.other.len() < OTHER_MAX {
                    fields.other.insert(name.chars().take(OTHER_NAME_MAX_CHARS).collect(), "Unknown field");
                }
                continue;
            };
            if std::mem::replace(&mut seen[at], true) {
                map.next_value_seed(Skipped { levels: NESTING_MAX - 1 })?;
                fields.wrong.insert(self.names[at], "Given more than once");
                continue;
            }
            let is_number = self.number == Some(self.names[at]);
            match map.next_value()? {
                Given::Text(text) if !is_number => {
                    if text.contains('\0') {
                        fields.with_nul.insert(self.names[at], NUL);
                    }
                    fields.values[at] = Some(text);
                }
                Given::Number(number) if is_number => fields.number = Some(number),
                Given::Null => fields.nulls[at] = true,
                _ => {
                    let expected = if is_number { "Should be a whole number" } else { "Should be a text" };
                    fields.wrong.insert(self.names[at], expected);
                }
            }
        }
        Ok(fields)
    }
}

/// A key, borrowed where possible.
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Text(match Given::deserialize(deserializer)? {
            Given::Text(text) => Some(text),
            Given::Number(_) | Given::Null | Given::Other => None,
        }))
    }
}

/// A value: a text, a whole number, null, or anything else.
enum Given<'a> {
    Text(Cow<'a, str>),
    Number(i64),
    Null,
    Other,
}

impl<'de> Deserialize<'de> for Given<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Given<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Given::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Given::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Given::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Given::Other)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(i64::try_from(number).map_or(Given::Other, Given::Number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Given::Number(number))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Given::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let skipped = Skipped { levels: NESTING_MAX - 1 };
                skipped.visit_seq(seq).map(|()| Given::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let skipped = Skipped { levels: NESTING_MAX - 1 };
                skipped.visit_map(map).map(|()| Given::Other)
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// An ignored value, with the number of nesting levels that it may still have.
#[derive(Clone, Copy)]
struct Skipped {
    levels: usize,
}

impl Skipped {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| E::custom(TOO_DEEP))?;
        Ok(Skipped { levels })
    }
}

impl<'de> DeserializeSeed<'de> for Skipped {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skipped {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let within = self.deeper()?;
        while seq.next_element_seed(within)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let within = self.deeper()?;
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(within)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAMES: [&str; 2] = ["name", "email"];

    fn read(body: &str) -> Result<Fields<'_, 2>, Failure> {
        Fields::read(body.as_bytes(), NAMES)
    }

    fn errors(body: &str) -> serde_json::Value {
        let fields = read(body).expect("an object");
        let failure = fields.checked(Ok::<_, FieldErrors>(())).expect_err("wrong");
        let mut all = json!(failure.error.fields);
        for (name, message) in failure.other_fields {
            all[name] = json!(message);
        }
        all
    }

    #[test]
    fn texts_are_read_and_missing_or_null_ones_are_none() {
        let fields = read(r#" {"name": "A\u0064a", "email": null} "#).expect("an object");
        assert_eq!(fields.values[0].as_deref(), Some("Ada"));
        assert_eq!(fields.values[1], None);
        assert!(matches!(read(r#"{"name":"Ada"}"#).expect("read").values[0], Some(Cow::Borrowed("Ada"))));
    }

    #[test]
    fn everything_wrong_is_said() {
        for (body, said) in [
            (
                r#"{"name": 1, "email": true}"#,
                json!({"name": "Should be a text", "email": "Should be a text"}),
            ),
            (
                r#"{"name": -1.5, "email": {"a": [1, {}]}}"#,
                json!({"name": "Should be a text", "email": "Should be a text"}),
            ),
            (
                r#"{"name": ["x"], "shoe": {"size": [4]}}"#,
                json!({"name": "Should be a text", "shoe": "Unknown field"}),
            ),
            (r#"{"name": "a", "name": "b"}"#, json!({"name": "Given more than once"})),
            (r#"{"Name": "a"}"#, json!({"Name": "Unknown field"})),
        ] {
            assert_eq!(errors(body), said, "{body}");
        }
    }

    #[test]
    fn rules_add_to_it_but_do_not_talk_over_it() {
        let fields = read(r#"{"name": 1, "x": 1}"#).expect("an object");
        let ruled = FieldErrors::from([("name", "Name is required"), ("email", "Email is required")]);
        let failure = fields.checked(Err::<(), _>(ruled)).expect_err("wrong");
        assert_eq!(failure.error.fields["name"], "Should be a text");
        assert_eq!(failure.error.fields["email"], "Email is required");
        assert_eq!(failure.other_fields["x"], "Unknown field");
    }

    #[test]
    fn a_nul_passes_no_rule_and_takes_no_rules_words() {
        let fields = || read("{\"name\": \"a\\u0000\", \"email\": \"\\u0000\"}").expect("an object");
        let ruled = FieldErrors::from([("name", "Name cannot contain control characters")]);
        let failure = fields().checked(Err::<(), _>(ruled)).expect_err("wrong");
        assert_eq!(failure.error.fields["name"], "Name cannot contain control characters");
        assert_eq!(failure.error.fields["email"], NUL);
        assert_eq!(fields().checked(Ok::<_, FieldErrors>(())).expect_err("a NUL").error.fields.len(), 2);
    }

    #[test]
    fn what_is_no_object_is_refused_without_repeating_it() {
        for body in [
            "",
            "{",
            "[]",
            "\"canary\"",
            "1",
            "null",
            "{} {}",
            "{\"name\": \"canary}",
            "{1: 2}",
            "\u{feff}{}",
        ] {
            let failure = read(body).expect_err(body);
            assert_eq!(failure.error.code, ErrorCode::Invalid);
            assert!(!failure.error.detail.contains("canary"), "{}", failure.error.detail);
        }
        for (body, why) in [
            (&b""[..], "empty"),
            (b" \r\n", "empty"),
            (b"\xef\xbb\xbf{}", "byte order mark"),
            (b"\xff\xfe{\0}\0", "UTF-8"),
            (b"{\"name\": \"\xff\"}", "UTF-8"),
            (b"{\"name\": \n\"", "line 2, column 1"),
        ] {
            let failure = Fields::read(body, NAMES).expect_err(why);
            assert!(failure.error.detail.contains(why), "{}", failure.error.detail);
        }
        assert!(read(&format!("{{\"a\": {}", "[".repeat(100_000))).is_err(), "too deep");
    }

    #[test]
    fn nesting_has_a_limit_wherever_it_is() {
        let nested = |levels: usize, (open, close): (&str, &str)| {
            format!("{}1{}", open.repeat(levels), close.repeat(levels))
        };
        for field in ["name", "x"] {
            for brackets in [("[", "]"), ("{\"k\":", "}")] {
                let body = |levels| format!("{{\"{field}\": {}}}", nested(levels, brackets));
                assert!(read(&body(NESTING_MAX - 1)).is_ok(), "{field} {brackets:?}");
                let failure = read(&body(NESTING_MAX)).expect_err("too deep");
                assert_eq!(failure.error.detail, TOO_DEEP, "{field} {brackets:?}");
                assert!(read(&body(30_000)).is_err());
            }
        }
    }

    #[test]
    fn made_up_names_are_bounded() {
        let many: Vec<String> = (0..100).map(|n| format!("\"{n}{}\": 1", "y".repeat(200))).collect();
        let body = format!("{{{}}}", many.join(","));
        let failure = read(&body).expect("an object").checked(Ok::<_, FieldErrors>(())).expect_err("wrong");
        assert_eq!(failure.other_fields.len(), OTHER_MAX);
        assert!(failure.other_fields.keys().all(|name| name.len() <= OTHER_NAME_MAX_CHARS));
    }
}
