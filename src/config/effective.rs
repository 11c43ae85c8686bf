//! Which keys there are, and what each is set to: for `hygeia check`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::de::Notes;
use super::problem::shown;
use super::tree::{Node, Source, Value};
use super::{Config, Loaded, chosen, layers, read};

/// Every key with its default, as text: a test keeps it so.
pub(super) const DEFAULTS: &str = include_str!("../../cluster.toml");

/// Every key there is. The structs are asked: a section says which keys it has when it is read.
pub(super) fn keys() -> Vec<String> {
    let notes = Notes::default();
    let mut open = vec![String::new()];
    let mut keys = Vec::new();
    let nowhere = || Node::empty(Source::Argument(String::new()));
    while let Some(section) = open.pop() {
        let mut tree = nowhere();
        if !section.is_empty() {
            // Nothing is there that it could clash with.
            let _ = tree.set(&section, nowhere());
        }
        // Whether `section` is one shows in whether it was noted; a plain value refuses to be one.
        let _ = read(&tree, &notes);
        match notes.sections.borrow().get(&section) {
            Some(names) if section.is_empty() => open.extend(names.iter().map(|n| (*n).to_owned())),
            Some(names) => open.extend(names.iter().map(|n| format!("{section}.{n}"))),
            None => keys.push(section),
        }
    }
    // First the keys without a section, as a file must have them.
    keys.sort_unstable_by_key(|key| (key.contains('.'), key.clone()));
    keys
}

/// What a cluster needs otherwise than by default: `DEFAULTS` has it for one, and says the default beside it.
pub(super) const OF_CLUSTERS: [(&str, &str); 2] =
    [("store.url", crate::store::DEFAULT_URL), ("kafka.brokers", crate::kafka::EMBEDDED)];

/// The defaults, as `DEFAULTS` has them.
pub(super) fn defaults() -> BTreeMap<String, Value> {
    let tree = layers::parse(Path::new("cluster.toml"), DEFAULTS);
    let leaves = tree.iter().flat_map(Node::leaves);
    let written = leaves.map(|(key, node)| (key, node.value.clone()));
    let alone = OF_CLUSTERS.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).to_owned())));
    written.chain(alone).chain([(chosen::NODES.to_owned(), Value::List(Vec::new()))]).collect()
}

/// A default that hangs on the machine, so that `DEFAULTS` cannot have it.
fn derived(config: &Config, key: &str) -> Option<Value> {
    match key {
        "auth.hashing_threads_max" => i64::try_from(config.auth.hashing_threads_max).ok().map(Value::Integer),
        _ => None,
    }
}

/// A list of sections: each key of each on a line of its own.
fn render_sections(key: &str, items: &[Node], text: &mut String) {
    for (index, item) in items.iter().enumerate() {
        for (name, node) in item.leaves() {
            let key = format!("{key}[{index}].{name}");
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key} = {}  # {}", shown(&key, &node.value), node.source);
        }
    }
}

/// See `Loaded::effective`.
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
