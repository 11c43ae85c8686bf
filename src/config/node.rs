//! The section `node`: the identity of the node, and the parts that it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

pub use crate::domain::cluster::NodeRole as Role;

/// The identity and the roles of the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// The node's name, unique and the same over restarts: leases and log lines carry it. 1 to 63 lower-case
    /// letters, digits and hyphens, as in a host name (RFC 1123).
    pub name: String,
    /// The roles that the node runs; at least one.
    pub roles: BTreeSet<Role>,
    /// The difference between the node's and the database's wall clock, in milliseconds, above which it is
    /// reported.
    pub clock_skew_max_ms: u64,
    /// Whether the kernel may write the node's memory to a file when the process crashes. The memory holds
    /// secrets, tokens and records.
    pub core_dumps: bool,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            name: "node-1".to_owned(),
            roles: Role::ALL.into_iter().collect(),
            clock_skew_max_ms: 1_000,
            core_dumps: false,
        }
    }
}

impl Node {
    /// Maximum length of a name, in bytes.
    pub const NAME_BYTES_MAX: usize = 63;

    /// Returns whether the node has every role, so that it needs no other nodes.
    pub fn is_alone(&self) -> bool {
        Role::ALL.iter().all(|role| self.roles.contains(role))
    }

    /// The difference between the node's and the database's wall clock above which it is reported.
    pub fn clock_skew_max(&self) -> Duration {
        Duration::from_millis(self.clock_skew_max_ms)
    }

    /// The rule for names, for messages.
    pub(super) fn name_rule() -> String {
        format!(
            "allowed: 1 to {} small letters, digits and hyphens, no hyphen first or last",
            Self::NAME_BYTES_MAX
        )
    }

    /// Returns whether `name` is a valid name of a node.
    pub(super) fn is_name(name: &str) -> bool {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=Self::NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }
}

impl Role {
    /// The rule for a non-empty list of roles, for messages.
    pub(super) fn at_least_one() -> String {
        let all: Vec<_> = Role::ALL.iter().map(|role| role.as_str()).collect();
        format!("at least one of: {}", all.join(", "))
    }
}
