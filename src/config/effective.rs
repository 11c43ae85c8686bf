//! The list of all keys and the effective settings, for `hygeia check`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::de::Notes;
use super::problem::shown;
use super::tree::{Node, Source, Value};
use super::{Config, Loaded, chosen, layers, read};

/// The documented defaults: every key with its default. A test compares them with the code.
pub(super) const DEFAULTS: &str = include_str!("../../cluster.toml");

/// Returns every key. A struct names its keys when it is deserialized, so each section is read once.
pub(super) fn keys() -> Vec<String> {
    let notes = Notes::default();
    let mut open = vec![String::new()];
    let mut keys = Vec::new();
    let nowhere = || Node::empty(Source::Argument(String::new()));
    while let Some(section) = open.pop() {
        let mut tree = nowhere();
        if !section.is_empty() {
            // The tree is empty, so nothing can clash.
            let _ = tree.set(&section, nowhere());
        }
        // If `section` is a section, it is recorded in the notes. A plain value fails to deserialize from a
        // section.
        let _ = read(&tree, &notes);
        match notes.sections.borrow().get(&section) {
            Some(names) if section.is_empty() => open.extend(names.iter().map(|n| (*n).to_owned())),
            Some(names) => open.extend(names.iter().map(|n| format!("{section}.{n}"))),
            None => keys.push(section),
        }
    }
    // Keys without a section come first, as TOML requires.
    keys.sort_unstable_by_key(|key| (key.contains('.'), key.clone()));
    keys
}

/// Keys for which `DEFAULTS` shows a value for clusters, with the true default.
pub(super) const OF_CLUSTERS: [(&str, &str); 2] =
    [("store.url", crate::store::DEFAULT_URL), ("kafka.brokers", crate::kafka::EMBEDDED)];

/// The defaults by the text of `DEFAULTS`.
pub(super) fn defaults() -> BTreeMap<String, Value> {
    let tree = layers::parse(Path::new("cluster.toml"), DEFAULTS);
    let leaves = tree.iter().flat_map(Node::leaves);
    let written = leaves.map(|(key, node)| (key, node.value.clone()));
    let alone = OF_CLUSTERS.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).to_owned())));
    written.chain(alone).chain([(chosen::NODES.to_owned(), Value::List(Vec::new()))]).collect()
}

/// Returns a default that depends on the machine, so that `DEFAULTS` cannot show it.
fn derived(config: &Config, key: &str) -> Option<Value> {
    match key {
        "auth.hashing_threads_max" => i64::try_from(config.auth.hashing_threads_max).ok().map(Value::Integer),
        _ => None,
    }
}

/// Renders a list of sections, one line for each key of each section.
fn render_sections(key: &str, items: &[Node], text: &mut String) {
    for (index, item) in items.iter().enumerate() {
        for (name, node) in item.leaves() {
            let key = format!("{key}[{index}].{name}");
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key} = {}  # {}", shown(&key, &node.value), node.source);
        }
    }
}

/// Implements `Loaded::effective`.
pub(super) fn render(loaded: &Loaded) -> String {
    let defaults = defaults();
    let mut text = String::new();
    for key in keys() {
        let default = || defaults.get(&key).cloned().or_else(|| derived(&loaded.config, &key));
        if let Some(Node { value: Value::List(items), .. }) = loaded.tree.get(&key)
            && items.iter().any(|item| matches!(item.value, Value::Table(_)))
        {
            render_sections(&key, items, &mut text);
            continue;
        }
        let (value, origin) = match (loaded.tree.get(&key), default()) {
            (Some(node), _) => (shown(&key, &node.value), node.source.to_string()),
            (None, Some(value)) => (shown(&key, &value), "default".to_owned()),
            (None, None) => {
                // Writing to a string does not fail.
                let _ = writeln!(text, "# {key} is not set");
                continue;
            }
        };
        let _ = writeln!(text, "{key} = {value}  # {origin}");
    }
    for name in &loaded.ignored_variables {
        let _ = writeln!(text, "# environment variable {name} is no setting, and is ignored");
    }
    text
}
