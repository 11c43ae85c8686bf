//! Keeps a node's knowledge of login sessions and token keys fresh. The actor reads the revocations and the
//! keys from the database at intervals, receives revocations from other nodes, and deletes dead rows. Child
//! of the node's supervisor. The `Keeper` holds the knowledge, so a restart loses nothing.
//!
//! Invariants:
//! - At most one read of each kind is in progress.
//! - A revocation from a link only speeds up its discovery; the next read of the database finds it anyway.
//! - While tokens cannot be checked or signed, health shows the reason.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::background::Tasks;
use crate::domain::ids::SessionId;
use crate::health::{Health, Status};

/// The name of this part in logs and in health.
const NAME: &str = "sessions";
/// How often dead rows are deleted.
const DELETE_EVERY: Duration = Duration::from_secs(10);

/// The knowledge of sessions and keys. Errors are texts for an operator.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Reads from the database which sessions were revoked.
    async fn read_revocations(&self) -> Result<(), String>;
    /// Reads the keys from the database.
    async fn read_keys(&self) -> Result<(), String>;
    /// Deletes a part of the rows that no longer matter.
    async fn delete_dead(&self) -> Result<(), String>;
    /// Returns why no token can be signed although the keys are known; `None` if tokens can be signed.
    fn why_unsigned(&self) -> Option<String>;
    /// Records sessions that another node has revoked.
    fn revoked_elsewhere(&self, sessions: &[SessionId]);
}

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Revocations,
    Keys,
    Delete,
}

/// The actor's messages.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum SessionsMessage {
    /// From the link: another node has revoked these sessions. The message may be lost.
    Revoked(Vec<SessionId>),
    /// From the actor's own timers.
    Due(Due),
    /// From the actor's own task: the result of the work.
    Done(Due, Result<(), String>),
}

/// One kind of work, opaque outside this module.
#[derive(Clone, Copy, Debug)]
pub struct Due(Work);

/// The arguments of the actor. The supervisor keeps a clone for restarts.
#[derive(Clone)]
pub struct SessionsArgs {
    /// The knowledge of sessions and keys.
    pub keeper: Arc<dyn Keeper>,
    /// Where the actor reports its status.
    pub health: Health,
    /// How often the revocations are read.
    pub revocations_poll: Duration,
    /// How often the keys are read.
    pub keys_poll: Duration,
}

/// The actor.
pub struct Sessions;

/// The state of the actor.
pub struct State {
    args: SessionsArgs,
    tasks: Tasks,
    /// The work in progress.
    busy: Vec<Work>,
    /// What has not been read since the start, and why. Until it is read, tokens cannot be checked.
    missing: Vec<(Work, String)>,
}

impl Actor for Sessions {
    type Msg = SessionsMessage;
    type State = State;
    type Arguments = SessionsArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: SessionsArgs,
    ) -> Result<State, ActorProcessingErr> {
        // The timers end with the actor.
        let timers = [
            (Work::Revocations, args.revocations_poll),
            (Work::Keys, args.keys_poll),
            (Work::Delete, DELETE_EVERY),
        ];
        for (work, every) in timers {
            myself.send_interval(every, move || SessionsMessage::Due(Due(work)));
        }
        let missing = vec![
            (Work::Revocations, "the revoked sessions have not been read yet".to_owned()),
            (Work::Keys, "the keys have not been read yet".to_owned()),
        ];
        let state = State { args, tasks: Tasks::default(), busy: Vec::new(), missing };
        state.report();
        Ok(state)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.begin(&myself, Work::Revocations);
        state.begin(&myself, Work::Keys);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionsMessage::Revoked(sessions) => state.args.keeper.revoked_elsewhere(&sessions),
            SessionsMessage::Due(Due(work)) => state.begin(&myself, work),
            SessionsMessage::Done(Due(work), outcome) => state.ended(work, outcome),
        }
        Ok(())
    }
}

impl State {
    fn begin(&mut self, myself: &ActorRef<SessionsMessage>, work: Work) {
        if self.busy.contains(&work) {
            return;
        }
        self.busy.push(work);
        let keeper = Arc::clone(&self.args.keeper);
        let died = Err("the task that asked has died".to_owned());
        self.tasks.run(myself, SessionsMessage::Done(Due(work), died), async move {
            let outcome = match work {
                Work::Revocations => keeper.read_revocations().await,
                Work::Keys => keeper.read_keys().await,
                Work::Delete => keeper.delete_dead().await,
            };
            SessionsMessage::Done(Due(work), outcome)
        });
    }

    fn ended(&mut self, work: Work, outcome: Result<(), String>) {
        self.busy.retain(|busy| *busy != work);
        match outcome {
            Ok(()) => self.missing.retain(|(missing, _)| *missing != work),
            // Later failures are not reported here: the database part of health shows them, and the values
            // already read stay valid for a while.
            Err(reason) => {
                let missing = self.missing.iter_mut().find(|(missing, _)| *missing == work);
                missing.into_iter().for_each(|(_, why)| why.clone_from(&reason));
            }
        }
        self.report();
    }

    fn report(&self) {
        let status = if self.missing.is_empty() {
            // Tokens can still be checked, so the node stays ready.
            self.args.keeper.why_unsigned().map_or(Status::Ready, Status::Explained)
        } else {
            let reasons: Vec<&str> = self.missing.iter().map(|(_, why)| why.as_str()).collect();
            Status::NotReady(reasons.join("; "))
        };
        self.args.health.report(NAME, status);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use uuid::Uuid;

    use super::*;

    #[derive(Default)]
    struct Fake {
        away: AtomicBool,
        locked: AtomicBool,
        revocations: AtomicUsize,
        keys: AtomicUsize,
        revoked: Mutex<Vec<SessionId>>,
    }

    impl Fake {
        fn answer(&self, count: &AtomicUsize) -> Result<(), String> {
            count.fetch_add(1, Ordering::SeqCst);
            match self.away.load(Ordering::SeqCst) {
                true => Err("SQLSTATE 28000".to_owned()),
                false => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Keeper for Fake {
        async fn read_revocations(&self) -> Result<(), String> {
            self.answer(&self.revocations)
        }
        async fn read_keys(&self) -> Result<(), String> {
            self.answer(&self.keys)
        }
        async fn delete_dead(&self) -> Result<(), String> {
            Ok(())
        }
        fn why_unsigned(&self) -> Option<String> {
            self.locked.load(Ordering::SeqCst).then(|| "the key does not open".to_owned())
        }
        fn revoked_elsewhere(&self, sessions: &[SessionId]) {
            self.revoked.lock().expect("held briefly").extend(sessions);
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("in time");
    }

    #[tokio::test]
    async fn it_is_ready_once_both_were_read_and_goes_on_reading() {
        let (fake, health) = (Arc::new(Fake::default()), Health::default());
        fake.away.store(true, Ordering::SeqCst);
        let args = SessionsArgs {
            keeper: Arc::clone(&fake) as _,
            health: health.clone(),
            revocations_poll: Duration::from_millis(5),
            keys_poll: Duration::from_millis(5),
        };
        let (actor, ended) = Actor::spawn(None, Sessions, args).await.expect("started");
        until(|| fake.revocations.load(Ordering::SeqCst) > 3 && fake.keys.load(Ordering::SeqCst) > 3).await;
        let part = || health.snapshot().1.get(NAME).cloned();
        assert_eq!(part(), Some(Status::NotReady("SQLSTATE 28000; SQLSTATE 28000".into())), "it says why");
        fake.away.store(false, Ordering::SeqCst);
        until(|| health.snapshot().0).await;
        fake.locked.store(true, Ordering::SeqCst);
        until(|| part() == Some(Status::Explained("the key does not open".into()))).await;
        fake.locked.store(false, Ordering::SeqCst);
        until(|| part() == Some(Status::Ready)).await;
        let (revocations, keys) = (fake.revocations.load(Ordering::SeqCst), fake.keys.load(Ordering::SeqCst));
        until(|| fake.revocations.load(Ordering::SeqCst) > revocations).await;
        until(|| fake.keys.load(Ordering::SeqCst) > keys).await;

        let id = SessionId(Uuid::from_u128(7));
        actor.cast(SessionsMessage::Revoked(vec![id])).expect("sent");
        until(|| *fake.revoked.lock().expect("held briefly") == [id]).await;
        actor.stop(None);
        ended.await.expect("it ends");
    }
}
