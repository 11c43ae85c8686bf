//! A region: everything of one kind that this node serves. Child of the node's supervisor, parent of
//! its shards.
//!
//! | child | restart | limit |
//! |---|---|---|
//! | one `Shard` per lease held | always, under a new epoch | `RestartPolicy` per shard; past it the region fails |
//!
//! Invariants:
//! - A shard runs only under a lease of its own incarnation: whatever an earlier incarnation sent to
//!   the journal is fenced by the newer epoch before the newer one reads anything.
//! - A lease is believed from the moment *before* it was asked for, less a margin.
//! - Requests for shards that are not served are answered at once; asking again is the directory's part.
//! - The region never awaits in `handle`: leases and queries are spoken to the store in tasks.

mod message;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

pub use self::message::{HeldLease, LeaseTimes, QueryAsk, RegionArgs, RegionMessage};
use self::slots::{Slot, Slots};
use super::background::Tasks;
use super::entity::{Entity, Failure};
use super::shard::{Ask, Shard, ShardArgs, ShardEnv, ShardMessage};
use crate::context::Hop;
use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::health::Status;
use crate::store::{self, TakenLease};

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
    slots: Slots<E>,
    tasks: Tasks,
    /// A renewal is under way: the next tick does not start another.
    renewing: bool,
    /// Shards whose acquisition is under way.
    acquiring: Vec<ShardNo>,
    queries: Arc<tokio::sync::Semaphore>,
    draining: Option<Draining>,
}

#[derive(Default)]
struct Draining {
    replies: Vec<RpcReplyPort<()>>,
    releasing: bool,
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
        args.health.report(E::KIND.as_str(), Status::NotReady("taking the leases of its shards".into()));
        let interval = args.lease_times.ttl / 3;
        let _ = myself.send_message(RegionMessage::Tick);
        myself.send_interval(interval, || RegionMessage::Tick);
        Ok(RegionState {
            name: format!("{}-region", E::KIND.as_str()),
            slots: Slots::new(args.shards, args.restart),
            tasks: Tasks::default(),
            renewing: false,
            acquiring: Vec::new(),
            queries: Arc::new(tokio::sync::Semaphore::new(args.queries_max)),
            draining: None,
            args,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RegionMessage::Ask(ask) => state.ask(ask),
            RegionMessage::Query(query) => state.query(query),
            RegionMessage::Tick => state.tick(&myself),
            RegionMessage::Acquired { asked_at, shards, result } => {
                state.acquired(&myself, asked_at, &shards, result).await?;
            }
            RegionMessage::Renewed { asked_at, held, result } => state.renewed(asked_at, &held, result),
            RegionMessage::Refence(shard) => {
                state.slots.refence(shard);
                state.acquire(&myself, vec![shard]);
            }
            RegionMessage::LeaseLost(shard) => state.lost(shard),
            RegionMessage::Drain(reply) => state.drain(reply),
            RegionMessage::Released => state.released(&myself),
            RegionMessage::Restart(shard) => {
                state.slots.pause_is_over(shard);
                state.acquire(&myself, vec![shard]);
            }
        }
        state.release_when_drained(&myself);
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
        if let Some(shard) = state.slots.vacate(child)
            && state.draining.is_none()
        {
            state.restart_later(&myself, shard, failed)?;
        }
        state.release_when_drained(&myself);
        Ok(())
    }
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
                let _ = ask.reply.send(Err(Failure::NotServing));
                Failure::NotServing.as_str()
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
            let _ = ask.reply.send(Err(Failure::Busy));
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
            let _ = ask.reply.send(result);
            drop(permit);
        });
    }

    fn tick(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        if self.draining.is_some() {
            return;
        }
        self.renew(myself);
        let wanted = self.slots.wanted();
        self.acquire(myself, wanted);
        self.report();
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
            let result = limited(times.statement_timeout, renewal).await;
            RegionMessage::Renewed { asked_at, held, result }
        });
    }

    /// Takes the leases of those of `shards` for which that is not under way yet.
    fn acquire(&mut self, myself: &ActorRef<RegionMessage<E>>, mut shards: Vec<ShardNo>) {
        shards.retain(|shard| !self.acquiring.contains(shard));
        if shards.is_empty() || self.draining.is_some() {
            return;
        }
        self.acquiring.extend(&shards);
        let args = self.args.clone();
        let asked_at = args.clock.mono();
        let lost = RegionMessage::Acquired { asked_at, shards: shards.clone(), result: Err(task_died()) };
        self.tasks.run(myself, lost, async move {
            let asked_at = args.clock.mono();
            let times = args.lease_times;
            let taking = args.leases.acquire(E::KIND, &shards, &args.owner, times.ttl);
            let result = limited(times.statement_timeout, taking).await;
            RegionMessage::Acquired { asked_at, shards, result }
        });
    }

    async fn acquired(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        asked_at: MonoTime,
        shards: &[ShardNo],
        result: store::Result<Vec<TakenLease>>,
    ) -> Result<(), ActorProcessingErr> {
        self.acquiring.retain(|shard| !shards.contains(shard));
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(region = self.name, %error, "leases were not taken");
                // The next tick tries again; a shard that waits for a new epoch goes on waiting.
                return Ok(());
            }
        };
        let until = self.believed_until(asked_at);
        for shard in shards {
            match taken.iter().find(|lease| lease.shard == *shard) {
                Some(lease) if self.draining.is_some() => self.slots.remember_for_release(*lease),
                Some(lease) => self.serve(myself, *lease, until).await?,
                None => self.lost(*shard),
            }
        }
        self.report();
        Ok(())
    }

    /// Starts the shard of a lease just taken, or tells the running one its new epoch.
    async fn serve(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        lease: TakenLease,
        until: MonoTime,
    ) -> Result<(), ActorProcessingErr> {
        let held = HeldLease::new(lease.epoch, until);
        if let Some(actor) = self.slots.refenced(lease.shard, &held) {
            let _ = actor.send_message(ShardMessage::Refenced(held));
            return Ok(());
        }
        let env = ShardEnv {
            store: Arc::clone(&self.args.store),
            clock: Arc::clone(&self.args.clock),
            journal: self.args.journal.clone(),
            region: myself.clone(),
            limits: self.args.limits,
        };
        let args = ShardArgs { shard: lease.shard, lease: held.clone(), env };
        // A shard's `pre_start` does nothing that takes time: it only sets up its memory.
        let (actor, _) = Actor::spawn_linked(None, Shard::default(), args, myself.get_cell()).await?;
        self.slots.fill(lease.shard, Slot::serving(actor, held));
        Ok(())
    }

    fn renewed(&mut self, asked_at: MonoTime, held: &[TakenLease], result: store::Result<Vec<ShardNo>>) {
        self.renewing = false;
        match result {
            Ok(kept) => {
                let until = self.believed_until(asked_at);
                for lease in held {
                    if !self.slots.has(lease) {
                        continue; // Taken anew meanwhile: this renewal says nothing of it.
                    }
                    if kept.contains(&lease.shard) {
                        self.slots.prolong(lease.shard, until);
                    } else {
                        self.lost(lease.shard);
                    }
                }
            }
            Err(error) => {
                metrics::counter!("hygeia_lease_renewal_failures_total", "kind" => E::KIND.as_str())
                    .increment(1);
                tracing::warn!(region = self.name, %error, "leases were not renewed");
            }
        }
        self.report();
    }

    /// Another owner has the lease, or may have.
    fn lost(&mut self, shard: ShardNo) {
        if let Some(actor) = self.slots.stop(shard) {
            tracing::warn!(region = self.name, shard, "lease lost");
            let _ = actor.send_message(ShardMessage::StopServing);
        }
    }

    /// A shard has ended: it starts again under a new epoch, at once if it ended as it was told.
    fn restart_later(
        &mut self,
        myself: &ActorRef<RegionMessage<E>>,
        shard: ShardNo,
        failed: bool,
    ) -> Result<(), ActorProcessingErr> {
        if !failed {
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

    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.draining.get_or_insert_default().replies.push(reply);
        for actor in self.slots.stop_all() {
            let _ = actor.send_message(ShardMessage::StopServing);
        }
        self.args.health.report(E::KIND.as_str(), Status::NotReady("the node is stopping".into()));
    }

    /// When the last shard has ended, its leases are given up, so that others need not wait.
    fn release_when_drained(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        let Some(draining) = &mut self.draining else { return };
        if draining.releasing || !self.slots.is_vacant() || !self.acquiring.is_empty() {
            return;
        }
        draining.releasing = true;
        let leases = self.slots.take_releasable();
        let args = self.args.clone();
        self.tasks.run(myself, RegionMessage::Released, async move {
            let releasing = args.leases.release(E::KIND, &leases, &args.owner);
            if let Err(error) = limited(args.lease_times.statement_timeout, releasing).await {
                tracing::warn!(%error, "leases were not released; they will run out");
            }
            RegionMessage::Released
        });
    }

    fn released(&mut self, myself: &ActorRef<RegionMessage<E>>) {
        for reply in self.draining.iter_mut().flat_map(|draining| draining.replies.drain(..)) {
            let _ = reply.send(());
        }
        myself.stop(None);
    }

    fn believed_until(&self, asked_at: MonoTime) -> MonoTime {
        asked_at.plus(self.args.lease_times.ttl.saturating_sub(self.args.lease_times.margin))
    }

    fn report(&self) {
        if self.draining.is_some() {
            return;
        }
        let served = self.slots.serving(self.args.clock.mono());
        metrics::gauge!("hygeia_shards_served", "kind" => E::KIND.as_str()).set(f64::from(served));
        let all = self.args.shards;
        let status = if served == all {
            Status::Ready
        } else {
            Status::NotReady(format!("{served} of {all} shards are served"))
        };
        self.args.health.report(E::KIND.as_str(), status);
    }
}

fn task_died() -> store::Error {
    store::Error::Unknown("the task that asked has died".into())
}

async fn limited<T>(limit: Duration, statement: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    tokio::time::timeout(limit, statement)
        .await
        .unwrap_or_else(|_| Err(store::Error::Unknown("the statement took too long".into())))
}

#[cfg(test)]
mod tests;
