//! How a question is asked until it is answered or its time is up.

use std::sync::Arc;
use std::time::Duration;

use ractor::RpcReplyPort;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::DirectoryMessage;
use crate::actors::address::Address;
use crate::actors::entity::{Entity, Failure, Op, Refused, Write};
use crate::actors::region::QueryAsk;
use crate::actors::shard::Ask;
use crate::context::RequestContext;
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode, Result};

/// How a question is repeated.
#[derive(Clone, Copy, Debug)]
pub struct AskSettings {
    /// The pause before the first repetition; it doubles with each further one, with jitter.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

/// Asks one kind of entity. Cloning is cheap.
pub struct Asker<E: Entity> {
    directory: Address<DirectoryMessage<E>>,
    clock: Arc<dyn Clock>,
    settings: AskSettings,
}

impl<E: Entity> Clone for Asker<E> {
    fn clone(&self) -> Self {
        Asker { directory: self.directory.clone(), clock: Arc::clone(&self.clock), settings: self.settings }
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
        Asker { directory, clock, settings }
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
        let write = Write {
            command,
            command_id: ctx.command_id,
            subject: Arc::clone(&ctx.caller.subject),
            traceparent: ctx.trace.to_string().into(),
            maybe_done: false,
        };
        self.ask(ctx, id, Op::Write(write)).await
    }

    async fn ask(&self, ctx: &RequestContext, id: Uuid, mut op: Op<E>) -> Result<E::Answer> {
        let mut tries = 0;
        loop {
            let miss = match self.try_once(ctx, id, op.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(miss) => miss,
            };
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
            let pause = self.pause(tries);
            tries += 1;
            if self.clock.mono().plus(pause) >= ctx.deadline {
                return Err(gave_up(&miss, unknown));
            }
            metrics::counter!("hygeia_ask_retries_total", "kind" => E::KIND.as_str()).increment(1);
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_once(
        &self,
        ctx: &RequestContext,
        id: Uuid,
        op: Op<E>,
    ) -> std::result::Result<E::Answer, Miss> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            id,
            op,
            trace: ctx.trace,
            deadline: ctx.deadline,
            sent_at: self.clock.mono(),
            reply: RpcReplyPort::from(reply),
        };
        if !self.directory.cast(DirectoryMessage::Ask(Box::new(ask))) {
            return Err(Miss::Failed(Failure::NotServing));
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
        let mut tries = 0;
        loop {
            let (reply, answer) = oneshot::channel();
            let ask = QueryAsk {
                query: query(),
                trace: ctx.trace,
                deadline: ctx.deadline,
                sent_at: self.clock.mono(),
                reply: RpcReplyPort::from(reply),
            };
            let sent = self.directory.cast(DirectoryMessage::Query(Box::new(ask)));
            let miss = match self.wait(ctx, answer).await {
                Ok(answer) => return Ok(answer),
                Err(miss) if sent => miss,
                Err(_) => Miss::Failed(Failure::NotServing),
            };
            if let Some(error) = verdict(&miss, false) {
                return Err(error);
            }
            let pause = self.pause(tries);
            tries += 1;
            if self.clock.mono().plus(pause) >= ctx.deadline {
                return Err(gave_up(&miss, false));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Between half and the whole of the doubled pause, so that many askers do not come back at once.
    fn pause(&self, tries: u32) -> Duration {
        let whole = self.settings.pause.saturating_mul(1 << tries.min(16)).min(self.settings.pause_max);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The error to answer with, or `None` if it is worth asking again. `unknown`: a write that may have been
/// carried out by this or an earlier try.
fn verdict(miss: &Miss, unknown: bool) -> Option<Error> {
    let error = match miss {
        // Said after the database was asked about earlier tries: final.
        Miss::Failed(Failure::Refused(refused)) => return Some(refusal(*refused)),
        Miss::Failed(Failure::NotServing | Failure::Unknown) | Miss::Dropped => return None,
        Miss::TimeUp => return Some(time_up(unknown)),
        Miss::Failed(Failure::Busy) => {
            Error::new(ErrorCode::Overloaded, "Too many requests wait for this record")
        }
        Miss::Failed(Failure::Expired) => return Some(time_up(unknown)),
        Miss::Failed(Failure::Unavailable) => Error::new(ErrorCode::Unavailable, "The database is away"),
    };
    if unknown {
        // This try did nothing, but an earlier one may have; only more time could tell.
        return None;
    }
    Some(error)
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::NotFound => Error::new(ErrorCode::NotFound, "There is no record with this id"),
        Refused::IdTaken => Error::new(ErrorCode::AlreadyExists, "A record with this id exists or existed"),
        Refused::EmailTaken => {
            Error::new(ErrorCode::AlreadyExists, "A patient with this email address already exists")
        }
    }
}

/// The time is up after tries that were all in vain.
fn gave_up(last: &Miss, unknown: bool) -> Error {
    match last {
        Miss::Failed(Failure::NotServing) if !unknown => {
            Error::new(ErrorCode::Unavailable, "No node serves this record now; nothing was done")
        }
        _ => time_up(unknown),
    }
}

fn time_up(unknown: bool) -> Error {
    if unknown {
        Error::new(
            ErrorCode::OutcomeUnknown,
            "The time was up before it was known whether the change was made",
        )
    } else {
        Error::new(
            ErrorCode::DeadlineExceeded,
            "The time was up before the request was done; nothing was changed",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_may_have_happened_is_never_called_undone() {
        for failure in
            [Failure::Busy, Failure::Expired, Failure::Unavailable, Failure::NotServing, Failure::Unknown]
        {
            let said = verdict(&Miss::Failed(failure), true);
            assert!(said.is_none_or(|e| e.code == ErrorCode::OutcomeUnknown), "{failure:?}");
        }
        assert_eq!(verdict(&Miss::TimeUp, true).map(|e| e.code), Some(ErrorCode::OutcomeUnknown));
    }

    #[test]
    fn a_refusal_is_final_and_a_shard_that_is_not_served_is_asked_again() {
        let refused = verdict(&Miss::Failed(Failure::Refused(Refused::EmailTaken)), true);
        assert_eq!(refused.map(|e| e.code), Some(ErrorCode::AlreadyExists));
        assert_eq!(verdict(&Miss::Failed(Failure::NotServing), false), None);
        assert_eq!(verdict(&Miss::Dropped, false), None);
    }
}
