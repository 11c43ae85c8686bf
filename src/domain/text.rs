//! Text as people write it: one form for what looks the same, a form to find it by, and what no name may
//! hold.

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The largest code point, a noncharacter that no name holds: it stands behind every text.
pub const LAST: char = char::MAX;

/// `text` in Normalization Form C (Unicode Standard Annex 15): what looks the same is stored the same.
pub fn nfc(text: &str) -> String {
    if is_nfc(text) { text.to_owned() } else { text.nfc().collect() }
}

/// The form of a name by which it is found and sorted: lower case, in Form C. Letter by letter, so that the
/// key of the beginning of a name is the beginning of its key (a final sigma would be another letter).
pub fn search_key(text: &str) -> String {
    text.nfc().flat_map(char::to_lowercase).nfc().collect()
}

/// The least text that is larger than every text that begins with `prefix`, in the order of code points;
/// none if there is no such text.
pub fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (u32::from(last) + 1..=u32::from(LAST)).find_map(char::from_u32) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

/// Whether `c` steers the direction of text: the property `Bidi_Control` (Unicode Standard Annex 9). With them
/// a name can be made to look like another.
pub fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Whether `c` will never be a character (The Unicode Standard, section 23.7).
pub fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{FDD0}'..='\u{FDEF}') || u32::from(c) & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_the_same_is_the_same() {
        assert_eq!(nfc("Zoe\u{308}"), "Zo\u{eb}");
        assert_eq!(search_key("ZOE\u{308}"), search_key("zo\u{eb}"));
        assert_eq!(search_key("\u{391}\u{3a3}"), "\u{3b1}\u{3c3}", "no final sigma");
        assert_eq!(search_key("\u{130}"), "i\u{307}");
    }

    #[test]
    fn a_prefix_has_an_end() {
        assert_eq!(prefix_end("ada").as_deref(), Some("adb"));
        assert_eq!(prefix_end("a\u{d7ff}").as_deref(), Some("a\u{e000}"), "no surrogate is a character");
        assert_eq!(prefix_end("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{10ffff}"), None);
        assert_eq!(prefix_end(""), None);
    }

    #[test]
    fn marks_of_direction_are_those_of_the_property() {
        let all = (0..=0x10ffff).filter_map(char::from_u32).filter(|c| is_bidi_control(*c)).count();
        assert_eq!(all, 12);
        assert!(is_noncharacter('\u{fffe}') && is_noncharacter('\u{fdd0}') && is_noncharacter(LAST));
        assert!(!is_noncharacter('\u{fffd}') && !is_noncharacter('\u{fdf0}'));
    }

    proptest! {
        #[test]
        fn a_text_lies_between_its_prefix_and_the_end_of_it(prefix in ".{1,5}", rest in ".{0,5}", other in ".{0,6}") {
            let whole = format!("{prefix}{rest}");
            let within = |text: &str| {
                *text >= *prefix && prefix_end(&prefix).is_none_or(|end| *text < *end)
            };
            prop_assert!(within(&whole));
            prop_assert_eq!(within(&other), other.starts_with(&prefix));
        }

        #[test]
        fn a_key_is_its_own_key(text in "\\PC{0,20}") {
            let key = search_key(&text);
            prop_assert_eq!(search_key(&key), key.clone());
            prop_assert_eq!(search_key(&nfc(&text)), key);
        }
    }
}
