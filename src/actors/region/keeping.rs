//! How a region keeps its leases: it renews them, and asks for new epochs of shards that run.
//!
//! - **Renew.** One statement for everything that serves, each tick. One that fails is repeated at once, and one that
//!   hangs is given up in time for that: see `LeaseTimes`. The node says that it cannot hold leases only when several
//!   have failed in a row and what it held has run out.
//! - **Re-fence.** A shard with a commit of unknown outcome needs a new epoch, and begins no commit until it has one.
//!   One statement asks for all such shards; those that come meanwhile go with the next one. It waits for no commit, so
//!   it holds up neither renewals nor commits: what is in use is asked for again a moment later, and is free as soon as
//!   the commits have ended that were under way. Until then the shard's lease is renewed as any other.
//!
//! Invariant: a shard that runs is told of no epoch but the one after its own. The statement raises just that one, and
//! only while the row is this node's: so nobody else has had the shard. If somebody has, the lease is lost, the shard
//! ends, and another incarnation begins.

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

/// The pause before the epochs of shards are asked for again whose commits under way had not ended.
const REFENCE_PAUSE: Duration = Duration::from_millis(10);

/// How many questions in a row must have failed before the database is said to be away: one may have hung by itself.
const FAILURES_MIN: u32 = 2;

/// Questions to the database in a row that it did not answer.
pub(super) struct Failing {
    /// When the first one was asked.
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

    /// Says whether leases can be held here and be of use: others that see this node leave its shards to it
    /// else, though it takes none.
    pub(super) fn tell_whether_able(&mut self) {
        let able = self.able && self.sight != Sight::Alone;
        if self.told_able.replace(able) != Some(able) {
            (self.args.able)(E::KIND, able);
        }
    }

    /// Takes note of whether the database has answered what it was asked at `asked_at`.
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

    /// The first renewal that failed came a third of the time to live after the last that did not; two
    /// thirds later the leases have run out, and it is time that others had the shards. From then on, since
    /// nothing may be wanted here any more, the database is asked whether it is back.
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
            // A renewal of nothing goes the way of all renewals.
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
                // What is refused at once, again and again, waits for the next tick.
                let hung =
                    self.args.clock.mono().since(asked_at) >= self.args.lease_times.statement_timeout();
                if !std::mem::replace(&mut self.repeated, true) || hung {
                    self.renew(myself);
                }
            }
        }
        self.report();
    }

    /// A shard needs a new epoch.
    pub(super) fn refence(&mut self, myself: &ActorRef<RegionMessage<E>>, shard: ShardNo) {
        self.slots.refence(shard);
        self.refence_all(myself);
    }

    /// Asks for the next epochs of all shards that need one; after the question under way, if there is one.
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

    /// Tells the shards of `held` what became of the question for their next epochs.
    fn settle(&mut self, asked_at: MonoTime, held: &[TakenLease], refenced: &Refenced) {
        self.meters.taken.increment(refenced.leases.len() as u64);
        let until = self.believed_until(asked_at);
        for TakenLease { shard, .. } in held {
            if let Some(lease) = refenced.leases.iter().find(|lease| lease.shard == *shard) {
                let held = HeldLease::new(lease.epoch, until);
                if let Some(actor) = self.slots.refenced(*lease, &held) {
                    // One that has just ended is noticed as any other.
                    let _ = actor.send_message(ShardMessage::Refenced(held));
                }
            } else if !refenced.busy.contains(shard) {
                self.lost(*shard);
            }
        }
    }
}
