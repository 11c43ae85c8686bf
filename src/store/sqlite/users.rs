//! Users.

use async_trait::async_trait;

use super::{SqliteQuery, SqliteStore, change, decode};
use crate::domain::time::Timestamp;
use crate::store::codec::UserColumns;
use crate::store::{Result, UserRow, UserStore};

impl SqliteStore {
    /// Runs one statement as a transaction; whether it changed a row.
    async fn change_one(&self, query: SqliteQuery<'static>) -> Result<bool> {
        self.writer
            .write(move |connection| Box::pin(async move { Ok(change(connection, query).await? == 1) }))
            .await
    }
}

#[async_trait]
impl UserStore for SqliteStore {
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>> {
        let query = sqlx::query(
            "SELECT email, password_hash, role, disabled, created_at, sessions_not_before FROM users WHERE email = $1",
        );
        let rows = self.read(query.bind(email.to_owned())).await?;
        rows.first().map(|row| Ok(decode::<UserColumns>(row)?.into())).transpose()
    }

    async fn add_user(&self, user: &UserRow) -> Result<bool> {
        let query = sqlx::query(
            "INSERT INTO users (email, password_hash, role, disabled, created_at, sessions_not_before)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (email) DO NOTHING",
        )
        .bind(user.email.clone())
        .bind(user.password_hash.clone())
        .bind(user.role.clone())
        .bind(user.disabled)
        .bind(user.created_at.0)
        .bind(user.sessions_not_before.0);
        self.change_one(query).await
    }

    async fn set_password_hash(&self, email: &str, password_hash: &str, now: Timestamp) -> Result<bool> {
        let query =
            sqlx::query("UPDATE users SET password_hash = $2, sessions_not_before = $3 WHERE email = $1");
        self.change_one(query.bind(email.to_owned()).bind(password_hash.to_owned()).bind(now.0)).await
    }

    async fn set_user_role(&self, email: &str, role: &str) -> Result<bool> {
        let query = sqlx::query("UPDATE users SET role = $2 WHERE email = $1");
        self.change_one(query.bind(email.to_owned()).bind(role.to_owned())).await
    }

    async fn set_user_disabled(&self, email: &str, disabled: bool) -> Result<bool> {
        let query = sqlx::query("UPDATE users SET disabled = $2 WHERE email = $1");
        self.change_one(query.bind(email.to_owned()).bind(disabled)).await
    }

    async fn list_users(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>> {
        let query = sqlx::query(
            "SELECT email, password_hash, role, disabled, created_at, sessions_not_before FROM users
             WHERE $1 IS NULL OR email > $1 ORDER BY email LIMIT $2",
        );
        let rows = self.read(query.bind(after.map(str::to_owned)).bind(limit_rows)).await?;
        rows.iter().map(|row| Ok(decode::<UserColumns>(row)?.into())).collect()
    }
}
