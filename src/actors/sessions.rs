//! Keeps what a node knows of sessions and keys fresh: reads the revocations and the keys from the database at
//! intervals, hears of revocations from other nodes, and has dead rows deleted. Supervised by the node's
//! supervisor; what is known is kept by the `Keeper`, so a restart forgets nothing.
//!
//! Invariants:
//! - One reading of each kind is under way at most.
//! - What a link says only makes a revocation known sooner: the readings find it anyway.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::background::Tasks;
use crate::domain::ids::SessionId;
use crate::error::Result;
use crate::health::{Health, Status};

/// The name in logs, and of the part in health.
const NAME: &str = "sessions";
/// How often dead rows are deleted.
const DELETE_EVERY: Duration = Duration::from_secs(10);

/// Knows sessions and keys.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Asks the database which sessions were revoked.
    async fn read_revocations(&self) -> Result<()>;
    /// Asks the database which keys there are.
    async fn read_keys(&self) -> Result<()>;
    /// Deletes some of what no longer matters.
    async fn delete_dead(&self) -> Result<()>;
    /// Notes what another node has revoked.
    fn revoked_elsewhere(&self, sessions: &[SessionId]);
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Revocations,
    Keys,
    Delete,
}

/// The actor's messages.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum SessionsMessage {
    /// From the link: another node has revoked these. May be lost.
    Revoked(Vec<SessionId>),
    /// From the actor's own timers.
    Due(Due),
    /// From the actor's own task: whether it went well.
    Done(Due, bool),
}

/// One kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Due(Work);

/// What the actor works with. A supervisor keeps a clone to start it again.
#[derive(Clone)]
pub struct SessionsArgs {
    /// Who knows.
    pub keeper: Arc<dyn Keeper>,
    /// Where it says how it is.
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
    /// Under way.
    busy: Vec<Work>,
    /// Not read yet: without them no caller is known.
    missing: Vec<Work>,
}

impl Actor for Sessions {
    type Msg = SessionsMessage;
    type State = State;
    type Arguments = SessionsArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: SessionsArgs,
    ) -> std::result::Result<State, ActorProcessingErr> {
        args.health.report(NAME, Status::NotReady("sessions and keys have not been read yet".into()));
        // The timers end with the actor.
        let timers = [
            (Work::Revocations, args.revocations_poll),
            (Work::Keys, args.keys_poll),
            (Work::Delete, DELETE_EVERY),
        ];
        for (work, every) in timers {
            myself.send_interval(every, move || SessionsMessage::Due(Due(work)));
        }
        Ok(State {
            args,
            tasks: Tasks::default(),
            busy: Vec::new(),
            missing: vec![Work::Revocations, Work::Keys],
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut State,
    ) -> std::result::Result<(), ActorProcessingErr> {
        state.begin(&myself, Work::Revocations);
        state.begin(&myself, Work::Keys);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            SessionsMessage::Revoked(sessions) => state.args.keeper.revoked_elsewhere(&sessions),
            SessionsMessage::Due(Due(work)) => state.begin(&myself, work),
            SessionsMessage::Done(Due(work), well) => state.ended(work, well),
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
        self.tasks.run(myself, SessionsMessage::Done(Due(work), false), async move {
            let outcome = match work {
                Work::Revocations => keeper.read_revocations().await,
                Work::Keys => keeper.read_keys().await,
                Work::Delete => keeper.delete_dead().await,
            };
            // Why not was logged where it was found.
            SessionsMessage::Done(Due(work), outcome.is_ok())
        });
    }

    fn ended(&mut self, work: Work, well: bool) {
        self.busy.retain(|busy| *busy != work);
        if well && !self.missing.is_empty() {
            self.missing.retain(|missing| *missing != work);
            if self.missing.is_empty() {
                self.args.health.report(NAME, Status::Ready);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::error::{Error, ErrorCode};

    #[derive(Default)]
    struct Fake {
        away: AtomicBool,
        revocations: AtomicUsize,
        keys: AtomicUsize,
        revoked: Mutex<Vec<SessionId>>,
    }

    impl Fake {
        fn answer(&self, count: &AtomicUsize) -> Result<()> {
            count.fetch_add(1, Ordering::SeqCst);
            match self.away.load(Ordering::SeqCst) {
                true => Err(Error::new(ErrorCode::Unavailable, "away")),
                false => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Keeper for Fake {
        async fn read_revocations(&self) -> Result<()> {
            self.answer(&self.revocations)
        }
        async fn read_keys(&self) -> Result<()> {
            self.answer(&self.keys)
        }
        async fn delete_dead(&self) -> Result<()> {
            Ok(())
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
        assert!(!health.snapshot().0, "nothing was read yet");
        fake.away.store(false, Ordering::SeqCst);
        until(|| health.snapshot().0).await;
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
