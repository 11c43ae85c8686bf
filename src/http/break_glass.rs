//! The header in which a caller says why a restricted record is needed.

use std::sync::Arc;

use http::HeaderMap;

const HEADER: &str = "x-break-glass";
const REASON_MAX_CHARS: usize = 500;

/// The reason that `headers` give. One that is empty, too long or no text is none: it opens nothing.
pub(super) fn reason(headers: &HeaderMap) -> Option<Arc<str>> {
    let given = std::str::from_utf8(headers.get(HEADER)?.as_bytes()).ok()?.trim();
    (1..=REASON_MAX_CHARS).contains(&given.chars().count()).then(|| given.into())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_reason_has_1_to_500_characters() {
        let read = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).expect("a value");
            reason(&HeaderMap::from_iter([(HeaderName::from_static(HEADER), value)]))
        };
        assert_eq!(reason(&HeaderMap::new()), None);
        assert_eq!(read(b" unconscious ").as_deref(), Some("unconscious"));
        let longest = "\u{e9}".repeat(REASON_MAX_CHARS);
        assert_eq!(read(longest.as_bytes()).as_deref(), Some(&*longest));
        for none in [&b""[..], b"  ", format!("{longest}x").as_bytes(), b"\xff"] {
            assert_eq!(read(none), None);
        }
    }
}
