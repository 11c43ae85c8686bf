//! The chosen node of a cluster file, and the settings in which it differs from the rest of the file.

use super::layers::{Inputs, Secrets, contents};
use super::problem::Problem;
use super::tree::{Node, Source, Value};

/// The list of nodes.
pub(super) const NODES: &str = "cluster.nodes";

/// The environment variable that chooses a node of the file, if no argument does.
pub const NODE_VARIABLE: &str = "HYGEIA_NODE";

/// Returns the name of the chosen node and the source of the choice.
pub(super) fn name(inputs: &Inputs) -> Result<Option<(String, Source)>, Problem> {
    if let Some(name) = &inputs.node {
        return Ok(Some((name.clone(), Source::Argument("--node".to_owned()))));
    }
    let named = inputs.environment.iter().find(|(name, _)| name == NODE_VARIABLE).map(|(_, value)| value);
    let Some(named) = named.filter(|value| !value.is_empty()) else { return Ok(None) };
    let source = Source::Environment(NODE_VARIABLE.to_owned());
    match named.to_str() {
        Some(name) => Ok(Some((name.to_owned(), source))),
        None => Err(Problem::general(Some(source), "the value is not UTF-8")),
    }
}

/// Returns the names of the nodes in `file`, in the order of the file.
pub(super) fn names(file: &Node) -> Vec<String> {
    file.items(NODES).iter().filter_map(|item| item.text("name")).map(str::to_owned).collect()
}

/// Returns the settings of the node `name` that override `file`.
pub(super) fn patch(file: &Node, name: &str, by: &Source, secrets: Secrets) -> Result<Node, Problem> {
    let refused = |reason: String| Problem {
        key: NODES.to_owned(),
        ..Problem::general(Some(by.clone()), format!("there is no node {name:?}; {reason}"))
    };
    let names = names(file);
    if names.is_empty() {
        let reason = "no nodes are named: a file with [[cluster.nodes]] does that, see cluster.toml";
        return Err(refused(reason.to_owned()));
    }
    let item = file.items(NODES).iter().find(|item| item.text("name") == Some(name));
    let Some(item) = item else { return Err(refused(format!("allowed: {}", names.join(", ")))) };
    of_item(item, secrets)
}

/// Builds the overriding settings of an entry: its `set`, its name, roles and address.
fn of_item(item: &Node, secrets: Secrets) -> Result<Node, Problem> {
    let mut patch = Node::empty(item.source.clone());
    let mut put = |from: &str, to: &str| match item.get(from) {
        Some(node) => patch.set(to, node.clone()),
        None => Ok(()),
    };
    put("name", "node.name")?;
    put("roles", "node.roles")?;
    put("address", "cluster.advertise")?;
    // A host name is not an address to listen on; `cluster.listen` has to name one.
    if item.text("address").is_some_and(|address| address.parse::<std::net::SocketAddr>().is_ok()) {
        put("address", "cluster.listen")?;
    }
    match item.get("set") {
        Some(set @ Node { value: Value::Table(_), .. }) => patch.overlay(contents(set.clone(), secrets)?)?,
        Some(other) => {
            let reason = "expected a section with keys, as the file has them";
            return Err(Problem::of(&format!("{NODES}.set"), other, reason));
        }
        None => {}
    }
    Ok(patch)
}
