//! Settings before they have types: a tree of values, each with its source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::problem::{Problem, shown};

/// The source of a value, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of a file.
    File {
        /// The path as it was given.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command-line argument, such as `--http-listen`.
    Argument(String),
    /// The content of a file that another value named.
    Content {
        /// The path of the file.
        path: PathBuf,
        /// The source of the path.
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
    /// Text of an environment variable or argument; the field that reads it decides its type.
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
    /// The kind of the value, for messages.
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

/// A value with its source.
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

    /// Returns the node at `key` (`section.key`, or `section.list[0].key`), if it is set.
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

    /// Returns the items of the list at `key`; empty if there is no list.
    pub(super) fn items(&self, key: &str) -> &[Node] {
        match self.get(key) {
            Some(Node { value: Value::List(items), .. }) => items,
            _ => &[],
        }
    }

    /// Returns the text at `key`, if it is set to text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) | Value::Untyped(text) => Some(text),
            _ => None,
        }
    }

    /// Sets `key` (`section.key`) and creates missing sections.
    ///
    /// # Errors
    /// As `overlay`.
    pub(super) fn set(&mut self, key: &str, leaf: Node) -> Result<(), Problem> {
        self.overlay(key.rsplit('.').fold(leaf, |node, name| {
            let source = node.source.clone();
            Node { value: Value::Table([(name.to_owned(), node)].into()), source }
        }))
    }

    /// Removes `key`.
    pub(super) fn remove(&mut self, key: &str) -> Option<Node> {
        let Value::Table(table) = &mut self.value else { return None };
        match key.split_once('.') {
            None => table.remove(key),
            Some((first, rest)) => table.get_mut(first)?.remove(rest),
        }
    }

    /// Merges `over` into this tree: sections are merged, and a value replaces a value.
    ///
    /// # Errors
    /// A section and a value have the same key. Merging them would lose one of them silently.
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

    /// Returns every value that is not a section, with its key. A list counts as one value.
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

/// Builds the problem of a `key` that is a value in one layer and a section in another.
fn clash(key: &str, value: &Node, section: &Source) -> Problem {
    Problem {
        key: key.to_owned(),
        value: Some(shown(key, &value.value)),
        source: Some(value.source.clone()),
        reason: format!("{section} sets a key in it: either {key} is a value, or it has keys"),
    }
}
