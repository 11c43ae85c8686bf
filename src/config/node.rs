//! The section `node`: who the node is and which parts it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

pub use crate::domain::cluster::NodeRole as Role;

/// Who the node is.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// The same over restarts, and no other node's: leases and log lines carry it. Small letters,
    /// digits and hyphens, 1 to 63 of them, as in a host name (RFC 1123).
    pub name: String,
    /// What the node runs; at least one.
    pub roles: BTreeSet<Role>,
    /// By how much the node's wall clock may differ from the database's before it is told.
    pub clock_skew_max_ms: u64,
    /// Whether the kernel may write the node's memory to a file when it crashes. Secrets, tokens and records are in it.
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
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 63;

    /// Whether the node runs everything, and so can do without others.
    pub fn is_alone(&self) -> bool {
        Role::ALL.iter().all(|role| self.roles.contains(role))
    }

    /// By how much the node's wall clock may differ from the database's before it is told.
    pub fn clock_skew_max(&self) -> Duration {
        Duration::from_millis(self.clock_skew_max_ms)
    }

    /// What a name may be, for messages.
    pub(super) fn name_rule() -> String {
        format!(
            "allowed: 1 to {} small letters, digits and hyphens, no hyphen first or last",
            Self::NAME_BYTES_MAX
        )
    }

    /// Whether `name` is one that a node may have.
    pub(super) fn is_name(name: &str) -> bool {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=Self::NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }
}

impl Role {
    /// What is allowed where there must be a role, for messages.
    pub(super) fn at_least_one() -> String {
        let all: Vec<_> = Role::ALL.iter().map(|role| role.as_str()).collect();
        format!("at least one of: {}", all.join(", "))
    }
}
