//! The section `cluster`: the nodes, how they reach each other, and how they authenticate.
//!
//! A node is in a cluster if it listens for other nodes, is one of several nodes of the file, or joins
//! others. Otherwise it is alone and opens no port for other nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Config;
use super::node::Role;
use crate::actors::peers;
use crate::auth::SecretText;

/// The cluster that the node belongs to.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's name. Nodes of a cluster with another name are refused.
    pub name: String,
    /// The address at which this node listens for other nodes. If unset: its address in `nodes`, if that is
    /// an IP address. For a node that joins others on loopback: any free port there.
    pub listen: Option<SocketAddr>,
    /// The address at which other nodes reach this node, as `host:port`. If unset: its address in `nodes`,
    /// else the one at which it listens.
    pub advertise: Option<String>,
    /// The shared secret by which nodes authenticate each other: the same on all nodes, at least
    /// `SECRET_BYTES_MIN` bytes.
    pub secret: Option<SecretText>,
    /// Nodes (`host:port`) through which a node that is not in `nodes` finds the others.
    pub join: Vec<String>,
    /// Maximum size of a message from another node.
    pub frame_max_bytes: u64,
    /// How long a new connection may take until the handshake is complete.
    pub handshake_timeout_ms: u64,
    /// How long establishing a connection may take.
    pub dial_timeout_ms: u64,
    /// The pause after the first failure to connect. It doubles with each further failure, with jitter.
    pub dial_pause_min_ms: u64,
    /// The maximum pause between attempts to connect.
    pub dial_pause_max_ms: u64,
    /// How often each node gets a heartbeat.
    pub heartbeat_interval_ms: u64,
    /// How long the answer to a heartbeat may take before the heartbeat counts as missed.
    pub heartbeat_timeout_ms: u64,
    /// Number of consecutive missed heartbeats that ends the session.
    pub misses_max: u32,
    /// Maximum number of connections that have not shown the secret yet. A further one closes the oldest of
    /// them.
    pub connections_pending_max: usize,
    /// Maximum number of other nodes in the cluster.
    pub peers_max: usize,
    /// Certificates of the connections between nodes.
    pub tls: Tls,
    /// The nodes of the cluster, as the file lists them.
    pub nodes: Vec<Member>,
}

/// Certificates between nodes: either all files are set or none. Each side presents its own certificate and
/// verifies the other's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The authority that signs the nodes' certificates (PEM).
    pub ca_file: Option<PathBuf>,
    /// The node's certificate, with any intermediate certificates up to the authority (PEM).
    pub cert_file: Option<PathBuf>,
    /// The key of the certificate (PEM).
    pub key_file: Option<PathBuf>,
    /// Suffix of certificate names. A node that is not in `nodes` is accepted if its certificate's name ends
    /// with it.
    pub allowed_suffix: Option<String>,
}

/// An entry of `nodes`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Member {
    /// The node's name; it must stay the same over restarts.
    pub name: String,
    /// The address at which other nodes reach it: `host:port`.
    pub address: String,
    /// The roles that it runs.
    pub roles: BTreeSet<Role>,
    /// Settings in which this node differs from the rest of the file. They are merged before the tree is
    /// deserialized (`layers`), so they are ignored here.
    pub set: IgnoredAny,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            name: "hygeia".to_owned(),
            listen: None,
            advertise: None,
            secret: None,
            join: Vec::new(),
            frame_max_bytes: 4 * 1024 * 1024,
            handshake_timeout_ms: 5_000,
            dial_timeout_ms: 2_000,
            dial_pause_min_ms: 50,
            dial_pause_max_ms: 1_000,
            heartbeat_interval_ms: 500,
            heartbeat_timeout_ms: 500,
            misses_max: 3,
            connections_pending_max: 64,
            peers_max: 64,
            tls: Tls::default(),
            nodes: Vec::new(),
        }
    }
}

/// The parameters with which a node joins its cluster.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster's name.
    pub cluster: String,
    /// The address at which the node listens for others; port 0 takes a free port.
    pub listen: SocketAddr,
    /// The address at which others reach the node; `None`: the address at which it listens.
    pub advertise: Option<String>,
    /// The other nodes of the file: name and address.
    pub others: Vec<(String, String)>,
    /// Further addresses at which nodes may be found.
    pub join: Vec<String>,
}

impl Config {
    /// Returns whether the node is in a cluster.
    pub fn is_clustered(&self) -> bool {
        let cluster = &self.cluster;
        cluster.nodes.len() > 1 || !cluster.join.is_empty() || cluster.listen.is_some()
    }

    /// Returns the parameters for joining the cluster; `None` if the node is alone. A checked configuration
    /// has them for every node in a cluster.
    pub fn place(&self) -> Option<Place> {
        if !self.is_clustered() {
            return None;
        }
        let cluster = &self.cluster;
        let others = cluster.nodes.iter().filter(|node| node.name != self.node.name);
        Some(Place {
            cluster: cluster.name.clone(),
            listen: cluster.listen_or_joining()?,
            advertise: cluster.advertise.clone(),
            others: others.map(|node| (node.name.clone(), node.address.clone())).collect(),
            join: cluster.join.clone(),
        })
    }
}

impl Cluster {
    /// Returns the settings of the sessions of a node at `place`.
    pub fn settings(&self, place: &Place) -> peers::Settings {
        peers::Settings {
            name: place.cluster.clone(),
            listen: place.listen,
            advertise: place.advertise.clone(),
            secret: self.secret.as_ref().map(|secret| secret.reveal().to_owned().into()),
            tls: peers::Tls {
                ca_file: self.tls.ca_file.clone(),
                cert_file: self.tls.cert_file.clone(),
                key_file: self.tls.key_file.clone(),
                allowed_suffix: self.tls.allowed_suffix.clone(),
            },
            frame_max_bytes: self.frame_max_bytes,
            handshake_timeout_ms: self.handshake_timeout_ms,
            dial_timeout_ms: self.dial_timeout_ms,
            dial_pause_min_ms: self.dial_pause_min_ms,
            dial_pause_max_ms: self.dial_pause_max_ms,
            heartbeat_interval_ms: self.heartbeat_interval_ms,
            heartbeat_timeout_ms: self.heartbeat_timeout_ms,
            misses_max: self.misses_max,
            connections_pending_max: self.connections_pending_max,
            peers_max: self.peers_max,
        }
    }

    /// Returns the limits that are out of range, each with the allowed range.
    pub(super) fn limits_out_of_bounds(&self) -> Vec<(&'static str, String)> {
        let count = |n: usize| n as u64;
        let limits = [
            ("frame_max_bytes", self.frame_max_bytes, 65_536, 1 << 30),
            ("handshake_timeout_ms", self.handshake_timeout_ms, 10, 60_000),
            ("dial_timeout_ms", self.dial_timeout_ms, 10, 60_000),
            ("dial_pause_min_ms", self.dial_pause_min_ms, 1, 60_000),
            ("dial_pause_max_ms", self.dial_pause_max_ms, self.dial_pause_min_ms, 60_000),
            ("heartbeat_interval_ms", self.heartbeat_interval_ms, 10, 60_000),
            ("heartbeat_timeout_ms", self.heartbeat_timeout_ms, 10, 60_000),
            ("misses_max", self.misses_max.into(), 1, 100),
            ("connections_pending_max", count(self.connections_pending_max), 1, 10_000),
            ("peers_max", count(self.peers_max), 1, 1_000),
        ];
        let broken = limits.into_iter().filter(|(_, value, low, high)| !(low..=high).contains(&value));
        broken.map(|(key, _, low, high)| (key, format!("allowed: {low} to {high}"))).collect()
    }

    /// Returns the address at which the node listens, as far as the settings determine it.
    pub(super) fn listen_or_joining(&self) -> Option<SocketAddr> {
        let near = !self.join.is_empty() && self.join.iter().all(|address| is_loopback(address));
        self.listen.or_else(|| near.then(|| SocketAddr::from(([127, 0, 0, 1], 0))))
    }
}

/// Splits an address that can be dialled into host and port. Returns `None` if it is not valid.
pub(super) fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(letter)
        }
    };
    fits.then_some((bare.unwrap_or(host), port))
}

/// Returns whether `address` is on this machine.
pub(super) fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => host_and_port(address).is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports() {
        for good in ["127.0.0.1:7101", "[::1]:7101", "patient-1:7100", "patient-1.hygeia.svc:65535"] {
            assert!(host_and_port(good).is_some(), "{good}");
        }
        for bad in
            ["", "patient-1", ":7100", "patient-1:", "patient-1:0", "patient-1:65536", "::1:7100", "a b:1"]
        {
            assert!(host_and_port(bad).is_none(), "{bad}");
        }
        assert!(
            ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LocalHost:1"]
                .into_iter()
                .all(is_loopback)
        );
        assert!(!["10.0.0.1:1", "[::]:1", "0.0.0.0:1", "patient-1:1"].into_iter().any(is_loopback));
    }
}
