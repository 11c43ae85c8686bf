//! Host names according to IDNA 2008 (RFC 5890 to 5894), reduced to one canonical form per host.
//!
//! The `idna` crate does the mapping and checks the shape of labels (UTS 46). It is more lenient than IDNA
//! 2008: it maps or ignores characters that the standard disallows, so two names that look alike would become
//! one. This module therefore checks the derived property of every character (RFC 5892, section 3) and its
//! context rules (appendix A).

use icu_properties::props::{
    DefaultIgnorableCodePoint, GeneralCategory, HangulSyllableType, NoncharacterCodePoint, Script,
};
use icu_properties::{CodePointMapData, CodePointSetData};
use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use unicase::UniCase;
use unicode_normalization::UnicodeNormalization;

/// Returns `domain` in A-labels and lower case, or `None` if it is not a host name. Upper-case letters are
/// allowed (RFC 5895, section 2). Apart from that, IDNA 2008 must permit every character.
pub(super) fn canonical(domain: &str) -> Option<String> {
    // Lower-case each character by itself, because a final sigma is a distinct character.
    let lower: String = domain.chars().flat_map(char::to_lowercase).nfc().collect();
    if !lower.split('.').all(is_permitted) {
        return None;
    }
    let uts46 = Uts46::new();
    let ascii =
        uts46.to_ascii(lower.as_bytes(), AsciiDenyList::STD3, Hyphens::Check, DnsLength::Verify).ok()?;
    let (unicode, sound) = uts46.to_unicode(ascii.as_bytes(), AsciiDenyList::STD3, Hyphens::Check);
    if sound.is_err() || !unicode.split('.').all(is_permitted) || ends_in_number(&ascii) {
        return None;
    }
    Some(ascii.into_owned())
}

/// Returns whether the last label is a number, because such a name would be parsed as an address (WHATWG URL,
/// section 3.5).
fn ends_in_number(ascii: &str) -> bool {
    let last = ascii.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || last.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether IDNA 2008 permits every character of `label` at its position.
fn is_permitted(label: &str) -> bool {
    let all: Vec<char> = label.chars().collect();
    (0..all.len()).all(|at| match property(all[at]) {
        Property::Valid => true,
        // `uts46` checks the rules of joiners together with the shape of the label.
        Property::ContextJ => true,
        Property::ContextO => in_context(&all, at),
        Property::Disallowed => false,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Property {
    Valid,
    ContextJ,
    ContextO,
    Disallowed,
}

/// Returns the derived property of `c` (RFC 5892, section 3).
fn property(c: char) -> Property {
    match c {
        '-' | '0'..='9' | 'a'..='z' => return Property::Valid,
        // Exceptions (section 2.6).
        '\u{DF}' | '\u{3C2}' | '\u{6FD}' | '\u{6FE}' | '\u{F0B}' | '\u{3007}' => return Property::Valid,
        '\u{B7}' | '\u{375}' | '\u{5F3}' | '\u{5F4}' | '\u{30FB}' => return Property::ContextO,
        '\u{660}'..='\u{669}' | '\u{6F0}'..='\u{6F9}' => return Property::ContextO,
        '\u{640}' | '\u{7FA}' | '\u{302E}' | '\u{302F}' | '\u{3031}'..='\u{3035}' | '\u{303B}' => {
            return Property::Disallowed;
        }
        '\u{200C}' | '\u{200D}' => return Property::ContextJ,
        // Ignorable blocks (section 2.4).
        '\u{20D0}'..='\u{20FF}' | '\u{1D100}'..='\u{1D1FF}' | '\u{1D200}'..='\u{1D24F}' => {
            return Property::Disallowed;
        }
        _ => {}
    }
    let hangul = CodePointMapData::<HangulSyllableType>::new().get(c);
    let old_jamo =
        [HangulSyllableType::LeadingJamo, HangulSyllableType::VowelJamo, HangulSyllableType::TrailingJamo];
    let ignored = c.is_whitespace()
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        || CodePointSetData::new::<NoncharacterCodePoint>().contains(c);
    let letter_or_digit = matches!(
        CodePointMapData::<GeneralCategory>::new().get(c),
        GeneralCategory::LowercaseLetter
            | GeneralCategory::UppercaseLetter
            | GeneralCategory::OtherLetter
            | GeneralCategory::DecimalNumber
            | GeneralCategory::ModifierLetter
            | GeneralCategory::NonspacingMark
            | GeneralCategory::SpacingMark
    );
    if letter_or_digit && !ignored && !old_jamo.contains(&hangul) && is_stable(c) {
        Property::Valid
    } else {
        Property::Disallowed
    }
}

/// Returns whether NFKC and case folding leave `c` unchanged (section 2.2).
fn is_stable(c: char) -> bool {
    let compatible: String = std::iter::once(c).nfkc().collect();
    UniCase::unicode(compatible).to_folded_case().nfkc().eq([c])
}

/// Checks the rules for characters that are permitted only in some contexts (RFC 5892, appendix A.3 to A.9).
fn in_context(label: &[char], at: usize) -> bool {
    let script = |c: char| CodePointMapData::<Script>::new().get(c);
    let before = at.checked_sub(1).map(|at| label[at]);
    let after = label.get(at + 1).copied();
    match label[at] {
        '\u{B7}' => before == Some('l') && after == Some('l'),
        '\u{375}' => after.is_some_and(|c| script(c) == Script::Greek),
        '\u{5F3}' | '\u{5F4}' => before.is_some_and(|c| script(c) == Script::Hebrew),
        '\u{30FB}' => {
            label.iter().any(|c| [Script::Hiragana, Script::Katakana, Script::Han].contains(&script(*c)))
        }
        '\u{660}'..='\u{669}' => !label.iter().any(|c| matches!(c, '\u{6F0}'..='\u{6F9}')),
        _ => !label.iter().any(|c| matches!(c, '\u{660}'..='\u{669}')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_the_same_host_has_one_form() {
        for (name, form) in [
            ("Example.ORG", "example.org"),
            ("localhost", "localhost"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("B\u{dc}CHER.example", "xn--bcher-kva.example"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("stra\u{df}e.de", "xn--strae-oqa.de"),
            ("\u{3b2}\u{3cc}\u{3bb}\u{3bf}\u{3c2}.com", "xn--nxasmm1c.com"),
            ("\u{646}\u{627}\u{645}\u{647}\u{200c}\u{627}\u{6cc}.com", "xn--mgba3gch31f060k.com"),
            ("l\u{b7}l.example", "xn--ll-0ea.example"),
            ("\u{4f8b}\u{3048}.\u{30c6}\u{30b9}\u{30c8}", "xn--r8jz45g.xn--zckzah"),
        ] {
            assert_eq!(canonical(name).as_deref(), Some(form), "{name}");
            assert_eq!(canonical(form).as_deref(), Some(form), "{form}");
        }
    }

    #[test]
    fn what_idna_2008_disallows_is_no_name() {
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a.",
            "-a.org",
            "a-.org",
            "ab--c.org",
            "a_b.org",
            "a b.org",
            "a\0.org",
            "example.org\u{200b}",
            "exa\u{ad}mple.org",
            "\u{ff45}xample.org",
            "example\u{3002}org",
            "a\u{ff0e}org",
            "a\u{ff61}org",
            "\u{2603}.org",
            "\u{1f4a9}.la",
            "xn--ls8h.la",
            "xn--.org",
            "xn--a.org",
            "xn--99999999.org",
            "xn--bcher-kva8.example",
            "xn--example-.org",
            "example.123",
            "127.0.0.1",
            "1",
            "a.0x1f",
            "[127.0.0.1]",
            "a\u{200c}b.org",
            "a\u{200d}b.org",
            "a\u{b7}b.org",
            "\u{30fb}a.org",
            "\u{661}\u{6f1}.org",
            "\u{fb01}sh.org",
            "\u{1e9e}.\u{e000}",
            "\u{301}a.org",
            "\u{5d0}a.org",
            "a\u{202e}.org",
            "\u{3164}.org",
            "\u{1d7d9}.org",
            "\u{2460}.org",
            "a\u{34f}.org",
            "a\u{fe0f}.org",
            "\u{10f70}\u{e0041}.org",
        ] {
            assert_eq!(canonical(bad), None, "{}", bad.escape_unicode());
        }
        let label = |n: usize| "a".repeat(n);
        assert!(canonical(&format!("{}.org", label(63))).is_some());
        assert!(canonical(&format!("{}.org", label(64))).is_none());
        let long = [label(63), label(63), label(63), label(61)].join(".");
        assert!(canonical(&long).is_some() && canonical(&format!("{long}a")).is_none());
    }
}
