//! How a region keeps its leases: it renews them, and obtains new epochs for running shards.
//!
//! - **Renew.** One statement per tick renews the leases of all serving shards. A renewal that fails is
//!   repeated at once. A renewal that hangs is abandoned early enough to be repeated: see `LeaseTimes`. The
//!   node reports that it cannot hold leases only after several statements in a row have failed and its
//!   leases have run out.
//! - **Re-fence.** A shard with a commit of unknown outcome needs a new epoch, and begins no commit until it
//!   has one. One statement asks for the epochs of all such shards; shards that come meanwhile wait for the
//!   next statement. The statement does not wait for commits, so it delays neither renewals nor commits. A
//!   lease that a running commit uses is asked for again a moment later; it is free when the running commits
//!   have ended. Until then the lease is renewed like any other.
//!
//! Invariant: a running shard is given no epoch but the one after its own. The statement raises the epoch by
//! one, and only while this node owns the row, so no other node has had the shard. If another node has had
//! it, the lease is lost, the shard ends, and another incarnation begins.

use std::time::Duration;

use ractor::ActorRef;

use super::leases::task_died;
use super::sight::Sight;
use super::{HeldLease, RegionMessage, RegionState};
use crate::actors::background::within;
use crate::actors::entity::Entity;
use crate::actors::shard::ShardMessage;
use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::store::{self, Refenced, TakenLease};

/// The pause before an epoch is asked for again, after a running commit was using the lease.
const REFENCE_PAUSE: Duration = Duration::from_millis(10);

/// How many statements in a row must fail before the database counts as unavailable, because one statement
/// may hang by itself.
const FAILURES_MIN: u32 = 2;

/// Consecutive statements that the database did not answer.
pub(super) struct Failing {
    /// When the first of them was sent.
    since: MonoTime,
    times: u32,
}

impl<E: Entity> RegionState<E> {
    pub(super) fn tick(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        self.repeated = false;
        self.renew(myself);
        self.refence_all(myself);
        self.look_and_take(myself);
        self.look_for_database(myself);
        self.report();
    }

    /// Tells the node whether this region can hold and use leases. Without that, other nodes that can reach
    /// this node would leave shards to it that it does not take.
    pub(super) fn tell_whether_able(&mut self) {
        let able = self.able && self.sight != Sight::Alone;
        if self.told_able.replace(able) != Some(able) {
            (self.args.able)(E::KIND, able);
        }
    }

    /// Records whether the database answered the statement sent at `asked_at`.
    pub(super) fn heard(&mut self, asked_at: MonoTime, answered: bool) {
        if !answered {
            self.failing.get_or_insert(Failing { since: asked_at, times: 0 }).times += 1;
            return;
        }
        self.failing = None;
        if !std::mem::replace(&mut self.able, true) {
            tracing::info!(region = self.name, "the database answers again");
            self.tell_whether_able();
        }
    }

    /// Checks whether the database has been unavailable until all leases ran out.
    ///
    /// Renewals are a third of the time to live apart, so the leases have run out two thirds after the first
    /// failure, and other nodes should take the shards. From then on the region probes the database each
    /// tick, because no other statement may be due when no shard belongs here any more.
    fn look_for_database(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let (now, ttl) = (self.args.clock.mono(), self.args.lease_times.ttl);
        let is_away =
            |failing: &Failing| failing.times >= FAILURES_MIN && now.since(failing.since) >= ttl * 2 / 3;
        if self.able && self.failing.as_ref().is_some_and(is_away) {
            self.able = false;
            tracing::warn!(region = self.name, "the database does not answer: the shards are left to others");
            self.tell_whether_able();
        }
        if self.able {
            return;
        }
        let args = self.args.clone();
        let lost = RegionMessage::Probed { asked_at: now, answered: false };
        self.tasks.run(myself, lost, async move {
            let times = args.lease_times;
            // Renewing no lease takes the same path as every renewal.
            let probe = args.leases.renew(E::KIND, &[], &args.owner, times.ttl);
            let answered = within(times.statement_timeout(), probe).await.is_ok();
            RegionMessage::Probed { asked_at: now, answered }
        });
    }

    fn renew(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let held = self.slots.held();
        if self.renewing || held.is_empty() {
            return;
        }
        self.renewing = true;
        let args = self.args.clone();
        let asked_at = args.clock.mono();
        let lost = RegionMessage::Renewed { asked_at, held: held.clone(), result: Err(task_died()) };
        self.tasks.run(myself, lost, async move {
            let asked_at = args.clock.mono();
            let times = args.lease_times;
            let renewal = args.leases.renew(E::KIND, &held, &args.owner, times.ttl);
            let result = within(times.statement_timeout(), renewal).await;
            RegionMessage::Renewed { asked_at, held, result }
        });
    }

    pub(super) fn renewed(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        asked_at: MonoTime,
        held: &[TakenLease],
        result: store::Result<Vec<ShardNo>>,
    ) {
        self.renewing = false;
        self.heard(asked_at, result.is_ok());
        match result {
            Ok(kept) => {
                self.meters.renewed.increment(kept.len() as u64);
                let until = self.believed_until(asked_at);
                for lease in held {
                    if kept.contains(&lease.shard) {
                        self.slots.prolong(lease, until);
                    } else if self.slots.is_lost(lease) {
                        self.lost(lease.shard);
                    }
                }
            }
            Err(error) => {
                self.meters.renewals_failed.increment(1);
                tracing::warn!(region = self.name, %error, "leases were not renewed");
                // Repeat at most once per tick, unless the statement hung, because an error that returns at
                // once would loop.
                let hung =
                    self.args.clock.mono().since(asked_at) >= self.args.lease_times.statement_timeout();
                if !std::mem::replace(&mut self.repeated, true) || hung {
                    self.renew(myself);
                }
            }
        }
        self.report();
    }

    /// Records that a shard needs a new epoch, and asks for it.
    pub(super) fn refence(&mut self, myself: &ActorRef<RegionMessage<E>>, shard: ShardNo) {
        self.slots.refence(shard);
        self.refence_all(myself);
    }

    /// Asks for the next epochs of all shards that need one. While a statement is in progress, they wait for
    /// the next one.
    pub(super) fn refence_all(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let held = self.slots.to_refence();
        if self.refencing || held.is_empty() {
            return;
        }
        self.refencing = true;
        self.slots.asking(held.iter().map(|lease| lease.shard));
        let args = self.args.clone();
        let asked_at = args.clock.mono();
        let lost = RegionMessage::Refenced { asked_at, held: held.clone(), result: Err(task_died()) };
        self.tasks.run(myself, lost, async move {
            let asked_at = args.clock.mono();
            let times = args.lease_times;
            let raising = args.leases.refence(E::KIND, &held, &args.owner, times.ttl);
            let result = within(times.statement_timeout(), raising).await;
            RegionMessage::Refenced { asked_at, held, result }
        });
    }

    pub(super) fn refenced(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        asked_at: MonoTime,
        held: &[TakenLease],
        result: store::Result<Refenced>,
    ) {
        self.refencing = false;
        self.slots.asked(held.iter().map(|lease| lease.shard));
        self.heard(asked_at, result.is_ok());
        let pause = match result {
            Ok(refenced) => {
                self.settle(asked_at, held, &refenced);
                if refenced.busy.is_empty() { Duration::ZERO } else { REFENCE_PAUSE }
            }
            Err(error) => {
                tracing::warn!(region = self.name, %error, "no new epochs were had");
                self.args.lease_times.statement_timeout() / 2
            }
        };
        if pause.is_zero() {
            self.refence_all(myself);
        } else {
            myself.send_after(pause, || RegionMessage::RefenceAgain);
        }
        self.report();
    }

    /// Passes the result of a re-fence to the shards of `held`: a new epoch, or the loss of the lease.
    fn settle(&mut self, asked_at: MonoTime, held: &[TakenLease], refenced: &Refenced) {
        self.meters.taken.increment(refenced.leases.len() as u64);
        let until = self.believed_until(asked_at);
        for TakenLease { shard, .. } in held {
            if let Some(lease) = refenced.leases.iter().find(|lease| lease.shard == *shard) {
                let held = HeldLease::new(lease.epoch, until);
                if let Some(actor) = self.slots.refenced(*lease, &held) {
                    // If the shard has just ended, its supervision event handles that.
                    let _ = actor.send_message(ShardMessage::Refenced(held));
                }
            } else if !refenced.busy.contains(shard) {
                self.lost(*shard);
            }
        }
    }
}
