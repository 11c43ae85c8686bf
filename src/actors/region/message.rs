//! The messages and the arguments of a region.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::RpcReplyPort;

use crate::actors::address::Address;
use crate::actors::entity::{Entity, LeaseView};
use crate::actors::journal::JournalMessage;
use crate::actors::members::{AbleHook, Members, ReleasedHook};
use crate::actors::reply::ReplyTo;
use crate::actors::restart::RestartPolicy;
use crate::actors::shard::{self, Ask};
use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::ids::{Epoch, ShardNo};
use crate::domain::time::{Clock, MonoTime};
use crate::health::Health;
use crate::store::{self, LeaseStore, OthersLease, Refenced, Taken, TakenLease};

use super::status::RegionStatus;

/// A lease as its holder knows it. Clones share their state.
#[derive(Clone)]
pub struct HeldLease {
    epoch: Epoch,
    /// Boot time in nanoseconds until which the holder relies on the lease.
    until: Arc<AtomicU64>,
}

impl HeldLease {
    pub(super) fn new(epoch: Epoch, until: MonoTime) -> Self {
        HeldLease { epoch, until: Arc::new(AtomicU64::new(until.0)) }
    }

    /// Returns the epoch under which the lease was taken.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn prolong(&self, until: MonoTime) {
        self.until.fetch_max(until.0, Ordering::AcqRel);
    }
}

impl LeaseView for HeldLease {
    fn holds(&self, now: MonoTime) -> bool {
        cfg!(feature = "unfenced_read") || now.0 < self.until.load(Ordering::Acquire)
    }
}

/// The timing of leases. The times that depend on each other follow from `ttl` and `margin`, so that no
/// setting can break these conditions:
///
/// - A renewal is due each `tick`. A renewal that hangs is abandoned and repeated, and both end while the
///   holder still relies on the lease: `tick` + 2 × `statement_timeout` < `ttl` − `margin`.
/// - A renewal is abandoned before the next one is due: `statement_timeout` < `tick`.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// How long a lease lasts after it was taken or last renewed.
    pub ttl: Duration,
    /// How much earlier the holder stops relying on the lease, because clocks may run at different speeds. At
    /// most a third of `ttl`.
    pub margin: Duration,
    /// The longest pause between two attempts to take leases that belong here and that others hold. If such a
    /// lease lapses sooner, the next attempt comes then.
    pub acquire_poll: Duration,
    /// How long a region keeps serving while no front is reachable.
    pub alone_grace: Duration,
}

impl LeaseTimes {
    /// Returns how long the holder relies on a lease, counted from before the statement that took or renewed
    /// it.
    pub fn believed(&self) -> Duration {
        self.ttl.saturating_sub(self.margin)
    }

    /// Returns the pause between two renewals.
    pub fn tick(&self) -> Duration {
        self.ttl / 3
    }

    /// Returns how long one statement about leases may take. Two of them fit, with a fifth to spare, between
    /// a tick and the time at which the holder stops relying on the lease.
    pub fn statement_timeout(&self) -> Duration {
        self.believed().saturating_sub(self.tick()) * 2 / 5
    }

    /// Returns the pause between two reads of the leases of others. A failover may take this much longer than
    /// `ttl`.
    pub fn watch_pause(&self) -> Duration {
        self.ttl / 12
    }
}

/// The messages of a region.
pub enum RegionMessage<E: Entity> {
    /// From a directory: forwarded to the shard, which answers; or answered with `NotServing`.
    Ask(Box<Ask<E>>),
    /// From a directory: answered from the database.
    Query(Box<QueryAsk<E>>),
    /// From the region's own task: the set of reachable nodes, or their properties, has changed.
    ViewChanged,
    /// From another region, over the link: it has released these leases for this node. The message may get
    /// lost; then the next attempt finds them.
    ReleasedElsewhere {
        /// The shards that were released.
        shards: Vec<ShardNo>,
    },
    /// From a timer: renew the leases held, take free ones.
    Tick,
    /// From a timer: read the leases of others.
    Watch,
    /// From a timer: try again to take what belongs here.
    TakeUp,
    /// From the region's own task: an acquisition has ended.
    Acquired {
        /// The time just before the statement was sent.
        asked_at: MonoTime,
        /// The time just after the answer arrived.
        answered_at: MonoTime,
        /// The shards that were wanted.
        shards: Vec<ShardNo>,
        /// The leases that were taken, and the holders of the rest.
        result: store::Result<Taken>,
    },
    /// From the region's own task: the leases of others were read.
    Watched {
        /// The time just after the answer arrived.
        answered_at: MonoTime,
        /// The leases that others hold.
        result: store::Result<Vec<OthersLease>>,
    },
    /// From the region's own task: a statement for new epochs has ended.
    Refenced {
        /// The time just before the statement was sent.
        asked_at: MonoTime,
        /// The leases that were held then.
        held: Vec<TakenLease>,
        /// Those of them that are now held under their next epoch.
        result: store::Result<Refenced>,
    },
    /// From a timer: ask again for the epochs that were not available.
    RefenceAgain,
    /// From the region's own task: a renewal has ended.
    Renewed {
        /// The time just before the statement was sent.
        asked_at: MonoTime,
        /// The leases that were held then.
        held: Vec<TakenLease>,
        /// The shards of those that are still held.
        result: store::Result<Vec<ShardNo>>,
    },
    /// From the region's own task: a probe of the database has ended. Sent while the database is unavailable.
    Probed {
        /// The time just before the statement was sent.
        asked_at: MonoTime,
        /// Whether the database answered.
        answered: bool,
    },
    /// From the region's own task: these leases are released, or will expire.
    GaveUp(Vec<TakenLease>),
    /// From a shard: the outcome of a commit is unknown, so the shard needs a new epoch.
    Refence(ShardNo),
    /// From a shard: another owner has, or has had, its lease.
    LeaseLost(ShardNo),
    /// From a timer: the pause before the restart of a shard is over.
    Restart(ShardNo),
    /// From a status request: answered at once.
    Status(RpcReplyPort<RegionStatus>),
    /// From the node when it stops: hand over every shard. Answered when the last lease is released.
    Drain(RpcReplyPort<()>),
}

impl<E: Entity> ractor::Message for RegionMessage<E> {}

/// A query about many entities.
pub struct QueryAsk<E: Entity> {
    /// The query.
    pub query: E::Query,
    /// The trace context of the last hop.
    pub trace: TraceContext,
    /// The time after which the caller no longer waits.
    pub deadline: MonoTime,
    /// The time at which the last hop sent the query.
    pub sent_at: MonoTime,
    /// The caller.
    pub caller: Caller,
    /// The handle for the answer.
    pub reply: ReplyTo<E::QueryAnswer>,
}

/// What a region needs from the node.
pub struct RegionArgs<E: Entity> {
    /// The database.
    pub store: Arc<E::Store>,
    /// The store of the leases.
    pub leases: Arc<dyn LeaseStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where the region reports its health.
    pub health: Health,
    /// The node's journal of this kind.
    pub journal: Address<JournalMessage<E>>,
    /// `node-name#boot-id`
    pub owner: Arc<str>,
    /// The reachable nodes.
    pub members: Members,
    /// Called after leases were given up for another node.
    pub released: ReleasedHook,
    /// Called when leases can no longer be held, and when they can be held again.
    pub able: AbleHook,
    /// The number of shards per kind.
    pub shards: u16,
    /// The limits of one shard.
    pub limits: shard::Limits,
    /// The maximum number of concurrent queries. Further ones are answered with `Busy`.
    pub queries_max: usize,
    /// The maximum number of shards in transit to other nodes at the same time, at least 1. Each one is out
    /// of service for the few round trips of its hand-over.
    pub handovers_max: usize,
    /// The timing of leases.
    pub lease_times: LeaseTimes,
    /// How often a shard may restart.
    pub restart: RestartPolicy,
}

impl<E: Entity> Clone for RegionArgs<E> {
    fn clone(&self) -> Self {
        RegionArgs {
            store: Arc::clone(&self.store),
            leases: Arc::clone(&self.leases),
            clock: Arc::clone(&self.clock),
            health: self.health.clone(),
            journal: self.journal.clone(),
            owner: Arc::clone(&self.owner),
            members: self.members.clone(),
            released: Arc::clone(&self.released),
            able: Arc::clone(&self.able),
            shards: self.shards,
            limits: self.limits,
            queries_max: self.queries_max,
            handovers_max: self.handovers_max,
            lease_times: self.lease_times,
            restart: self.restart,
        }
    }
}
