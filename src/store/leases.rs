//! Leases of shards as stored: the owner of a shard, the epoch, and the mark of the last renewal.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
use crate::domain::ids::{Epoch, Kind, ShardNo};

/// A lease just taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenLease {
    /// The shard.
    pub shard: ShardNo,
    /// The new epoch: one more than the previous epoch, whichever owner held that.
    pub epoch: Epoch,
}

/// A lease that the caller wants to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The shard.
    pub shard: ShardNo,
    /// The last renewal of another owner's lease, if the taker saw no later renewal for the whole time to
    /// live of that lease.
    pub lapsed: Option<LeaseMark>,
}

/// The mark of one renewal of one lease. No two marks of a shard are equal, however the database's clock
/// steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseMark {
    /// The lease's epoch.
    pub epoch: Epoch,
    /// Grows with each renewal under that epoch; the value has no other meaning.
    pub renewal: i64,
}

/// The result of taking leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The leases that the caller holds now.
    pub leases: Vec<TakenLease>,
    /// The leases of other owners. A requested shard that is in neither list went to another taker at the
    /// same moment; the next call names its owner.
    pub others: Vec<OthersLease>,
}

/// The result of raising epochs. A lease in neither list belongs, or belonged, to another owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refenced {
    /// Leases that are now held under their next epoch.
    pub leases: Vec<TakenLease>,
    /// Leases that are held as before, because a commit in flight locks the row. The caller has to ask again.
    pub busy: Vec<ShardNo>,
}

/// A lease that another owner holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OthersLease {
    /// The shard.
    pub shard: ShardNo,
    /// The owner: `node-name#boot-id`.
    pub owner: String,
    /// The mark of the last renewal, or of the taking.
    pub mark: LeaseMark,
    /// How long the owner may rely on the lease after each renewal; zero if the owner did not say.
    pub ttl: Duration,
}

/// A lease row as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// The shard.
    pub shard: ShardNo,
    /// The present or last owner: `node-name#boot-id`.
    pub owner: String,
    /// The lease's epoch.
    pub epoch: Epoch,
    /// Whether the lease is released, or should have expired by the database's clock. This is information for
    /// people: no node takes a lease because of it.
    pub expired: bool,
}

/// The right to serve a shard. The database's clock decides nothing: a lease that is not released is taken
/// only by a node that saw no renewal for the whole time to live.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// Returns the number of shards per kind. The first call in a new cluster sets it to `proposed`.
    async fn shard_count(&self, proposed: u16) -> Result<u16>;

    /// Takes each of `wanted` that has no row, is released, belongs to `owner` already, or still has the mark
    /// `Wanted::lapsed`, under the next epoch. Waits for commits in flight under the old epoch. Commits that
    /// the owner sent under its own old epoch and that are unanswered are fenced afterwards. The answer also
    /// names the leases that other owners hold.
    async fn take(&self, kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> Result<Taken>;

    /// As `take`, for a taker that has seen no lease lapse and does not need the leases of others.
    async fn acquire(
        &self,
        kind: Kind,
        shards: &[ShardNo],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<TakenLease>> {
        let wanted: Vec<_> = shards.iter().map(|shard| Wanted { shard: *shard, lapsed: None }).collect();
        self.take(kind, &wanted, owner, ttl).await.map(|taken| taken.leases)
    }

    /// Raises the epoch of each of `held` by one and renews the lease, in one statement. A commit sent under
    /// the old epoch is committed by then, or never will be. The call does not wait for commits in flight; it
    /// returns the leases that they lock. A repeated call after a lost answer is safe: a lease is raised
    /// once.
    async fn refence(&self, kind: Kind, held: &[TakenLease], owner: &str, ttl: Duration) -> Result<Refenced>;

    /// Renews `held` in one statement. Returns the shards whose row still had that owner and epoch; such a
    /// lease may have expired, but no other node has held it.
    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>>;

    /// Releases `held`, so that any node may take them at once.
    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> Result<()>;

    /// Returns the leases that other owners than `owner` hold and have not released.
    async fn others(&self, kind: Kind, owner: &str) -> Result<Vec<OthersLease>>;

    /// Returns all lease rows of a kind.
    async fn leases(&self, kind: Kind) -> Result<Vec<LeaseRow>>;
}
