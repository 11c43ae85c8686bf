//! The sections of rooms that have no settings of their own yet.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` in.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The text, for those who need it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The HTTP edge.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSection {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
}

impl Default for HttpSection {
    fn default() -> Self {
        HttpSection { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)) }
    }
}

/// The gRPC edge.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcSection {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Whether a call needs a token.
    pub require_token: bool,
}

impl Default for GrpcSection {
    fn default() -> Self {
        GrpcSection { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)), require_token: true }
    }
}

/// The database.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// `sqlite:<file>`, relative to the data directory, or `postgres://…`.
    pub url: String,
}

impl fmt::Debug for StoreSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSection").finish_non_exhaustive()
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        StoreSection { url: "sqlite:hygeia.db".to_owned() }
    }
}

/// The broker.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSection {
    /// `embedded`, or `host:port` and more of them after commas.
    pub brokers: String,
}

impl Default for KafkaSection {
    fn default() -> Self {
        KafkaSection { brokers: "embedded".to_owned() }
    }
}

/// Users and tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSection {
    /// What tokens are signed with.
    pub jwt_secret: Option<Secret>,
}

/// The actors.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActorsSection {}
