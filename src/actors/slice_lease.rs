//! The lease of one slice of the outbox. One of the nodes that could work on the slice is active; the others
//! stand by. The actor that does the work (`kafka_bridge`, `billing_relay`) holds the lease: it runs the
//! statements and passes on their answers.
//!
//! The lease avoids duplicate work; it is not a fence. The work is idempotent, so two nodes that both believe
//! they hold the lease do no harm.
//!
//! - A standby polls once per `tick`, and again when the current lease lapses (`LeaseWatch`). The holder
//!   renews its lease before that, so a standby causes one small statement per tick in normal operation.
//! - A statement that hangs is abandoned early enough for another attempt before the lease expires.
//! - A lease that is given up is released, and the next node is told at once.

use std::sync::Arc;
use std::time::Duration;

use super::background::within;
use super::lease_watch::LeaseWatch;
use super::members::{Member, Members, ReleasedHook};
use crate::domain::cluster::{NodeRole, placed_on};
use crate::domain::ids::{Kind, ShardNo};
use crate::domain::time::{Clock, MonoTime};
use crate::store::{self, LeaseStore, OthersLease, TakenLease, Wanted};

/// The slice whose holder publishes the outbox to Kafka.
pub const BRIDGE_SLICE: ShardNo = 0;
/// The slice whose holder opens accounts for registered patients.
pub const RELAY_SLICE: ShardNo = 1;

/// What a slice's lease needs from the node.
#[derive(Clone)]
pub(super) struct SliceArgs {
    /// The slice.
    pub(super) slice: ShardNo,
    /// The role of the nodes that work on the slice.
    pub(super) role: NodeRole,
    /// The store of the leases.
    pub(super) leases: Arc<dyn LeaseStore>,
    /// The clocks.
    pub(super) clock: Arc<dyn Clock>,
    /// `node-name#boot-id`
    pub(super) owner: Arc<str>,
    /// The reachable nodes.
    pub(super) members: Members,
    /// Called after the lease was given up for another node.
    pub(super) released: ReleasedHook,
    /// How long the lease lasts after it was taken or last renewed.
    pub(super) ttl: Duration,
    /// How often the actor polls.
    pub(super) tick: Duration,
}

/// The result of a statement about the lease.
#[derive(Debug)]
pub(super) enum Answer {
    /// This node holds the lease. The time is from before the statement was sent.
    Held(TakenLease, MonoTime),
    /// Another node holds the lease. The time is from after the answer arrived.
    Others(Vec<OthersLease>, MonoTime),
    /// The database did not answer.
    Unknown(store::Error),
}

impl Answer {
    /// The answer of a task that panicked.
    pub(super) fn lost() -> Self {
        Answer::Unknown(store::Error::Unknown("the question was lost".into()))
    }
}

/// Who holds the lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// This node.
    Ours,
    /// Another node. The duration is the pause before an extra poll, if one is useful before the next tick.
    Others(Option<Duration>),
    /// Unknown, for this reason. The node relies on the lease until it expires, and polls again.
    Unknown(String),
}

/// The state of the lease on this node.
pub(super) struct SliceLease {
    args: SliceArgs,
    /// The lease, and the time until which the node relies on it.
    held: Option<(TakenLease, MonoTime)>,
    /// The leases of other nodes, as last seen.
    watch: LeaseWatch,
    asking: bool,
    /// 1 while the lease is held, else 0.
    meter: metrics::Gauge,
}

impl SliceLease {
    /// Creates the state of a lease that is not held.
    pub(super) fn new(args: SliceArgs) -> Self {
        let meter = metrics::gauge!("hygeia_outbox_slice_held", "role" => args.role.as_str());
        meter.set(0.0);
        let watch = LeaseWatch::new(args.ttl);
        SliceLease { args, held: None, watch, asking: false, meter }
    }

    /// Returns whether this node holds the lease, according to the last answer.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Returns whether the node may rely on the lease now.
    pub(super) fn is_believed(&self) -> bool {
        self.held.is_some_and(|(_, until)| self.args.clock.mono() < until)
    }

    /// Returns whether a statement is in progress.
    pub(super) fn is_asking(&self) -> bool {
        self.asking
    }

    /// Takes the lease, or renews the one held. Returns `None` if a statement is already in progress. The
    /// caller passes the result to `learn`.
    pub(super) fn ask(&mut self) -> Option<impl Future<Output = Answer> + Send + 'static> {
        if std::mem::replace(&mut self.asking, true) {
            return None;
        }
        let (args, held) = (self.args.clone(), self.held.map(|(lease, _)| lease));
        let lapsed = self.watch.lapsed(args.slice, args.clock.mono());
        let wanted = Wanted { shard: args.slice, lapsed };
        Some(ask(args, held, wanted))
    }

    /// Records an answer.
    pub(super) fn learn(&mut self, answer: Answer) -> Standing {
        self.asking = false;
        match answer {
            Answer::Held(lease, asked_at) => {
                // Subtract a tenth, because clocks may run at different speeds.
                self.held = Some((lease, asked_at.plus(self.args.ttl * 9 / 10)));
                self.meter.set(1.0);
                Standing::Ours
            }
            Answer::Others(others, answered_at) => {
                self.held = None;
                self.meter.set(0.0);
                self.watch.note(&others, answered_at);
                let due = self.watch.left(self.args.slice, self.args.clock.mono());
                // A lease that has lapsed needs no extra poll before the next tick, because another node may
                // have taken it.
                Standing::Others(due.filter(|due| !due.is_zero() && *due < self.args.tick))
            }
            Answer::Unknown(error) => Standing::Unknown(error.to_string()),
        }
    }

    /// Releases the lease, if it is held. Other nodes may take it when the returned future completes, which
    /// takes at most `limit`.
    pub(super) fn release(&mut self, limit: Duration) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (lease, _) = self.held.take()?;
        self.meter.set(0.0);
        let (args, next) = (self.args.clone(), self.next());
        Some(async move {
            // A lease that could not be released expires.
            let _ = within(limit, args.leases.release(Kind::Outbox, &[lease], &args.owner)).await;
            if let Some(next) = next {
                (args.released)(Kind::Outbox, &[args.slice], &next);
            }
        })
    }

    /// Returns the node that should take the lease next. The other nodes find the lease at their next tick.
    fn next(&self) -> Option<Member> {
        let view = self.args.members.borrow().without_me();
        let staying = view.with_role(self.args.role).filter(|member| !member.draining);
        let name = placed_on(Kind::Outbox, self.args.slice, staying.map(|member| &*member.name))?;
        view.get(name).cloned()
    }
}

async fn ask(args: SliceArgs, held: Option<TakenLease>, wanted: Wanted) -> Answer {
    let SliceArgs { leases, owner, ttl, clock, .. } = args;
    // Read the clock before the statement, so that a slow answer never makes the lease appear longer than it
    // is.
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
