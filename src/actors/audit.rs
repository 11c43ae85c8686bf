//! The audit journal: writes the accesses that the edges of this node record, in sealed batches, as the
//! journal of changes does with appends. Child of the node's supervisor, on nodes with an edge.
//!
//! While a batch is being written, accesses gather for the next one. A batch that takes longer than a commit
//! normally does may be stuck; then a further batch starts beside it.
//!
//! Invariants:
//! - A recorder gets its reply only after the access is durable, or with an error if the access cannot be
//!   made durable. An edge that waits for the reply shows nothing that is not audited.
//! - One batch is in flight at a time, unless it takes longer than `batch_wait_ms`. Several concurrent
//!   batches would be smaller, and each costs the database a transaction whatever its size.
//! - No access waits for a batch that hangs, as long as a further one may start: at most `AUDIT_BATCHES_MAX`
//!   are in flight.
//! - At most `queue_max` accesses wait; further ones are refused.
//! - `handle` never awaits.
//!
//! Changes take another path: their audit entries commit with them (`actors::journal`).

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

/// The interval of the database maintenance that commits must not wait for.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// How accesses are recorded.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether accesses are recorded. Must be the same on every node of a cluster.
    pub enabled: bool,
    /// The secret that seals the rows: at least 32 bytes, used as they are. Must be the same on every node of
    /// a cluster and for `hygeia audit verify`. Chains sealed before a change of the secret do not verify
    /// with the new secret alone: see `old_secret`.
    pub secret: Option<Secret>,
    /// The previous secret. Rows sealed with it are still shown and still verify; new rows are never sealed
    /// with it.
    pub old_secret: Option<Secret>,
    /// Maximum number of accesses that wait for a batch. Further requests get 503.
    pub queue_max: usize,
    /// Maximum number of accesses per batch.
    pub batch_max: usize,
    /// How long a batch may be in flight before a further one starts beside it, in milliseconds.
    pub batch_wait_ms: u64,
    /// How often a chain pins the newest batches of the other chains, in milliseconds.
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
    /// Returns the keys whose values are not allowed, each with the allowed values.
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

    /// Returns the key that seals rows and the older keys; `None` without a secret.
    pub fn keys(&self) -> Option<Keys> {
        let key = |secret: &Secret| Key::of(secret.bytes());
        let older = self.old_secret.iter().map(key).collect();
        self.secret.as_ref().map(|secret| Keys::new(key(secret), older))
    }

    /// Returns `pins_every_ms` as a duration.
    pub fn pins_every(&self) -> Duration {
        Duration::from_millis(self.pins_every_ms)
    }
}

/// The handle through which edges record accesses. Cloning is cheap.
#[derive(Clone)]
pub struct AuditHandle {
    /// `None` where nothing is recorded.
    way: Option<Way>,
}

/// The queue of accesses, and the journal to notify.
#[derive(Clone)]
struct Way {
    gathering: Arc<Gathering>,
    journal: Address<AuditMessage>,
}

impl AuditHandle {
    /// Creates a handle that adds accesses to `gathering` and notifies `journal`.
    pub fn new(gathering: Arc<Gathering>, journal: Address<AuditMessage>) -> Self {
        AuditHandle { way: Some(Way { gathering, journal }) }
    }

    /// Creates a handle that records nothing.
    pub fn off() -> Self {
        AuditHandle { way: None }
    }

    /// Returns whether accesses are recorded.
    pub fn is_on(&self) -> bool {
        self.way.is_some()
    }

    /// Records `access`, and returns after it is durable.
    ///
    /// # Errors
    /// `Unavailable` if the access could not be made durable, or if that is unknown. `Overloaded` if too many
    /// accesses wait.
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

/// The messages of the audit journal.
pub enum AuditMessage {
    /// From an edge: accesses wait to be written.
    Gathered,
    /// From the journal's own task: its batch has ended.
    BatchEnded,
    /// From a timer, `batch_wait_ms` after an access had to wait. Carries the number of batches begun at that
    /// time.
    Waited(u64),
    /// From a timer, every `TEND_EVERY`: run the database maintenance.
    Tend,
    /// From the journal's own task: the maintenance has ended.
    Tended,
}

impl ractor::Message for AuditMessage {}

/// What the audit journal needs from the node.
#[derive(Clone)]
pub struct AuditArgs {
    /// The database.
    pub store: Arc<dyn AuditStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The chains of this node's edges.
    pub chains: Chains,
    /// The limits of the journal.
    pub settings: Settings,
    /// The queue to which the edges add accesses.
    pub gathering: Arc<Gathering>,
}

/// The actor.
#[derive(Default)]
pub struct AuditJournal;

/// The state of one incarnation.
pub struct AuditState {
    args: AuditArgs,
    /// The number of batches in flight.
    under_way: usize,
    /// The number of batches begun since the start.
    begun: u64,
    /// Whether a timer runs.
    timed: bool,
    /// Whether the database maintenance is running.
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
        // This incarnation has not received the notifications of an earlier one.
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
        // The journal has no children. The default would stop the actor at any event.
        Ok(())
    }
}

impl AuditState {
    /// Starts the next batch. If one is in flight, sets a timer to check it later.
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

    /// Runs the database maintenance, unless it is running.
    fn tend(&mut self, myself: &ActorRef<AuditMessage>) {
        if self.tends {
            return;
        }
        self.tends = true;
        let (store, ended) = (Arc::clone(&self.args.store), Ended(myself.clone(), || AuditMessage::Tended));
        tokio::spawn(async move {
            match store.tend_audit().await {
                Ok(Some(months)) => metrics::gauge!("hygeia_audit_months_ahead").set(months),
                // There is nothing to prepare, or another node prepares it.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the audit's tables could not be tended; it is tried again")
                }
            }
            drop(ended);
        });
    }
}

/// Reports the end of a task, even if it panics.
struct Ended(ActorRef<AuditMessage>, fn() -> AuditMessage);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send_message(self.1());
    }
}

/// Writes one batch, and replies to its recorders.
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
        // A recorder that has gone away needs no reply.
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
