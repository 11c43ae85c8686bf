//! Text as people write it: one form for text that looks the same, a form for searching, and the characters
//! that names must not contain. Character properties come from the Unicode Character Database
//! (`icu_properties`).

use icu_properties::props::{
    DefaultIgnorableCodePoint, GeneralCategory, Ideographic, JoiningType, PrependedConcatenationMark,
};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicase::UniCase;
use unicode_normalization::char::{canonical_combining_class, is_combining_mark};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The largest code point, a noncharacter that no name contains. It sorts after every text.
pub const LAST: char = char::MAX;

/// The canonical combining class of a virama, which joins two consonants.
const VIRAMA: u8 = 9;

/// Returns `text` in Normalization Form C (Unicode Standard Annex 15), so that text that looks the same is
/// stored the same.
pub fn nfc(text: &str) -> String {
    if is_nfc(text) { text.to_owned() } else { text.nfc().collect() }
}

/// Returns the form of a name used for searching and sorting: its full case folding (The Unicode Standard,
/// section 3.13.3, D145) in Form C, without invisible characters. Folding works character by character, so
/// the key of a name's beginning is the beginning of the name's key.
pub fn search_key(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let seen: String = text.nfd().filter(|c| !is_default_ignorable(*c)).collect();
    UniCase::unicode(seen).to_folded_case().nfc().collect()
}

/// Returns `text` without invisible characters at its ends.
pub fn trimmed(text: &str) -> &str {
    let mut text = text.trim_start_matches(is_invisible);
    while let Some(last) = text.chars().next_back().filter(|c| is_invisible(*c)) {
        let rest = &text[..text.len() - last.len_utf8()];
        if rest.chars().next_back().is_some_and(|before| shapes(before, last)) {
            break;
        }
        text = rest;
    }
    text
}

/// Returns whether `text` contains nothing visible.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| is_invisible(c) || is_combining_mark(c))
}

/// Returns whether `c` is invisible: white space, `Default_Ignorable_Code_Point`, invisible format controls,
/// and the Braille pattern without dots.
pub fn is_invisible(c: char) -> bool {
    if c.is_ascii() {
        return c.is_whitespace();
    }
    let format = || {
        CodePointMapData::<GeneralCategory>::new().get(c) == GeneralCategory::Format
            && !CodePointSetData::new::<PrependedConcatenationMark>().contains(c)
    };
    c.is_whitespace() || c == '\u{2800}' || is_default_ignorable(c) || format()
}

/// Returns whether `text` contains invisible characters that no script needs at their position, because they
/// make names differ that look the same. White space and characters that `allowed` accepts do not count.
/// Scripts need joiners beside a virama and between joining letters, and variation selectors after an
/// ideograph or a Mongolian letter.
pub fn has_hidden(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    let mut chars = text.chars().peekable();
    // The letter to which marks and joiners belong, and the previous character.
    let (mut base, mut before) = ('\0', '\0');
    while let Some(c) = chars.next() {
        let next = chars.peek().copied().unwrap_or('\0');
        let joined = || is_virama(next) || (!is_joiner(before) && joins(base) && joins(next));
        let needed = !is_invisible(c)
            || c.is_whitespace()
            || allowed(c)
            || shapes(before, c)
            || (is_joiner(c) && joined());
        if !needed {
            return true;
        }
        if !is_combining_mark(c) && !is_joiner(c) {
            base = c;
        }
        before = c;
    }
    false
}

/// Returns whether `c` shapes the character before it: a joiner after a virama, or a variation selector.
fn shapes(before: char, c: char) -> bool {
    match c {
        '\u{200C}' | '\u{200D}' => is_virama(before),
        '\u{FE00}'..='\u{FE0F}' | '\u{E0100}'..='\u{E01EF}' => {
            CodePointSetData::new::<Ideographic>().contains(before)
        }
        '\u{180B}'..='\u{180D}' | '\u{180F}' => matches!(before, '\u{1820}'..='\u{18AA}'),
        _ => false,
    }
}

fn is_default_ignorable(c: char) -> bool {
    CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Returns whether `c` is the zero width joiner or non-joiner.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200C}' | '\u{200D}')
}

fn is_virama(c: char) -> bool {
    canonical_combining_class(c) == VIRAMA
}

/// Returns whether the shape of `c` depends on the adjacent letters, as in Arabic.
fn joins(c: char) -> bool {
    let joining = CodePointMapData::<JoiningType>::new().get(c);
    [JoiningType::DualJoining, JoiningType::LeftJoining, JoiningType::RightJoining].contains(&joining)
}

/// Returns the least text that is larger than every text with the prefix `prefix`, in code point order.
/// Returns `None` if there is no such text.
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

/// Returns whether `c` controls the direction of text: the property `Bidi_Control` (Unicode Standard Annex
/// 9). Such characters can make a name look like another one.
pub fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Returns whether `c` is a noncharacter (The Unicode Standard, section 23.7).
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
    fn names_that_differ_in_case_alone_have_one_key() {
        for (one, other) in [
            (
                "\u{3a3}\u{38a}\u{3a3}\u{3a5}\u{3a6}\u{39f}\u{3a3}",
                "\u{3c3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c2}",
            ),
            ("STRASSE", "stra\u{df}e"),
            ("STRASSE", "STRA\u{1e9e}E"),
            ("\u{fb01}nn", "FINN"),
            ("\u{149}", "\u{2bc}N"),
            ("\u{1fb3}", "\u{391}\u{399}"),
            ("\u{1c5}", "\u{1c6}"),
            ("\u{13a0}", "\u{ab70}"),
            ("\u{10a0}", "\u{2d00}"),
            ("\u{17f}", "S"),
            ("\u{212a}elvin", "kelvin"),
            ("\u{200b}Ada", "ada"),
            ("\u{645}\u{6cc}\u{200c}\u{62e}", "\u{645}\u{6cc}\u{62e}"),
        ] {
            assert_eq!(search_key(one), search_key(other), "{one} {other}");
        }
        assert!(search_key("stra\u{df}e").starts_with(&search_key("STRAS")));
        assert_ne!(search_key("\u{131}"), search_key("i"), "the dotless i is a letter of its own");
    }

    #[test]
    fn what_cannot_be_seen_is_trimmed_and_found() {
        for invisible in [
            " \t\n",
            "\u{a0}",
            "\u{ad}",
            "\u{34f}",
            "\u{61c}",
            "\u{115f}",
            "\u{17b4}",
            "\u{180e}",
            "\u{200b}",
            "\u{200d}",
            "\u{202e}",
            "\u{2028}",
            "\u{2060}",
            "\u{2800}",
            "\u{3000}",
            "\u{3164}",
            "\u{fe0f}",
            "\u{feff}",
            "\u{ffa0}",
            "\u{fff9}",
            "\u{1bca0}",
            "\u{1d173}",
            "\u{e0001}",
            "\u{e0020}",
            "\u{e01ef}",
        ] {
            assert_eq!(trimmed(invisible), "", "{}", invisible.escape_unicode());
            assert_eq!(
                trimmed(&format!("{invisible}Ada{invisible}")),
                "Ada",
                "{}",
                invisible.escape_unicode()
            );
            assert!(is_blank(&format!("{invisible}\u{301}{invisible}")));
            let hidden = has_hidden(&format!("A{invisible}da"), |_| false);
            assert_eq!(hidden, !invisible.chars().all(char::is_whitespace), "{}", invisible.escape_unicode());
        }
        for seen in ["a", "\u{5d0}", "\u{600}\u{661}", "\u{1f600}", "-", "\u{4e00}"] {
            assert!(trimmed(seen) == seen && !is_blank(seen) && !has_hidden(seen, |_| false), "{seen}");
        }
        assert!(!has_hidden("1 \u{200f}Way", is_bidi_control));
    }

    #[test]
    fn joiners_and_variants_stay_where_a_script_needs_them() {
        for needed in [
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{d15}\u{d4d}\u{200d}\u{d37}",
            "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
            "\u{9b0}\u{200d}\u{9cd}\u{9af}",
            "\u{d2e}\u{d4b}\u{d39}\u{d28}\u{d4d}\u{200d}",
            "\u{845b}\u{e0100}\u{98fe}",
            "\u{1820}\u{180b}",
        ] {
            assert!(!has_hidden(needed, |_| false), "{}", needed.escape_unicode());
            assert_eq!(trimmed(needed), needed);
        }
        for not_needed in [
            "Ad\u{200d}a",
            "Ad\u{200c}a",
            "Ade\u{301}\u{200d}a",
            "\u{4e00}\u{200d}\u{4e00}",
            "A\u{fe0f}da",
            "\u{645}\u{200c}\u{200c}\u{62e}",
            "\u{645}\u{200c} x",
            "\u{1f468}\u{200d}\u{1f469}",
            "a\u{180b}b",
        ] {
            assert!(has_hidden(not_needed, |_| false), "{}", not_needed.escape_unicode());
        }
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
