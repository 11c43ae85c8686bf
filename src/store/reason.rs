//! Reasons for a database failure, for operators.

use super::Error;

/// Classes of SQLSTATE that an operator can fix, and their meaning.
const CLASSES: [(&str, &str); 6] = [
    ("28", "the role may not log in, or has another password"),
    ("3D", "there is no such database"),
    ("42", "a table or a right is missing"),
    ("53", "the server has no room left"),
    ("57", "the server starts or stops"),
    ("58", "the server cannot read or write"),
];

/// The text before the SQLSTATE in the text of an error.
const STATE: &str = "SQLSTATE ";

impl Error {
    /// The reason for readiness: our own words with the SQLSTATE, then a colon and details that only the log
    /// shows.
    pub fn reason(&self) -> String {
        let (words, text) = match self {
            Error::Unavailable(text) => ("the database is unavailable", text),
            Error::Unknown(text) => ("the database does not answer", text),
            Error::Broken(text) => ("the database refused", text),
        };
        let Some(state) = state_of(text) else { return format!("{words}: {text}") };
        let known = CLASSES.iter().find(|(class, _)| state.starts_with(class));
        let meaning = known.map(|(_, meaning)| format!(", {meaning}")).unwrap_or_default();
        format!("{words} (SQLSTATE {state}{meaning}): {text}")
    }
}

fn state_of(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(STATE)?;
    rest.get(..5).filter(|state| state.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_have_the_state_and_no_name_of_a_host_or_a_user() {
        for (error, words) in [
            (
                Error::Broken(
                    "postgres://ada@db/clinic: no connection: SQLSTATE 28P01: for user \"ada\"".into(),
                ),
                "the database refused (SQLSTATE 28P01, the role may not log in, or has another password)",
            ),
            (
                Error::Unavailable("SQLSTATE 40001: could not".into()),
                "the database is unavailable (SQLSTATE 40001)",
            ),
            (Error::Unavailable("no answer in time".into()), "the database is unavailable"),
            (Error::Unknown("SQLSTATE ada: x".into()), "the database does not answer"),
        ] {
            let reason = error.reason();
            assert_eq!(reason.split_once(": ").map(|(words, _)| words), Some(words), "{reason}");
        }
    }
}
