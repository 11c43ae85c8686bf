//! Conditional requests (RFC 9110, section 13). The entity tag of a record is its version, so a condition on
//! tags is a condition on versions. The shard judges the conditions of a change; the conditions of a read are
//! judged here, on the record just read.

use http::HeaderValue;
use http::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};

use crate::domain::ids::Version;
use crate::error::ErrorCode;

use super::problem::Failure;

/// Maximum number of entity tags in a header.
const TAGS_MAX: usize = 16;

/// Returns the entity tag of a record. The tag is strong, because a version has exactly one representation.
pub(super) fn etag(version: Version) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{version}\"")).ok()
}

/// The entity tags named in the header of a condition.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// For each tag, whether it is weak, and the version that it stands for. A tag that this server never
    /// gave out stands for no version.
    These(Vec<(bool, Option<Version>)>),
}

impl Tags {
    /// Reads the entity tags in the header `name`, if the header is present.
    ///
    /// # Errors
    /// `Invalid`: the header is not a list of entity tags, or names too many.
    fn of(headers: &HeaderMap, name: &'static str) -> Result<Option<Self>, Failure> {
        let mut values = headers.get_all(HeaderName::from_static(name)).iter().peekable();
        if values.peek().is_none() {
            return Ok(None);
        }
        let mut tags = Vec::new();
        let mut any = false;
        for value in values {
            let text = value.as_bytes().trim_ascii();
            if text == b"*" {
                any = true;
            } else if !read_list(text, &mut tags) {
                return Err(Failure::field(
                    field(name),
                    "Should be * or a list of entity tags, each in quotes",
                ));
            }
        }
        match (any, tags.len()) {
            (true, 0) => Ok(Some(Tags::Any)),
            (true, _) => Err(Failure::field(field(name), "Should be either * or a list")),
            (false, n) if n > TAGS_MAX => {
                Err(Failure::field(field(name), "Should name at most 16 entity tags"))
            }
            (false, _) => Ok(Some(Tags::These(tags))),
        }
    }

    /// Returns the versions that match under the strong comparison (RFC 9110, section 8.8.3.2): weak tags
    /// never match. `None` stands for any version.
    fn strong(self) -> Option<Box<[Version]>> {
        match self {
            Tags::Any => None,
            Tags::These(tags) => {
                Some(tags.into_iter().filter_map(|(weak, version)| version.filter(|_| !weak)).collect())
            }
        }
    }

    /// Returns whether `version` matches under the weak comparison, which ignores whether a tag is weak.
    fn weakly(&self, version: Version) -> bool {
        match self {
            Tags::Any => true,
            Tags::These(tags) => tags.iter().any(|(_, tag)| *tag == Some(version)),
        }
    }
}

/// Returns the header name in the usual spelling.
fn field(name: &str) -> &'static str {
    if name == IF_MATCH.as_str() { "If-Match" } else { "If-None-Match" }
}

/// Reads a list (RFC 9110, section 5.6.1) into `tags`; returns false if `text` is not one. At most one tag
/// more than `TAGS_MAX` is kept, which is enough to detect too many.
fn read_list(mut text: &[u8], tags: &mut Vec<(bool, Option<Version>)>) -> bool {
    loop {
        text = text.trim_ascii_start();
        if let [b',', rest @ ..] = text {
            text = rest;
            continue;
        }
        if text.is_empty() {
            return true;
        }
        let weak = text.starts_with(b"W/");
        let Some(quoted) = text[if weak { 2 } else { 0 }..].strip_prefix(b"\"") else { return false };
        let Some(end) = quoted.iter().position(|byte| *byte == b'"') else { return false };
        let (opaque, rest) = (&quoted[..end], quoted[end + 1..].trim_ascii_start());
        if opaque.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) || !matches!(rest, [] | [b',', ..]) {
            return false;
        }
        if tags.len() <= TAGS_MAX {
            tags.push((weak, version_of(opaque)));
        }
        text = rest;
    }
}

/// Returns the version whose tag this is. Only the canonical spelling of a version is a tag.
fn version_of(opaque: &[u8]) -> Option<Version> {
    let text = std::str::from_utf8(opaque).ok()?;
    text.parse().ok().filter(|version: &Version| *version > 0 && version.to_string() == text)
}

/// Returns the versions that a change expects of the record according to `If-Match`, or `None` for any
/// version. `*` requires only that the record exists, which a change requires anyway.
///
/// # Errors
/// `Invalid`: a header cannot be parsed, or `If-None-Match` is present. No change here supports that
/// condition, and it must not be ignored.
pub(super) fn expected(headers: &HeaderMap) -> Result<Option<Box<[Version]>>, Failure> {
    if headers.contains_key(IF_NONE_MATCH) {
        return Err(Failure::field("If-None-Match", "Is for reads only"));
    }
    Ok(Tags::of(headers, "if-match")?.and_then(Tags::strong))
}

/// Returns whether a reader that sent `headers` already has the record in this version.
///
/// # Errors
/// - `PreconditionFailed`: `If-Match` names other versions.
/// - `Invalid`: a header cannot be parsed.
pub(super) fn has_it(headers: &HeaderMap, version: Version) -> Result<bool, Failure> {
    let expected = Tags::of(headers, "if-match")?.and_then(Tags::strong);
    if expected.is_some_and(|versions| !versions.contains(&version)) {
        return Err(Failure::new(
            ErrorCode::PreconditionFailed,
            "The record has another version than those named",
        ));
    }
    Ok(Tags::of(headers, "if-none-match")?.is_some_and(|tags| tags.weakly(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).expect("a value"))
        };
        pairs.iter().map(header).collect()
    }

    fn expects(values: &[&str]) -> Result<Option<Vec<Version>>, Failure> {
        let pairs: Vec<_> = values.iter().map(|value| ("if-match", *value)).collect();
        expected(&headers(&pairs)).map(|expected| expected.map(Vec::from))
    }

    #[test]
    fn a_change_expects_the_versions_of_its_strong_tags() {
        for (values, versions) in [
            (&[][..], None),
            (&["*"], None),
            (&["\"3\""], Some(vec![3])),
            (&["\"3\", \"12\" ,\"4\""], Some(vec![3, 12, 4])),
            (&["\"3\"", "\"4\""], Some(vec![3, 4])),
            (&[" , \"3\",, "], Some(vec![3])),
            (&["W/\"3\""], Some(vec![])),
            (&["W/\"3\", \"4\""], Some(vec![4])),
            (&["\"a,b\", \"03\", \"+3\", \"0\", \"-1\", \"\", \"99999999999999999999\""], Some(vec![])),
            (&[""], Some(vec![])),
        ] {
            assert_eq!(expects(values).expect("a condition"), versions, "{values:?}");
        }
        for bad in ["3", "\"3", "3\"", "w/\"3\"", "\"3\" \"4\"", "\"3\";q=1", "*, \"3\"", "\"a b\"", "W/3"] {
            let failure = expects(&[bad]).expect_err(bad);
            assert!(failure.error.fields.contains_key("If-Match"), "{bad}");
        }
        assert!(expects(&["*", "\"3\""]).is_err());
        let many = vec!["\"1\""; TAGS_MAX].join(",");
        assert_eq!(expects(&[&many]).expect("as many as may be").map(|v| v.len()), Some(TAGS_MAX));
        assert!(expects(&[&many, "\"1\""]).is_err());
        assert!(expected(&headers(&[("if-none-match", "*")])).is_err());
    }

    #[test]
    fn a_reader_has_it_if_any_tag_is_that_of_the_record() {
        for (none_match, has) in [
            ("\"3\"", true),
            ("W/\"3\"", true),
            ("*", true),
            ("\"2\"", false),
            ("\"2\", \"3\"", true),
            ("\"x\"", false),
        ] {
            let headers = headers(&[("if-none-match", none_match)]);
            assert_eq!(has_it(&headers, 3).expect("a condition"), has, "{none_match}");
        }
        assert!(!has_it(&HeaderMap::new(), 3).expect("no condition"));
        // `If-Match` is evaluated first (RFC 9110, section 13.2.2).
        let both = headers(&[("if-match", "\"2\""), ("if-none-match", "\"3\"")]);
        assert_eq!(has_it(&both, 3).expect_err("not as expected").error.code, ErrorCode::PreconditionFailed);
        assert!(has_it(&both, 2).is_ok_and(|has| !has));
        assert!(has_it(&headers(&[("if-match", "W/\"3\"")]), 3).is_err(), "a weak tag equals none");
        assert!(has_it(&headers(&[("if-none-match", "3")]), 3).is_err());
    }

    #[test]
    fn the_tag_of_a_record_is_read_back() {
        for version in [1, 7, Version::MAX] {
            let tag = etag(version).expect("a tag");
            assert_eq!(expects(&[tag.to_str().expect("ASCII")]).expect("a condition"), Some(vec![version]));
        }
    }
}
