//! A region: all shards of one kind that this node serves. Child of the node's supervisor, parent of its
//! shards.
//!
//! | child | restart | limit |
//! |---|---|---|
//! | one `Shard` per lease held | always, under a new epoch | `RestartPolicy` per shard; past it the region fails |
//!
//! The reachable nodes determine which shards belong here (`View::placed`). `leases` takes the leases of
//! shards that belong here and gives up those of shards that belong elsewhere. `keeping` renews the leases
//! held.
//!
//! Invariants:
//! - Each incarnation of a shard runs under an epoch of its own. The newer epoch fences whatever an earlier
//!   incarnation sent to the journal, before the newer incarnation reads anything.
//! - An incarnation lives only while its tenure is continuous: it moves from one epoch to the next one, or it
//!   ends.
//! - The node relies on a lease from *before* the statement that took it, less a margin. The lease of another
//!   owner is taken only if it was released, or if its last renewal was *seen* a full time to live ago.
//! - Placement says where a shard should run; only a lease permits it to run. Views that differ between nodes
//!   cost time, not correctness.
//! - A lease is released only after its shard has ended, when nothing is in flight under it.
//! - A request for a shard that is not served here is answered at once. The directory retries.
//! - `handle` never waits for the store: statements about leases and queries run in tasks.

mod keeping;
mod leases;
mod message;
mod meters;
mod sight;
mod slots;
mod status;

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio_util::task::AbortOnDropHandle;

use self::keeping::Failing;
pub use self::message::{HeldLease, LeaseTimes, QueryAsk, RegionArgs, RegionMessage};
use self::meters::Meters;
use self::sight::Sight;
use self::slots::Slots;
pub use self::status::{RegionStatus, ShardState, ShardStatus};
use super::background::Tasks;
use super::entity::{Entity, Failure};
use super::lease_watch::LeaseWatch;
use super::members::{Members, View};
use super::shard::{Ask, ShardMessage};
use crate::context::Hop;
use crate::health::Status;

/// The actor.
pub struct Region<E: Entity>(std::marker::PhantomData<E>);

impl<E: Entity> Default for Region<E> {
    fn default() -> Self {
        Region(std::marker::PhantomData)
    }
}

/// The state of one incarnation.
pub struct RegionState<E: Entity> {
    args: RegionArgs<E>,
    name: String,
    meters: Meters,
    members: Members,
    /// The newest view of `members` that the region has acted on.
    view: Arc<View>,
    sight: Sight,
    slots: Slots<E>,
    tasks: Tasks,
    /// Reports new views; ends with this incarnation.
    _watcher: AbortOnDropHandle<()>,
    /// The leases of other owners, as last seen.
    watch: LeaseWatch,
    /// Whether the leases of others are being read.
    watching: bool,
    /// Whether a renewal is in progress. The next tick does not start another.
    renewing: bool,
    /// Whether a failed renewal was repeated since the last tick.
    repeated: bool,
    /// Whether new epochs are being asked for. Shards that need one meanwhile wait for the next statement.
    refencing: bool,
    /// Whether a sweep is in progress. Leases that become free meanwhile are taken by the next sweep.
    sweeping: bool,
    /// Something became free during the sweep.
    sweep_again: bool,
    /// The timer of the next attempt to take leases that others hold.
    next_try: Option<AbortOnDropHandle<()>>,
    /// The statements that the database has not answered since its last answer.
    failing: Option<Failing>,
    /// `false` after the database has not answered for as long as a lease lasts.
    able: bool,
    /// The last value reported to `args.able`.
    told_able: Option<bool>,
    /// Whether leases are being released. Further ones gather meanwhile.
    releasing: bool,
    /// Whether everything that belongs here has been served at least once.
    was_complete: bool,
    queries: Arc<tokio::sync::Semaphore>,
    /// The callers that wait for the end of the drain, if the region is draining.
    draining: Option<Vec<RpcReplyPort<()>>>,
}

impl<E: Entity> Actor for Region<E> {
    type Msg = RegionMessage<E>;
    type State = RegionState<E>;
    type Arguments = RegionArgs<E>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: RegionArgs<E>,
    ) -> Result<Self::State, ActorProcessingErr> {
        if cfg!(any(feature = "unfenced_commit", feature = "unfenced_read")) {
            tracing::error!(
                "built without one of the fences, for tests only: this node may lose changes or answer stale"
            );
        }
        args.health.report(E::KIND.as_str(), Status::NotReady("taking the leases of its shards".into()));
        let _ = myself.send_message(RegionMessage::Tick);
        myself.send_interval(args.lease_times.tick(), || RegionMessage::Tick);
        myself.send_interval(args.lease_times.watch_pause(), || RegionMessage::Watch);
        let mut members = args.members.clone();
        let view = Arc::clone(&members.borrow_and_update());
        let mut state = RegionState {
            name: format!("{}-region", E::KIND.as_str()),
            meters: Meters::new(E::KIND, args.shards),
            _watcher: watch(members.clone(), myself.clone()),
            members,
            sight: Sight::at_start(&view, E::KIND),
            view,
            slots: Slots::new(args.shards, args.restart),
            tasks: Tasks::default(),
            watch: LeaseWatch::new(args.lease_times.ttl),
            watching: false,
            renewing: false,
            repeated: false,
            refencing: false,
            sweeping: false,
            sweep_again: false,
            next_try: None,
            failing: None,
            able: true,
            told_able: None,
            releasing: false,
            was_complete: false,
            queries: Arc::new(tokio::sync::Semaphore::new(args.queries_max)),
            draining: None,
            args,
        };
        state.place();
        state.tell_whether_able();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // These two do not change the state, so there is nothing to give up after them.
            RegionMessage::Ask(ask) => {
                state.ask(ask);
                return Ok(());
            }
            RegionMessage::Query(query) => {
                state.query(query);
                return Ok(());
            }
            RegionMessage::ViewChanged => state.view_changed(&myself),
            RegionMessage::ReleasedElsewhere { shards } => state.released_elsewhere(&myself, &shards),
            RegionMessage::Tick => state.tick(&myself),
            RegionMessage::TakeUp => state.look_and_take(&myself),
            RegionMessage::Watch => state.watch_others(&myself),
            RegionMessage::Watched { answered_at, result } => state.watched(answered_at, result),
            RegionMessage::Acquired { asked_at, answered_at, shards, result } => {
                state.acquired(&myself, asked_at, answered_at, &shards, result).await?;
            }
            RegionMessage::Renewed { asked_at, held, result } => {
                state.renewed(&myself, asked_at, &held, result);
            }
            RegionMessage::Refenced { asked_at, held, result } => {
                state.refenced(&myself, asked_at, &held, result);
            }
            RegionMessage::RefenceAgain => state.refence_all(&myself),
            RegionMessage::Probed { asked_at, answered } => state.heard(asked_at, answered),
            RegionMessage::GaveUp(leases) => state.gave_up(&myself, &leases),
            RegionMessage::Refence(shard) => state.refence(&myself, shard),
            RegionMessage::LeaseLost(shard) => state.lost(shard),
            RegionMessage::Restart(shard) => {
                state.slots.pause_is_over(shard);
                state.sweep(&myself);
            }
            RegionMessage::Status(reply) => {
                let _ = reply.send(state.status());
            }
            RegionMessage::Drain(reply) => state.drain(reply),
        }
        state.give_up(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (child, failed) = match &event {
            SupervisionEvent::ActorFailed(cell, _) => (cell.get_id(), true),
            SupervisionEvent::ActorTerminated(cell, _, _) => (cell.get_id(), false),
            _ => return Ok(()),
        };
        if let Some(shard) = state.slots.vacate(child) {
            if failed {
                state.restart_later(&myself, shard)?;
            }
            state.sweep(&myself);
            state.give_up(&myself);
        }
        Ok(())
    }
}

/// Notifies the region of new views. Views that arrive faster than the region reads them collapse into one.
fn watch<E: Entity>(mut members: Members, region: ActorRef<RegionMessage<E>>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        while members.changed().await.is_ok() {
            if region.send_message(RegionMessage::ViewChanged).is_err() {
                return;
            }
        }
    }))
}

impl<E: Entity> RegionState<E> {
    fn ask(&self, mut ask: Box<Ask<E>>) {
        let begun = self.args.clock.mono();
        let (id, message, sent_at, trace) = (ask.id, ask.op.name(), ask.sent_at, ask.trace.child());
        ask.trace = trace;
        ask.sent_at = begun;
        let shard = crate::domain::ids::shard_of(id, self.args.shards);
        let outcome = match self.slots.actor(shard) {
            // If the shard has just died, the reply port is dropped and the directory asks again.
            Some(actor) => {
                let _ = actor.send_message(ShardMessage::Ask(ask));
                "forwarded"
            }
            None => {
                let failure = self.not_serving(shard);
                let outcome = failure.as_str();
                ask.reply.send(Err(failure));
                outcome
            }
        };
        let handled = self.args.clock.mono().since(begun);
        let queued = begun.since(sent_at);
        Hop { actor: &self.name, message, entity: Some(id), trace: &trace, queued, handled, outcome }.log();
    }

    fn query(&self, ask: Box<QueryAsk<E>>) {
        let begun = self.args.clock.mono();
        let Ok(permit) = Arc::clone(&self.queries).try_acquire_owned() else {
            Hop {
                actor: &self.name,
                message: "Query",
                entity: None,
                trace: &ask.trace.child(),
                queued: begun.since(ask.sent_at),
                handled: self.args.clock.mono().since(begun),
                outcome: Failure::Busy.as_str(),
            }
            .log();
            ask.reply.send(Err(Failure::Busy));
            return;
        };
        let (store, clock, name) =
            (Arc::clone(&self.args.store), Arc::clone(&self.args.clock), self.name.clone());
        tokio::spawn(async move {
            let budget = ask.deadline.since(begun);
            let result = match tokio::time::timeout(budget, E::query(&store, &ask.query)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(Failure::Unavailable),
                Err(_) => Err(Failure::Expired),
            };
            Hop {
                actor: &name,
                message: "Query",
                entity: None,
                trace: &ask.trace.child(),
                queued: begun.since(ask.sent_at),
                handled: clock.mono().since(begun),
                outcome: result.as_ref().map_or_else(|failure| failure.as_str(), |_| "ok"),
            }
            .log();
            ask.reply.send(result);
            drop(permit);
        });
    }

    fn status(&self) -> RegionStatus {
        RegionStatus {
            kind: E::KIND,
            shards: self.slots.status(self.args.clock.mono()),
            queries: self.args.queries_max.saturating_sub(self.queries.available_permits()),
        }
    }

    /// Reports the region's health to the node: ready once everything that belongs here is served.
    fn report(&mut self) {
        let tally = self.slots.tally(self.args.clock.mono());
        self.meters.served.set(f64::from(tally.serving));
        if self.draining.is_some() {
            return;
        }
        let (placed, served) = (tally.placed, tally.placed_serving);
        self.was_complete |= served == placed && placed > 0;
        let status = if !self.able {
            Status::NotReady("the database does not answer: no lease can be held".into())
        } else if self.sight == Sight::Alone {
            Status::NotReady("no node with the role front is in sight: nothing is served".into())
        } else if placed == 0 {
            Status::Explained("no shard is placed on this node".into())
        } else if served == placed {
            Status::Ready
        } else if self.was_complete && served > 0 && served + tally.awaited == placed {
            Status::Explained("some shards placed on this node are held by others yet".into())
        } else {
            Status::NotReady(format!("{served} of {placed} shards are served"))
        };
        self.args.health.report(E::KIND.as_str(), status);
    }
}

#[cfg(test)]
mod tests;
