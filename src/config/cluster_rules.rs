//! The rules of the section `cluster`.

use std::collections::BTreeMap;
use std::path::Path;

use super::Loaded;
use super::chosen::{self, NODES};
use super::cluster::{Cluster, host_and_port, is_loopback};
use super::layers;
use super::node::{Node, Role};
use super::problem::Problem;
use crate::domain::secret::SECRET_BYTES_MIN;

/// Maximum number of nodes that a file may list.
const NODES_MAX: usize = 256;

/// Maximum size of what a frame adds to its largest item.
const FRAME_ROOM_BYTES: u64 = 1_024;

/// The required form of a node's address.
const ADDRESS: &str = "allowed: host:port, such as 127.0.0.1:7101 or patient-1:7100";

/// The settings of the certificate files, and the PEM label that each file must contain.
const TLS_FILES: [(&str, &str); 3] =
    [("ca_file", "BEGIN CERTIFICATE"), ("cert_file", "BEGIN CERTIFICATE"), ("key_file", "PRIVATE KEY")];

/// Checks the rules for every command. They depend on the settings alone.
pub(super) fn check_values(loaded: &Loaded) -> Vec<Problem> {
    let cluster = &loaded.config.cluster;
    let mut problems = Vec::new();
    if !Node::is_name(&cluster.name) {
        problems.push(loaded.problem("cluster.name", Node::name_rule()));
    }
    let advertised = cluster.advertise.iter().map(|address| ("cluster.advertise", address));
    for (key, address) in cluster.join.iter().map(|address| ("cluster.join", address)).chain(advertised) {
        if host_and_port(address).is_none() {
            problems.push(loaded.problem(key, format!("{address:?} is no address; {ADDRESS}")));
        }
    }
    if let Some(secret) = &cluster.secret
        && secret.reveal().len() < SECRET_BYTES_MIN
    {
        let bytes = secret.reveal().len();
        let reason = format!(
            "at least {SECRET_BYTES_MIN} bytes are needed, and it has {bytes}; `openssl rand -base64 48` makes some"
        );
        problems.push(loaded.problem("cluster.secret", reason));
    }
    for (key, reason) in cluster.limits_out_of_bounds() {
        problems.push(loaded.problem(&format!("cluster.{key}"), reason));
    }
    let (link, frame) = (&loaded.config.link, cluster.frame_max_bytes);
    for (key, bytes) in [("item_bytes_max", link.item_bytes_max), ("frame_bytes_max", link.frame_bytes_max)] {
        if (bytes as u64).saturating_add(FRAME_ROOM_BYTES) > frame {
            let reason = format!(
                "allowed: at most cluster.frame_max_bytes ({frame}) less {FRAME_ROOM_BYTES}, or a node would turn \
                 away what another sends"
            );
            problems.push(loaded.problem(&format!("link.{key}"), reason));
        }
    }
    problems.extend(check_nodes(loaded));
    problems
}

fn check_nodes(loaded: &Loaded) -> Vec<Problem> {
    let nodes = &loaded.config.cluster.nodes;
    let key_of = |index: usize, key: &str| format!("{NODES}[{index}].{key}");
    let mut problems = Vec::new();
    if nodes.len() > NODES_MAX {
        problems.push(loaded.problem(NODES, format!("{} nodes; allowed: {NODES_MAX}", nodes.len())));
    }
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (index, node) in nodes.iter().enumerate() {
        if !Node::is_name(&node.name) {
            problems.push(loaded.entry_problem(index, "name", Node::name_rule()));
        } else if let Some(first) = names.insert(node.name.clone(), index) {
            let reason = format!("{} has the same name; every node has its own", key_of(first, "name"));
            problems.push(loaded.entry_problem(index, "name", reason));
        }
        if host_and_port(&node.address).is_none() {
            problems.push(loaded.entry_problem(index, "address", ADDRESS));
        } else if let Some(first) = addresses.insert(node.address.to_ascii_lowercase(), index) {
            let reason = format!("{} has the same address; every node has its own", key_of(first, "address"));
            problems.push(loaded.entry_problem(index, "address", reason));
        }
        if node.roles.is_empty() {
            problems.push(loaded.entry_problem(index, "roles", Role::at_least_one()));
        }
    }
    let without = |role: &Role| !nodes.iter().any(|node| node.roles.contains(role));
    let missing: Vec<_> = Role::ALL.into_iter().filter(without).map(Role::as_str).collect();
    if !nodes.is_empty() && !missing.is_empty() {
        let reason = format!("no node has the role {}; a cluster needs each role once", missing.join(", "));
        problems.push(loaded.problem(NODES, reason));
    }
    problems
}

/// Checks the rules for a node that is to serve.
pub(super) fn check_serving(loaded: &Loaded) -> Vec<Problem> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    if config.is_clustered() {
        problems.extend(check_who(loaded));
        problems.extend(check_reach(loaded));
        problems.extend(check_tls(loaded));
        if config.cluster.secret.is_none() {
            let reason = "not set, and nodes show it to each other; set HYGEIA__CLUSTER__SECRET, or \
                          HYGEIA__CLUSTER__SECRET_FILE to a file that holds it";
            problems.push(loaded.problem("cluster.secret", reason));
        }
    } else if !config.node.is_alone() {
        let left = Role::ALL.iter().filter(|role| !config.node.roles.contains(role));
        let left: Vec<_> = left.map(|role| role.as_str()).collect();
        let reason = format!(
            "{} would run nowhere: a node that leaves roles to others needs a cluster, which --join, \
             cluster.listen or a file with [[cluster.nodes]] names",
            left.join(", ")
        );
        problems.push(loaded.problem("node.roles", reason));
    }
    problems.extend(check_parts_for_many(loaded));
    problems
}

/// Refuses the embedded database and broker where the node is not alone, because they serve a single process.
fn check_parts_for_many(loaded: &Loaded) -> Vec<Problem> {
    let config = &loaded.config;
    let why = if config.is_clustered() {
        "is for one process alone, and this node is one of a cluster"
    } else if !config.node.is_alone() {
        "is for one node that has every role, and node.roles leaves some to others"
    } else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    if config.store.url.starts_with("sqlite:") {
        let reason = format!("SQLite {why}; use postgres://user@host:port/database");
        problems.push(loaded.problem("store.url", reason));
    }
    if config.kafka.brokers == crate::kafka::EMBEDDED {
        let reason = format!("the embedded broker {why}; name brokers as host:port");
        problems.push(loaded.problem("kafka.brokers", reason));
    }
    problems
}

/// Checks that the node is either a node of the file or one that joins.
fn check_who(loaded: &Loaded) -> Vec<Problem> {
    let config = &loaded.config;
    let (cluster, name) = (&config.cluster, &config.node.name);
    let names = chosen::names(&loaded.tree).join(", ");
    let mut problems = Vec::new();
    let others = cluster.nodes.iter().filter(|node| node.name != *name).count();
    if others > cluster.peers_max {
        let reason = format!("cluster.nodes names {others} other nodes");
        problems.push(loaded.problem("cluster.peers_max", reason));
    }
    if loaded.chosen.is_some() {
        if !cluster.nodes.iter().any(|node| node.name == *name) {
            let reason = format!("a node of the file keeps its name; allowed: {names}");
            problems.push(loaded.problem("node.name", reason));
        }
        return problems;
    }
    let is_in_file = cluster.nodes.iter().any(|node| node.name == *name);
    if cluster.join.is_empty() {
        if !cluster.nodes.is_empty() {
            let reason = format!(
                "which of the nodes to run is not said: --node NAME or HYGEIA_NODE=NAME, and NAME one of {names}; \
                 another node joins with --join"
            );
            problems.push(Problem { key: NODES.to_owned(), ..Problem::general(None, reason) });
        }
        return problems;
    }
    if cluster.tls.ca_file.is_some() && cluster.nodes.is_empty() && cluster.tls.allowed_suffix.is_none() {
        let reason = "not set, and a node that joins without the cluster's file knows none of the names in the \
                      others' certificates: give it the file with --config, or the suffix of those names";
        problems.push(loaded.problem("cluster.tls.allowed_suffix", reason));
    }
    if is_in_file {
        let reason = "it is a node of the file: --node runs it, and --join is for one that is not there";
        problems.push(loaded.problem("node.name", reason));
    }
    for (key, argument) in [("node.name", "--name"), ("node.roles", "--roles")] {
        if loaded.tree.get(key).is_none() {
            problems.push(loaded.problem(key, format!("a node that joins says it: {argument}")));
        }
    }
    problems
}

/// Checks that other nodes can reach the node.
fn check_reach(loaded: &Loaded) -> Vec<Problem> {
    let cluster = &loaded.config.cluster;
    let mut problems = Vec::new();
    match cluster.listen_or_joining() {
        None if loaded.chosen.is_some() => {
            let reason = "not set, and the node's address is a name; set it, such as 0.0.0.0:7100";
            problems.push(loaded.problem("cluster.listen", reason));
        }
        None if !cluster.join.is_empty() => {
            let reason =
                "not set, and a node elsewhere cannot reach one on loopback; set it, such as 0.0.0.0:7100";
            problems.push(loaded.problem("cluster.listen", reason));
        }
        Some(listen) if listen.ip().is_unspecified() && cluster.advertise.is_none() => {
            let reason = format!("not set, and nobody can reach {listen}; set it to host:port");
            problems.push(loaded.problem("cluster.advertise", reason));
        }
        _ => {}
    }
    problems
}

fn check_tls(loaded: &Loaded) -> Vec<Problem> {
    let cluster = &loaded.config.cluster;
    let tls = &cluster.tls;
    let files = [&tls.ca_file, &tls.cert_file, &tls.key_file];
    if files.iter().all(|file| file.is_none()) {
        return check_loopback_only(loaded, cluster);
    }
    let mut problems = Vec::new();
    for ((name, holds), file) in TLS_FILES.into_iter().zip(files) {
        let key = format!("cluster.tls.{name}");
        let wrong = match file {
            None => Some("not set; certificates need ca_file, cert_file and key_file".to_owned()),
            Some(path) => read_pem(path, holds).err(),
        };
        problems.extend(wrong.map(|reason| loaded.problem(&key, reason)));
    }
    if tls.allowed_suffix.as_ref().is_some_and(|suffix| !suffix.starts_with('.') || suffix.len() < 2) {
        let reason = "allowed: a part of a name that begins with a dot, such as .nodes.example.org";
        problems.push(loaded.problem("cluster.tls.allowed_suffix", reason));
    }
    problems
}

fn read_pem(path: &Path, holds: &str) -> Result<(), String> {
    let text = layers::read_text(path, layers::SECRET_FILE_BYTES_MAX)
        .map_err(|reason| format!("the file cannot be read: {reason}"))?;
    let fits = text.contains(&format!("-----{holds}")) || text.contains(&format!("{holds}-----"));
    fits.then_some(()).ok_or_else(|| format!("the file has no PEM section with {holds}"))
}

/// Refuses addresses off this machine, because they require certificates.
fn check_loopback_only(loaded: &Loaded, cluster: &Cluster) -> Vec<Problem> {
    let without = "leaves this machine, which needs certificates: set cluster.tls.ca_file, cert_file and key_file, \
                   or stay on loopback";
    let mut problems = Vec::new();
    if let Some(listen) = cluster.listen.filter(|listen| !listen.ip().is_loopback()) {
        problems.push(loaded.problem("cluster.listen", format!("{listen} {without}")));
    }
    for (index, node) in cluster.nodes.iter().enumerate().filter(|(_, node)| !is_loopback(&node.address)) {
        if node.name != loaded.config.node.name {
            problems.push(loaded.entry_problem(index, "address", without));
        }
    }
    if cluster.join.iter().any(|address| !is_loopback(address)) {
        problems.push(loaded.problem("cluster.join", without));
    }
    problems
}
