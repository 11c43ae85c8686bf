//! What is durable, as narrow traits by concern, and the two databases behind them: PostgreSQL for
//! clusters, SQLite as the embedded default of one process. `contract` is the suite both pass.
//!
//! Invariants that callers rely on:
//! - A commit writes state and event in one transaction, and only under the epoch that the lease row
//!   holds; the row stays locked against a taker until the transaction has ended.
//! - `patients.version` is the version of the newest event of that patient.
//! - What failed with `Error::Unavailable` did not happen and will not; what failed with
//!   `Error::Unknown` may have happened or may still. Raising the epoch of the shard's lease (`refence`, or `take`
//!   under the same owner) settles it: no commit is in flight then, and one that comes later is fenced.
//! - No error holds what a patient's record holds, or a password.

mod audit;
mod codec;
#[cfg(test)]
mod contract;
mod delta;
mod leases;
mod open;
mod postgres;
mod reading;
mod reason;
mod searching;
mod sessions;
mod sqlite;
mod topic_log;
mod trimming;

use std::sync::Arc;

use async_trait::async_trait;
use time::Date;

use crate::domain::access::{Action, Caller};
use crate::domain::account::Account;
use crate::domain::analytics::{Counts, Observation};
use crate::domain::event::{OutboxEvent, RecordedEvent};
use crate::domain::ids::{CommandId, Epoch, PatientId, ShardNo, Version};
use crate::domain::patient::PatientState;
use crate::domain::search::{PatientPage, PatientSearch};
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;

pub use audit::{
    AUDIT_BATCHES_MAX, AuditAnchor, AuditArchiveStore, AuditBatch, AuditFound, AuditHead, AuditPosition,
    AuditSearch, AuditStore, EventAt,
};
pub use leases::{LeaseMark, LeaseRow, LeaseStore, OthersLease, Refenced, Taken, TakenLease, Wanted};
pub use open::{DEFAULT_URL, Settings, Use, migrate, open};
pub use reading::{OutboxRows, UnreadableRow};
pub use sessions::{
    AttemptStore, Attempts, CallerStore, Hash, KeyStore, NewSession, Revocation, RevokedSession, Rotation,
    SessionStore, SharedSecret, SigningKeyRow, USED_TOKENS_KEPT,
};
pub use topic_log::{NextLog, ParkRow, Queue, Replay, Replayed, TopicLog, TopicLogStore};

/// Why the database did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It did not happen and will not: refused, aborted, or never sent. Trying again may help.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// It may have happened, or may still: the answer is missing.
    #[error("the outcome in the database is unknown: {0}")]
    Unknown(String),
    /// It did not happen, and trying again will not help: a bug, a corrupt file, a missing migration.
    #[error("the database refused: {0}")]
    Broken(String),
}

/// The result of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// One change of one patient, decided under a lease.
#[derive(Clone)]
pub struct PatientAppend {
    /// The shard that decided it.
    pub shard: ShardNo,
    /// The epoch it decided under.
    pub epoch: Epoch,
    /// Who wanted it.
    pub caller: Caller,
    /// What was wanted.
    pub action: Action,
    /// The event, whose version is one more than that of the state it was decided on.
    pub recorded: RecordedEvent,
    /// The e-mail address in its unique form that the patient had before, if the event frees one:
    /// a deletion, or an update that changes it.
    pub released_email_key: Option<String>,
}

/// Never prints the address.
impl std::fmt::Debug for PatientAppend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PatientAppend")
            .field("shard", &self.shard)
            .field("epoch", &self.epoch)
            .field("recorded", &self.recorded)
            .finish_non_exhaustive()
    }
}

/// One opening of an account, decided under a lease.
#[derive(Clone, Debug)]
pub struct AccountAppend {
    /// The shard that decided it.
    pub shard: ShardNo,
    /// The epoch it decided under.
    pub epoch: Epoch,
    /// The account as it will be.
    pub account: Arc<Account>,
}

/// What became of one row of a batch. Rows do not hurt each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is durable.
    Committed,
    /// Refused: a living patient has the e-mail address.
    EmailTaken,
    /// Refused: the lease row holds another epoch.
    Fenced,
    /// Refused: the database knows a version that the decision did not, or the command was carried
    /// out already. The state has to be loaded again.
    Conflict,
}

/// A patient as loaded, with what became of the command one asks for.
#[derive(Clone, Debug)]
pub struct LoadedPatient {
    /// The state now.
    pub state: PatientState,
    /// The event of the command asked for, if it was carried out.
    pub applied: Option<RecordedEvent>,
}

/// Patients and their events.
#[async_trait]
pub trait PatientStore: Send + Sync {
    /// Commits the batch in one transaction; the outcomes are in the order of the batch. A batch holds
    /// at most one row per patient.
    ///
    /// # Errors
    /// `Unavailable`: no row was committed. `Unknown`: any may have been.
    async fn commit_patients(&self, batch: &[PatientAppend]) -> Result<Vec<AppendOutcome>> {
        self.commit_patients_audited(batch, None).await
    }

    /// As `commit_patients`; `audit` is durable before any row of the batch is, or with it. It stays also if all
    /// rows are refused. If the call fails with `Unavailable` it is not there either.
    async fn commit_patients_audited(
        &self,
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>>;

    /// The state of `id`, and what became of `command` if one is given. Waits for a change of that
    /// patient that is in flight in the database; a registration in flight cannot be waited for, so
    /// the absence of a patient is never to be remembered.
    async fn load_patient(&self, id: PatientId, command: Option<CommandId>) -> Result<LoadedPatient>;

    /// A page of living patients.
    async fn search(&self, search: &PatientSearch) -> Result<PatientPage>;

    /// The events of `id` after the version `after`, in the order of versions, at most `limit_rows`.
    async fn history(&self, id: PatientId, after: Version, limit_rows: u32) -> Result<Vec<RecordedEvent>>;

    /// Whether no patient was ever registered.
    async fn is_empty(&self) -> Result<bool>;
}

/// The event table as an outbox: what the world has not been told yet.
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Events not yet published, in the order of `seq`, at most `limit_rows`: for each patient a
    /// prefix of what is unpublished.
    async fn unpublished(&self, limit_rows: u32) -> Result<Vec<OutboxEvent>> {
        let read = OutboxRead { known: &[], now: Timestamp(i64::MAX), replay_of: None, limit_rows };
        self.read_unpublished(read).await.map(|rows| rows.events)
    }

    /// As `unpublished`, for a reader that is still busy with the rows `known`, without the patients parked now.
    /// For each other patient, `known` and the answer together are a prefix of what is unpublished. Rows that
    /// cannot be read are told as such and are no reason to fail.
    async fn read_unpublished(&self, read: OutboxRead<'_>) -> Result<OutboxRows>;

    /// Notes that the log `log_no` took the events, and what it holds at the `anchors`. False if another log has
    /// taken its place: then nothing is noted.
    async fn mark_published(&self, seqs: &[i64], log_no: i64, anchors: &[LogAnchor]) -> Result<bool>;

    /// Parks these rows of `queue`.
    async fn park(&self, queue: Queue, rows: &[ParkRow]) -> Result<()>;

    /// Puts back what logs of other names than `broker` took and analytics has not applied, since
    /// it may have been lost with them. One call looks at no more than `rows_max` rows, those after
    /// the number `after`, so that no call takes long: call again until there is no `next`.
    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack>;

    /// Whether some event that a log of another name than `broker` took is neither counted by analytics nor
    /// put back yet. Once false for the log in use, it stays so.
    async fn any_forgotten(&self, broker: &str) -> Result<bool>;

    /// How many events wait, and since when the oldest does.
    async fn outbox_depth(&self) -> Result<OutboxDepth>;

    /// Registrations whose patient has no account yet, oldest first, at most `limit_rows`, without those
    /// parked at `now`. Rows that cannot be read are told as such and are no reason to fail.
    async fn unbilled(&self, now: Timestamp, limit_rows: u32) -> Result<OutboxRows>;

    /// Notes that the patients of these events have their accounts.
    async fn mark_billed(&self, seqs: &[i64]) -> Result<()>;
}

/// What to read of the outbox.
#[derive(Clone, Copy, Debug)]
pub struct OutboxRead<'a> {
    /// Rows to be left out.
    pub known: &'a [i64],
    /// Patients parked at this moment are left out.
    pub now: Timestamp,
    /// While this log is replayed: patients whose turn has not come are left out.
    pub replay_of: Option<i64>,
    /// Rows at most.
    pub limit_rows: u32,
}

/// What a call of `OutboxStore::republish_forgotten` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// How many events wait again.
    pub rows: u64,
    /// After which number the next call has to look; `None` if nothing is left.
    pub next: Option<i64>,
}

/// How far the rows of the outbox are counted.
pub const OUTBOX_DEPTH_ROWS_MAX: u32 = 100_000;

/// How full the outbox is. Rows are counted up to `OUTBOX_DEPTH_ROWS_MAX`, so that asking costs little
/// however full it is; one more than that stands for any larger number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxDepth {
    /// Events that wait for Kafka.
    pub unpublished_rows: u64,
    /// When the oldest of them was decided.
    pub oldest_at: Option<Timestamp>,
    /// Registrations that wait for an account.
    pub unbilled_rows: u64,
    /// Events that are parked, each with all that follows it for its patient.
    pub parked_events: u64,
    /// Registrations that are parked.
    pub parked_registrations: u64,
}

/// Where a consumer group goes on reading one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOffset {
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
}

/// Which log the offsets belong to: a broker that forgot its messages starts another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectionSource {
    /// Consumer group.
    pub group: String,
    /// The name of the log (`TopicLog::name`).
    pub broker: String,
    /// Topic.
    pub topic: String,
}

/// What a batch changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Observations that counted.
    pub counted: u64,
    /// Observations known already, without effect.
    pub repeated: u64,
    /// Versions that will not be counted any more: too many later ones of the same patient have been.
    pub given_up: u64,
}

/// The analytics projection: results and offsets, always in one transaction.
#[async_trait]
pub trait ProjectionStore: Send + Sync {
    /// Where to go on. Partitions never read are left out.
    async fn offsets(&self, source: &ProjectionSource) -> Result<Vec<PartitionOffset>>;

    /// Counts what is new of `observations` (each patient's in the order of versions) and moves the
    /// offsets (never back), in one transaction. After any failure it may be called again: what was
    /// counted is not counted twice.
    async fn apply(
        &self,
        source: &ProjectionSource,
        offsets: &[PartitionOffset],
        observations: &[Observation],
    ) -> Result<Applied>;

    /// The counts, with registrations from `first_day` on and births up to each day of `born_by`. What it costs does
    /// not depend on how many patients there are.
    async fn counts(&self, first_day: Date, born_by: &[Date]) -> Result<Counts>;
}

/// Billing accounts.
#[async_trait]
pub trait AccountStore: Send + Sync {
    /// As `PatientStore::commit_patients`; an account that its patient has already is a `Conflict`.
    async fn commit_accounts(&self, batch: &[AccountAppend]) -> Result<Vec<AppendOutcome>>;

    /// The account of `patient`.
    async fn load_account(&self, patient: PatientId) -> Result<Option<Arc<Account>>>;
}

/// A user as stored.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The e-mail address, in lower case: the name one logs in with and the subject of tokens.
    pub email: String,
    /// `$2b$…`
    pub password_hash: String,
    /// `Role::as_str`
    pub role: String,
    /// A disabled user cannot log in, and tokens already given no longer hold.
    pub disabled: bool,
    /// When the user was made.
    pub created_at: Timestamp,
    /// The generation of what the user is given: it rises with each change of the password, each disabling and each
    /// logout everywhere. Sessions and tokens of an earlier one do not hold.
    pub sessions_not_before: Timestamp,
}

/// Never prints the hash.
impl std::fmt::Debug for UserRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRow")
            .field("role", &self.role)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}

/// Who changes users. It is judged in the transaction of the change, because a user may have lost the right to it
/// since the request was let in.
#[derive(Clone, Debug)]
pub enum ChangedBy {
    /// Whoever can run the program on the database.
    Operator,
    /// The set-up: it adds a user only if there is none.
    SetUp,
    /// The user who logs in with `email`, who must be enabled and have the role.
    User {
        /// The user's e-mail address.
        email: String,
        /// `Role::as_str`
        role: String,
    },
}

/// What became of a user to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserAdded {
    /// The user is there.
    Done,
    /// The e-mail address is taken, or for `ChangedBy::SetUp`: there is a user.
    Taken,
    /// The user who adds is not permitted to any more.
    NotPermitted,
}

/// What is changed of a user; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// `Role::as_str`
    pub role: Option<String>,
    /// Whether the user is kept out.
    pub disabled: Option<bool>,
}

/// What became of a change of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserChanged {
    /// It was made; the user as it is now.
    Done(UserRow),
    /// There is no such user.
    Nobody,
    /// The user who changes is not permitted to any more.
    NotPermitted,
    /// It would leave no enabled ADMIN. An operator may do that.
    LastAdmin,
}

/// Users.
#[async_trait]
pub trait UserStore: Send + Sync {
    /// The user who logs in with `email` (lower case).
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>>;
    /// Adds a user.
    async fn add_user(&self, user: &UserRow, by: &ChangedBy) -> Result<UserAdded>;
    /// Sets the password's hash and begins the next generation; false if there is no such user. With `judged`, only if
    /// that is still the hash and the user is enabled.
    async fn set_password_hash(
        &self,
        email: &str,
        password_hash: &str,
        judged: Option<&str>,
        now: Timestamp,
    ) -> Result<bool>;
    /// Changes a user. A disabling begins the next generation.
    async fn change_user(
        &self,
        email: &str,
        change: &UserChange,
        by: &ChangedBy,
        now: Timestamp,
    ) -> Result<UserChanged>;
    /// Users in the order of e-mail addresses, after `after`, at most `limit_rows`.
    async fn list_users(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>>;
}

/// The whole database, for the composition root.
#[async_trait]
pub trait Store:
    PatientStore
    + LeaseStore
    + OutboxStore
    + TopicLogStore
    + ProjectionStore
    + AccountStore
    + CallerStore
    + AuditArchiveStore
{
    /// Makes sure that the schema fits, migrating it first where the settings say so. Called once, before
    /// anything else, by who serves; again if it was `Unavailable`.
    ///
    /// # Errors
    /// `Broken`: the schema does not fit.
    async fn prepare(&self) -> Result<()>;
    /// How many transactions each of the two journals (patients, accounts) may have in flight.
    fn writers(&self) -> usize;
    /// Answers if the database can be read and written: with what its wall clock said.
    async fn ping(&self) -> Result<Timestamp>;
    /// Closes all connections, after what is in flight.
    async fn close(&self);
}
