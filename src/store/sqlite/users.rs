//! Users.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{SqliteStore, change, decode, rows};
use crate::domain::time::Timestamp;
use crate::store::codec::{UserColumns, changer};
use crate::store::{ChangedBy, Result, UserAdded, UserChange, UserChanged, UserRow, UserStore};

/// Selects a row if the user `$1` is enabled and has the role `$2`.
const PERMITTED: &str = "SELECT 1 FROM users WHERE email = $1 AND role = $2 AND NOT disabled";

/// Returns whether `by` may change users. The answer holds for the whole transaction, because there is only
/// one writer.
async fn is_permitted(connection: &mut SqliteConnection, by: &ChangedBy) -> Result<bool> {
    let (Some(changer), Some(role)) = changer(by) else { return Ok(true) };
    let asked = sqlx::query(PERMITTED).bind(changer.to_owned()).bind(role.to_owned());
    Ok(!rows(connection, asked).await?.is_empty())
}

async fn add(connection: &mut SqliteConnection, user: UserRow, by: ChangedBy) -> Result<UserAdded> {
    if !is_permitted(connection, &by).await? {
        return Ok(UserAdded::NotPermitted);
    }
    let only_first = matches!(by, ChangedBy::SetUp);
    let add = sqlx::query(
        "INSERT INTO users (email, password_hash, role, disabled, created_at, sessions_not_before)
         SELECT $1, $2, $3, $4, $5, $6 WHERE NOT $7 OR NOT EXISTS (SELECT 1 FROM users)
         ON CONFLICT (email) DO NOTHING",
    )
    .bind(user.email)
    .bind(user.password_hash)
    .bind(user.role)
    .bind(user.disabled)
    .bind(user.created_at.0)
    .bind(user.sessions_not_before.0)
    .bind(only_first);
    Ok(if change(connection, add).await? == 1 { UserAdded::Done } else { UserAdded::Taken })
}

async fn change_one(
    connection: &mut SqliteConnection,
    email: String,
    wanted: UserChange,
    by: ChangedBy,
    now: Timestamp,
) -> Result<UserChanged> {
    if !is_permitted(connection, &by).await? {
        return Ok(UserChanged::NotPermitted);
    }
    let changed = sqlx::query(
        "UPDATE users SET role = COALESCE($2, role), disabled = COALESCE($3, disabled), sessions_not_before =
             CASE WHEN $3 THEN max(sessions_not_before + 1, $4) ELSE sessions_not_before END
         WHERE email = $1 AND ($5 OR EXISTS (
             SELECT 1 FROM users other WHERE CASE other.email
                 WHEN $1 THEN COALESCE($2, other.role) = 'ADMIN' AND NOT COALESCE($3, other.disabled)
                 ELSE other.role = 'ADMIN' AND NOT other.disabled END))
         RETURNING email, password_hash, role, disabled, created_at, sessions_not_before",
    )
    .bind(email.clone())
    .bind(wanted.role)
    .bind(wanted.disabled)
    .bind(now.0)
    .bind(!matches!(by, ChangedBy::User { .. }));
    if let Some(row) = rows(connection, changed).await?.first() {
        return Ok(UserChanged::Done(decode::<UserColumns>(row)?.into()));
    }
    let known = rows(connection, sqlx::query("SELECT 1 FROM users WHERE email = $1").bind(email)).await?;
    Ok(if known.is_empty() { UserChanged::Nobody } else { UserChanged::LastAdmin })
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

    async fn add_user(&self, user: &UserRow, by: &ChangedBy) -> Result<UserAdded> {
        let (user, by) = (user.clone(), by.clone());
        self.writer.write(move |connection| Box::pin(add(connection, user, by))).await
    }

    async fn set_password_hash(
        &self,
        email: &str,
        password_hash: &str,
        judged: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        let query = sqlx::query(
            "UPDATE users SET password_hash = $2, sessions_not_before = max(sessions_not_before + 1, $3)
             WHERE email = $1 AND ($4 IS NULL OR password_hash = $4 AND NOT disabled)",
        );
        let query = query.bind(email.to_owned()).bind(password_hash.to_owned()).bind(now.0);
        Ok(self.change_many(query.bind(judged.map(str::to_owned))).await? == 1)
    }

    async fn change_user(
        &self,
        email: &str,
        change: &UserChange,
        by: &ChangedBy,
        now: Timestamp,
    ) -> Result<UserChanged> {
        let (email, change, by) = (email.to_owned(), change.clone(), by.clone());
        self.writer.write(move |connection| Box::pin(change_one(connection, email, change, by, now))).await
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
