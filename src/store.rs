//! Persistence: narrow traits by concern, and the two databases that implement them. PostgreSQL serves
//! clusters; SQLite is the embedded default of a single process. `contract` is the test suite that both pass.
//!
//! Invariants that callers rely on:
//! - A commit writes state and event in one transaction, and only under the epoch that the lease row holds.
//!   The lease row stays locked against a taker until the transaction has ended.
//! - `patients.version` is the version of the newest event of that patient.
//! - A call that failed with `Error::Unavailable` had no effect and will have none. A call that failed with
//!   `Error::Unknown` may have taken effect, or may still do so. Raising the epoch of the shard's lease
//!   (`refence`, or `take` under the same owner) settles the outcome: no commit is in flight afterwards, and
//!   a late one is fenced.
//! - No error text contains data of a patient's record, or a password.

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

/// Why a database call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The call had no effect and will have none: it was refused, aborted, or never sent. A retry may
    /// succeed.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The answer is missing: the call may have taken effect, or may still do so.
    #[error("the outcome in the database is unknown: {0}")]
    Unknown(String),
    /// The call had no effect, and a retry will not help: a bug, a corrupt file, a missing migration.
    #[error("the database refused: {0}")]
    Broken(String),
}

/// The result of a store call.
pub type Result<T> = std::result::Result<T, Error>;

/// One change of one patient, decided under a lease.
#[derive(Clone)]
pub struct PatientAppend {
    /// The shard that decided the change.
    pub shard: ShardNo,
    /// The epoch under which the shard decided.
    pub epoch: Epoch,
    /// The caller who requested the change.
    pub caller: Caller,
    /// The action that the caller requested.
    pub action: Action,
    /// The event. Its version is one more than that of the state it was decided on.
    pub recorded: RecordedEvent,
    /// The unique key of the e-mail address that the patient had before, if the event frees an address: a
    /// deletion, or an update that changes the address.
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
    /// The shard that decided the opening.
    pub shard: ShardNo,
    /// The epoch under which the shard decided.
    pub epoch: Epoch,
    /// The account to store.
    pub account: Arc<Account>,
}

/// The outcome of one row of a batch. A refused row does not affect the other rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// The row is durable.
    Committed,
    /// Refused: another patient that is not deleted has the e-mail address.
    EmailTaken,
    /// Refused: the lease row holds another epoch.
    Fenced,
    /// Refused: the database has a newer version than the decision assumed, or the command was already
    /// carried out. The caller must load the state again.
    Conflict,
}

/// A loaded patient, with the event of the command that the caller asked about.
#[derive(Clone, Debug)]
pub struct LoadedPatient {
    /// The current state.
    pub state: PatientState,
    /// The event of that command, if the command was carried out.
    pub applied: Option<RecordedEvent>,
}

/// Patients and their events.
#[async_trait]
pub trait PatientStore: Send + Sync {
    /// Commits the batch in one transaction and returns the outcomes in the order of the batch. A batch holds
    /// at most one row per patient.
    ///
    /// # Errors
    /// `Unavailable`: no row was committed. `Unknown`: any row may have been committed.
    async fn commit_patients(&self, batch: &[PatientAppend]) -> Result<Vec<AppendOutcome>> {
        self.commit_patients_audited(batch, None).await
    }

    /// As `commit_patients`, and stores `audit` before the rows of the batch or in the same transaction. The
    /// audit batch is stored even if every row is refused, and is not stored if the call fails with
    /// `Unavailable`.
    async fn commit_patients_audited(
        &self,
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>>;

    /// Returns the state of `id`, and the event of `command` if that command was carried out. Waits for a
    /// change of that patient that is in flight in the database. A registration in flight cannot be waited
    /// for, so a caller must never cache the absence of a patient.
    async fn load_patient(&self, id: PatientId, command: Option<CommandId>) -> Result<LoadedPatient>;

    /// Returns a page of patients that are not deleted.
    async fn search(&self, search: &PatientSearch) -> Result<PatientPage>;

    /// Returns the events of `id` with versions above `after`, in ascending order, at most `limit_rows`.
    async fn history(&self, id: PatientId, after: Version, limit_rows: u32) -> Result<Vec<RecordedEvent>>;

    /// Returns whether no patient was ever registered.
    async fn is_empty(&self) -> Result<bool>;
}

/// The event table as an outbox: events that are not yet published or billed.
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Returns unpublished events in the order of `seq`, at most `limit_rows`. For each patient the answer is
    /// a prefix of that patient's unpublished events.
    async fn unpublished(&self, limit_rows: u32) -> Result<Vec<OutboxEvent>> {
        let read = OutboxRead { known: &[], now: Timestamp(i64::MAX), replay_of: None, limit_rows };
        self.read_unpublished(read).await.map(|rows| rows.events)
    }

    /// As `unpublished`, for a reader that still processes the rows `known`; leaves out patients that are
    /// parked now. For each other patient, `known` and the answer together are a prefix of the unpublished
    /// events. Rows that cannot be decoded are listed in the answer and do not make the call fail.
    async fn read_unpublished(&self, read: OutboxRead<'_>) -> Result<OutboxRows>;

    /// Records that the log `log_no` took the events, and that it holds the `anchors`. Returns false, and
    /// records nothing, if another log has replaced `log_no`.
    async fn mark_published(&self, seqs: &[i64], log_no: i64, anchors: &[LogAnchor]) -> Result<bool>;

    /// Parks `rows` of `queue`.
    async fn park(&self, queue: Queue, rows: &[ParkRow]) -> Result<()>;

    /// Puts back into the outbox the events that logs with other names than `broker` took and that analytics
    /// has not applied, because those logs may have lost them. One call scans at most `rows_max` rows,
    /// starting behind the number `after`, so that no call takes long. Call again with `PutBack::next` until
    /// that is `None`.
    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack>;

    /// Returns whether any event that a log with another name than `broker` took is neither counted by
    /// analytics nor put back. Once the answer is false for the log in use, it stays false.
    async fn any_forgotten(&self, broker: &str) -> Result<bool>;

    /// Returns how many events wait, and since when the oldest one does.
    async fn outbox_depth(&self) -> Result<OutboxDepth>;

    /// Returns registrations whose patient has no account yet, oldest first, at most `limit_rows`. Leaves out
    /// those parked at `now`. Rows that cannot be decoded are listed in the answer and do not make the call
    /// fail.
    async fn unbilled(&self, now: Timestamp, limit_rows: u32) -> Result<OutboxRows>;

    /// Records that the patients of these events have their accounts.
    async fn mark_billed(&self, seqs: &[i64]) -> Result<()>;
}

/// The parameters of `OutboxStore::read_unpublished`.
#[derive(Clone, Copy, Debug)]
pub struct OutboxRead<'a> {
    /// Numbers (`seq`) of rows to leave out.
    pub known: &'a [i64],
    /// The current time; patients that are parked at this time are left out.
    pub now: Timestamp,
    /// The log that is being replayed, if any: patients that the replay has not reached are left out.
    pub replay_of: Option<i64>,
    /// Maximum number of rows.
    pub limit_rows: u32,
}

/// The result of one call of `OutboxStore::republish_forgotten`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Number of events put back into the outbox.
    pub rows: u64,
    /// The `after` of the next call; `None` if no row is left.
    pub next: Option<i64>,
}

/// The number of rows up to which the depth of the outbox is counted.
pub const OUTBOX_DEPTH_ROWS_MAX: u32 = 100_000;

/// The depth of the outbox. Rows are counted up to `OUTBOX_DEPTH_ROWS_MAX`, so that the query stays cheap
/// however full the outbox is. One more than that limit stands for any larger number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxDepth {
    /// Events that wait for Kafka.
    pub unpublished_rows: u64,
    /// When the oldest waiting event was decided.
    pub oldest_at: Option<Timestamp>,
    /// Registrations that wait for an account.
    pub unbilled_rows: u64,
    /// Events that are parked. Each holds back all later events of its patient.
    pub parked_events: u64,
    /// Registrations that are parked.
    pub parked_registrations: u64,
}

/// The position of a consumer group in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOffset {
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
}

/// The log that offsets belong to. A broker that lost its messages starts another log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectionSource {
    /// Consumer group.
    pub group: String,
    /// The name of the log (`TopicLog::name`).
    pub broker: String,
    /// Topic.
    pub topic: String,
}

/// The effect of a batch on the projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Observations that were counted.
    pub counted: u64,
    /// Observations that were counted before, without effect.
    pub repeated: u64,
    /// Versions that will never be counted, because too many later versions of the same patient came first.
    pub given_up: u64,
}

/// The analytics projection. Results and offsets always change in one transaction.
#[async_trait]
pub trait ProjectionStore: Send + Sync {
    /// Returns the offsets to continue from. Partitions that were never read are left out.
    async fn offsets(&self, source: &ProjectionSource) -> Result<Vec<PartitionOffset>>;

    /// Counts the new ones of `observations` (ordered by version within each patient) and moves the offsets
    /// forward, in one transaction. The call may be repeated after any failure: no observation is counted
    /// twice.
    async fn apply(
        &self,
        source: &ProjectionSource,
        offsets: &[PartitionOffset],
        observations: &[Observation],
    ) -> Result<Applied>;

    /// Returns the counts, with registrations from `first_day` on and births up to each day of `born_by`. The
    /// cost does not depend on the number of patients.
    async fn counts(&self, first_day: Date, born_by: &[Date]) -> Result<Counts>;
}

/// Billing accounts.
#[async_trait]
pub trait AccountStore: Send + Sync {
    /// As `PatientStore::commit_patients`. A row whose patient already has an account is a `Conflict`.
    async fn commit_accounts(&self, batch: &[AccountAppend]) -> Result<Vec<AppendOutcome>>;

    /// Returns the account of `patient`.
    async fn load_account(&self, patient: PatientId) -> Result<Option<Arc<Account>>>;
}

/// A user as stored.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The e-mail address in lower case: the login name, and the subject of tokens.
    pub email: String,
    /// The bcrypt hash, `$2b$…`.
    pub password_hash: String,
    /// The role, as `Role::as_str` writes it.
    pub role: String,
    /// Whether the user is disabled: logins are refused, and tokens issued before no longer hold.
    pub disabled: bool,
    /// When the user was created.
    pub created_at: Timestamp,
    /// The user's generation. It rises with each change of the password, each disabling and each logout from
    /// all sessions. Sessions and tokens of an earlier generation do not hold.
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

/// The originator of a change of users. The permission is checked in the transaction of the change, because
/// the user may have lost it since the request was admitted.
#[derive(Clone, Debug)]
pub enum ChangedBy {
    /// An operator: anyone who can run the program on the database.
    Operator,
    /// The set-up, which adds a user only if none exists.
    SetUp,
    /// The user with the login name `email`, who must be enabled and have the role.
    User {
        /// The user's e-mail address.
        email: String,
        /// The role, as `Role::as_str` writes it.
        role: String,
    },
}

/// The outcome of adding a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserAdded {
    /// The user was added.
    Done,
    /// The e-mail address is taken. For `ChangedBy::SetUp`: a user exists already.
    Taken,
    /// The user who requested the change no longer has the permission.
    NotPermitted,
}

/// A change of a user; a field that is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// The new role, as `Role::as_str` writes it.
    pub role: Option<String>,
    /// Whether the user is to be disabled.
    pub disabled: Option<bool>,
}

/// The outcome of changing a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserChanged {
    /// The change was made; holds the changed user.
    Done(UserRow),
    /// No such user exists.
    Nobody,
    /// The user who requested the change no longer has the permission.
    NotPermitted,
    /// Refused: the change would leave no enabled ADMIN. An operator may make such a change.
    LastAdmin,
}

/// Users.
#[async_trait]
pub trait UserStore: Send + Sync {
    /// Returns the user with the login name `email` (lower case).
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>>;
    /// Adds a user.
    async fn add_user(&self, user: &UserRow, by: &ChangedBy) -> Result<UserAdded>;
    /// Sets the password's hash and begins the next generation. Returns false if no such user exists. With
    /// `judged`, also returns false unless the stored hash equals `judged` and the user is enabled.
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
    /// Returns users in the order of e-mail addresses, starting behind `after`, at most `limit_rows`.
    async fn list_users(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>>;
}

/// All traits of the database together, for the composition root.
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
    /// Checks that the schema fits, after a migration where the settings ask for one. The server calls this
    /// once before any other method, and repeats the call after `Unavailable`.
    ///
    /// # Errors
    /// `Broken`: the schema does not fit.
    async fn prepare(&self) -> Result<()>;
    /// Returns how many transactions each of the two journals (patients, accounts) may have in flight.
    fn writers(&self) -> usize;
    /// Checks that the database can be read and written, and returns its wall-clock time.
    async fn ping(&self) -> Result<Timestamp>;
    /// Closes all connections after the calls in flight have ended.
    async fn close(&self);
}
