//! The single connection that writes.
//!
//! Invariants:
//! - Transactions run one after another, in the order of their calls. Each runs in its own task, so that a
//!   caller that gives up does not leave one half done. A transaction whose caller has given up counts as
//!   `abandoned` until it ends, so that a load can wait for it.
//! - The connection is in the slot only between transactions. A connection whose transaction did not end
//!   cleanly is closed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{SqliteQuery, connect, fault};
use crate::store::{Error, Result};

/// Lends the connection to one transaction at a time.
pub(super) struct Writer {
    shared: Arc<Shared>,
    answer_timeout: Duration,
}

struct Shared {
    options: SqliteConnectOptions,
    path: PathBuf,
    acquire_timeout: Duration,
    slot: Mutex<Slot>,
    abandoned: AtomicUsize,
}

enum Slot {
    Idle(SqliteConnection),
    /// The connection was closed; the next transaction connects again.
    Lost,
    Closed,
}

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        connection: SqliteConnection,
        acquire_timeout: Duration,
        answer_timeout: Duration,
        path: PathBuf,
    ) -> Self {
        let shared = Shared {
            options,
            path,
            acquire_timeout,
            slot: Mutex::new(Slot::Idle(connection)),
            abandoned: AtomicUsize::new(0),
        };
        Writer { shared: Arc::new(shared), answer_timeout }
    }

    /// Runs `work` in a transaction. Commits it if `work` succeeds, and rolls it back if `work` fails.
    ///
    /// # Errors
    /// The error of `work`. `Unavailable`: the turn of the transaction did not come in time. `Unknown`: the
    /// commit failed, or no answer came in time, in which case the transaction continues.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.in_turn(move |shared, slot| Box::pin(shared.transact(slot, work))).await
    }

    /// Runs a statement that is a transaction by itself. Returns the number of rows changed. The call makes
    /// one round trip to the connection's thread; `BEGIN` and `COMMIT` would cost one more each.
    ///
    /// # Errors
    /// As `write`.
    pub(super) async fn write_alone(&self, query: SqliteQuery<'static>) -> Result<u64> {
        self.in_turn(move |shared, slot| Box::pin(shared.execute(slot, query))).await
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl for<'s> FnOnce(&'s Shared, &'s mut Slot) -> BoxFuture<'s, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let flight = Arc::new(Flight { shared: Arc::clone(&shared), state: AtomicU8::new(RUNNING) });
        let caller = Caller(Arc::clone(&flight));
        let task = tokio::spawn(async move {
            let _landing = Landing(flight);
            let Ok(mut slot) = timeout(shared.acquire_timeout, shared.slot.lock()).await else {
                return Err(Error::Unavailable("too many changes wait for their turn".to_owned()));
            };
            work(&shared, &mut slot).await
        });
        let answer = timeout(self.shared.acquire_timeout + self.answer_timeout, task).await;
        drop(caller);
        let result = match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Unknown("the transaction ended early".to_owned())),
            Err(_) => Err(Error::Unknown("no answer in time".to_owned())),
        };
        result.map_err(|error| error.at(&self.shared.path.display().to_string()))
    }

    /// Waits for all transactions in flight, if one of them has been abandoned by its caller.
    ///
    /// # Errors
    /// `Unavailable`: the transactions do not end in time.
    pub(super) async fn settle_abandoned(&self) -> Result<()> {
        if self.shared.abandoned.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match timeout(self.shared.acquire_timeout, self.shared.slot.lock()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Unavailable("a change that is under way does not end".to_owned())),
        }
    }

    /// Returns whether no transaction is in flight.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.shared.slot.try_lock().is_ok()
    }

    /// Closes the connection after the transactions that are queued for it.
    pub(super) async fn close(&self) {
        let mut slot = self.shared.slot.lock().await;
        if let Slot::Idle(connection) = std::mem::replace(&mut *slot, Slot::Closed) {
            connection.close().await.ok();
        }
    }
}

impl Shared {
    /// Takes the connection out of the slot and leaves `Lost` there until it is put back.
    async fn connection(&self, slot: &mut Slot) -> Result<SqliteConnection> {
        match std::mem::replace(slot, Slot::Lost) {
            Slot::Idle(connection) => Ok(connection),
            Slot::Lost => connect(&self.options, self.acquire_timeout).await,
            Slot::Closed => {
                *slot = Slot::Closed;
                Err(Error::Unavailable("the store is closed".to_owned()))
            }
        }
    }

    async fn execute(&self, slot: &mut Slot, query: SqliteQuery<'static>) -> Result<u64> {
        let mut connection = self.connection(slot).await?;
        match query.execute(&mut connection).await {
            Ok(done) => {
                *slot = Slot::Idle(connection);
                Ok(done.rows_affected())
            }
            Err(error) => {
                connection.close().await.ok();
                Err(fault::of_lone_statement(&error))
            }
        }
    }

    async fn transact<T>(
        &self,
        slot: &mut Slot,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>,
    ) -> Result<T> {
        let mut connection = self.connection(slot).await?;
        if let Err(error) = run(&mut connection, "BEGIN IMMEDIATE").await {
            *slot = Slot::Idle(connection);
            return Err(fault::of(&error));
        }
        // If `work` panics, the connection is dropped here, and SQLite rolls back when it closes.
        let result = work(&mut connection).await;
        let ended = match &result {
            Ok(_) => run(&mut connection, "COMMIT").await,
            Err(_) => run(&mut connection, "ROLLBACK").await,
        };
        match (result, ended) {
            (result, Ok(())) => {
                *slot = Slot::Idle(connection);
                result
            }
            (result, Err(error)) => {
                connection.close().await.ok();
                result.and_then(|_| Err(fault::of_commit(&error)))
            }
        }
    }
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) -> std::result::Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

const RUNNING: u8 = 0;
const ENDED: u8 = 1;
const ABANDONED: u8 = 2;

/// The state shared by the caller and the transaction of one call. The side that ends first records it for
/// the other.
struct Flight {
    shared: Arc<Shared>,
    state: AtomicU8,
}

struct Caller(Arc<Flight>);

impl Drop for Caller {
    fn drop(&mut self) {
        let Flight { shared, state } = &*self.0;
        shared.abandoned.fetch_add(1, Ordering::AcqRel);
        if state.swap(ABANDONED, Ordering::AcqRel) == ENDED {
            shared.abandoned.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

struct Landing(Arc<Flight>);

impl Drop for Landing {
    fn drop(&mut self) {
        if self.0.state.swap(ENDED, Ordering::AcqRel) == ABANDONED {
            self.0.shared.abandoned.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
