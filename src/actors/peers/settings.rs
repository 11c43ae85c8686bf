//! The settings of the links between nodes: part of the section `[cluster]` of the configuration.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::super::background::Backoff;
use crate::domain::secret::SECRET_BYTES_MIN;

/// How nodes reach and trust each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name of the cluster. Nodes of another cluster are refused.
    pub name: String,
    /// The address on which other nodes are accepted. Must be a loopback address unless TLS is configured.
    pub listen: SocketAddr,
    /// The address under which other nodes reach this one, as `host:port`. Default: the address in the list
    /// of nodes, else the listening address.
    pub advertise: Option<String>,
    /// The secret shared by all nodes of the cluster: at least 32 bytes, used as they are.
    pub secret: Option<Secret>,
    /// The TLS certificates. Without them, `listen` must be a loopback address.
    pub tls: Tls,
    /// The largest message accepted from a node, in bytes.
    pub frame_max_bytes: u64,
    /// The time limit for the handshake of a new connection. The same limit applies again until both nodes
    /// see each other.
    pub handshake_timeout_ms: u64,
    /// The time limit for a TCP connection attempt.
    pub dial_timeout_ms: u64,
    /// The pause after the first failure to connect; it doubles with each further one, with jitter.
    pub dial_pause_min_ms: u64,
    /// The longest pause after a failure to connect.
    pub dial_pause_max_ms: u64,
    /// The interval between pings to each node.
    pub heartbeat_interval_ms: u64,
    /// The time limit for the answer to a ping; a later answer counts as missed.
    pub heartbeat_timeout_ms: u64,
    /// The number of consecutive missed pings that ends a session.
    pub misses_max: u32,
    /// Connections that have not proved the secret yet; a further one replaces the oldest of them.
    pub connections_pending_max: usize,
    /// The most other nodes.
    pub peers_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: "hygeia".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 9100)),
            advertise: None,
            secret: None,
            tls: Tls::default(),
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
        }
    }
}

/// The files of mutual TLS: all three, or none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The authorities whose certificates are trusted (PEM).
    pub ca_file: Option<PathBuf>,
    /// The node's certificate, followed by the chain to the authority (PEM).
    pub cert_file: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    pub key_file: Option<PathBuf>,
    /// The suffix that admits nodes that are not listed, such as `.nodes.example.org`. The certificate of
    /// such a node must be valid for the node's name followed by the suffix.
    pub allowed_suffix: Option<String>,
}

impl Tls {
    /// Returns whether all three files are configured.
    pub fn is_on(&self) -> bool {
        self.ca_file.is_some() && self.cert_file.is_some() && self.key_file.is_some()
    }

    fn is_partly_on(&self) -> bool {
        !self.is_on() && (self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some())
    }
}

/// A configured secret. `Debug` does not print it.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub(in crate::actors) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values. A missing secret is
    /// reported by `missing`.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut need = |key, holds: bool, allowed: &str| {
            if !holds {
                problems.push((key, allowed.to_owned()));
            }
        };
        need("name", is_name(&self.name), "1 to 63 small letters, digits and hyphens");
        need(
            "listen",
            self.tls.is_on() || self.listen.ip().is_loopback(),
            "a loopback address, as without cluster.tls anybody on the way could read and change what nodes say",
        );
        need("advertise", self.advertise.as_deref().is_none_or(is_address), "host:port");
        need(
            "secret",
            self.secret.as_ref().is_none_or(|secret| secret.bytes().len() >= SECRET_BYTES_MIN),
            "at least 32 bytes, such as `openssl rand -base64 48` makes",
        );
        need("tls", !self.tls.is_partly_on(), "ca_file, cert_file and key_file together, or none of them");
        need(
            "tls.allowed_suffix",
            self.tls.allowed_suffix.as_ref().is_none_or(|suffix| suffix.starts_with('.') && suffix.len() > 1),
            "a dot and a name, such as .nodes.example.org",
        );
        problems.extend(self.numbers_out_of_bounds());
        problems
    }

    fn numbers_out_of_bounds(&self) -> impl Iterator<Item = (&'static str, String)> {
        let count = |n: usize| n as u64;
        [
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
        ]
        .into_iter()
        .filter(|(_, value, low, high)| !(low..=high).contains(&value))
        .map(|(key, _, low, high)| (key, format!("{low} to {high}")))
    }

    /// Returns the setting that a cluster node needs, that has no default, and that is missing.
    pub fn missing(&self) -> Option<(&'static str, String)> {
        self.secret.is_none().then(|| {
            let reason = "not set; set HYGEIA__CLUSTER__SECRET, or HYGEIA__CLUSTER__SECRET_FILE to a file that holds \
                          it: at least 32 bytes, the same on every node, such as `openssl rand -base64 48` makes";
            ("secret", reason.to_owned())
        })
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }

    pub(super) fn dial_timeout(&self) -> Duration {
        Duration::from_millis(self.dial_timeout_ms)
    }

    pub(super) fn dial_pause(&self) -> Backoff {
        Backoff {
            min: Duration::from_millis(self.dial_pause_min_ms),
            max: Duration::from_millis(self.dial_pause_max_ms),
        }
    }

    pub(super) fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms)
    }

    pub(super) fn heartbeat_timeout(&self) -> Duration {
        Duration::from_millis(self.heartbeat_timeout_ms)
    }

    /// Returns how long a silent peer can be taken for alive.
    pub(super) fn silence_max(&self) -> Duration {
        self.heartbeat_interval() + self.heartbeat_timeout() * self.misses_max
    }
}

/// Returns whether `name` is valid for a cluster or a node: a host name label (RFC 1123) in lower case.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Returns whether `text` has the form `host:port`.
pub(super) fn is_address(text: &str) -> bool {
    let host_and_port = text.rsplit_once(':');
    text.len() <= 261
        && host_and_port.is_some_and(|(host, port)| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_graphic())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(settings: &Settings) -> Vec<&'static str> {
        settings.problems().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn the_defaults_hold_and_lack_only_a_secret() {
        let mut settings = Settings::default();
        assert!(settings.problems().is_empty());
        assert!(settings.missing().is_some_and(|(key, _)| key == "secret"));
        settings.secret = Some("x".repeat(31).into());
        assert_eq!(keys(&settings), ["secret"]);
        settings.secret = Some("x".repeat(32).into());
        assert!(settings.problems().is_empty() && settings.missing().is_none());
        assert!(!format!("{settings:?}").contains("xxx"));
    }

    #[test]
    fn others_are_listened_to_only_with_tls() {
        let mut settings = Settings { listen: SocketAddr::from(([0, 0, 0, 0], 9100)), ..Settings::default() };
        assert_eq!(keys(&settings), ["listen"]);
        settings.tls.ca_file = Some("ca.pem".into());
        assert_eq!(keys(&settings), ["listen", "tls"]);
        settings.tls.cert_file = Some("cert.pem".into());
        settings.tls.key_file = Some("key.pem".into());
        assert!(keys(&settings).is_empty());
        settings.tls.allowed_suffix = Some("nodes.example.org".into());
        assert_eq!(keys(&settings), ["tls.allowed_suffix"]);
    }

    #[test]
    fn numbers_and_addresses_have_bounds() {
        let settings = Settings {
            frame_max_bytes: 1,
            dial_pause_min_ms: 500,
            dial_pause_max_ms: 499,
            misses_max: 0,
            advertise: Some("host".into()),
            ..Settings::default()
        };
        assert_eq!(keys(&settings), ["advertise", "frame_max_bytes", "dial_pause_max_ms", "misses_max"]);
        for (text, fits) in
            [("a:1", true), ("[::1]:80", true), ("a:0", false), (":1", false), ("a b:1", false)]
        {
            assert_eq!(is_address(text), fits, "{text}");
        }
    }
}
