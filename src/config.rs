//! The node's settings: defaults, then a file, then the environment, then arguments; then the rules
//! between sections.
//!
//! A file may name the nodes of a cluster; what the chosen one has of its own lies over the rest of the file.
//!
//! Each room defines its own section; this room finds the values and says where each came from. It
//! asks of a section: `Default`, `Debug` that prints no secret, and a `Deserialize` as `de` says.
//! `cluster.toml` at the top of the repository lists every key with its default, and a test holds it
//! to that.

mod chosen;
pub mod cluster;
mod cluster_rules;
mod data_dir;
mod de;
mod effective;
mod host;
mod layers;
mod node;
mod problem;
mod rules;
mod secret_file;
mod tree;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Deserialize;

use crate::{actors, auth, grpc, http, kafka, store};

pub use self::chosen::NODE_VARIABLE;
pub use self::cluster::Cluster;
pub use self::layers::{Argument, FILE_VARIABLE, Inputs, line_of_secret};
pub use self::node::{Node, Role};
pub use self::problem::{Error, Problem, is_secret, is_secret_url};
pub use self::tree::Source;

/// Everything a node is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its files: `runtime.json`, the embedded database, a secret it made.
    pub data_dir: PathBuf,
    /// Who the node is.
    pub node: Node,
    /// The cluster that it is part of.
    pub cluster: Cluster,
    /// The HTTP edge.
    pub http: http::Settings,
    /// The gRPC edge.
    pub grpc: grpc::Settings,
    /// The database.
    pub store: store::Settings,
    /// The broker.
    pub kafka: kafka::Settings,
    /// Users and tokens.
    pub auth: auth::Settings,
    /// The access audit.
    pub audit: actors::audit::Settings,
    /// The actors of patients and accounts.
    pub actors: actors::settings::Settings,
    /// The links to other nodes.
    pub link: actors::link::Settings,
    /// From the outbox to billing.
    pub relay: actors::billing_relay::Settings,
    /// From the outbox to Kafka.
    pub bridge: actors::kafka_bridge::Settings,
    /// From Kafka to the counts.
    pub analytics: actors::analytics::Settings,
    /// Logs and metrics.
    pub telemetry: crate::telemetry::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: PathBuf::from("hygeia-data"),
            node: Node::default(),
            cluster: Cluster::default(),
            http: http::Settings::default(),
            grpc: grpc::Settings::default(),
            store: store::Settings::default(),
            kafka: kafka::Settings::default(),
            auth: auth::Settings::default(),
            audit: actors::audit::Settings::default(),
            actors: actors::settings::Settings::default(),
            link: actors::link::Settings::default(),
            relay: actors::billing_relay::Settings::default(),
            bridge: actors::kafka_bridge::Settings::default(),
            analytics: actors::analytics::Settings::default(),
            telemetry: crate::telemetry::Settings::default(),
        }
    }
}

impl Config {
    /// Whether this is the node one gets without setting anything up: embedded database and broker,
    /// and nobody but this machine can reach it. Only such a node makes a demo user and its own secret.
    pub fn is_embedded_demo(&self) -> bool {
        self.store.url == store::DEFAULT_URL
            && self.kafka.brokers == kafka::EMBEDDED
            && self.http.listen.ip().is_loopback()
            && self.grpc.listen.ip().is_loopback()
            && self.node.is_alone()
            && !self.is_clustered()
    }

    /// Makes the data directory if it is not there.
    ///
    /// # Errors
    /// It cannot be made, the node cannot write there, or everybody can.
    pub fn ensure_data_dir(&self) -> Result<(), Error> {
        data_dir::ensure(&self.data_dir).map_err(|reason| {
            let value = Some(format!("{:?}", self.data_dir.display().to_string()));
            Problem { key: "data_dir".to_owned(), value, ..Problem::general(None, reason) }.into()
        })
    }

    /// Gives an embedded demo node the secrets that are needed and missing: random, kept in the data directory with
    /// mode 0600, so that what was made with them outlives a restart. Nothing happens elsewhere.
    ///
    /// # Errors
    /// A file cannot be made or read, or others may read it.
    pub fn ensure_secrets(&mut self) -> Result<(), Error> {
        if !self.is_embedded_demo() {
            return Ok(());
        }
        self.ensure_data_dir()?;
        if self.auth.check_secret() == Err(auth::Error::SecretMissing) {
            self.auth.jwt_secret = Some(secret_file::JWT.read_or_make(&self.data_dir)?.into());
        }
        if self.audit.secret.is_none() {
            self.audit.secret = Some(secret_file::AUDIT.read_or_make(&self.data_dir)?.into());
        }
        Ok(())
    }
}

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    tree: tree::Node,
    /// The node of the file that it is, if one was chosen.
    chosen: Option<String>,
    /// Environment variables whose names begin as ours do and that set nothing.
    pub ignored_variables: Vec<String>,
}

/// Reads the layers. What is wrong with a single value is found here; `Loaded::check` has the rules
/// between them, which only a node that serves must keep.
///
/// # Errors
/// A layer that cannot be read, an unknown key, a value that does not fit.
pub fn load(inputs: &Inputs) -> Result<Loaded, Error> {
    let layers = layers::Layers::read(inputs)?;
    let tree = layers.merged()?;
    let chosen = layers.chosen.as_ref().map(|(name, _)| name.clone());
    let loaded = Loaded { ignored_variables: layers.ignored.clone(), ..checked(tree, chosen)? };
    // A slip in another node's settings is told here as well: all of them read the same file.
    for name in chosen::names(&layers.file) {
        checked(layers.of_node(&name)?, Some(name))?;
    }
    Ok(loaded)
}

/// Reads one tree, and checks each value by itself.
fn checked(tree: tree::Node, chosen: Option<String>) -> Result<Loaded, Error> {
    let config = match read(&tree, &de::Notes::default()) {
        Ok(config) => config,
        Err(problem) => return Err(out_of_range(&tree, chosen).unwrap_or_else(|| problem.into())),
    };
    let loaded = Loaded { config, tree, chosen, ignored_variables: Vec::new() };
    rules::check_values(&loaded)?;
    Ok(loaded)
}

/// Numbers that their types do not hold, if that is what keeps `tree` from being read. What is allowed only the
/// sections know, so they are asked about other numbers that break their rules: the least and the largest of the type.
fn out_of_range(tree: &tree::Node, chosen: Option<String>) -> Option<Error> {
    let mut unfit = Vec::new();
    let mut rules = Vec::new();
    for instead in [de::Instead::Most, de::Instead::Least] {
        let notes = de::Notes { instead: Some(instead), ..de::Notes::default() };
        let config = read(tree, &notes).ok()?;
        let loaded =
            Loaded { config, tree: tree.clone(), chosen: chosen.clone(), ignored_variables: Vec::new() };
        rules.extend(rules::check_values(&loaded).err().into_iter().flat_map(|error| error.problems));
        unfit = notes.unfit.into_inner();
    }
    let told =
        |problem: Problem| rules.iter().find(|rule| rule.key == problem.key).cloned().unwrap_or(problem);
    let problems: Vec<Problem> = unfit.into_iter().map(told).collect();
    (!problems.is_empty()).then_some(Error { problems })
}

/// The rules between sections, for all nodes of a file; what is wrong with several is told once.
///
/// # Errors
/// Every rule that is broken.
pub fn check_all(nodes: &[Loaded]) -> Result<(), Error> {
    let mut problems: Vec<Problem> = Vec::new();
    for error in nodes.iter().filter_map(|node| node.check().err()) {
        problems.extend(error.problems);
    }
    let mut told = std::collections::HashSet::new();
    problems.retain(|problem| told.insert(problem.to_string()));
    if problems.is_empty() { Ok(()) } else { Err(Error { problems }) }
}

impl Loaded {
    /// The rules between sections, for a node that is to serve.
    ///
    /// # Errors
    /// Every rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        rules::check_serving(self)
    }

    /// The nodes that the file names, in its order, if none of them was chosen.
    pub fn nodes_to_choose(&self) -> Vec<String> {
        if self.chosen.is_some() { Vec::new() } else { chosen::names(&self.tree) }
    }

    /// Every key with its value, and where it came from, in the syntax of the file. Secrets are hidden.
    pub fn effective(&self) -> String {
        effective::render(self)
    }

    /// What is wrong with `key` of a node of the file.
    fn entry_problem(&self, index: usize, key: &str, reason: impl Into<String>) -> Problem {
        let of_entry = |node: &tree::Node| node.source.clone();
        let entry = format!("{}[{index}]", chosen::NODES);
        let problem = self.problem(&format!("{entry}.{key}"), reason);
        let source = problem.source.or_else(|| self.tree.get(&entry).map(of_entry));
        Problem { source, ..problem }
    }

    /// What is wrong with the value of `key`, wherever it came from.
    fn problem(&self, key: &str, reason: impl Into<String>) -> Problem {
        let reason = reason.into();
        match self.tree.get(key) {
            Some(node) => Problem {
                key: key.to_owned(),
                value: Some(problem::shown(key, &node.value)),
                source: Some(node.source.clone()),
                reason,
            },
            None => Problem { key: key.to_owned(), ..Problem::general(None, reason) },
        }
    }
}

fn read(tree: &tree::Node, notes: &de::Notes) -> Result<Config, Problem> {
    Config::deserialize(de::De { node: tree, key: "", notes })
}
