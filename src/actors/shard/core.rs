//! The core of a shard: a state machine without I/O. Requests, loads and commit results go in. Replies, loads
//! and appends come out as `Effect`s, in order.
//!
//! Invariants, checked by the seeded test beside this file:
//! 1. Every request is answered exactly once, at the latest when nothing is in progress for its entity any
//!    more.
//! 2. An entity has at most one load or append in progress. Meanwhile all other requests for the entity wait
//!    in its bounded queue, reads included: a list may already have shown what is being committed, so the
//!    older state must not be shown any more.
//! 3. The state in memory is the state after the last commit that this shard knows of. Only a commit known to
//!    be durable changes it; a commit of unknown outcome removes it.
//! 4. An answer that depends on the state is sent only if the lease holds after the state was read. Then no
//!    other node can have changed the entity since it was loaded. An append is not checked here, because the
//!    commit checks its epoch.
//! 5. After an unknown outcome the entity is loaded only under a new epoch. Taking the epoch waits for a
//!    transaction that is still running, and fences one that has not reached the database yet; a row lock
//!    could not do the latter. Until then the shard begins no commit, because each commit holds the lease
//!    row, and a steady stream of commits would keep the new epoch from being taken.
//! 6. The state in memory survives a new epoch only if that epoch is the next one. Every taking of a lease
//!    raises its epoch by one, so no other node had the shard in between. Any other epoch ends this
//!    incarnation: its memory, its loads and the results of its commits may be older than another owner's
//!    change. The next incarnation starts empty.

use std::collections::{HashMap, VecDeque};

use lru::LruCache;
use uuid::Uuid;

use super::Limits;
use crate::actors::entity::{Decision, Entity, Failure, LeaseView, Loaded, Op, Refused, Stamp};
use crate::actors::journal::{AppendResult, NotCommitted};
use crate::context::TraceContext;
use crate::domain::ids::{CommandId, Epoch, EventId, ShardNo};
use crate::domain::time::{MonoTime, Timestamp};
use crate::store::{self, AppendOutcome};

/// The environment of the core: clocks, ids and the lease.
pub(super) trait World {
    /// Returns civil time, for events.
    fn now(&self) -> Timestamp;
    /// Returns boot time, for leases and deadlines.
    fn mono(&self) -> MonoTime;
    /// Returns a new event id.
    fn event_id(&self) -> EventId;
    /// Returns the lease of this shard.
    fn lease(&self) -> &dyn LeaseView;
}

/// A request with the handle for its answer.
pub(super) struct Request<E: Entity, T> {
    /// The entity.
    pub(super) id: Uuid,
    /// The operation.
    pub(super) op: Op<E>,
    /// The time after which the work is not begun.
    pub(super) deadline: MonoTime,
    /// The trace context of the request.
    pub(super) trace: TraceContext,
    /// The handle for the answer.
    pub(super) ticket: T,
}

/// An action that the shard actor carries out for the core.
pub(super) enum Effect<E: Entity, T> {
    /// Answer a request.
    Reply(T, Result<E::Answer, Failure>),
    /// Read an entity, then call `loaded`.
    Load { id: Uuid, command: Option<CommandId>, trace: TraceContext },
    /// Write, unless `deadline` has passed before it is begun; then call `appended`.
    Append { id: Uuid, append: E::Append, deadline: MonoTime, trace: TraceContext },
    /// Raise the epoch of the lease, then call `refenced`.
    Refence,
    /// Tell the region that the lease is lost.
    Lost,
}

/// An entity with a load or an append in progress.
struct Active<E: Entity, T> {
    phase: Phase<E, T>,
    waiting: VecDeque<Request<E, T>>,
}

enum Phase<E: Entity, T> {
    /// The database is being read, and `command` is looked up for the first request in the queue.
    Loading,
    /// The shard waits for a new epoch. Holds the state if it is known; otherwise the database is read
    /// afterwards.
    Held(Option<E::State>),
    /// A commit is in progress.
    Appending(Box<Appending<E, T>>),
}

struct Appending<E: Entity, T> {
    request: Request<E, T>,
    /// The state on which the decision was made, which stays valid if the append is refused. `None` if that
    /// state was only presumed.
    before: Option<E::State>,
    after: E::State,
    answer: E::Answer,
    epoch: Epoch,
}

/// The entities of one shard.
pub(super) struct Core<E: Entity, T> {
    shard: ShardNo,
    epoch: Epoch,
    limits: Limits,
    serving: bool,
    refencing: bool,
    hot: LruCache<Uuid, E::State>,
    active: HashMap<Uuid, Active<E, T>>,
    effects: Vec<Effect<E, T>>,
}

impl<E: Entity, T> Core<E, T> {
    /// Creates the core of a shard that has just got its lease and knows no entity yet.
    pub(super) fn new(shard: ShardNo, epoch: Epoch, limits: Limits) -> Self {
        Core {
            shard,
            epoch,
            limits,
            serving: true,
            refencing: false,
            hot: LruCache::unbounded(),
            active: HashMap::new(),
            effects: Vec::new(),
        }
    }

    /// Moves the effects since the last call, in order, into `effects`, which must be empty.
    pub(super) fn take_effects(&mut self, effects: &mut Vec<Effect<E, T>>) {
        debug_assert!(effects.is_empty(), "effects of the last call were not carried out");
        std::mem::swap(&mut self.effects, effects);
    }

    /// Returns the last effect that was not taken yet.
    pub(super) fn last_effect(&self) -> Option<&Effect<E, T>> {
        self.effects.last()
    }

    /// Returns whether nothing is in progress. A draining shard may stop then.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Handles a new request.
    pub(super) fn request(&mut self, mut request: Request<E, T>, world: &impl World) {
        if !self.serving {
            return self.fail(request, Failure::NotServing(None));
        }
        if world.mono() >= request.deadline {
            return self.fail(request, Failure::Expired);
        }
        if let Some(active) = self.active.get_mut(&request.id) {
            if active.waiting.len() >= self.limits.entity_queue_max {
                return self.fail(request, Failure::Busy);
            }
            keyed_may_be_done(&mut request);
            active.waiting.push_back(request);
            return;
        }
        if self.active.len() >= self.limits.active_entities_max {
            return self.fail(request, Failure::Busy);
        }
        let id = request.id;
        let first_try = matches!(&request.op, Op::Write(write) if !write.maybe_done);
        keyed_may_be_done(&mut request);
        match (self.hot.get(&id), &request.op) {
            (Some(state), Op::Read) => {
                let answer = E::read(state).map_err(Failure::Refused);
                let holds = world.lease().holds(world.mono());
                self.reply(request, answer, holds);
            }
            (Some(state), Op::Write(_)) => {
                let state = state.clone();
                self.go_on(id, state, VecDeque::from([request]), world);
            }
            // If the command was carried out before under its key, the commit answers `Conflict`.
            (None, Op::Write(write)) if first_try && E::presumed(&write.command).is_some() => {
                self.presume(id, request, world);
            }
            (None, _) => self.load(id, VecDeque::from([request])),
        }
    }

    /// Decides on the state that the command presumes, which saves a read of the database. The commit checks
    /// that state: if the state is another, the append is a conflict and the entity is read after all. Only
    /// an append may follow from a presumed state; an answer or a refusal needs the actual state.
    fn presume(&mut self, id: Uuid, request: Request<E, T>, world: &impl World) {
        let append = match &request.op {
            Op::Write(write) => E::presumed(&write.command).and_then(|state| {
                match E::decide(id, &state, write, &self.stamp(world)) {
                    Decision::Append(append) => Some(append),
                    Decision::Answer(_) | Decision::Refuse(_) => None,
                }
            }),
            Op::Read => None,
        };
        match append {
            Some(append) => self.append(id, append, request, None, VecDeque::new()),
            None => self.load(id, VecDeque::from([request])),
        }
    }

    fn stamp(&self, world: &impl World) -> Stamp {
        Stamp { now: world.now(), event_id: world.event_id(), shard: self.shard, epoch: self.epoch }
    }

    /// Handles the end of a read of the database.
    pub(super) fn loaded(&mut self, id: Uuid, result: store::Result<Loaded<E>>, world: &impl World) {
        let Some(Active { mut waiting, .. }) = self.take_active(id, |p| matches!(p, Phase::Loading)) else {
            return;
        };
        let loaded = match result {
            Ok(loaded) if self.serving => loaded,
            Ok(_) => return self.fail_all(waiting, Failure::NotServing(None)),
            Err(_) => return self.fail_all(waiting, Failure::Unavailable),
        };
        if let Some(first) = waiting.front_mut()
            && let Op::Write(write) = &mut first.op
            && write.maybe_done
        {
            write.maybe_done = false;
            let again = loaded.applied.map(|applied| applied.again(&write.conditions, world.now()));
            if let Some(outcome) = again
                && let Some(first) = waiting.pop_front()
            {
                self.effects.push(Effect::Reply(first.ticket, outcome.map_err(Failure::Refused)));
            }
        }
        self.go_on(id, loaded.state, waiting, world);
    }

    /// Handles the end of a commit.
    pub(super) fn appended(&mut self, id: Uuid, result: AppendResult, world: &impl World) {
        let Some(Active { phase, waiting }) = self.take_active(id, |p| matches!(p, Phase::Appending(_)))
        else {
            return;
        };
        let Phase::Appending(appending) = phase else { return };
        let Appending { request, before, after, answer, epoch } = *appending;
        match result {
            Ok(AppendOutcome::Committed) => {
                self.effects.push(Effect::Reply(request.ticket, Ok(answer)));
                self.go_on(id, after, waiting, world);
            }
            Ok(AppendOutcome::EmailTaken) => {
                self.fail(request, Failure::Refused(Refused::EmailTaken));
                self.go_back(id, before, waiting, world);
            }
            Ok(AppendOutcome::Conflict) => self.look_again(id, request, waiting),
            Ok(AppendOutcome::Fenced) => self.fenced(id, epoch, request, waiting),
            Err(NotCommitted::Store(store::Error::Unknown(_))) => {
                self.fail(request, Failure::Unknown);
                self.hold(id, waiting);
            }
            Err(undone) => {
                let failure = match undone {
                    NotCommitted::Full => Failure::Busy,
                    NotCommitted::Late => Failure::Expired,
                    NotCommitted::Store(_) => Failure::Unavailable,
                };
                self.fail(request, failure);
                self.go_back(id, before, waiting, world);
            }
        }
    }

    /// Continues after an append that changed nothing: the state before it is still valid. If that state was
    /// only presumed, it is read.
    fn go_back(
        &mut self,
        id: Uuid,
        before: Option<E::State>,
        waiting: VecDeque<Request<E, T>>,
        world: &impl World,
    ) {
        match before {
            Some(state) => self.go_on(id, state, waiting, world),
            None => self.load(id, waiting),
        }
    }

    /// Handles a new epoch: decisions are made under it from now on, and requests that waited for it
    /// continue. If the epoch is not the next one, another owner may have had the shard, and this incarnation
    /// ends (invariant 6).
    pub(super) fn refenced(&mut self, epoch: Epoch, world: &impl World) {
        if epoch.0 != self.epoch.0 + 1 {
            return self.lose();
        }
        self.epoch = epoch;
        self.refencing = false;
        let held: Vec<Uuid> = self
            .active
            .iter()
            .filter(|(_, a)| matches!(a.phase, Phase::Held(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in held {
            match self.active.remove(&id) {
                Some(Active { phase: Phase::Held(Some(state)), waiting }) => {
                    self.go_on(id, state, waiting, world);
                }
                Some(Active { waiting, .. }) => self.load(id, waiting),
                None => {}
            }
        }
    }

    /// Stops serving, because another owner has the shard or has had it.
    fn lose(&mut self) {
        self.stop_serving();
        self.effects.push(Effect::Lost);
    }

    /// Stops serving, because the lease is lost or is to be given up. Commits in progress end and are
    /// answered; `is_idle` tells when that has happened.
    pub(super) fn stop_serving(&mut self) {
        self.serving = false;
        self.hot.clear();
        let mut waiting = Vec::new();
        self.active.retain(|_, active| {
            waiting.extend(active.waiting.drain(..));
            matches!(active.phase, Phase::Appending(_))
        });
        for request in waiting {
            self.fail(request, Failure::NotServing(None));
        }
    }

    /// Serves the requests that wait for an entity whose state is `state`, until one has to wait for the
    /// database.
    fn go_on(&mut self, id: Uuid, state: E::State, mut waiting: VecDeque<Request<E, T>>, world: &impl World) {
        if !self.serving {
            return self.fail_all(waiting, Failure::NotServing(None));
        }
        while let Some(request) = waiting.pop_front() {
            if world.mono() >= request.deadline {
                self.fail(request, Failure::Expired);
                continue;
            }
            let outcome = match &request.op {
                Op::Read => E::read(&state).map_err(Failure::Refused),
                Op::Write(write) if write.maybe_done => {
                    waiting.push_front(request);
                    return self.load(id, waiting);
                }
                Op::Write(write) => match E::decide(id, &state, write, &self.stamp(world)) {
                    Decision::Append(append) => {
                        return self.append(id, append, request, Some(state), waiting);
                    }
                    Decision::Answer(answer) => Ok(answer),
                    Decision::Refuse(refused) => Err(Failure::Refused(refused)),
                },
            };
            let holds = world.lease().holds(world.mono());
            self.reply(request, outcome, holds);
        }
        self.keep(id, state);
    }

    fn append(
        &mut self,
        id: Uuid,
        append: E::Append,
        request: Request<E, T>,
        before: Option<E::State>,
        mut waiting: VecDeque<Request<E, T>>,
    ) {
        self.hot.pop(&id);
        if self.refencing {
            // The request is decided again under the new epoch.
            waiting.push_front(request);
            self.active.insert(id, Active { phase: Phase::Held(before), waiting });
            return;
        }
        let (after, answer) = E::committed(&append);
        let (deadline, trace) = (request.deadline, request.trace);
        let appending = Appending { request, before, after, answer, epoch: self.epoch };
        self.active.insert(id, Active { phase: Phase::Appending(Box::new(appending)), waiting });
        self.effects.push(Effect::Append { id, append, deadline, trace });
    }

    /// Reads the entity again and looks the command up, because the database does not hold the state on which
    /// the decision was made.
    fn look_again(&mut self, id: Uuid, mut request: Request<E, T>, mut waiting: VecDeque<Request<E, T>>) {
        if let Op::Write(write) = &mut request.op {
            write.maybe_done = true;
        }
        waiting.push_front(request);
        self.load(id, waiting);
    }

    /// Handles an append that was refused because of its epoch. If this shard has got a newer epoch since,
    /// the command is decided again. Otherwise another owner has the shard.
    fn fenced(
        &mut self,
        id: Uuid,
        epoch: Epoch,
        request: Request<E, T>,
        mut waiting: VecDeque<Request<E, T>>,
    ) {
        waiting.push_front(request);
        if !self.serving {
            self.fail_all(waiting, Failure::NotServing(None));
        } else if epoch < self.epoch {
            self.load(id, waiting);
        } else if self.refencing {
            self.active.insert(id, Active { phase: Phase::Held(None), waiting });
        } else {
            self.fail_all(waiting, Failure::NotServing(None));
            self.lose();
        }
    }

    /// Removes the entity's state until there is a new epoch.
    fn hold(&mut self, id: Uuid, waiting: VecDeque<Request<E, T>>) {
        if !self.serving {
            return self.fail_all(waiting, Failure::NotServing(None));
        }
        self.hot.pop(&id);
        self.active.insert(id, Active { phase: Phase::Held(None), waiting });
        if !self.refencing {
            self.refencing = true;
            self.effects.push(Effect::Refence);
        }
    }

    /// Reads the entity. If the first waiting command may have been carried out, also looks that command up.
    fn load(&mut self, id: Uuid, waiting: VecDeque<Request<E, T>>) {
        if !self.serving {
            return self.fail_all(waiting, Failure::NotServing(None));
        }
        let Some(first) = waiting.front() else {
            // No request is left.
            self.hot.pop(&id);
            return;
        };
        let trace = first.trace;
        let command = match &first.op {
            Op::Write(write) if write.maybe_done => Some(write.command_id),
            _ => None,
        };
        self.hot.pop(&id);
        self.active.insert(id, Active { phase: Phase::Loading, waiting });
        self.effects.push(Effect::Load { id, command, trace });
    }

    fn keep(&mut self, id: Uuid, state: E::State) {
        if !E::worth_keeping(&state) {
            self.hot.pop(&id);
            return;
        }
        self.hot.put(id, state);
        while self.hot.len() > self.limits.hot_entities_max.max(1) {
            self.hot.pop_lru();
        }
    }

    fn take_active(&mut self, id: Uuid, expected: impl Fn(&Phase<E, T>) -> bool) -> Option<Active<E, T>> {
        if !self.active.get(&id).is_some_and(|active| expected(&active.phase)) {
            return None;
        }
        self.active.remove(&id)
    }

    /// Answers from memory. `holds` says whether the lease held *after* the state was read, so that the
    /// answer is correct as of that moment (invariant 4).
    fn reply(&mut self, request: Request<E, T>, outcome: Result<E::Answer, Failure>, holds: bool) {
        let outcome = if holds { outcome } else { Err(Failure::NotServing(None)) };
        self.effects.push(Effect::Reply(request.ticket, outcome));
    }

    fn fail(&mut self, request: Request<E, T>, failure: Failure) {
        self.effects.push(Effect::Reply(request.ticket, Err(failure)));
    }

    fn fail_all(&mut self, requests: VecDeque<Request<E, T>>, failure: Failure) {
        for request in requests {
            self.fail(request, failure.clone());
        }
    }
}

/// Marks a write with an idempotency key as `maybe_done`, because an earlier request with that key may have
/// been carried out. The event table is then read first; otherwise a condition that held for the earlier
/// request would be judged again.
fn keyed_may_be_done<E: Entity, T>(request: &mut Request<E, T>) {
    if let Op::Write(write) = &mut request.op {
        write.maybe_done |= write.conditions.fingerprint.is_some();
    }
}

#[cfg(test)]
mod tests;
