//! The store's connection pool. It hands out the connection used last: a backend with warm plans and buffers
//! answers in half the time of one that was idle, and a usual pool hands its connections out in turn.
//!
//! Invariants:
//! - There are never more than `lanes_max` connections, those being opened included. A caller waits at most
//!   `wait` for one.
//! - A caller that finds none free takes the first that another caller returns or that has been opened, for
//!   whomever. Opening one takes a second on a busy machine, longer than most calls.
//! - A connection whose last call did not end cleanly is closed and never used again.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::connect::Connector;
use super::fault::Failure;
use super::{CONNECT_PAUSE, PgQuery, within};

/// A connection that has been idle for longer is pinged before use, so that a server restart between two
/// calls does not make the outcome of the second call unknown.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// An older connection is closed after its call: the memory of its backend grows with the plans that it keeps.
const LANE_AGE_MAX: Duration = Duration::from_secs(1_800);

/// The pool. A lane is one connection of it.
pub(super) struct Lanes(Arc<Shared>);

struct Shared {
    connector: Connector,
    wait: Duration,
    /// Has a permit for each lane that may still be opened.
    room: Arc<Semaphore>,
    /// Has a permit for each lane in `free`.
    available: Semaphore,
    free: Mutex<Vec<Lane>>,
}

struct Lane {
    connection: PgConnection,
    opened_at: Instant,
    used_at: Instant,
    _place: OwnedSemaphorePermit,
}

impl Lanes {
    /// Creates a pool of at most `lanes_max` connections, opened on demand. A caller waits at most `wait` for
    /// a connection. Opening one may take twice as long: its caller has left, but the next one finds it.
    pub(super) fn new(connector: Connector, lanes_max: usize, wait: Duration) -> Self {
        let room = Arc::new(Semaphore::new(lanes_max));
        Lanes(Arc::new(Shared {
            connector,
            wait,
            room,
            available: Semaphore::new(0),
            free: Mutex::default(),
        }))
    }

    /// Runs one statement, which may take at most `limit`.
    pub(super) async fn rows(&self, limit: Duration, query: PgQuery<'_>) -> Result<Vec<PgRow>, Failure> {
        let mut checkout = self.checkout().await?;
        let result = within(limit, query.fetch_all(checkout.connection())).await;
        checkout.settle(&result);
        result
    }

    /// As `rows`, for a statement that returns none. Returns the number of rows changed.
    pub(super) async fn change(&self, limit: Duration, query: PgQuery<'_>) -> Result<u64, Failure> {
        let mut checkout = self.checkout().await?;
        let result = within(limit, query.execute(checkout.connection())).await;
        checkout.settle(&result);
        result.map(|done| done.rows_affected())
    }

    /// Takes a connection for several statements.
    pub(super) async fn checkout(&self) -> Result<Checkout, Failure> {
        let lane = timeout(self.0.wait, self.0.lane()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        Ok(Checkout { lane: lane.map_err(Failure::NotSent)?, lanes: Arc::clone(&self.0) })
    }

    /// Opens a connection if there is none, so that the first caller need not wait for it.
    pub(super) async fn warm(&self) -> Result<(), Failure> {
        self.checkout().await.map(|checkout| checkout.settle(&Ok(())))
    }

    /// Closes the free connections; those in use close after their call. No further statement starts.
    pub(super) async fn close(&self) {
        self.0.room.close();
        self.0.available.close();
        while let Some(lane) = self.0.pop() {
            // The connection ends either way.
            let _ = lane.connection.close().await;
        }
    }
}

impl Shared {
    /// Returns the lane used last, pinged if it has been idle, or the next one that is returned or opened.
    async fn lane(self: &Arc<Self>) -> Result<Lane, sqlx::Error> {
        let mut opening: Option<oneshot::Receiver<sqlx::Error>> = None;
        loop {
            tokio::select! {
                biased;
                free = self.available.acquire() => {
                    free.map_err(closed)?.forget();
                    let Some(mut lane) = self.pop() else { continue };
                    if lane.used_at.elapsed() <= TRUSTED_IDLE || lane.connection.ping().await.is_ok() {
                        return Ok(lane);
                    }
                    // The others have been idle for longer and have gone the same way.
                    self.forget_free();
                }
                place = Arc::clone(&self.room).acquire_owned(), if opening.is_none() => {
                    opening = Some(self.open(place.map_err(closed)?));
                }
                opened = async { opening.as_mut()?.await.ok() }, if opening.is_some() => {
                    opening = None;
                    if let Some(error) = opened {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Opens a lane in the background. The receiver gets the error if that fails.
    fn open(self: &Arc<Self>, place: OwnedSemaphorePermit) -> oneshot::Receiver<sqlx::Error> {
        let (failed, receiver) = oneshot::channel();
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            match timeout(2 * shared.wait, shared.connect()).await {
                Ok(Ok(connection)) => {
                    let now = Instant::now();
                    shared.put_back(Lane { connection, opened_at: now, used_at: now, _place: place });
                }
                // The caller may have left.
                Ok(Err(error)) => drop(failed.send(error)),
                Err(_) => drop(failed.send(sqlx::Error::PoolTimedOut)),
            }
        });
        receiver
    }

    /// Connects. While the server is being started, tries again for as long as a caller waits.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let deadline = Instant::now() + self.wait;
        loop {
            let error = match self.connector.connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let starting = match &error {
                sqlx::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
                sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
                _ => false,
            };
            if !starting || self.room.is_closed() || Instant::now() + CONNECT_PAUSE >= deadline {
                return Err(error);
            }
            sleep(CONNECT_PAUSE).await;
        }
    }

    fn pop(&self) -> Option<Lane> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put_back(&self, mut lane: Lane) {
        if self.room.is_closed() || lane.opened_at.elapsed() > LANE_AGE_MAX {
            return;
        }
        lane.used_at = Instant::now();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
        self.available.add_permits(1);
    }

    fn forget_free(&self) {
        while let Ok(free) = self.available.try_acquire() {
            free.forget();
            drop(self.pop());
        }
    }
}

fn closed(_: tokio::sync::AcquireError) -> sqlx::Error {
    sqlx::Error::PoolClosed
}

/// A connection in use. It is closed when it is dropped without `settle`: an interrupted statement may still
/// run, and its answer must not be taken for that of the next call.
pub(super) struct Checkout {
    lane: Lane,
    lanes: Arc<Shared>,
}

impl Checkout {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.lane.connection
    }

    /// Ends the use. The connection is kept for the next caller if its last call, with this result, left the
    /// session clean.
    pub(super) fn settle<T>(self, result: &Result<T, Failure>) {
        let clean = match result {
            Ok(_) => true,
            Err(failure) => failure.leaves_session_clean(),
        };
        if clean {
            self.lanes.put_back(self.lane);
        }
    }
}

#[cfg(test)]
mod tests;
