//! The node's settings. Each layer overrides the one before: defaults, a file, the environment, arguments.
//! Rules between sections are checked afterwards.
//!
//! A file may list the nodes of a cluster. The settings of the chosen node's entry override the rest of the
//! file.
//!
//! Each room of the program defines its own section; this room reads the values and reports the source of
//! each. A section must have `Default`, a `Debug` that prints no secret, and a `Deserialize` as `de`
//! describes. `cluster.toml` at the top of the repository lists every key with its default; a test compares
//! them.

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

/// All settings of a node.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The directory for the node's files: `runtime.json`, the embedded database, generated secrets.
    pub data_dir: PathBuf,
    /// The identity of the node.
    pub node: Node,
    /// The cluster that the node belongs to.
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
    /// The billing relay: from the outbox to billing.
    pub relay: actors::billing_relay::Settings,
    /// The Kafka bridge: from the outbox to Kafka.
    pub bridge: actors::kafka_bridge::Settings,
    /// Analytics: from Kafka to the counts.
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
    /// Returns whether this is the default node without any set-up: embedded database and broker, and
    /// reachable from this machine only. Only such a node creates a demo user and its own secrets.
    pub fn is_embedded_demo(&self) -> bool {
        self.store.url == store::DEFAULT_URL
            && self.kafka.brokers == kafka::EMBEDDED
            && self.http.listen.ip().is_loopback()
            && self.grpc.listen.ip().is_loopback()
            && self.node.is_alone()
            && !self.is_clustered()
    }

    /// Creates the data directory if it is missing.
    ///
    /// # Errors
    /// The directory cannot be created, the node cannot write to it, or everybody can.
    pub fn ensure_data_dir(&self) -> Result<(), Error> {
        data_dir::ensure(&self.data_dir).map_err(|reason| {
            let value = Some(format!("{:?}", self.data_dir.display().to_string()));
            Problem { key: "data_dir".to_owned(), value, ..Problem::general(None, reason) }.into()
        })
    }

    /// Gives an embedded demo node the secrets that it needs and lacks. They are random, and kept in the data
    /// directory with mode 0600, so that tokens and seals outlive a restart. Does nothing on other nodes.
    ///
    /// # Errors
    /// A file cannot be created or read, or other users may read it.
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

/// A configuration with the source of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    tree: tree::Node,
    /// The chosen node of the file, if any.
    chosen: Option<String>,
    /// Environment variables with our prefix that set nothing.
    pub ignored_variables: Vec<String>,
}

/// Reads the layers and checks each value by itself. The rules between values are in `Loaded::check`, because
/// only a node that serves must satisfy them.
///
/// # Errors
/// A layer cannot be read, a key is unknown, or a value is invalid.
pub fn load(inputs: &Inputs) -> Result<Loaded, Error> {
    let layers = layers::Layers::read(inputs)?;
    let tree = layers.merged()?;
    let chosen = layers.chosen.as_ref().map(|(name, _)| name.clone());
    let loaded = Loaded { ignored_variables: layers.ignored.clone(), ..checked(tree, chosen)? };
    // All nodes read the same file, so a mistake in another node's settings is reported here as well.
    for name in chosen::names(&layers.file) {
        checked(layers.of_node(&name)?, Some(name))?;
    }
    Ok(loaded)
}

/// Deserializes one tree, and checks each value by itself.
fn checked(tree: tree::Node, chosen: Option<String>) -> Result<Loaded, Error> {
    let config = match read(&tree, &de::Notes::default()) {
        Ok(config) => config,
        Err(problem) => return Err(out_of_range(&tree, chosen).unwrap_or_else(|| problem.into())),
    };
    let loaded = Loaded { config, tree, chosen, ignored_variables: Vec::new() };
    rules::check_values(&loaded)?;
    Ok(loaded)
}

/// Returns the numbers that do not fit their types, if they are why `tree` cannot be read. Only the sections
/// know the allowed range. To get their messages, the tree is read with the largest and the smallest value of
/// the type instead.
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

/// Checks the rules between sections for all nodes of a file. A problem of several nodes is reported once.
///
/// # Errors
/// All violated rules.
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
    /// Checks the rules between sections, for a node that is to serve.
    ///
    /// # Errors
    /// All violated rules.
    pub fn check(&self) -> Result<(), Error> {
        rules::check_serving(self)
    }

    /// Returns the names of the file's nodes, in the order of the file, if none was chosen.
    pub fn nodes_to_choose(&self) -> Vec<String> {
        if self.chosen.is_some() { Vec::new() } else { chosen::names(&self.tree) }
    }

    /// Renders every key with its value and its source, in the syntax of the file. Secrets are hidden.
    pub fn effective(&self) -> String {
        effective::render(self)
    }

    /// Builds the problem of `key` in an entry of `cluster.nodes`.
    fn entry_problem(&self, index: usize, key: &str, reason: impl Into<String>) -> Problem {
        let of_entry = |node: &tree::Node| node.source.clone();
        let entry = format!("{}[{index}]", chosen::NODES);
        let problem = self.problem(&format!("{entry}.{key}"), reason);
        let source = problem.source.or_else(|| self.tree.get(&entry).map(of_entry));
        Problem { source, ..problem }
    }

    /// Builds the problem of the value of `key`, with its source.
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
