//! Parses query parameters (`application/x-www-form-urlencoded`) strictly. Otherwise a misspelt, repeated or
//! malformed parameter would be ignored without notice.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::domain::audit::Detail;
use crate::domain::validate::FieldErrors;
use crate::error::Error;

use super::problem::Failure;

/// Maximum number of unknown parameters that an error names, and the maximum length of their names.
const OTHER_MAX: usize = 16;
const OTHER_NAME_MAX_CHARS: usize = 64;

/// The given parameters, each at most once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(BTreeMap<&'static str, String>);

impl Query {
    /// Parses `query`, which may contain the parameters `known`.
    ///
    /// # Errors
    /// `Invalid`, with all errors: an unknown parameter, a repeated one, or a value that is not
    /// percent-encoded UTF-8 or contains a NUL.
    pub(super) fn read(query: Option<&str>, known: &[&'static str]) -> Result<Self, Failure> {
        let (mut given, mut errors, mut other) = (BTreeMap::new(), FieldErrors::new(), BTreeMap::new());
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(known) = known.iter().find(|known| decoded(name).is_some_and(|name| name == **known))
            else {
                if other.len() < OTHER_MAX {
                    let name = decoded(name).unwrap_or(Cow::Borrowed(name));
                    other.insert(name.chars().take(OTHER_NAME_MAX_CHARS).collect(), "Unknown parameter");
                }
                continue;
            };
            let Some(value) = decoded(value) else {
                errors.insert(known, "Should be UTF-8, percent-encoded");
                continue;
            };
            if value.contains('\0') {
                errors.insert(known, "Cannot contain the character U+0000");
            }
            if given.insert(*known, value.into_owned()).is_some() {
                errors.insert(known, "Given more than once");
            }
        }
        if errors.is_empty() && other.is_empty() {
            return Ok(Query(given));
        }
        Err(Failure { other_fields: other, ..Failure::from(Error::invalid_fields(errors)) })
    }

    /// The value of a parameter, if it was given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Returns the audit detail of a search, including one that is refused.
pub(super) fn searched(query: Option<&str>) -> Detail {
    let given = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    Detail::of_search(&given.into_owned().collect::<Vec<_>>())
}

/// Decodes percent-encoded `text`; `None` if the encoding is malformed or the result is not UTF-8.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn errors(query: &str) -> serde_json::Value {
        let failure = Query::read(Some(query), &["q", "limit"]).expect_err(query);
        let mut all = json!(failure.error.fields);
        for (name, message) in failure.other_fields {
            all[name] = json!(message);
        }
        all
    }

    #[test]
    fn what_is_given_once_is_read() {
        for (query, q, limit) in [
            ("", None, None),
            ("&&", None, None),
            ("q=a+b%2B%c3%A9%26", Some("a b+\u{e9}&"), None),
            ("q", Some(""), None),
            ("q=", Some(""), None),
            ("%71=a=b&limit=1", Some("a=b"), Some("1")),
            ("q=\u{e9}", Some("\u{e9}"), None),
        ] {
            let read = Query::read(Some(query), &["q", "limit"]).expect(query);
            assert_eq!((read.get("q"), read.get("limit")), (q, limit), "{query}");
        }
        assert_eq!(Query::read(None, &[]).expect("none"), Query::default());
    }

    #[test]
    fn whatever_else_is_refused_by_its_name() {
        let encoded = "Should be UTF-8, percent-encoded";
        for (query, said) in [
            ("q=%ff", json!({"q": encoded})),
            ("q=%zz", json!({"q": encoded})),
            ("q=%", json!({"q": encoded})),
            ("q=%4", json!({"q": encoded})),
            ("q=%+1", json!({"q": encoded})),
            ("q=a%c3", json!({"q": encoded})),
            ("q=%ed%a0%80", json!({"q": encoded})),
            ("q=%c0%80", json!({"q": encoded})),
            ("q=a%00", json!({"q": "Cannot contain the character U+0000"})),
            ("q=a&q=a", json!({"q": "Given more than once"})),
            ("q=a&%71=b", json!({"q": "Given more than once"})),
            (
                "Q=a&=1&%ff=1",
                json!({"Q": "Unknown parameter", "": "Unknown parameter", "%ff": "Unknown parameter"}),
            ),
            ("limit=%zz&x=1", json!({"limit": encoded, "x": "Unknown parameter"})),
        ] {
            assert_eq!(errors(query), said, "{query}");
        }
        let many: String = (0..100).map(|n| format!("x{n}{}=1&", "y".repeat(99))).collect();
        let failure = Query::read(Some(&many), &[]).expect_err("many");
        assert_eq!(failure.other_fields.len(), OTHER_MAX);
        assert!(failure.other_fields.keys().all(|name| name.len() <= OTHER_NAME_MAX_CHARS));
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in "[^\u{0}]{0,20}") {
            let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("q", &text).finish();
            let read = Query::read(Some(&query), &["q"]).expect("encoded");
            prop_assert_eq!(read.get("q"), Some(&*text));
        }
    }
}
