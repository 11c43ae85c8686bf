//! How a question is asked until it is answered or its time is up.

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

/// How a question is repeated.
#[derive(Clone, Copy, Debug)]
pub struct AskSettings {
    /// The pause before the first repetition; it doubles with each further one, with jitter.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// The same while a shard is on its way between nodes, or comes back after a failure.
    pub moving_pause: Duration,
    /// The longest such pause.
    pub moving_pause_max: Duration,
    /// How long to try while no node of the role is live.
    pub no_node_wait: Duration,
    /// Questions that may pause between tries; beyond it they fail at once, so that those for a node that is
    /// away leave room for the others. One whose outcome is not known goes on.
    pub waiting_max: usize,
}

/// Asks one kind of entity. Cloning is cheap.
pub struct Asker<E: Entity> {
    directory: Address<DirectoryMessage<E>>,
    clock: Arc<dyn Clock>,
    settings: AskSettings,
    /// Questions that pause between tries, or did.
    waiting: Arc<AtomicUsize>,
    /// Questions that are not answered yet.
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

/// How one try ended without an answer.
enum Miss {
    /// The shard, the region or the store said so.
    Failed(Failure),
    /// An actor on the way died with the question in hand.
    Dropped,
    /// The time is up.
    TimeUp,
}

impl<E: Entity> Asker<E> {
    /// Asks through `directory`.
    pub fn new(
        directory: Address<DirectoryMessage<E>>,
        clock: Arc<dyn Clock>,
        settings: AskSettings,
    ) -> Self {
        let unanswered = metrics::gauge!("hygeia_asks_unanswered", "kind" => E::KIND.as_str());
        // There from the start, so that a rate sees the first one.
        let _ = metrics::counter!("hygeia_ask_retries_total", "kind" => E::KIND.as_str());
        Asker { directory, clock, settings, waiting: Arc::default(), unanswered }
    }

    /// The state of `id` as of now.
    ///
    /// # Errors
    /// `NotFound`, `Overloaded`, `Unavailable`, `DeadlineExceeded`.
    pub async fn read(&self, ctx: &RequestContext, id: Uuid) -> Result<E::Answer> {
        self.ask(ctx, id, Op::Read).await
    }

    /// Carries `command` out on `id`, once.
    ///
    /// # Errors
    /// The refusal of the rules; `Overloaded`, `Unavailable`, `DeadlineExceeded`: nothing was done;
    /// `OutcomeUnknown`.
    pub async fn write(&self, ctx: &RequestContext, id: Uuid, command: E::Command) -> Result<E::Answer> {
        self.write_if(ctx, id, command, Conditions::default()).await
    }

    /// As `write`, under `conditions`.
    ///
    /// # Errors
    /// As `write`; `PreconditionFailed`, `KeyReused`, `KeyExpired`.
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
        // An earlier try of a change was lost on its way and may still arrive, at this shard or at another. The event
        // table knows what was carried out, and not what is still to come: no later try settles that it is not done.
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
            // What a reader is not told changes nothing; what a writer is not told may have happened.
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

    /// Waits before the next try, if there is to be one.
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

    /// Answers `query`, made anew for each try, from the database.
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

/// How the tries of one question are spaced.
struct Patience {
    settings: AskSettings,
    tries: u32,
    /// The owner named last, and how many were followed in a row without a pause.
    named: Option<Arc<str>>,
    followed: u32,
    /// Since when no node of the role is live.
    nobody_since: Option<MonoTime>,
    /// From its first pause on it counts among those that wait.
    waiting: Option<Waiting>,
}

/// How often in a row an owner that an answer names is asked at once.
const FOLLOWED_MAX: u32 = 2;
/// After how many tries a move is taken for a failure, which lasts until a lease runs out: a fraction of a
/// second. Whoever waits that long asks less often.
const MOVING_TRIES_MAX: u32 = 12;
/// How much longer the longest pause is from then on.
const FAILED_OVER_PAUSES: u32 = 4;
/// So many questions that wait ask again that often; where more do, each asks less often, so that together they
/// ask no more. Else those who wait for a database or an owner keep the node too busy to take it up again.
const CROWD: usize = 32;

impl Patience {
    fn new(settings: AskSettings) -> Self {
        Patience { settings, tries: 0, named: None, followed: 0, nobody_since: None, waiting: None }
    }

    /// The pause after `miss`, where `crowd` questions wait; `None` if it is no use to try again.
    fn after(&mut self, miss: &Miss, now: MonoTime, crowd: usize) -> Option<Duration> {
        match miss {
            // Somebody else has it: that one is asked at once, unless it is named again, or they send us to
            // and fro.
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
        // A shard that moves, or comes back, does so in milliseconds; what is overloaded needs longer.
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
        // Between half and the whole, so that many askers do not come back at once.
        Some(whole.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

/// The error to answer with, or `None` if it is worth asking again. `unknown`: a write that may have been
/// carried out by this or an earlier try.
fn verdict(miss: &Miss, unknown: bool) -> Option<Error> {
    let error = match miss {
        // Said after the database was asked about earlier tries, none of which can still be carried out: final.
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
        // This try did nothing, but an earlier one may have; only more time could tell.
        return None;
    }
    Some(error)
}

/// The time is up after tries that were all in vain.
fn gave_up(last: &Miss, unknown: bool) -> Error {
    match last {
        Miss::Failed(Failure::NoNode(role)) if !unknown => no_node(*role),
        Miss::Failed(Failure::NotServing(_)) if !unknown => {
            Error::new(ErrorCode::Unavailable, "No node serves this record now; nothing was done")
        }
        _ => time_up(unknown),
    }
}

/// The error that says which role is missing.
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
        // Nobody is there.
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
