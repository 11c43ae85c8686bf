//! The audit journal: has the accesses that the edges of this node record written in sealed batches, as the
//! journal of changes does with appends. Child of the node's supervisor, where there is an edge.
//!
//! While a batch is on its way to the database, accesses gather; what has gathered goes into the next one. A batch
//! that takes longer than a commit normally does may be stuck: then a further one is started beside it.
//!
//! Invariants:
//! - Whoever records an access is told once it is durable, and not before: an edge that answers only then shows
//!   nothing that is not audited. If it cannot be made durable, the recorder is told so.
//! - One batch is under way at a time, unless it takes longer than `batch_wait_ms`. Several at once would be smaller
//!   ones, and each costs the database a transaction, whatever is in it.
//! - No access waits for a batch that hangs, while a further one may start: there are `AUDIT_BATCHES_MAX`.
//! - No more than `queue_max` wait; who comes then is refused.
//! - The journal never awaits in `handle`.
//!
//! Changes do not come this way: their entries go with them (`actors::journal`).

mod gathering;
mod reader;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::address::Address;
use super::peers::Secret;
use crate::audit::{Chains, Key, Keys};
use crate::domain::audit::Access;
use crate::domain::secret::SECRET_BYTES_MIN;
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, AUDIT_BATCHES_MAX, AuditStore};

pub use self::gathering::Gathering;
use self::gathering::Waiting;
pub use self::reader::{AuditPage, AuditPlace, AuditQuery, AuditReader};

/// How often the database is asked to do what commits must not wait for.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// How accesses are recorded.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether accesses are recorded at all. The same on every node of a cluster.
    pub enabled: bool,
    /// The secret that seals the rows: at least 32 bytes, taken as they are, the same on every node of a cluster
    /// and for `hygeia audit verify`. Who changes it then has chains that the new one does not fit.
    pub secret: Option<Secret>,
    /// The secret from before it was changed. Rows sealed with it are still shown, and verify; no new ones are.
    pub old_secret: Option<Secret>,
    /// Accesses that may wait for a batch; beyond it requests get 503.
    pub queue_max: usize,
    /// Accesses of one batch.
    pub batch_max: usize,
    /// How long a batch may be under way before a further one starts beside it, in milliseconds.
    pub batch_wait_ms: u64,
    /// How often a chain notes where the others are.
    pub pins_every_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            enabled: true,
            secret: None,
            old_secret: None,
            queue_max: 8192,
            batch_max: 512,
            batch_wait_ms: 20,
            pins_every_ms: 60_000,
        }
    }
}

impl Settings {
    /// The keys whose values are not allowed, each with what is.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let within = |value: usize, most: usize| (1..=most).contains(&value);
        let long_enough = |secret: &Option<Secret>| {
            secret.as_ref().is_none_or(|secret| secret.bytes().len() >= SECRET_BYTES_MIN)
        };
        let checks = [
            ("secret", long_enough(&self.secret), "at least 32 bytes"),
            ("old_secret", long_enough(&self.old_secret), "at least 32 bytes"),
            ("queue_max", within(self.queue_max, 1_000_000), "1 to 1000000"),
            ("batch_max", within(self.batch_max, 10_000), "1 to 10000"),
            ("batch_wait_ms", (1..=1_000).contains(&self.batch_wait_ms), "1 to 1000"),
            ("pins_every_ms", (1..=86_400_000).contains(&self.pins_every_ms), "1 to 86400000"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }

    /// What seals the rows, and what has sealed them before. None without a secret.
    pub fn keys(&self) -> Option<Keys> {
        let key = |secret: &Secret| Key::of(secret.bytes());
        let older = self.old_secret.iter().map(key).collect();
        self.secret.as_ref().map(|secret| Keys::new(key(secret), older))
    }

    /// `pins_every_ms`
    pub fn pins_every(&self) -> Duration {
        Duration::from_millis(self.pins_every_ms)
    }
}

/// Where edges record accesses. Cloning is cheap.
#[derive(Clone)]
pub struct AuditHandle {
    /// None where nothing is recorded.
    way: Option<Way>,
}

/// The way to the journal: what waits, and whom to tell of it.
#[derive(Clone)]
struct Way {
    gathering: Arc<Gathering>,
    journal: Address<AuditMessage>,
}

impl AuditHandle {
    /// Records by way of `gathering` at `journal`.
    pub fn new(gathering: Arc<Gathering>, journal: Address<AuditMessage>) -> Self {
        AuditHandle { way: Some(Way { gathering, journal }) }
    }

    /// Records nothing.
    pub fn off() -> Self {
        AuditHandle { way: None }
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.way.is_some()
    }

    /// Makes `access` durable.
    ///
    /// # Errors
    /// `Unavailable`: it could not be, or not for sure. `Overloaded`: too many wait.
    pub async fn record(&self, access: Access) -> Result<()> {
        let Some(Way { gathering, journal }) = &self.way else { return Ok(()) };
        let (told, answer) = oneshot::channel();
        if gathering.add(Waiting { access, told })? && !journal.cast(AuditMessage::Gathered) {
            gathering.abandon();
        }
        answer.await.unwrap_or_else(|_| Err(unavailable()))
    }
}

fn unavailable() -> Error {
    Error::new(ErrorCode::Unavailable, "The access cannot be recorded, and nothing is shown that is not")
}

/// What the audit journal is told.
pub enum AuditMessage {
    /// By an edge: there is something to write.
    Gathered,
    /// By the journal's own task: its batch has ended.
    BatchEnded,
    /// By a timer, `batch_wait_ms` after an access had to wait: so many batches had begun then.
    Waited(u64),
    /// By a timer, every `TEND_EVERY`: what commits must not wait for is due.
    Tend,
    /// By the journal's own task: that has ended.
    Tended,
}

impl ractor::Message for AuditMessage {}

/// What the audit journal needs.
#[derive(Clone)]
pub struct AuditArgs {
    /// The database.
    pub store: Arc<dyn AuditStore>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The chains of this node's edges.
    pub chains: Chains,
    /// The bounds.
    pub settings: Settings,
    /// What the edges add to.
    pub gathering: Arc<Gathering>,
}

/// The actor.
#[derive(Default)]
pub struct AuditJournal;

/// The state of one incarnation.
pub struct AuditState {
    args: AuditArgs,
    /// The batches under way.
    under_way: usize,
    /// The batches begun since the start.
    begun: u64,
    /// Whether a timer runs.
    timed: bool,
    /// Whether the database is being tended.
    tends: bool,
}

impl Actor for AuditJournal {
    type Msg = AuditMessage;
    type State = AuditState;
    type Arguments = AuditArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<AuditMessage>,
        args: AuditArgs,
    ) -> std::result::Result<AuditState, ActorProcessingErr> {
        // What an earlier incarnation was told of, this one was not.
        myself.send_message(AuditMessage::Gathered)?;
        myself.send_message(AuditMessage::Tend)?;
        myself.send_interval(TEND_EVERY, || AuditMessage::Tend);
        Ok(AuditState { args, under_way: 0, begun: 0, timed: false, tends: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<AuditMessage>,
        message: AuditMessage,
        state: &mut AuditState,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            AuditMessage::Gathered => {}
            AuditMessage::BatchEnded => state.under_way -= 1,
            AuditMessage::Waited(begun) => {
                state.timed = false;
                if begun == state.begun {
                    state.start_batch(&myself);
                }
            }
            AuditMessage::Tend => state.tend(&myself),
            AuditMessage::Tended => state.tends = false,
        }
        state.write_next(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<AuditMessage>,
        _event: SupervisionEvent,
        _state: &mut AuditState,
    ) -> std::result::Result<(), ActorProcessingErr> {
        // It has no children; the default would stop it at any event.
        Ok(())
    }
}

impl AuditState {
    /// Starts the next batch; or looks again in a while, if one is under way.
    fn write_next(&mut self, myself: &ActorRef<AuditMessage>) {
        if self.under_way == 0 {
            self.start_batch(myself);
        }
        if self.under_way > 0 && self.under_way < AUDIT_BATCHES_MAX && !self.timed {
            self.timed = true;
            let begun = self.begun;
            let wait = Duration::from_millis(self.args.settings.batch_wait_ms);
            myself.send_after(wait, move || AuditMessage::Waited(begun));
        }
    }

    /// Starts a batch, if there is something to write.
    fn start_batch(&mut self, myself: &ActorRef<AuditMessage>) {
        let batch = self.args.gathering.take(self.args.settings.batch_max);
        if batch.is_empty() {
            return;
        }
        self.under_way += 1;
        self.begun += 1;
        let (args, ended) = (self.args.clone(), Ended(myself.clone(), || AuditMessage::BatchEnded));
        let chains = args.chains.clone();
        tokio::spawn(async move {
            write(args, batch).await;
            drop(ended);
            chains.look().await;
        });
    }

    /// Has the database tended, unless it still is.
    fn tend(&mut self, myself: &ActorRef<AuditMessage>) {
        if self.tends {
            return;
        }
        self.tends = true;
        let (store, ended) = (Arc::clone(&self.args.store), Ended(myself.clone(), || AuditMessage::Tended));
        tokio::spawn(async move {
            match store.tend_audit().await {
                Ok(Some(months)) => metrics::gauge!("hygeia_audit_months_ahead").set(months),
                // There is nothing to be made ready, or another node does it.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the audit's tables could not be tended; it is tried again")
                }
            }
            drop(ended);
        });
    }
}

/// Says that a task has ended, even if it panics.
struct Ended(ActorRef<AuditMessage>, fn() -> AuditMessage);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send_message(self.1());
    }
}

/// One batch, and the word to everyone who waits for it.
async fn write(args: AuditArgs, batch: Vec<Waiting>) {
    let begun = args.clock.mono();
    let (mut entries, mut recorders) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for Waiting { access, told } in batch {
        entries.push(access);
        recorders.push(told);
    }
    let result = append(&args, entries).await;
    metrics::histogram!("hygeia_audit_batch_seconds").record(args.clock.mono().since(begun).as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 entries")]
    metrics::histogram!("hygeia_audit_batch_entries").record(recorders.len() as f64);
    if let Err(error) = &result {
        metrics::counter!("hygeia_audit_failures_total").increment(1);
        tracing::error!(entries = recorders.len(), %error, "accesses were not recorded; their requests are refused");
    }
    for told in recorders {
        // Whoever has gone away need not be told.
        let _ = told.send(result.as_ref().map_err(|_| unavailable()).copied());
    }
}

async fn append(args: &AuditArgs, entries: Vec<Access>) -> store::Result<()> {
    let chain = args.chains.take();
    let batch = args.chains.seal(&chain, entries);
    let result = args.store.append_audit(&batch).await;
    args.chains.ended(chain, &batch, &result);
    result
}
