//! A connection pool for commits that hands out the connection used last. A backend with warm plans and
//! buffers answers in half the time of one that was idle, and a usual pool hands its connections out in turn.
//!
//! Invariants:
//! - There are never more than `lanes_max` connections. A caller that finds none free waits in a queue, at
//!   most `wait`.
//! - A connection whose last call did not end cleanly is closed and never used again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::connect::Connector;
use super::fault::Failure;
use super::{PgQuery, TRUSTED_IDLE, within};

/// The pool. A lane is one connection of it.
pub(super) struct Lanes {
    connector: Connector,
    wait: Duration,
    permits: Semaphore,
    free: Mutex<Vec<Lane>>,
}

struct Lane {
    connection: PgConnection,
    used_at: Instant,
}

impl Lanes {
    /// Creates a pool of at most `lanes_max` connections, opened on demand. A caller waits at most `wait` for
    /// a free connection, including the time to open one.
    pub(super) fn new(connector: Connector, lanes_max: usize, wait: Duration) -> Self {
        Lanes { connector, wait, permits: Semaphore::new(lanes_max), free: Mutex::default() }
    }

    /// Runs one statement, which may take at most `limit`.
    pub(super) async fn rows(&self, limit: Duration, query: PgQuery<'_>) -> Result<Vec<PgRow>, Failure> {
        let checkout = async {
            let permit = self.permits.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            Ok::<_, sqlx::Error>((permit, self.lane().await?))
        };
        let (permit, mut lane) = match timeout(self.wait, checkout).await {
            Ok(checkout) => checkout.map_err(Failure::NotSent)?,
            Err(_) => return Err(Failure::NotSent(sqlx::Error::PoolTimedOut)),
        };
        let result = within(limit, query.fetch_all(&mut lane.connection)).await;
        let clean = match &result {
            Ok(_) => true,
            Err(failure) => failure.leaves_session_clean(),
        };
        if clean {
            self.put_back(lane, permit);
        }
        result
    }

    /// Returns the lane used last, pinged if it has been idle, or a new lane.
    async fn lane(&self) -> Result<Lane, sqlx::Error> {
        while let Some(mut lane) = self.take() {
            if lane.used_at.elapsed() <= TRUSTED_IDLE || lane.connection.ping().await.is_ok() {
                return Ok(lane);
            }
        }
        Ok(Lane { connection: self.connector.connect().await?, used_at: Instant::now() })
    }

    fn take(&self) -> Option<Lane> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put_back(&self, mut lane: Lane, permit: SemaphorePermit<'_>) {
        lane.used_at = Instant::now();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
        drop(permit);
    }

    /// Closes the free connections; those in use close after their call. No further statement starts.
    pub(super) async fn close(&self) {
        self.permits.close();
        while let Some(lane) = self.take() {
            // The connection ends either way.
            let _ = lane.connection.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row;

    use super::*;
    use crate::store::Settings;
    use crate::store::contract::server::Postgres;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn backend(lanes: &Lanes) -> Result<i32, Failure> {
        lanes.rows(LIMIT, sqlx::query("SELECT pg_backend_pid()")).await.map(|rows| rows[0].get(0))
    }

    #[tokio::test]
    async fn the_last_used_comes_first_and_there_are_no_more_than_allowed() {
        let database = Postgres::shared_fast().create_database().await;
        let connector = Connector::new(&database.url().parse().expect("a URL"), &Settings::default());
        let lanes = Lanes::new(connector, 2, Duration::from_millis(500));
        let alone = backend(&lanes).await.ok().expect("an answer");
        let slow = || lanes.rows(LIMIT, sqlx::query("SELECT pg_sleep(2), pg_backend_pid()"));
        let (one, two, third) = tokio::join!(slow(), slow(), backend(&lanes));
        let third =
            third.expect_err("no lane was free in time").into_error(super::super::fault::Intent::Write);
        assert!(matches!(third, crate::store::Error::Unavailable(_)), "nothing was sent: {third}");
        let pid = |rows: Result<Vec<PgRow>, Failure>| rows.ok().expect("an answer")[0].get::<i32, _>(1);
        let (one, two) = (pid(one), pid(two));
        assert!(one == alone && two != alone, "a second lane only when the first is in use");
        let mut last = backend(&lanes).await.ok().expect("an answer");
        for _ in 0..3 {
            let next = backend(&lanes).await.ok().expect("an answer");
            assert_eq!(next, last, "the warm one");
            last = next;
        }
        let cut = lanes.rows(Duration::from_millis(20), sqlx::query("SELECT pg_sleep(1)")).await;
        assert!(matches!(cut, Err(Failure::Late)));
        assert_ne!(backend(&lanes).await.ok(), Some(last), "one without a clean end is never used again");
        lanes.close().await;
        assert!(backend(&lanes).await.is_err());
    }
}
