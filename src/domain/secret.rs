//! Rules for secrets that key a hash or a cipher: long enough, and not easy to guess.

use super::text;

/// The minimum number of bytes of a secret: the output size of the hash that it keys (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The minimum numbers of distinct characters, distinct pairs of neighbours, and distinct steps from one
/// character to the next. 16 random bytes in hexadecimal have 14, 29 and 20 of them. A repeated word, a row
/// of blanks or an alphabet has fewer.
const CHARACTERS_MIN: usize = 8;
const PAIRS_MIN: usize = 16;
const STEPS_MIN: usize = 8;

/// Returns a message for the operator if the secret does not look random, or `None` if it does.
pub fn weakness(secret: &str) -> Option<&'static str> {
    const TOO_REGULAR: &str = "it repeats itself, or runs through an alphabet, and would be guessed: `openssl rand -base64 48` makes a secret";
    let pairs = || secret.as_bytes().iter().zip(secret.as_bytes().iter().skip(1));
    let characters = distinct(secret.bytes().map(i32::from));
    let neighbours = distinct(pairs().map(|(one, next)| i32::from(*one) * 256 + i32::from(*next)));
    let steps = distinct(pairs().map(|(one, next)| i32::from(*next) - i32::from(*one)));
    let is_regular = characters < CHARACTERS_MIN || neighbours < PAIRS_MIN || steps < STEPS_MIN;
    is_regular.then_some(TOO_REGULAR)
}

fn distinct(values: impl Iterator<Item = i32>) -> usize {
    values.collect::<std::collections::BTreeSet<_>>().len()
}

/// Returns a message if the secret begins or ends with an invisible character, else `None`. Such a character
/// is there by accident, and another program would strip it.
pub fn stray_ends(secret: &str) -> Option<&'static str> {
    let unseen = |c: char| c.is_control() || text::is_invisible(c);
    let ends = [secret.chars().next(), secret.chars().next_back()];
    ends.into_iter()
        .flatten()
        .any(unseen)
        .then_some("it begins or ends with a blank, or with a character that cannot be seen: take it out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_itself_is_refused_and_what_was_drawn_is_not() {
        let alphabet: String = ('a'..='z').chain('0'..='9').collect();
        let down: String = alphabet.chars().rev().collect();
        for weak in [
            " ".repeat(40),
            "a".repeat(64),
            "ab".repeat(32),
            "0123456789".repeat(4),
            "password".repeat(6),
            "secret-secret-secret-secret-secret".to_owned(),
            alphabet,
            down,
            String::new(),
        ] {
            assert!(weakness(&weak).is_some(), "{weak}");
        }
        let mut random = fastrand::Rng::with_seed(20);
        for _ in 0..2_000 {
            let hexadecimal: String = (0..16).map(|_| format!("{:02x}", random.u8(..))).collect();
            assert_eq!(weakness(&hexadecimal), None, "{hexadecimal}");
            let digits: String = (0..40).map(|_| random.digit(10)).collect();
            assert_eq!(weakness(&digits), None, "{digits}");
        }
        assert_eq!(weakness("a secret of the tests, at least 32 bytes long"), None);
    }

    #[test]
    fn what_cannot_be_seen_at_an_end_is_refused() {
        for stray in [" a", "a ", "\u{feff}a", "a\n", "\ta", "a\u{a0}", "a\u{200b}", "\0a"] {
            assert!(stray_ends(stray).is_some(), "{stray:?}");
        }
        for fine in ["a", "two words", ""] {
            assert_eq!(stray_ends(fine), None, "{fine:?}");
        }
    }
}
