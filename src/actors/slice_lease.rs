//! The lease of one slice of the outbox: of all nodes that could work on it one does, the others stand by.
//! Held by the actor that does the work (`kafka_bridge`, `billing_relay`), which asks and is told.
//!
//! It spares double work and is no fence: the work is such that two who both think they hold the lease do
//! no harm.
//!
//! - Who stands by asks once per `tick`, and besides when the lease in the way has lapsed (`LeaseWatch`). Its holder
//!   renews it before that, so a standby causes one small statement per tick while all is well.
//! - A question that hangs is given up in time for another one before the lease runs out.
//! - A lease that is given up is released, and the node whose turn it is learns of it at once.

use std::sync::Arc;
use std::time::Duration;

use super::background::within;
use super::lease_watch::LeaseWatch;
use super::members::{Member, Members, ReleasedHook};
use crate::domain::cluster::{NodeRole, placed_on};
use crate::domain::ids::{Kind, ShardNo};
use crate::domain::time::{Clock, MonoTime};
use crate::store::{self, LeaseStore, OthersLease, TakenLease, Wanted};

/// Who publishes the outbox to Kafka.
pub const BRIDGE_SLICE: ShardNo = 0;
/// Who opens the accounts of those registered.
pub const RELAY_SLICE: ShardNo = 1;

/// What a slice's lease needs of the node.
#[derive(Clone)]
pub(super) struct SliceArgs {
    /// Which slice.
    pub(super) slice: ShardNo,
    /// Whose nodes work on it.
    pub(super) role: NodeRole,
    /// Where the lease is.
    pub(super) leases: Arc<dyn LeaseStore>,
    /// The clocks.
    pub(super) clock: Arc<dyn Clock>,
    /// `node-name#boot-id`
    pub(super) owner: Arc<str>,
    /// The nodes in sight.
    pub(super) members: Members,
    /// Called when the lease was given up for another node.
    pub(super) released: ReleasedHook,
    /// How long it holds from its taking or its last renewal.
    pub(super) ttl: Duration,
    /// How often the actor asks.
    pub(super) tick: Duration,
}

/// What came of a question to the database.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is ours, asked for at this moment.
    Held(TakenLease, MonoTime),
    /// Somebody else has it, as the database said just before this moment.
    Others(Vec<OthersLease>, MonoTime),
    /// The database did not answer.
    Unknown(store::Error),
}

impl Answer {
    /// The answer of a task that died.
    pub(super) fn lost() -> Self {
        Answer::Unknown(store::Error::Unknown("the question was lost".into()))
    }
}

/// Whose the lease is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Ours.
    Ours,
    /// Another's. If it is worth asking before the next tick: after how long.
    Others(Option<Duration>),
    /// Nobody knows: it is believed as long as it was, and asked for again. And why.
    Unknown(String),
}

/// See above.
pub(super) struct SliceLease {
    args: SliceArgs,
    /// The lease, and up to when it is believed.
    held: Option<(TakenLease, MonoTime)>,
    /// What others hold, as far as it was seen.
    watch: LeaseWatch,
    asking: bool,
    /// 1 while it is held.
    meter: metrics::Gauge,
}

impl SliceLease {
    /// Nothing is known yet.
    pub(super) fn new(args: SliceArgs) -> Self {
        let meter = metrics::gauge!("hygeia_outbox_slice_held", "role" => args.role.as_str());
        meter.set(0.0);
        let watch = LeaseWatch::new(args.ttl);
        SliceLease { args, held: None, watch, asking: false, meter }
    }

    /// Whether the lease is ours as far as was heard.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether it is believed at this moment.
    pub(super) fn is_believed(&self) -> bool {
        self.held.is_some_and(|(_, until)| self.args.clock.mono() < until)
    }

    /// Whether the database is being asked.
    pub(super) fn is_asking(&self) -> bool {
        self.asking
    }

    /// Takes the lease, or prolongs the one held; nothing if that is under way. What comes of it goes to
    /// `learn`.
    pub(super) fn ask(&mut self) -> Option<impl Future<Output = Answer> + Send + 'static> {
        if std::mem::replace(&mut self.asking, true) {
            return None;
        }
        let (args, held) = (self.args.clone(), self.held.map(|(lease, _)| lease));
        let lapsed = self.watch.lapsed(args.slice, args.clock.mono());
        let wanted = Wanted { shard: args.slice, lapsed };
        Some(ask(args, held, wanted))
    }

    /// Takes note of an answer.
    pub(super) fn learn(&mut self, answer: Answer) -> Standing {
        self.asking = false;
        match answer {
            Answer::Held(lease, asked_at) => {
                // A tenth is taken off for clocks that run at different speeds.
                self.held = Some((lease, asked_at.plus(self.args.ttl * 9 / 10)));
                self.meter.set(1.0);
                Standing::Ours
            }
            Answer::Others(others, answered_at) => {
                self.held = None;
                self.meter.set(0.0);
                self.watch.note(&others, answered_at);
                let due = self.watch.left(self.args.slice, self.args.clock.mono());
                // Once it has lapsed, the next tick is soon enough: another one may have taken it.
                Standing::Others(due.filter(|due| !due.is_zero() && *due < self.args.tick))
            }
            Answer::Unknown(error) => Standing::Unknown(error.to_string()),
        }
    }

    /// Gives the lease up, if it is held: anybody may take it once this has ended, after `limit` at most.
    pub(super) fn release(&mut self, limit: Duration) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (lease, _) = self.held.take()?;
        self.meter.set(0.0);
        let (args, next) = (self.args.clone(), self.next());
        Some(async move {
            // A lease that could not be given up runs out.
            let _ = within(limit, args.leases.release(Kind::Outbox, &[lease], &args.owner)).await;
            if let Some(next) = next {
                (args.released)(Kind::Outbox, &[args.slice], &next);
            }
        })
    }

    /// Whose turn it is when this node is gone. The others find the lease at their next tick.
    fn next(&self) -> Option<Member> {
        let view = self.args.members.borrow().without_me();
        let staying = view.with_role(self.args.role).filter(|member| !member.draining);
        let name = placed_on(Kind::Outbox, self.args.slice, staying.map(|member| &*member.name))?;
        view.get(name).cloned()
    }
}

async fn ask(args: SliceArgs, held: Option<TakenLease>, wanted: Wanted) -> Answer {
    let SliceArgs { leases, owner, ttl, clock, .. } = args;
    // Taken before the question, so that a slow answer never makes the lease seem longer than it is.
    let asked_at = clock.mono();
    let limit = ttl / 4;
    let answer = match held {
        None => within(limit, leases.take(Kind::Outbox, &[wanted], &owner, ttl))
            .await
            .map(|taken| taken.leases.first().copied().ok_or(taken.others)),
        Some(held) => within(limit, leases.renew(Kind::Outbox, &[held], &owner, ttl))
            .await
            .map(|shards| if shards.contains(&held.shard) { Ok(held) } else { Err(Vec::new()) }),
    };
    match answer {
        Ok(Ok(lease)) => Answer::Held(lease, asked_at),
        Ok(Err(others)) => Answer::Others(others, clock.mono()),
        Err(error) => Answer::Unknown(error),
    }
}
