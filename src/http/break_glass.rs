//! Reads the header in which a caller states why a restricted record is needed.

use std::sync::Arc;

use http::HeaderMap;

const HEADER: &str = "x-break-glass";
const REASON_MAX_CHARS: usize = 500;

/// Minimum number of letters and digits of a reason.
const WORD_CHARS_MIN: usize = 2;
/// Characters of the category "letter" that are rendered as blank.
const BLANK_LETTERS: [char; 4] = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'];

/// Returns the reason given in `headers`. A reason that is too long, not UTF-8, or has no readable text
/// counts as absent, and gives no access.
pub(super) fn reason(headers: &HeaderMap) -> Option<Arc<str>> {
    let given = std::str::from_utf8(headers.get(HEADER)?.as_bytes()).ok()?.trim();
    let readable = given.chars().filter(|c| c.is_alphanumeric() && !BLANK_LETTERS.contains(c)).count();
    (readable >= WORD_CHARS_MIN && given.chars().count() <= REASON_MAX_CHARS).then(|| given.into())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_reason_can_be_read_and_has_up_to_500_characters() {
        let read = |value: &[u8]| {
            let value = HeaderValue::from_bytes(value).expect("a value");
            reason(&HeaderMap::from_iter([(HeaderName::from_static(HEADER), value)]))
        };
        assert_eq!(reason(&HeaderMap::new()), None);
        assert_eq!(read(b" unconscious ").as_deref(), Some("unconscious"));
        let longest = "\u{e9}".repeat(REASON_MAX_CHARS);
        assert_eq!(read(longest.as_bytes()).as_deref(), Some(&*longest));
        for read_as_it_is in ["ok", "ICU", "\u{6025}\u{8a3a}", "24h", "e\u{301}x"] {
            assert_eq!(read(read_as_it_is.as_bytes()).as_deref(), Some(read_as_it_is));
        }
        for none in [&b""[..], b"  ", format!("{longest}x").as_bytes(), b"\xff"] {
            assert_eq!(read(none), None);
        }
        let blank = [
            "\u{200b}",
            "\u{2060}\u{feff}",
            "\u{ad}\u{200d}\u{200e}",
            "\u{3164}\u{3164}\u{3164}",
            "\u{2800}\u{2800}",
        ];
        for none in
            blank.into_iter().chain([".", "...", "-", "?!", "x", "\u{1f198}\u{1f198}", "\u{301}\u{301}"])
        {
            assert_eq!(read(none.as_bytes()), None, "{none:?}");
        }
    }
}
