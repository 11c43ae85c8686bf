//! The arguments for settings, which are the same for every command that reads a configuration.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::failure::{Exit, Failure};
use crate::config::{self, Argument, FILE_VARIABLE, Inputs, Loaded};

/// Settings. Each key of cluster.toml can also be set by a variable HYGEIA__SECTION__KEY.
#[derive(Clone, Debug, Default, Args)]
#[command(
    next_help_heading = "Settings (any other: a variable HYGEIA__SECTION__KEY; cluster.toml lists them)"
)]
pub(super) struct SettingArgs {
    /// Read this file, which has the format of cluster.toml [env: HYGEIA_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any key; may be given several times
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// The directory for the node's files (data_dir)
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// The address for HTTP (http.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    http_listen: Option<String>,
    /// The address for gRPC (grpc.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    grpc_listen: Option<String>,
    /// The URL of the database, without a password (store.url)
    #[arg(long, value_name = "URL")]
    store_url: Option<String>,
    /// The addresses of the brokers (kafka.brokers)
    #[arg(long, value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,
    /// The node's name (node.name); {host} is replaced by the name of the host
    #[arg(long, value_name = "NAME", visible_alias = "name")]
    node_name: Option<String>,
    /// Run this node of the file's [[cluster.nodes]] [env: HYGEIA_NODE]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["node_name", "join"])]
    node: Option<String>,
    /// Join the cluster of these nodes, as a node that the file does not list (cluster.join)
    #[arg(long, value_name = "HOST:PORT,…")]
    join: Option<String>,
    /// The node's roles: front, patient, billing, bridge, analytics (node.roles)
    #[arg(long, value_name = "ROLE,…")]
    roles: Option<String>,
}

impl SettingArgs {
    /// Settings from a file and from `--set` arguments.
    pub(super) fn of_file(config: Option<PathBuf>, set: Vec<String>) -> Self {
        SettingArgs { config, set, ..SettingArgs::default() }
    }

    /// Reads the configuration.
    pub(super) fn load(self, environment: Vec<(OsString, OsString)>) -> Result<Loaded, Failure> {
        let from_variable = || {
            let named = environment.iter().find(|(name, _)| name == FILE_VARIABLE);
            named.filter(|(_, path)| !path.is_empty()).map(|(_, path)| PathBuf::from(path))
        };
        let file = self.config.clone().or_else(from_variable);
        let node = self.node.clone();
        let host = rustix::system::uname().nodename().to_str().ok().map(str::to_owned);
        let inputs = Inputs { file, node, arguments: self.arguments()?, environment, host };
        Ok(config::load(&inputs)?)
    }

    /// Reads the configuration. Also reads that of each node of the file, if none was chosen.
    pub(super) fn load_each(
        self,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<(Loaded, Vec<Loaded>), Failure> {
        let loaded = self.clone().load(environment.clone())?;
        let as_node = |node| SettingArgs { node: Some(node), ..self.clone() }.load(environment.clone());
        let nodes = loaded.nodes_to_choose().into_iter().map(as_node).collect::<Result<_, _>>()?;
        Ok((loaded, nodes))
    }

    fn arguments(self) -> Result<Vec<Argument>, Failure> {
        let mut arguments = Vec::new();
        for set in self.set {
            // The error does not quote the text, which may be a secret.
            let Some((key, value)) = set.split_once('=') else {
                return Err(Failure::new(Exit::Usage, "--set: the form is --set section.key=value"));
            };
            let (key, value) = (key.trim().to_owned(), value.to_owned());
            arguments.push(Argument { name: "--set".to_owned(), key, value });
        }
        let short = [
            ("--data-dir", "data_dir", self.data_dir),
            ("--http-listen", "http.listen", self.http_listen),
            ("--grpc-listen", "grpc.listen", self.grpc_listen),
            ("--store-url", "store.url", self.store_url),
            ("--kafka-brokers", "kafka.brokers", self.kafka_brokers),
            ("--node-name", "node.name", self.node_name),
            ("--join", "cluster.join", self.join),
            ("--roles", "node.roles", self.roles),
        ];
        for (name, key, value) in short {
            if let Some(value) = value {
                arguments.push(Argument { name: name.to_owned(), key: key.to_owned(), value });
            }
        }
        Ok(arguments)
    }
}
