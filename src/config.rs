//! The node's settings: defaults, then a file, then the environment, then arguments; then the rules
//! between sections.
//!
//! Each room defines its own section; this room finds the values and says where each came from. It
//! asks of a section: `Default`, `Debug` that prints no secret, and a `Deserialize` as `de` says.
//! `cluster.toml` at the top of the repository lists every key with its default, and a test holds it
//! to that.

mod de;
mod effective;
mod layers;
mod node;
mod problem;
mod rules;
mod secret_file;
mod sections;
mod tree;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Deserialize;

pub use self::layers::{Argument, Inputs};
pub use self::node::{Node, Role};
pub use self::problem::{Error, Problem, is_secret, is_secret_url};
pub use self::sections::{
    ActorsSection, AuthSection, GrpcSection, HttpSection, KafkaSection, Secret, StoreSection,
};
pub use self::tree::Source;

/// Everything a node is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its files: `runtime.json`, the embedded database, a secret it made.
    pub data_dir: PathBuf,
    /// Who the node is.
    pub node: Node,
    /// The HTTP edge.
    pub http: HttpSection,
    /// The gRPC edge.
    pub grpc: GrpcSection,
    /// The database.
    pub store: StoreSection,
    /// The broker.
    pub kafka: KafkaSection,
    /// Users and tokens.
    pub auth: AuthSection,
    /// The actors.
    pub actors: ActorsSection,
    /// Logs and metrics.
    pub telemetry: crate::telemetry::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: PathBuf::from("hygeia-data"),
            node: Node::default(),
            http: HttpSection::default(),
            grpc: GrpcSection::default(),
            store: StoreSection::default(),
            kafka: KafkaSection::default(),
            auth: AuthSection::default(),
            actors: ActorsSection::default(),
            telemetry: crate::telemetry::Settings::default(),
        }
    }
}

impl Config {
    /// Whether this is the node one gets without setting anything up: embedded database and broker,
    /// and nobody but this machine can reach it. Only such a node makes a demo user and its own secret.
    pub fn is_embedded_demo(&self) -> bool {
        self.store.url == StoreSection::default().url
            && self.kafka.brokers == KafkaSection::default().brokers
            && self.http.listen.ip().is_loopback()
            && self.grpc.listen.ip().is_loopback()
            && self.node.is_alone()
    }

    /// Gives an embedded demo node without a secret for tokens one of its own: random, kept in the
    /// data directory with mode 0600, so that tokens outlive a restart. Nothing happens elsewhere.
    ///
    /// # Errors
    /// The file cannot be made or read, or others may read it.
    pub fn ensure_jwt_secret(&mut self) -> Result<(), Error> {
        if self.auth.jwt_secret.is_none() && self.is_embedded_demo() {
            self.auth.jwt_secret = Some(Secret::new(secret_file::read_or_make(&self.data_dir)?));
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
}

/// Reads the layers. What is wrong with a single value is found here; `Loaded::check` has the rules
/// between them, which only a node that serves must keep.
///
/// # Errors
/// A layer that cannot be read, an unknown key, a value that does not fit.
pub fn load(inputs: &Inputs) -> Result<Loaded, Error> {
    let tree = layers::merged(inputs)?;
    let config = read(&tree, None)?;
    let loaded = Loaded { config, tree };
    rules::check_values(&loaded)?;
    Ok(loaded)
}

impl Loaded {
    /// The rules between sections, for a node that is to serve.
    ///
    /// # Errors
    /// Every rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        rules::check_serving(self)
    }

    /// Every key with its value, and where it came from, in the syntax of the file. Secrets are hidden.
    pub fn effective(&self) -> String {
        effective::render(&self.tree)
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

fn read(tree: &tree::Node, sections: Option<&de::Sections>) -> Result<Config, Problem> {
    Config::deserialize(de::De { node: tree, key: "", sections })
}
