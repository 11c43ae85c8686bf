//! Users.

use async_trait::async_trait;

use super::{PostgresStore, decode, limit};
use crate::domain::time::Timestamp;
use crate::store::codec::UserColumns;
use crate::store::{Result, UserRow, UserStore};

#[async_trait]
impl UserStore for PostgresStore {
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>> {
        let query = sqlx::query(
            "SELECT email, password_hash, role, disabled, created_at, sessions_not_before FROM users WHERE email = $1",
        );
        let rows = self.read(query.bind(email)).await?;
        rows.first().map(|row| Ok(decode::<UserColumns>(row)?.into())).transpose()
    }

    async fn add_user(&self, user: &UserRow) -> Result<bool> {
        let query = sqlx::query(
            "INSERT INTO users (email, password_hash, role, disabled, created_at, sessions_not_before)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (email) DO NOTHING",
        )
        .bind(&user.email)
        .bind(&user.password_hash)
        .bind(&user.role)
        .bind(user.disabled)
        .bind(user.created_at.0)
        .bind(user.sessions_not_before.0);
        Ok(self.change(query).await? == 1)
    }

    async fn set_password_hash(&self, email: &str, password_hash: &str, now: Timestamp) -> Result<bool> {
        let query =
            sqlx::query("UPDATE users SET password_hash = $2, sessions_not_before = $3 WHERE email = $1");
        Ok(self.change(query.bind(email).bind(password_hash).bind(now.0)).await? == 1)
    }

    async fn set_user_role(&self, email: &str, role: &str) -> Result<bool> {
        let query = sqlx::query("UPDATE users SET role = $2 WHERE email = $1");
        Ok(self.change(query.bind(email).bind(role)).await? == 1)
    }

    async fn set_user_disabled(&self, email: &str, disabled: bool) -> Result<bool> {
        let query = sqlx::query("UPDATE users SET disabled = $2 WHERE email = $1");
        Ok(self.change(query.bind(email).bind(disabled)).await? == 1)
    }

    async fn list_users(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>> {
        let query = sqlx::query(
            "SELECT email, password_hash, role, disabled, created_at, sessions_not_before FROM users
             WHERE $1::text IS NULL OR email > $1 ORDER BY email LIMIT $2",
        );
        let rows = self.read(query.bind(after).bind(limit(limit_rows))).await?;
        rows.iter().map(|row| Ok(decode::<UserColumns>(row)?.into())).collect()
    }
}
