//! The heart of a shard: a state machine without I/O. Requests, loads and commit results go in;
//! replies, loads and appends come out as `Effect`s, in order.
//!
//! Invariants, held by the seeded test beside this file:
//! 1. Every request is answered exactly once, by the time its load or append has ended.
//! 2. An entity has at most one load or append under way. While it has, everything else for it waits
//!    in its bounded queue, reads too: a list may already have shown what is being committed, so the
//!    state before it must not be shown any more.
//! 3. State in memory is what the last commit known here made of it. Only a commit known to be durable
//!    changes it; a commit of unknown outcome forgets it.
//! 4. Memory is shown, and commands are decided, only if the lease holds after the state was read:
//!    then nobody else can have changed the entity since it was loaded.
//! 5. After an unknown outcome the entity is loaded only under a new epoch. Taking it waits for a
//!    transaction that is still running, and fences one that is still on its way; no row lock could do
//!    the latter. Until then the shard begins no commit: a steady stream of commits, each of which holds
//!    the lease row, would keep the new epoch away.
//! 6. Memory is kept over a new epoch only if that is the next one. Every taking of a lease raises its epoch
//!    by one, whoever takes it, so nobody else had the shard in between. Any other epoch ends this
//!    incarnation: what is in memory, what is being loaded and what a commit under way leads to may all be
//!    older than another owner's change. The next incarnation begins with nothing.

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

/// What the core may ask of the world while it works: clocks, ids and the lease.
pub(super) trait World {
    /// Civil time, for events.
    fn now(&self) -> Timestamp;
    /// Boot time, for leases and deadlines.
    fn mono(&self) -> MonoTime;
    /// A new event id.
    fn event_id(&self) -> EventId;
    /// The lease of this shard.
    fn lease(&self) -> &dyn LeaseView;
}

/// A request with the place its answer goes to.
pub(super) struct Request<E: Entity, T> {
    /// Which entity.
    pub(super) id: Uuid,
    /// What is asked.
    pub(super) op: Op<E>,
    /// Past it the work is not begun.
    pub(super) deadline: MonoTime,
    /// The hop that asks.
    pub(super) trace: TraceContext,
    /// Where the answer goes.
    pub(super) ticket: T,
}

/// What the world has to do.
pub(super) enum Effect<E: Entity, T> {
    /// Answer a request.
    Reply(T, Result<E::Answer, Failure>),
    /// Read an entity, then call `loaded`.
    Load { id: Uuid, command: Option<CommandId>, trace: TraceContext },
    /// Write, unless `deadline` has passed before it is begun; then call `appended`.
    Append { id: Uuid, append: E::Append, deadline: MonoTime, trace: TraceContext },
    /// Raise the lease's epoch, then call `refenced`.
    Refence,
    /// The lease is lost; the region has to know.
    Lost,
}

/// One entity with something under way.
struct Active<E: Entity, T> {
    phase: Phase<E, T>,
    waiting: VecDeque<Request<E, T>>,
}

enum Phase<E: Entity, T> {
    /// The database is being read; `command` is looked up for the first in the queue.
    Loading,
    /// Waiting for a new epoch. The state, if it is known; else the database is read then.
    Held(Option<E::State>),
    /// A commit is under way.
    Appending(Box<Appending<E, T>>),
}

struct Appending<E: Entity, T> {
    request: Request<E, T>,
    /// The state the decision was made on: what holds if the append is refused. None if it was only
    /// presumed.
    before: Option<E::State>,
    after: E::State,
    answer: E::Answer,
    epoch: Epoch,
}

/// One shard's entities.
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
    /// A shard that has just got its lease and knows nothing yet.
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

    /// Puts what is to be done since this was last asked, in order, into `effects`, which is empty.
    pub(super) fn take_effects(&mut self, effects: &mut Vec<Effect<E, T>>) {
        debug_assert!(effects.is_empty(), "effects of the last call were not carried out");
        std::mem::swap(&mut self.effects, effects);
    }

    /// The last effect not yet taken.
    pub(super) fn last_effect(&self) -> Option<&Effect<E, T>> {
        self.effects.last()
    }

    /// Whether nothing is under way: a shard that drains may stop then.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// A request arrives.
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
            // If it was carried out under its key before, the commit says `Conflict`.
            (None, Op::Write(write)) if first_try && E::presumed(&write.command).is_some() => {
                self.presume(id, request, world);
            }
            (None, _) => self.load(id, VecDeque::from([request])),
        }
    }

    /// Decides on the state that the command presumes, which spares a read of the database. The commit
    /// checks it: if it is another one, the append is a conflict and the entity is read after all. Only
    /// an append may come of a presumption; an answer or a refusal needs the state as it is.
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

    /// The database was read.
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

    /// A commit has ended.
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

    /// Nothing came of an append: the state before it holds, and is read if it was only presumed.
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

    /// The shard has a new epoch: from now on decisions are made under it, and what has waited for it goes on.
    /// If it is not the next one, another owner may have had the shard: this incarnation ends (invariant 6).
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

    /// Another owner has the shard, or has had it.
    fn lose(&mut self) {
        self.stop_serving();
        self.effects.push(Effect::Lost);
    }

    /// From now on nothing is served: the lease is lost, or is to be given up. What is being committed
    /// ends and is answered; `is_idle` tells when.
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

    /// Serves what waits for an entity whose state is `state`, until something has to be awaited.
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
            // Decided anew under the new epoch.
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

    /// The database knows more than the decision did: read again, and look the command up.
    fn look_again(&mut self, id: Uuid, mut request: Request<E, T>, mut waiting: VecDeque<Request<E, T>>) {
        if let Op::Write(write) = &mut request.op {
            write.maybe_done = true;
        }
        waiting.push_front(request);
        self.load(id, waiting);
    }

    /// An append was refused for its epoch. If the epoch has changed under it by our own doing, the
    /// command is decided again; else another owner has the shard.
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

    /// Forgets the entity until there is a new epoch.
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

    /// Reads the entity; looks up the first waiting command if it may have been carried out.
    fn load(&mut self, id: Uuid, waiting: VecDeque<Request<E, T>>) {
        if !self.serving {
            return self.fail_all(waiting, Failure::NotServing(None));
        }
        let Some(first) = waiting.front() else {
            // Nobody is left who wants to know.
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

    /// Answers from memory. `holds` says whether the lease held when it was asked *after* the state was
    /// read: then the answer is as of that moment (invariant 4).
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

/// What its caller may repeat under a key may have been carried out before it came: the event table is asked
/// first, lest a condition be judged that was met then.
fn keyed_may_be_done<E: Entity, T>(request: &mut Request<E, T>) {
    if let Op::Write(write) = &mut request.op {
        write.maybe_done |= write.conditions.fingerprint.is_some();
    }
}

#[cfg(test)]
mod tests;
