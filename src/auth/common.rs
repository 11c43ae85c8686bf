//! Passwords that attackers guess first: the most common ones, common words with the usual endings, keyboard
//! runs and repetitions.

use std::collections::HashSet;
use std::sync::LazyLock;

/// One password per line, in lower case, of 8 bytes or more. Sources: the first 3,000 of that length by rank
/// in the lists of zxcvbn 4.5.0 (from ten million passwords that Mark Burnett published in 2015); the list
/// that comes with John the Ripper 1.9.0 (Solar Designer, 1996 to 2011); some newer lists. zxcvbn omits
/// passwords that are more common as a name or a word; only some of those are here.
static WHOLE: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

/// Words that are common before digits and punctuation.
static WORDS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    "1q2w3e 1qaz abc abc123 abcd access admin administrator apple april arsenal asd asdfgh ashley august \
    autumn azerty barcelona baseball basketball batman berlin changeme charlie chelsea clinic company \
    computer daniel database december default doctor dragon february football freedom friday google \
    guest health hello hockey hospital hygeia iloveyou internet january jessica jordan july june letmein \
    liverpool login london love manager march master medical michael microsoft monday monkey november \
    nurse october office oracle p@ssw0rd p@ssword pa55w0rd pa55word passw0rd password passwort patient \
    postgres princess qaz qazwsx qwe qwerty qwertz root samsung secret september server service shadow \
    soccer spring starwars summer sunday sunshine superman support system temp temporary test tester \
    testing trustno user welcome whatever winter zxc zxcvbn"
        .split(' ')
        .collect()
});

/// The longest ending, in characters, that does not make a common word stronger: a year and punctuation.
const ENDING_CHARS_MAX: usize = 6;

/// Returns whether `password` is one that attackers guess first. Case is ignored.
pub(super) fn is_common(password: &str) -> bool {
    let lower = password.to_lowercase();
    WHOLE.contains(lower.as_str()) || is_word_with_ending(&lower) || is_run(&lower) || is_repetition(&lower)
}

fn is_word_with_ending(lower: &str) -> bool {
    let word = lower.trim_end_matches(|c: char| c.is_ascii_digit() || c.is_ascii_punctuation());
    let ending = lower.chars().count() - word.chars().count();
    ending <= ENDING_CHARS_MAX && (WORDS.contains(word) || WHOLE.contains(word))
}

/// Returns whether each character follows from the last: `23456789`, `hgfedcba`, `aaaaaaaa`.
fn is_run(lower: &str) -> bool {
    let chars: Vec<i64> = lower.chars().map(|c| i64::from(u32::from(c))).collect();
    [-1, 0, 1].iter().any(|step| chars.windows(2).all(|pair| pair[1] - pair[0] == *step))
}

/// Returns whether the text repeats a short piece: `abcabcabc`, `12121212`.
fn is_repetition(lower: &str) -> bool {
    let bytes = lower.as_bytes();
    (1..=4).any(|size| bytes.len() >= 2 * size && bytes.windows(size + 1).all(|w| w[0] == w[size]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_guessed_first_is_known() {
        for common in [
            "1234567890",
            "password",
            "Password1!",
            "P@ssw0rd2024",
            "Summer2026!",
            "Hospital1",
            "qwertyuiop",
            "iloveyou",
            "aaaaaaaa",
            "87654321",
            "abcdefghij",
            "12121212",
            "passpass",
            "Welcome123",
            "ADMIN1234",
            "letmein!!",
        ] {
            assert!(is_common(common), "{common}");
        }
    }

    #[test]
    fn what_is_no_ones_first_guess_is_let_through() {
        for good in [
            "a secret of the tests",
            "correct horse battery",
            "violet-anchor-17",
            "Xk7!fQ2z",
            "password of mine",
            "summer in the city",
            "öäüßöäüx",
            "chaos and nothing else",
        ] {
            assert!(!is_common(good), "{good}");
        }
    }

    #[test]
    fn the_list_holds_what_could_be_chosen_and_nothing_twice() {
        let lines: Vec<&str> = include_str!("common_passwords.txt").lines().collect();
        assert_eq!(lines.len(), WHOLE.len());
        assert!(lines.len() >= 3000, "OWASP ASVS 5.0.0, 6.2.4");
        assert!(lines.iter().all(|line| line.len() >= 8 && line.to_lowercase() == *line));
    }
}
