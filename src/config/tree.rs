//! Settings before they have types: a tree of values, each of which knows where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::problem::{Problem, shown};

/// Where a value came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    File {
        /// As it was named.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command-line argument, such as `--http-listen`.
    Argument(String),
    /// The content of a file that another value named.
    Content {
        /// The file.
        path: PathBuf,
        /// Who named it.
        named_by: Box<Source>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::Argument(name) => write!(f, "argument {name}"),
            Source::Content { path, named_by } => write!(f, "{} (named by {named_by})", path.display()),
        }
    }
}

/// A value without its final type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Text of an environment variable or argument: what type it has is for its reader to say.
    Untyped(String),
    /// A string of a file.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// A list.
    List(Vec<Node>),
    /// A section.
    Table(BTreeMap<String, Node>),
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Untyped(_) | Value::Text(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::List(_) => "a list",
            Value::Table(_) => "a section",
        }
    }
}

/// A value with its origin.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) source: Source,
}

impl Node {
    /// A section without keys.
    pub(super) fn empty(source: Source) -> Self {
        Node { value: Value::Table(BTreeMap::new()), source }
    }

    /// The node at `key` (`section.key`, or `section.list[0].key`), if it is set.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        key.split('.').try_fold(self, |node, part| {
            let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((name, index)) => (name, Some(index.parse::<usize>().ok()?)),
                None => (part, None),
            };
            let Value::Table(table) = &node.value else { return None };
            match (table.get(name)?, index) {
                (found, None) => Some(found),
                (Node { value: Value::List(items), .. }, Some(index)) => items.get(index),
                _ => None,
            }
        })
    }

    /// The items of the list at `key`; none if there is no list.
    pub(super) fn items(&self, key: &str) -> &[Node] {
        match self.get(key) {
            Some(Node { value: Value::List(items), .. }) => items,
            _ => &[],
        }
    }

    /// The text at `key`, if it is set and text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) | Value::Untyped(text) => Some(text),
            _ => None,
        }
    }

    /// Sets `key` (`section.key`), making sections on the way.
    ///
    /// # Errors
    /// As `overlay`.
    pub(super) fn set(&mut self, key: &str, leaf: Node) -> Result<(), Problem> {
        self.overlay(key.rsplit('.').fold(leaf, |node, name| {
            let source = node.source.clone();
            Node { value: Value::Table([(name.to_owned(), node)].into()), source }
        }))
    }

    /// Takes `key` out.
    pub(super) fn remove(&mut self, key: &str) -> Option<Node> {
        let Value::Table(table) = &mut self.value else { return None };
        match key.split_once('.') {
            None => table.remove(key),
            Some((first, rest)) => table.get_mut(first)?.remove(rest),
        }
    }

    /// Lays `over` on top: sections are merged, a value takes the place of another.
    ///
    /// # Errors
    /// A section and a value have the same key: one of them would be lost in silence.
    pub(super) fn overlay(&mut self, over: Node) -> Result<(), Problem> {
        self.lay("", over)
    }

    fn lay(&mut self, key: &str, over: Node) -> Result<(), Problem> {
        match (&mut self.value, over.value) {
            (Value::Table(below), Value::Table(above)) => {
                for (name, node) in above {
                    let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                    match below.get_mut(&name) {
                        Some(present) => present.lay(&key, node)?,
                        None => {
                            below.insert(name, node);
                        }
                    }
                }
            }
            (Value::Table(_), value) => {
                return Err(clash(key, &Node { value, source: over.source }, &self.source));
            }
            (_, Value::Table(_)) => return Err(clash(key, self, &over.source)),
            (below, above) => {
                *below = above;
                self.source = over.source;
            }
        }
        Ok(())
    }

    /// Every value that is no section, with its key; a list is one value.
    pub(super) fn leaves(&self) -> Vec<(String, &Node)> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect<'a>(&'a self, prefix: &str, found: &mut Vec<(String, &'a Node)>) {
        let Value::Table(table) = &self.value else { return };
        for (name, node) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match node.value {
                Value::Table(_) => node.collect(&key, found),
                _ => found.push((key, node)),
            }
        }
    }
}

/// `key` is the value `value` here, and a section by `section`.
fn clash(key: &str, value: &Node, section: &Source) -> Problem {
    Problem {
        key: key.to_owned(),
        value: Some(shown(key, &value.value)),
        source: Some(value.source.clone()),
        reason: format!("{section} sets a key in it: either {key} is a value, or it has keys"),
    }
}
