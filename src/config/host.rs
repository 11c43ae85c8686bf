//! The placeholder `{host}` in a node's name and address. It stands for the name of the host, so that one
//! file and one command line serve any number of nodes, such as the containers of one service.

use super::problem::Problem;
use super::tree::{Node, Value};

/// The placeholder for the name of the host.
const PLACEHOLDER: &str = "{host}";

/// The keys whose values may contain the placeholder.
const KEYS: [&str; 2] = ["node.name", "cluster.advertise"];

/// Replaces the placeholder by the host's name. `host` is needed only if the placeholder occurs.
pub(super) fn put(tree: &mut Node, host: Option<&str>) -> Result<(), Problem> {
    for key in KEYS {
        let Some(text) = tree.text(key).filter(|text| text.contains(PLACEHOLDER)) else { continue };
        let host = host.map(str::to_ascii_lowercase).filter(|host| !host.is_empty());
        let put = host.map(|host| text.replace(PLACEHOLDER, &host));
        let Some(node) = tree.get(key).cloned() else { continue };
        let Some(text) = put else {
            return Err(Problem::of(key, &node, format!("{PLACEHOLDER}: this host has no name")));
        };
        tree.set(key, Node { value: Value::Text(text), ..node })?;
    }
    Ok(())
}
