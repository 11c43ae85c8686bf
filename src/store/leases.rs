//! Leases of shards as the databases keep them: who holds a shard, under which epoch, and which renewal was the last.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
use crate::domain::ids::{Epoch, Kind, ShardNo};

/// A lease just taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenLease {
    /// Which shard.
    pub shard: ShardNo,
    /// The new epoch: one more than the one before, whoever had that.
    pub epoch: Epoch,
}

/// A lease that is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which shard.
    pub shard: ShardNo,
    /// The last renewal of another owner's lease, if the taker has seen that no other followed within that lease's
    /// whole time to live.
    pub lapsed: Option<LeaseMark>,
}

/// One renewal of one lease. No two of a shard are equal, however the database's clock steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseMark {
    /// The lease's epoch.
    pub epoch: Epoch,
    /// Larger at each renewal under that epoch; it says nothing else.
    pub renewal: i64,
}

/// What a taker of leases got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What is the taker's own now.
    pub leases: Vec<TakenLease>,
    /// What others hold. A shard that was asked for and is in neither list went to another taker at the
    /// same moment: asking again tells to whom.
    pub others: Vec<OthersLease>,
}

/// What became of leases whose epoch was to be raised. A lease in neither list is another owner's, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refenced {
    /// Those that are held under their next epoch now.
    pub leases: Vec<TakenLease>,
    /// Those that are held as before: a commit in flight holds the row. To be asked for again.
    pub busy: Vec<ShardNo>,
}

/// A lease that another owner holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OthersLease {
    /// Which shard.
    pub shard: ShardNo,
    /// Who holds it: `node-name#boot-id`.
    pub owner: String,
    /// Its last renewal, or its taking.
    pub mark: LeaseMark,
    /// How long its holder may believe in it after each renewal; zero if the holder did not say.
    pub ttl: Duration,
}

/// A lease row as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Which shard.
    pub shard: ShardNo,
    /// Who holds or held it: `node-name#boot-id`.
    pub owner: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it is released, or should have run out by the database's clock. For people to read: nobody takes a
    /// lease because of it.
    pub expired: bool,
}

/// Who may serve a shard. No clock of the database has a say in it: a lease that is not released is taken only by
/// who has seen that it was not renewed for its whole time to live.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// The number of shards per kind: `proposed` if the cluster is born by this call, else what it was
    /// born with.
    async fn shard_count(&self, proposed: u16) -> Result<u16>;

    /// Takes each of `wanted` that is free, released, already the owner's own, or still as `Wanted::lapsed` says,
    /// under the epoch that follows. Waits for commits in flight under the old epoch. What the owner has sent under
    /// its own old epoch and has no answer to is fenced by this. Of shards that another owner holds it says so.
    async fn take(&self, kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> Result<Taken>;

    /// As `take`, for a taker who has seen nothing lapse and does not ask what others hold.
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

    /// Raises the epoch of each of `held` to the one that follows, and prolongs it, by one statement: what was sent
    /// under the old epoch is committed by then or never will be. It does not wait for commits in flight, and says
    /// which leases they hold. Asking again after a lost answer is safe: a lease is raised once.
    async fn refence(&self, kind: Kind, held: &[TakenLease], owner: &str, ttl: Duration) -> Result<Refenced>;

    /// Prolongs `held`, by one statement; answers with the shards whose row still held that owner and
    /// epoch, run out or not: nobody else has had them.
    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>>;

    /// Gives up `held`: anyone may take them at once.
    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> Result<()>;

    /// What others than `owner` hold and have not released.
    async fn others(&self, kind: Kind, owner: &str) -> Result<Vec<OthersLease>>;

    /// All lease rows of a kind.
    async fn leases(&self, kind: Kind) -> Result<Vec<LeaseRow>>;
}
