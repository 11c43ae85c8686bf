//! How a region takes and gives up leases. `keeping` describes how it keeps them.
//!
//! - **Take.** One statement, the sweep, asks for every lease that belongs here and is not held. A sweep runs
//!   when the view changes, when another region reports a release, when the first blocking lease lapses,
//!   after `acquire_poll` at the latest, and at each tick. It sends no statement if nothing is missing.
//! - **Watch.** Every `watch_pause` the region reads the leases of other owners, unless it holds all shards
//!   itself. A lease that was not released is taken after it has not been renewed for its whole time to live,
//!   by this node's own clock (`LeaseWatch`). A node that has watched a lease all along need not begin to
//!   wait when its holder fails.
//! - **Give up.** A shard that belongs elsewhere stops serving and finishes what is in flight. Then its lease
//!   is released, one lease per shard; leases that are ready during a release go with the next one. At most
//!   `handovers_max` shards are in transit; the others serve until it is their turn. The next owner is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio_util::task::AbortOnDropHandle;

use super::sight::Sight;
use super::slots::{Belongs, Elsewhere};
use super::{HeldLease, RegionMessage, RegionState};
use crate::actors::background::within;
use crate::actors::entity::{Entity, Failure};
use crate::actors::members::Member;
use crate::actors::shard::{Shard, ShardArgs, ShardEnv, ShardMessage};
use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::health::Status;
use crate::store::{self, OthersLease, Taken, TakenLease, Wanted};

/// The shortest pause between two attempts to take the same lease.
const TRY_PAUSE_MIN: Duration = Duration::from_millis(1);

impl<E: Entity> RegionState<E> {
    /// Determines where each shard belongs, from the current view.
    pub(super) fn place(&mut self) {
        let view = &self.view;
        let name = |member: &Member| Arc::clone(&member.name);
        match (&self.draining, self.sight) {
            (Some(_), _) => {
                let rest = view.without_me();
                self.slots.place_all(|shard| Belongs::Away(rest.placed(E::KIND, shard).map(name)));
            }
            (None, Sight::Alone) => self.slots.place_all(|_| Belongs::Away(None)),
            (None, _) => self.slots.place_all(|shard| match view.placed(E::KIND, shard) {
                Some(member) if member.name != *view.me() => Belongs::Away(Some(name(member))),
                Some(member) if member.draining => Belongs::HereStill,
                Some(_) => Belongs::Here,
                None => Belongs::Away(None),
            }),
        }
    }

    pub(super) fn view_changed(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        self.view = Arc::clone(&self.members.borrow_and_update());
        let before = self.sight;
        self.look();
        if before == Sight::Front && matches!(self.sight, Sight::Lost(_)) {
            myself.send_after(self.args.lease_times.alone_grace, || RegionMessage::TakeUp);
        }
        self.place();
        self.sweep(myself);
        self.report();
    }

    /// Updates whether a front is reachable. A change moves every shard.
    fn look(&mut self) {
        let (now, grace) = (self.args.clock.mono(), self.args.lease_times.alone_grace);
        let before = self.sight;
        self.sight = before.at(&self.view, E::KIND, now, grace);
        if (before == Sight::Alone) != (self.sight == Sight::Alone) {
            if self.sight == Sight::Alone {
                tracing::warn!(region = self.name, "no front is in sight: the shards are left to others");
            } else {
                tracing::info!(region = self.name, "a front is in sight");
            }
            self.place();
            self.tell_whether_able();
        }
    }

    pub(super) fn look_and_take(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        self.look();
        self.sweep(myself);
    }

    pub(super) fn released_elsewhere(&mut self, myself: &ActorRef<RegionMessage<E>>, shards: &[ShardNo]) {
        // During a sweep no shard is `wanted`, and the statement may have run before the release. Sweep
        // again.
        if self.sweeping || shards.iter().any(|shard| self.slots.is_wanted(*shard)) {
            self.sweep(myself);
        }
    }

    /// Takes every wanted lease in one statement. If a sweep is in progress, another one follows it.
    pub(super) fn sweep(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        if self.sweeping {
            self.sweep_again = true;
            return;
        }
        let wanted = self.slots.wanted();
        if wanted.is_empty() {
            return;
        }
        self.sweeping = true;
        self.next_try = None;
        self.acquire(myself, wanted);
    }

    fn acquire(&mut self, myself: &ActorRef<RegionMessage<E>>, shards: Vec<ShardNo>) {
        self.slots.asking(shards.iter().copied());
        let args = self.args.clone();
        let asked_at = args.clock.mono();
        let wanted: Vec<_> = shards
            .iter()
            .map(|shard| Wanted { shard: *shard, lapsed: self.watch.lapsed(*shard, asked_at) })
            .collect();
        let result = Err(task_died());
        let lost =
            RegionMessage::Acquired { asked_at, answered_at: asked_at, shards: shards.clone(), result };
        self.tasks.run(myself, lost, async move {
            let asked_at = args.clock.mono();
            let times = args.lease_times;
            let taking = args.leases.take(E::KIND, &wanted, &args.owner, times.ttl);
            let result = within(times.statement_timeout(), taking).await;
            RegionMessage::Acquired { asked_at, answered_at: args.clock.mono(), shards, result }
        });
    }

    pub(super) async fn acquired(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        asked_at: MonoTime,
        answered_at: MonoTime,
        shards: &[ShardNo],
        result: store::Result<Taken>,
    ) -> Result<(), ActorProcessingErr> {
        self.slots.asked(shards.iter().copied());
        self.sweeping = false;
        let answered = result.is_ok();
        self.heard(asked_at, answered);
        match result {
            Ok(Taken { leases, others }) => {
                self.meters.taken.increment(leases.len() as u64);
                let until = self.believed_until(asked_at);
                for shard in shards.iter().filter(|shard| leases.iter().all(|lease| lease.shard != **shard)) {
                    self.lost(*shard);
                }
                for lease in leases {
                    if self.slots.took(lease) {
                        self.start(myself, lease, until).await?;
                    }
                }
                self.slots.note_others(&others);
                self.watch.note(&others, answered_at);
            }
            // The next tick tries again.
            Err(error) => tracing::warn!(region = self.name, %error, "leases were not taken"),
        }
        if std::mem::take(&mut self.sweep_again) {
            self.sweep(myself);
        } else if answered {
            self.try_later(myself);
        }
        self.report();
        Ok(())
    }

    /// Schedules the next attempt to take what is still wanted, for when the first blocking lease lapses.
    fn try_later(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let (wanted, now) = (self.slots.wanted(), self.args.clock.mono());
        if self.sweeping || wanted.is_empty() {
            return;
        }
        let ends = wanted.iter().filter_map(|shard| self.watch.left(*shard, now));
        let pause =
            ends.min().unwrap_or(Duration::MAX).clamp(TRY_PAUSE_MIN, self.args.lease_times.acquire_poll);
        let region = myself.clone();
        self.next_try = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // A region that has ended wants nothing.
            let _ = region.send_message(RegionMessage::TakeUp);
        })));
    }

    /// Reads the leases of other owners, to know when they lapse.
    pub(super) fn watch_others(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        if self.watching || self.slots.has_all() {
            return;
        }
        self.watching = true;
        let args = self.args.clone();
        let lost = RegionMessage::Watched { answered_at: args.clock.mono(), result: Err(task_died()) };
        self.tasks.run(myself, lost, async move {
            let looking = args.leases.others(E::KIND, &args.owner);
            let result = within(args.lease_times.statement_timeout(), looking).await;
            RegionMessage::Watched { answered_at: args.clock.mono(), result }
        });
    }

    pub(super) fn watched(&mut self, answered_at: MonoTime, result: store::Result<Vec<OthersLease>>) {
        self.watching = false;
        // Without an answer, the region waits a little longer for leases that have to lapse.
        if let Ok(others) = result {
            self.watch.note(&others, answered_at);
        }
    }

    /// Starts the shard of a lease that was just taken.
    async fn start(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        lease: TakenLease,
        until: MonoTime,
    ) -> Result<(), ActorProcessingErr> {
        let held = HeldLease::new(lease.epoch, until);
        let env = ShardEnv {
            store: Arc::clone(&self.args.store),
            clock: Arc::clone(&self.args.clock),
            journal: self.args.journal.clone(),
            region: myself.clone(),
            limits: self.args.limits,
        };
        let args = ShardArgs { shard: lease.shard, lease: held.clone(), env };
        // `pre_start` of a shard only sets up its memory, so it takes no time.
        let (actor, _) = Actor::spawn_linked(None, Shard::default(), args, myself.get_cell()).await?;
        self.slots.fill(lease.shard, actor, held);
        Ok(())
    }

    /// Stops the shard, because another owner has its lease or may have it.
    pub(super) fn lost(&mut self, shard: ShardNo) {
        if let Some(actor) = self.slots.lose(shard) {
            tracing::warn!(region = self.name, shard, "lease lost");
            self.meters.lost.increment(1);
            let _ = actor.send_message(ShardMessage::StopServing);
        }
    }

    /// Schedules the restart of a failed shard, under a new epoch. Fails if the shard failed too often.
    pub(super) fn restart_later(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        shard: ShardNo,
    ) -> Result<(), ActorProcessingErr> {
        if self.draining.is_some() {
            return Ok(());
        }
        metrics::counter!("hygeia_actor_restarts_total", "actor" => "shard").increment(1);
        let Some(pause) = self.slots.spend_restart(shard, self.args.clock.mono()) else {
            return Err(format!("{} shard {shard} failed too often", E::KIND.as_str()).into());
        };
        tracing::error!(
            region = self.name,
            shard,
            pause_ms = pause.as_millis(),
            "a shard failed; it restarts"
        );
        myself.send_after(pause, move || RegionMessage::Restart(shard));
        Ok(())
    }

    pub(super) fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.draining.get_or_insert_default().push(reply);
        self.place();
        self.args.health.report(E::KIND.as_str(), Status::NotReady("the node is stopping".into()));
    }

    /// Continues the hand-over of shards that belong elsewhere: stops shards, releases the leases of ended
    /// ones, and completes a drain.
    pub(super) fn give_up(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let moves = self.slots.begin_moves(self.args.handovers_max.max(1));
        if !moves.is_empty() {
            tracing::info!(region = self.name, shards = moves.len(), "shards are given up");
            self.meters.given_up.increment(moves.len() as u64);
        }
        for (_, actor) in moves {
            // If the shard has just ended, its supervision event handles that.
            let _ = actor.send_message(ShardMessage::StopServing);
        }
        if !self.releasing {
            let leases = self.slots.begin_releases();
            if !leases.is_empty() {
                self.release(myself, leases);
            }
        }
        if self.draining.is_some() && !self.releasing && self.slots.is_clear() {
            for reply in self.draining.iter_mut().flat_map(|replies| replies.drain(..)) {
                let _ = reply.send(());
            }
            myself.stop(None);
        }
    }

    fn release(&mut self, myself: &ActorRef<RegionMessage<E>>, leases: Vec<TakenLease>) {
        self.releasing = true;
        let args = self.args.clone();
        self.tasks.run(myself, RegionMessage::GaveUp(leases.clone()), async move {
            let releasing = args.leases.release(E::KIND, &leases, &args.owner);
            if let Err(error) = within(args.lease_times.statement_timeout(), releasing).await {
                tracing::warn!(%error, "leases were not released; they will run out");
            }
            RegionMessage::GaveUp(leases)
        });
    }

    /// Tells the next owners that the leases are released.
    pub(super) fn gave_up(&mut self, myself: &ActorRef<RegionMessage<E>>, leases: &[TakenLease]) {
        self.releasing = false;
        self.slots.released(leases);
        let mut next: BTreeMap<Arc<str>, Vec<ShardNo>> = BTreeMap::new();
        for lease in leases {
            if let Some(Elsewhere::Node(name)) = self.slots.elsewhere(lease.shard) {
                next.entry(Arc::clone(name)).or_default().push(lease.shard);
            }
        }
        for (name, shards) in next {
            if let Some(member) = self.view.get(&name) {
                (self.args.released)(E::KIND, &shards, member);
            }
        }
        // A shard may belong here again by now.
        self.sweep(myself);
        self.report();
    }

    /// Returns the answer to a request for a shard that is not served here. The answer names the node that
    /// serves the shard instead, or will soon, if that is known. The holder of the lease is named even if
    /// this node cannot reach it, because the directory that asked may.
    pub(super) fn not_serving(&self, shard: ShardNo) -> Failure {
        let owner = self.slots.elsewhere(shard).and_then(|elsewhere| match elsewhere {
            Elsewhere::Node(name) => self.view.get(name).map(|member| Arc::clone(&member.owner)),
            Elsewhere::Owner(owner) => Some(Arc::clone(owner)),
        });
        Failure::NotServing(owner)
    }

    pub(super) fn believed_until(&self, asked_at: MonoTime) -> MonoTime {
        asked_at.plus(self.args.lease_times.believed())
    }
}

pub(super) fn task_died() -> store::Error {
    store::Error::Unknown("the task that asked has died".into())
}
