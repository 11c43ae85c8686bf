//! The roles of nodes, and the placement of shards on nodes.

use super::ids::{Kind, ShardNo};

/// A part of the system that a node may run.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Deserialize,
    serde::Serialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Serves HTTP; clients enter the cluster here.
    Front,
    /// Serves patients.
    Patient,
    /// Serves billing accounts, and gRPC.
    Billing,
    /// Publishes events from the outbox to Kafka.
    Bridge,
    /// Counts the events in Kafka.
    Analytics,
}

impl NodeRole {
    /// All roles.
    pub const ALL: [NodeRole; 5] =
        [NodeRole::Front, NodeRole::Patient, NodeRole::Billing, NodeRole::Bridge, NodeRole::Analytics];

    /// Returns the name in settings, in logs and between nodes. It never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeRole::Front => "front",
            NodeRole::Patient => "patient",
            NodeRole::Billing => "billing",
            NodeRole::Bridge => "bridge",
            NodeRole::Analytics => "analytics",
        }
    }

    /// Returns the role of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        NodeRole::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Returns the role whose nodes hold the shards of `kind`.
    pub const fn serving(kind: Kind) -> Self {
        match kind {
            Kind::Patient => NodeRole::Patient,
            Kind::Billing => NodeRole::Billing,
            Kind::Outbox => NodeRole::Bridge,
        }
    }
}

/// Returns which of `names` should hold a shard: the one with the highest weight. This is rendezvous hashing
/// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). A node that joins or
/// leaves moves only the shards that it gains or loses. Returns `None` if there are no names.
pub fn placed_on<'a>(
    kind: Kind,
    shard: ShardNo,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    names.into_iter().max_by_key(|name| (weight(kind, shard, name), *name))
}

/// Returns the weight of a node for a shard: FNV-1a over kind, shard and name, then the finalizer of
/// `SplitMix64`, so that names that differ in one digit differ in all bits. Never change this function,
/// because every node of a cluster must compute the same weights.
fn weight(kind: Kind, shard: ShardNo, name: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = kind.as_str().bytes().chain([0]).chain(shard.to_be_bytes()).chain(name.bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(names: &[&'static str]) -> Vec<&'static str> {
        (0..64).filter_map(|shard| placed_on(Kind::Patient, shard, names.iter().copied())).collect()
    }

    #[test]
    fn placement_is_what_every_other_version_computes() {
        assert_eq!(weight(Kind::Patient, 0, "patient-1"), 0x3f3a_bf07_2692_a344);
        assert_eq!(placed_on(Kind::Billing, 7, []), None);
    }

    #[test]
    fn a_node_that_comes_or_goes_moves_only_its_own_shards() {
        let (two, three) =
            (placed(&["patient-1", "patient-2"]), placed(&["patient-1", "patient-2", "patient-3"]));
        for (before, after) in two.iter().zip(&three) {
            assert!(after == before || *after == "patient-3");
        }
        for name in ["patient-1", "patient-2", "patient-3"] {
            let held = three.iter().filter(|holder| **holder == name).count();
            assert!((10..=32).contains(&held), "{name} holds {held} of 64");
        }
    }
}
