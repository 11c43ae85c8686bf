//! Attempts to log in.

use async_trait::async_trait;

use super::{SqliteStore, change, column, rows};
use crate::domain::time::Timestamp;
use crate::store::codec::attempts_of;
use crate::store::{AttemptStore, Attempts, Hash, Result};

#[async_trait]
impl AttemptStore for SqliteStore {
    async fn count_attempts(
        &self,
        keys: [&Hash; 2],
        now: Timestamp,
        window_ends: Timestamp,
    ) -> Result<[Attempts; 2]> {
        let bound = keys.map(|key| key.to_vec());
        let counting = self.writer.write(move |connection| {
            Box::pin(async move {
                let mut counted = Vec::new();
                for key in bound {
                    let query = sqlx::query(
                        "INSERT INTO login_attempts AS a (key, attempts, window_ends) VALUES ($1, 1, $3)
                         ON CONFLICT (key) DO UPDATE SET
                             attempts = CASE WHEN a.window_ends <= $2 THEN 1 ELSE min(a.attempts + 1, 1000000) END,
                             window_ends =
                                 CASE WHEN a.window_ends <= $2 THEN excluded.window_ends ELSE a.window_ends END
                         RETURNING attempts, window_ends",
                    );
                    let query = query.bind(key.clone()).bind(now.0).bind(window_ends.0);
                    for row in rows(connection, query).await? {
                        counted.push((key.clone(), column(&row, 0)?, column(&row, 1)?));
                    }
                }
                Ok(counted)
            })
        });
        attempts_of(keys, &counting.await?)
    }

    async fn forgive_attempts(&self, cleared: &Hash, lessened: &Hash) -> Result<()> {
        let (cleared, lessened) = (cleared.to_vec(), lessened.to_vec());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let clear = sqlx::query("DELETE FROM login_attempts WHERE key = $1");
                    change(connection, clear.bind(cleared)).await?;
                    let lessen = sqlx::query(
                        "UPDATE login_attempts SET attempts = attempts - 1 WHERE key = $1 AND attempts > 0",
                    );
                    change(connection, lessen.bind(lessened)).await.map(drop)
                })
            })
            .await
    }

    async fn delete_attempts(&self, before: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM login_attempts WHERE key IN
                 (SELECT key FROM login_attempts WHERE window_ends < $1 ORDER BY window_ends LIMIT $2)",
        );
        self.change_many(query.bind(before.0).bind(limit_rows)).await
    }
}
