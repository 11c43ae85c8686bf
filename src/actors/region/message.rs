//! What a region is told and what it is made with.

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

/// A lease as its holder knows it. Cloning shares the knowledge.
#[derive(Clone)]
pub struct HeldLease {
    epoch: Epoch,
    /// Boot time in nanoseconds up to which the lease is believed.
    until: Arc<AtomicU64>,
}

impl HeldLease {
    pub(super) fn new(epoch: Epoch, until: MonoTime) -> Self {
        HeldLease { epoch, until: Arc::new(AtomicU64::new(until.0)) }
    }

    /// The epoch it was taken under.
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

/// How leases are kept. The times that depend on each other follow from `ttl` and `margin`, so that no setting can
/// break what they hold to:
///
/// - A renewal is due each `tick`. If it hangs, it is given up and repeated, and both are over before the
///   lease is believed no more: `tick` + 2 × `statement_timeout` < `ttl` − `margin`.
/// - It is given up before the next one is due: `statement_timeout` < `tick`.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// How long a lease holds from its taking or its last renewal.
    pub ttl: Duration,
    /// What the holder takes off, for clocks that run at different speeds. At most a third of `ttl`.
    pub margin: Duration,
    /// The longest pause between two tries to take what belongs here and others hold. When it runs out sooner, the
    /// next try comes then.
    pub acquire_poll: Duration,
    /// How long a region goes on serving with no front in sight.
    pub alone_grace: Duration,
}

impl LeaseTimes {
    /// For how long the holder believes in a lease, from before it asked for it or for its last renewal.
    pub fn believed(&self) -> Duration {
        self.ttl.saturating_sub(self.margin)
    }

    /// The pause between two renewals.
    pub fn tick(&self) -> Duration {
        self.ttl / 3
    }

    /// How long one statement about leases may take: two of them have room, with a fifth to spare, between a tick and
    /// the end of what is believed.
    pub fn statement_timeout(&self) -> Duration {
        self.believed().saturating_sub(self.tick()) * 2 / 5
    }

    /// The pause between two looks at what others hold. It comes on top of `ttl` when one of them is gone.
    pub fn watch_pause(&self) -> Duration {
        self.ttl / 12
    }
}

/// What a region is told.
pub enum RegionMessage<E: Entity> {
    /// By a directory: goes on to the shard, which answers; or is answered `NotServing`.
    Ask(Box<Ask<E>>),
    /// By a directory: answered from the database.
    Query(Box<QueryAsk<E>>),
    /// By the region's own task: the nodes in sight are others, or are otherwise, than before.
    ViewChanged,
    /// By the link, from another region: it has released these for us. May get lost; then the next try finds
    /// them.
    ReleasedElsewhere {
        /// Which shards.
        shards: Vec<ShardNo>,
    },
    /// By a timer: renew what is held, take what is free.
    Tick,
    /// By a timer: look at what others hold.
    Watch,
    /// By a timer: try again to take what belongs here.
    TakeUp,
    /// By the region's own task: an acquisition has ended.
    Acquired {
        /// Just before the store was asked.
        asked_at: MonoTime,
        /// Just after it had answered.
        answered_at: MonoTime,
        /// What was wanted.
        shards: Vec<ShardNo>,
        /// What was taken of it, and who holds the rest.
        result: store::Result<Taken>,
    },
    /// By the region's own task: what others hold was looked at.
    Watched {
        /// Just after the store had answered.
        answered_at: MonoTime,
        /// What they hold.
        result: store::Result<Vec<OthersLease>>,
    },
    /// By the region's own task: a question for new epochs has ended.
    Refenced {
        /// Just before the store was asked.
        asked_at: MonoTime,
        /// What was held then.
        held: Vec<TakenLease>,
        /// What of it is held under its next epoch.
        result: store::Result<Refenced>,
    },
    /// By a timer: ask again for the epochs that were not to be had.
    RefenceAgain,
    /// By the region's own task: a renewal has ended.
    Renewed {
        /// Just before the store was asked.
        asked_at: MonoTime,
        /// What was held then.
        held: Vec<TakenLease>,
        /// What of it is still held.
        result: store::Result<Vec<ShardNo>>,
    },
    /// By the region's own task: whether the database answers, asked when it had not.
    Probed {
        /// Just before it was asked.
        asked_at: MonoTime,
        /// Whether it answered.
        answered: bool,
    },
    /// By the region's own task: these leases are released, or will run out.
    GaveUp(Vec<TakenLease>),
    /// By a shard: a commit's outcome is unknown; it needs a new epoch.
    Refence(ShardNo),
    /// By a shard: the database knows another owner.
    LeaseLost(ShardNo),
    /// By a timer: the pause before the restart of a shard is over.
    Restart(ShardNo),
    /// By whoever asks how the cluster is: answered at once.
    Status(RpcReplyPort<RegionStatus>),
    /// By the node at its stop: hand every shard over; answered when the last lease is released.
    Drain(RpcReplyPort<()>),
}

impl<E: Entity> ractor::Message for RegionMessage<E> {}

/// A question about many entities.
pub struct QueryAsk<E: Entity> {
    /// What is asked.
    pub query: E::Query,
    /// The last hop.
    pub trace: TraceContext,
    /// When the caller no longer waits.
    pub deadline: MonoTime,
    /// When the last hop sent it.
    pub sent_at: MonoTime,
    /// Who asks.
    pub caller: Caller,
    /// Where the answer goes.
    pub reply: ReplyTo<E::QueryAnswer>,
}

/// What a region needs of the node.
pub struct RegionArgs<E: Entity> {
    /// The database.
    pub store: Arc<E::Store>,
    /// Where leases are kept.
    pub leases: Arc<dyn LeaseStore>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Where the node says how it is.
    pub health: Health,
    /// The node's journal of this kind.
    pub journal: Address<JournalMessage<E>>,
    /// `node-name#boot-id`
    pub owner: Arc<str>,
    /// The nodes in sight.
    pub members: Members,
    /// Called when leases were given up for another node.
    pub released: ReleasedHook,
    /// Called when leases can no longer be held, and when they can again.
    pub able: AbleHook,
    /// The number of shards of the cluster.
    pub shards: u16,
    /// The bounds of a shard.
    pub limits: shard::Limits,
    /// Queries that may run at the same time; beyond it they are answered `Busy`.
    pub queries_max: usize,
    /// Shards that may be on their way to other nodes at the same time, at least 1: each is out of service
    /// for the few round trips that it takes.
    pub handovers_max: usize,
    /// How leases are kept.
    pub lease_times: LeaseTimes,
    /// How often a shard is restarted.
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
