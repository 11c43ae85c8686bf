//! Problems of a configuration. Each message names the key, the value, its source, and what is allowed, so
//! that the reader can fix it. The value of a secret is never shown.

use std::fmt;

use super::tree::{Node, Source, Value};

/// Maximum number of characters of a value that a message shows.
const SHOWN_CHARS_MAX: usize = 120;

/// Endings of the names of keys that hold secrets, in any section.
const SECRET_ENDINGS: [&str; 4] = ["secret", "password", "passwd", "private_key"];

/// Returns whether the value of `key` is a secret, which is never shown and may be given as `<key>_file`.
pub fn is_secret(key: &str) -> bool {
    SECRET_ENDINGS.iter().any(|ending| key.ends_with(ending))
}

/// Returns whether the value of `key` is a URL that may hold a password, and may be given as `<key>_file`.
pub fn is_secret_url(key: &str) -> bool {
    key == "store.url"
}

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as `section.key`; empty if no single key is at fault.
    pub key: String,
    /// The value in a form that may be shown; `None` if there is no value.
    pub value: Option<String>,
    /// The source of the value; `None` for a default.
    pub source: Option<Source>,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

impl Problem {
    /// Creates a problem without a key.
    pub(super) fn general(source: Option<Source>, reason: impl Into<String>) -> Self {
        Problem { key: String::new(), value: None, source, reason: reason.into() }
    }

    /// Creates a problem of the value `node` of `key`.
    pub(super) fn of(key: &str, node: &Node, reason: impl Into<String>) -> Self {
        Problem::general(None, reason).at(key, node)
    }

    /// Adds key, value and source, if they are not set yet. For a secret, the reason is replaced, because the
    /// deserializer's text may quote the value.
    pub(super) fn at(mut self, key: &str, node: &Node) -> Self {
        if !self.key.is_empty() {
            return self;
        }
        if is_secret(key) || is_secret_url(key) {
            "it cannot be read as what it should be".clone_into(&mut self.reason);
        } else if key.ends_with("listen") {
            self.reason
                .push_str("; allowed: an address and a port, such as 127.0.0.1:8080 (port 0: any free one)");
        }
        key.clone_into(&mut self.key);
        self.value = Some(shown(key, &node.value));
        self.source = Some(node.source.clone());
        self
    }
}

/// Errors that `serde` reports for a value that does not fit.
impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Problem::general(None, message.to_string())
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(source) = &self.source {
            f.write_str(if self.key.is_empty() { "" } else { ", from " })?;
            write!(f, "{source}")?;
        }
        f.write_str(if self.key.is_empty() && self.source.is_none() { "" } else { ": " })?;
        f.write_str(&self.reason)
    }
}

/// A refused configuration: exit code 78.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The problems; at least one.
    pub problems: Vec<Problem>,
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Error { problems: vec![problem] }
    }
}

impl std::error::Error for Error {}

/// Prints one problem per line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "\n" })?;
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Renders the value of `key` in the syntax of the file, without secrets.
pub(super) fn shown(key: &str, value: &Value) -> String {
    match value {
        _ if is_secret(key) => "(hidden)".to_owned(),
        Value::Untyped(text) | Value::Text(text) if is_secret_url(key) => match without_password(text) {
            Some(url) => quoted(&url),
            None => "(hidden)".to_owned(),
        },
        _ if is_secret_url(key) => "(hidden)".to_owned(),
        Value::Untyped(text) | Value::Text(text) => quoted(text),
        Value::Integer(n) => n.to_string(),
        Value::Float(n) => format!("{n:?}"),
        Value::Bool(b) => b.to_string(),
        Value::List(items) => {
            format!("[{}]", items.iter().map(|i| shown(key, &i.value)).collect::<Vec<_>>().join(", "))
        }
        Value::Table(_) => "{…}".to_owned(),
    }
}

/// Returns whether `value` of `key` is a URL that clearly contains a password.
pub(super) fn holds_password(key: &str, value: &Value) -> bool {
    let (Value::Untyped(text) | Value::Text(text)) = value else { return false };
    is_secret_url(key) && without_password(text).is_some_and(|masked| masked != *text)
}

fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// Returns `url` with any password masked; `None` if the position of a password is not clear.
fn without_password(url: &str) -> Option<String> {
    if url.starts_with("sqlite:") {
        return Some(url.to_owned());
    }
    let (scheme, rest) = url.split_once("://")?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) if !query.contains('@') => (rest, Some(query)),
        Some(_) => return None,
        None => (rest, None),
    };
    // A password may contain any character, so the last `@` ends it.
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) => {
            (Some(user.split_once(':').map_or((user, ""), |(user, _)| (user, ":***"))), host)
        }
        None => (None, rest),
    };
    let masked_user = user.map_or(String::new(), |(user, password)| format!("{user}{password}@"));
    let masked_query = match query {
        Some(query) if query.to_ascii_lowercase().contains("pass") => "?***".to_owned(),
        Some(query) => format!("?{query}"),
        None => String::new(),
    };
    Some(format!("{scheme}://{masked_user}{host}{masked_query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_masked() {
        for (url, masked) in [
            ("sqlite:hygeia.db", Some("sqlite:hygeia.db")),
            ("postgres://db/hygeia", Some("postgres://db/hygeia")),
            (
                "postgres://joe:s3cret@db:5432/hygeia?sslmode=require",
                Some("postgres://joe:***@db:5432/hygeia?sslmode=require"),
            ),
            ("postgres://joe@db/hygeia", Some("postgres://joe@db/hygeia")),
            ("postgres://joe:s3/cr@et@db/hygeia", Some("postgres://joe:***@db/hygeia")),
            ("postgres://db/hygeia?user=joe&password=s3cret", Some("postgres://db/hygeia?***")),
            ("postgres://joe:s3?cret@db/hygeia", None),
            ("postgres:s3cret@db", None),
        ] {
            assert_eq!(without_password(url).as_deref(), masked, "{url}");
        }
    }

    #[test]
    fn long_values_are_cut_and_control_characters_escaped() {
        let text = shown("node.name", &Value::Text("ä\u{1b}".repeat(500)));
        assert!(text.chars().count() < 1_000 && text.ends_with("…\"") && !text.contains('\u{1b}'), "{text}");
    }
}
