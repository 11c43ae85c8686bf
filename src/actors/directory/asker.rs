//! The retry loop of a request: it is sent until it is answered or its deadline has passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::DirectoryMessage;
use super::counted::{Unanswered, Waiting};
use super::refusal::{refusal, still_under_way, time_up};
use crate::actors::address::Address;
use crate::actors::entity::{Entity, Failure, Op, Write};
use crate::actors::region::QueryAsk;
use crate::actors::reply::ReplyTo;
use crate::actors::shard::Ask;
use crate::context::RequestContext;
use crate::domain::cluster::NodeRole;
use crate::domain::conditions::Conditions;
use crate::domain::time::{Clock, MonoTime};
use crate::error::{Error, ErrorCode, Result};

/// How requests are retried.
#[derive(Clone, Copy, Debug)]
pub struct AskSettings {
    /// The pause before the first retry; it doubles with each further one, with jitter.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// The first pause while a shard moves between nodes, or recovers after a failure.
    pub moving_pause: Duration,
    /// The longest pause in that case.
    pub moving_pause_max: Duration,
    /// How long to retry while no node of the role is live.
    pub no_node_wait: Duration,
    /// Requests that may pause between attempts. Further ones fail at once, so that requests for an
    /// unreachable node leave room for others. A request of unknown outcome is always retried.
    pub waiting_max: usize,
}

/// Sends requests for entities of one kind. Cloning is cheap.
pub struct Asker<E: Entity> {
    directory: Address<DirectoryMessage<E>>,
    clock: Arc<dyn Clock>,
    settings: AskSettings,
    /// Requests that have paused between attempts and are not finished.
    waiting: Arc<AtomicUsize>,
    /// Requests that are not answered yet.
    unanswered: metrics::Gauge,
}

impl<E: Entity> Clone for Asker<E> {
    fn clone(&self) -> Self {
        Asker {
            directory: self.directory.clone(),
            clock: Arc::clone(&self.clock),
            settings: self.settings,
            waiting: Arc::clone(&self.waiting),
            unanswered: self.unanswered.clone(),
        }
    }
}

/// Why an attempt had no answer.
enum Miss {
    /// The shard, the region or the store reported a failure.
    Failed(Failure),
    /// An actor on the way died with the request, or the session that carried it ended.
    Dropped,
    /// The deadline has passed.
    TimeUp,
}

impl<E: Entity> Asker<E> {
    /// Creates an asker that sends through `directory`.
    pub fn new(
        directory: Address<DirectoryMessage<E>>,
        clock: Arc<dyn Clock>,
        settings: AskSettings,
    ) -> Self {
        let unanswered = metrics::gauge!("hygeia_asks_unanswered", "kind" => E::KIND.as_str());
        // Register the counter at the start, so that a rate includes the first retry.
        let _ = metrics::counter!("hygeia_ask_retries_total", "kind" => E::KIND.as_str());
        Asker { directory, clock, settings, waiting: Arc::default(), unanswered }
    }

    /// Returns the current state of `id`.
    ///
    /// # Errors
    /// `NotFound`, `Overloaded`, `Unavailable`, `DeadlineExceeded`.
    pub async fn read(&self, ctx: &RequestContext, id: Uuid) -> Result<E::Answer> {
        self.ask(ctx, id, Op::Read).await
    }

    /// Carries out `command` on `id`, at most once.
    ///
    /// # Errors
    /// The refusal of the rules. `Overloaded`, `Unavailable`, `DeadlineExceeded`: nothing was done.
    /// `OutcomeUnknown`: the command may have been carried out.
    pub async fn write(&self, ctx: &RequestContext, id: Uuid, command: E::Command) -> Result<E::Answer> {
        self.write_if(ctx, id, command, Conditions::default()).await
    }

    /// Carries out `command` on `id` as `write` does, under `conditions`.
    ///
    /// # Errors
    /// Those of `write`; `PreconditionFailed`, `KeyReused`, `KeyExpired`.
    pub async fn write_if(
        &self,
        ctx: &RequestContext,
        id: Uuid,
        command: E::Command,
        conditions: Conditions,
    ) -> Result<E::Answer> {
        let write = Write {
            command,
            conditions,
            command_id: ctx.command_id,
            caller: ctx.caller.clone(),
            traceparent: ctx.trace.to_string().into(),
            maybe_done: false,
        };
        self.ask(ctx, id, Op::Write(write)).await
    }

    async fn ask(&self, ctx: &RequestContext, id: Uuid, mut op: Op<E>) -> Result<E::Answer> {
        let _counted = Unanswered::count(&self.unanswered);
        let mut patience = Patience::new(self.settings);
        // An earlier attempt of a change was lost in transit and may still arrive, at this shard or at
        // another. The event table shows what was carried out, not what is still in transit. So no later
        // attempt can prove that the change is not made.
        let mut at_large = false;
        loop {
            let miss = match self.try_once(ctx, id, op.clone()).await {
                Ok(answer) if at_large && !E::is_settled(&answer) => return Err(still_under_way()),
                Ok(answer) => return Ok(answer),
                Err(Miss::Failed(Failure::Refused(refused))) if at_large && !refused.is_settled() => {
                    return Err(still_under_way());
                }
                Err(miss) => miss,
            };
            at_large |= matches!((&op, &miss), (Op::Write(_), Miss::Dropped));
            // A lost answer matters only for a write: the change may have been made.
            let lost_track = matches!(miss, Miss::Dropped | Miss::TimeUp | Miss::Failed(Failure::Unknown));
            let unknown = match &mut op {
                Op::Read => false,
                Op::Write(write) => {
                    write.maybe_done |= lost_track;
                    write.maybe_done
                }
            };
            if let Some(error) = verdict(&miss, unknown) {
                return Err(error);
            }
            if let Miss::Failed(Failure::NotServing(owner)) = &miss {
                self.directory.cast(DirectoryMessage::Moved { id, owner: owner.clone() });
            }
            self.pause(ctx, &mut patience, &miss, unknown).await?;
        }
    }

    /// Waits before the next attempt. Returns the error for the caller if there should be no further attempt.
    async fn pause(
        &self,
        ctx: &RequestContext,
        patience: &mut Patience,
        miss: &Miss,
        unknown: bool,
    ) -> Result<()> {
        let now = self.clock.mono();
        let crowd = self.waiting.load(Ordering::Relaxed);
        let next = patience.after(miss, now, crowd).filter(|pause| now.plus(*pause) < ctx.deadline);
        let Some(pause) = next else { return Err(gave_up(miss, unknown)) };
        metrics::counter!("hygeia_ask_retries_total", "kind" => E::KIND.as_str()).increment(1);
        if pause.is_zero() {
            return Ok(());
        }
        if patience.waiting.is_none() {
            let waiting = Waiting(Arc::clone(&self.waiting));
            if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.settings.waiting_max && !unknown {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    "Too many requests wait for a node that is away",
                ));
            }
            patience.waiting = Some(waiting);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn try_once(
        &self,
        ctx: &RequestContext,
        id: Uuid,
        op: Op<E>,
    ) -> std::result::Result<E::Answer, Miss> {
        let (reply, answer) = ReplyTo::here();
        let ask = Ask {
            id,
            op,
            trace: ctx.trace,
            deadline: ctx.deadline,
            sent_at: self.clock.mono(),
            caller: ctx.caller.clone(),
            reply,
        };
        if !self.directory.cast(DirectoryMessage::Ask(Box::new(ask))) {
            return Err(Miss::Failed(Failure::NotServing(None)));
        }
        self.wait(ctx, answer).await
    }

    async fn wait<T>(
        &self,
        ctx: &RequestContext,
        answer: oneshot::Receiver<std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Miss> {
        let budget = ctx.deadline.since(self.clock.mono());
        match tokio::time::timeout(budget, answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(Miss::Failed(failure)),
            Ok(Err(_)) => Err(Miss::Dropped),
            Err(_) => Err(Miss::TimeUp),
        }
    }

    /// Answers `query` from the database. The query is created anew for each attempt.
    ///
    /// # Errors
    /// `Overloaded`, `Unavailable`, `DeadlineExceeded`.
    pub async fn query(&self, ctx: &RequestContext, query: impl Fn() -> E::Query) -> Result<E::QueryAnswer> {
        let _counted = Unanswered::count(&self.unanswered);
        let mut patience = Patience::new(self.settings);
        loop {
            let (reply, answer) = ReplyTo::here();
            let ask = QueryAsk {
                query: query(),
                trace: ctx.trace,
                deadline: ctx.deadline,
                sent_at: self.clock.mono(),
                caller: ctx.caller.clone(),
                reply,
            };
            let sent = self.directory.cast(DirectoryMessage::Query(Box::new(ask)));
            let miss = match self.wait(ctx, answer).await {
                Ok(answer) => return Ok(answer),
                Err(miss) if sent => miss,
                Err(_) => Miss::Failed(Failure::NotServing(None)),
            };
            if let Some(error) = verdict(&miss, false) {
                return Err(error);
            }
            self.pause(ctx, &mut patience, &miss, false).await?;
        }
    }
}

/// The pauses between the attempts of one request.
struct Patience {
    settings: AskSettings,
    tries: u32,
    /// The owner that was named last, and the number of owners followed in a row without a pause.
    named: Option<Arc<str>>,
    followed: u32,
    /// Since when no node of the role has been live.
    nobody_since: Option<MonoTime>,
    /// Set at the first pause, from which on the request counts as waiting.
    waiting: Option<Waiting>,
}

/// How many named owners in a row are asked without a pause.
const FOLLOWED_MAX: u32 = 2;
/// The number of attempts after which a moving shard is treated as failed. A failure lasts until a lease
/// expires, a fraction of a second, so retries become less frequent.
const MOVING_TRIES_MAX: u32 = 12;
/// The factor by which the longest pause grows then.
const FAILED_OVER_PAUSES: u32 = 4;
/// The number of waiting requests that may retry at the full rate. If more wait, each retries less often, so
/// that the total rate stays the same. Otherwise requests that wait for a database or an owner would keep the
/// node too busy to recover.
const CROWD: usize = 32;

impl Patience {
    fn new(settings: AskSettings) -> Self {
        Patience { settings, tries: 0, named: None, followed: 0, nobody_since: None, waiting: None }
    }

    /// Returns the pause after `miss`, while `crowd` requests wait, or `None` if a further attempt is
    /// useless.
    fn after(&mut self, miss: &Miss, now: MonoTime, crowd: usize) -> Option<Duration> {
        match miss {
            // Another node holds the shard. Ask it at once, unless it was also named last time, or two nodes
            // keep naming each other.
            Miss::Failed(Failure::NotServing(Some(owner)))
                if self.followed < FOLLOWED_MAX && self.named.as_ref() != Some(owner) =>
            {
                self.followed += 1;
                self.named = Some(Arc::clone(owner));
                return Some(Duration::ZERO);
            }
            Miss::Failed(Failure::NoNode(_)) => {
                let since = *self.nobody_since.get_or_insert(now);
                if now.since(since) >= self.settings.no_node_wait {
                    return None;
                }
            }
            _ => self.nobody_since = None,
        }
        self.followed = 0;
        // A shard that moves or restarts is back within milliseconds; an overloaded part needs longer.
        let (first, most) = match miss {
            Miss::Failed(Failure::NotServing(_) | Failure::NoNode(_)) | Miss::Dropped => {
                let most = self.settings.moving_pause_max;
                let crowds = u32::try_from(1 + crowd / CROWD).unwrap_or(u32::MAX);
                let longer = FAILED_OVER_PAUSES.saturating_mul(crowds);
                let most = if self.tries < MOVING_TRIES_MAX { most } else { most.saturating_mul(longer) };
                (self.settings.moving_pause, most)
            }
            _ => (self.settings.pause, self.settings.pause_max),
        };
        let whole = first.saturating_mul(1 << self.tries.min(16)).min(most);
        self.tries += 1;
        // Between half and all of the pause, so that many askers do not retry at the same moment.
        Some(whole.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

/// Returns the error to answer with, or `None` if a further attempt is useful. `unknown`: this or an earlier
/// attempt may have carried out the write.
fn verdict(miss: &Miss, unknown: bool) -> Option<Error> {
    let error = match miss {
        // A refusal is final: the database was asked about earlier attempts, and none of them can still be
        // carried out.
        Miss::Failed(Failure::Refused(refused)) => return Some(refusal(*refused)),
        Miss::Failed(Failure::NotServing(_) | Failure::NoNode(_) | Failure::Unknown) | Miss::Dropped => {
            return None;
        }
        Miss::TimeUp => return Some(time_up(unknown)),
        Miss::Failed(Failure::Busy) => Error::new(
            ErrorCode::Overloaded,
            "Too many requests wait for this record, or for the node that has it",
        ),
        Miss::Failed(Failure::Expired) => return Some(time_up(unknown)),
        Miss::Failed(Failure::Unavailable) => Error::new(ErrorCode::Unavailable, "The database is away"),
        Miss::Failed(Failure::Unsupported) => {
            Error::new(ErrorCode::Unavailable, "The node that serves this runs another version")
        }
    };
    if unknown {
        // This attempt did nothing, but an earlier one may have. Only further attempts can tell.
        return None;
    }
    Some(error)
}

/// Returns the error for a request that is given up after failed attempts.
fn gave_up(last: &Miss, unknown: bool) -> Error {
    match last {
        Miss::Failed(Failure::NoNode(role)) if !unknown => no_node(*role),
        Miss::Failed(Failure::NotServing(_)) if !unknown => {
            Error::new(ErrorCode::Unavailable, "No node serves this record now; nothing was done")
        }
        _ => time_up(unknown),
    }
}

/// Returns the error that names the missing role.
pub(in crate::actors) fn no_node(role: NodeRole) -> Error {
    Error::new(ErrorCode::Unavailable, format!("No node with the role {} is live", role.as_str()))
}

#[cfg(test)]
mod repeated;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::entity::Refused;
    use crate::actors::patients::Patients;
    use crate::clock::SystemClock;
    use crate::context::TraceContext;
    use crate::domain::access::Caller;

    #[tokio::test]
    async fn questions_for_a_node_that_is_away_leave_room_for_others() {
        let settings = AskSettings {
            pause: Duration::from_millis(5),
            pause_max: Duration::from_millis(5),
            moving_pause: Duration::from_millis(5),
            moving_pause_max: Duration::from_millis(5),
            no_node_wait: Duration::ZERO,
            waiting_max: 1,
        };
        // No directory is running.
        let asker = Asker::<Patients>::new(Address::default(), Arc::new(SystemClock), settings);
        let read = async || {
            let budget = Duration::from_millis(200);
            let ctx = RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget);
            asker.read(&ctx, Uuid::from_u128(1)).await.map_err(|error| error.code).err()
        };
        for _ in 0..2 {
            let (one, two) = tokio::join!(read(), read());
            assert_eq!((one, two), (Some(ErrorCode::Unavailable), Some(ErrorCode::Overloaded)));
        }
    }

    #[test]
    fn a_write_that_may_have_happened_is_never_called_undone() {
        for failure in [
            Failure::Busy,
            Failure::Expired,
            Failure::Unavailable,
            Failure::NotServing(None),
            Failure::Unknown,
        ] {
            let name = failure.as_str();
            let said = verdict(&Miss::Failed(failure), true);
            assert!(said.is_none_or(|e| e.code == ErrorCode::OutcomeUnknown), "{name}");
        }
        assert_eq!(verdict(&Miss::TimeUp, true).map(|e| e.code), Some(ErrorCode::OutcomeUnknown));
    }

    #[test]
    fn a_refusal_is_final_and_a_shard_that_is_not_served_is_asked_again() {
        let refused = verdict(&Miss::Failed(Failure::Refused(Refused::EmailTaken)), true);
        assert_eq!(refused.map(|e| e.code), Some(ErrorCode::AlreadyExists));
        assert_eq!(verdict(&Miss::Failed(Failure::NotServing(None)), false), None);
        assert_eq!(verdict(&Miss::Dropped, false), None);
    }

    fn patience() -> Patience {
        Patience::new(AskSettings {
            pause: Duration::from_millis(5),
            pause_max: Duration::from_millis(200),
            moving_pause: Duration::from_millis(3),
            moving_pause_max: Duration::from_millis(25),
            no_node_wait: Duration::from_millis(1_000),
            waiting_max: 128,
        })
    }

    fn not_serving(owner: Option<&str>) -> Miss {
        Miss::Failed(Failure::NotServing(owner.map(Into::into)))
    }

    #[test]
    fn an_owner_is_followed_at_once_but_not_again_and_not_to_and_fro() {
        let (mut patience, now) = (patience(), MonoTime(0));
        let zero = Some(Duration::ZERO);
        assert_eq!(patience.after(&not_serving(Some("a#1")), now, 1), zero);
        assert!(patience.after(&not_serving(Some("a#1")), now, 1) > zero, "named again");
        assert_eq!(patience.after(&not_serving(Some("b#1")), now, 1), zero);
        assert_eq!(patience.after(&not_serving(Some("a#1")), now, 1), zero);
        assert!(patience.after(&not_serving(Some("b#1")), now, 1) > zero, "to and fro");
    }

    #[test]
    fn many_who_wait_for_long_ask_together_no_more_than_few() {
        for crowd in [1, CROWD, 8 * CROWD, 100 * CROWD] {
            let mut patience = patience();
            let miss = not_serving(None);
            let pauses: Vec<_> = (0..30).filter_map(|_| patience.after(&miss, MonoTime(0), crowd)).collect();
            let shortest = pauses[13..].iter().min().expect("pauses").as_secs_f64();
            let per_second = crowd as f64 / shortest;
            assert!(per_second <= CROWD as f64 / 0.05, "{crowd} ask {per_second} times a second");
            assert!(pauses[..12].iter().all(|pause| pause.as_millis() <= 25), "a move is waited for as ever");
        }
    }

    #[test]
    fn a_move_is_waited_for_in_short_pauses_a_failure_in_longer_ones_and_a_role_not_for_ever() {
        let mut moving = patience();
        let pauses: Vec<_> = (0..20)
            .filter_map(|_| moving.after(&not_serving(None), MonoTime(0), 1))
            .map(|p| p.as_millis())
            .collect();
        assert!(pauses[0] <= 3 && pauses[..12].iter().all(|pause| *pause <= 25), "{pauses:?}");
        assert!(pauses[13..].iter().all(|pause| (50..=100).contains(pause)), "{pauses:?}");

        let mut alone = patience();
        let nobody = Miss::Failed(Failure::NoNode(NodeRole::Patient));
        let at = |ms: u64| MonoTime(ms * 1_000_000);
        assert!(alone.after(&nobody, at(5), 1).is_some() && alone.after(&nobody, at(1_004), 1).is_some());
        assert_eq!(alone.after(&nobody, at(1_005), 1), None);
        let mut back = patience();
        assert!(back.after(&nobody, at(0), 1).is_some() && back.after(&Miss::Dropped, at(10), 1).is_some());
        assert!(back.after(&nobody, at(1_500), 1).is_some(), "somebody was there meanwhile");
    }
}
