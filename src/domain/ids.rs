//! Identifiers, and the hash that maps an entity's id to its shard.

use std::fmt;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

uuid_id! {
    /// The id of a patient. It stays the patient's own after a deletion.
    PatientId
}
uuid_id! {
    /// The id of a billing account. A patient has at most one account.
    AccountId
}
uuid_id! {
    /// The id of an event, unique over all patients: the CloudEvents `id`.
    EventId
}
uuid_id! {
    /// The id of a command. Commands with the same id take effect on a patient at most once, so a caller that
    /// does not know the outcome of the first attempt may retry safely.
    CommandId
}

uuid_id! {
    /// The id of a login, shared by all tokens that follow from it.
    SessionId
}

uuid_id! {
    /// A hash of a request, which distinguishes two requests with the same key.
    Fingerprint
}

impl PatientId {
    /// Returns the shard, out of `shards`, that owns this patient.
    pub fn shard(self, shards: u16) -> ShardNo {
        shard_of(self.0, shards)
    }
}

/// The number of a shard within its kind, from 0.
pub type ShardNo = u16;

/// The version of an entity: 1 after its first event, one more after each further event.
pub type Version = i64;

/// The fencing number of a lease. Each taking of a lease increases it, and the database refuses a commit
/// under an older epoch (Kleppmann, "How to do distributed locking", 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kinds of entity that are sharded over regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Patients: `domain::patient`.
    Patient,
    /// Billing accounts: `domain::account`.
    Billing,
    /// Slices of the outbox. Their holders publish to Kafka (`BRIDGE_SLICE`) and open accounts
    /// (`RELAY_SLICE`).
    Outbox,
}

impl Kind {
    /// Returns the name in the database, in logs and in metrics. It never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Patient => "patient",
            Kind::Billing => "billing",
            Kind::Outbox => "outbox",
        }
    }
}

/// Returns the shard of `id` out of `shards`. The hash has a fixed specification: 64-bit FNV-1a over the
/// sixteen bytes in network order (draft-eastlake-fnv), then the finalizer of MurmurHash3, so that the low
/// bits depend on every input bit, then the remainder. A change of this function would move every entity, so
/// `golden_shards` pins it.
///
/// # Panics
/// Panics if `shards` is zero.
pub fn shard_of(id: Uuid, shards: u16) -> ShardNo {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET_BASIS;
    for byte in id.as_bytes() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    (hash % u64::from(shards)) as ShardNo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_shards() {
        let john = Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000);
        assert_eq!(shard_of(Uuid::nil(), 64), 10);
        assert_eq!(shard_of(john, 64), 48);
        assert_eq!(shard_of(Uuid::max(), 64), 47);
    }

    #[test]
    fn shards_are_even() {
        let mut counts = [0u32; 64];
        for n in 0..64_000u128 {
            counts[usize::from(shard_of(Uuid::from_u128(n), 64))] += 1;
        }
        let (low, high) = (counts.iter().min().copied(), counts.iter().max().copied());
        assert!(low > Some(850) && high < Some(1150), "uneven: {low:?} to {high:?} of 1000");
    }
}
