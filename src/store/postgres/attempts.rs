//! Attempts to log in.

use async_trait::async_trait;

use super::{PostgresStore, column, limit};
use crate::domain::time::Timestamp;
use crate::store::codec::attempts_of;
use crate::store::{AttemptStore, Attempts, Hash, Result};

#[async_trait]
impl AttemptStore for PostgresStore {
    async fn count_attempts(
        &self,
        keys: [&Hash; 2],
        now: Timestamp,
        window_ends: Timestamp,
    ) -> Result<[Attempts; 2]> {
        // Sorted, so that two concurrent logins do not deadlock.
        let query = sqlx::query(
            "INSERT INTO login_attempts AS a (key, attempts, window_ends)
             SELECT key, 1, $3 FROM unnest($1::bytea[]) AS k(key) ORDER BY key
             ON CONFLICT (key) DO UPDATE SET
                 attempts = CASE WHEN a.window_ends <= $2 THEN 1 ELSE LEAST(a.attempts + 1, 1000000) END,
                 window_ends = CASE WHEN a.window_ends <= $2 THEN excluded.window_ends ELSE a.window_ends END
             RETURNING key, attempts, window_ends",
        );
        let bound: Vec<&[u8]> = keys.iter().map(|key| key.as_slice()).collect();
        let rows = self.write(query.bind(bound).bind(now.0).bind(window_ends.0)).await?;
        let counted = rows
            .iter()
            .map(|row| Ok((column::<Vec<u8>>(row, 0)?, column::<i64>(row, 1)?, column::<i64>(row, 2)?)));
        attempts_of(keys, &counted.collect::<Result<Vec<_>>>()?)
    }

    async fn forgive_attempts(&self, cleared: &Hash, lessened: &Hash) -> Result<()> {
        let query = sqlx::query(
            "WITH cleared AS (DELETE FROM login_attempts WHERE key = $1)
             UPDATE login_attempts SET attempts = attempts - 1 WHERE key = $2 AND attempts > 0",
        );
        self.change(query.bind(cleared.as_slice()).bind(lessened.as_slice())).await.map(drop)
    }

    async fn delete_attempts(&self, before: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM login_attempts WHERE key IN
                 (SELECT key FROM login_attempts WHERE window_ends < $1 ORDER BY window_ends LIMIT $2)",
        );
        self.change(query.bind(before.0).bind(limit(limit_rows))).await
    }
}
