//! Users.

use async_trait::async_trait;

use super::{PgQuery, PostgresStore, column, decode, limit};
use crate::domain::time::Timestamp;
use crate::store::codec::{UserColumns, changer};
use crate::store::{ChangedBy, Error, Result, UserAdded, UserChange, UserChanged, UserRow, UserStore};

/// Adds a user. `$7` and `$8` are the user who adds and the checked role; both are null for an operator and
/// for the set-up.
const ADD: &str = "
WITH permitted AS MATERIALIZED (
    SELECT FROM users WHERE email = $7 AND role = $8 AND NOT disabled FOR SHARE
), added AS (
    INSERT INTO users (email, password_hash, role, disabled, created_at, sessions_not_before)
    SELECT $1, $2, $3, $4, $5, $6 WHERE $7::text IS NULL OR EXISTS (SELECT FROM permitted)
    ON CONFLICT (email) DO NOTHING RETURNING email
)
SELECT EXISTS (SELECT FROM added), $7::text IS NULL OR EXISTS (SELECT FROM permitted)";

/// Changes a user. All rows that the verdict depends on are locked first, in a fixed order. If two ADMINs
/// disable each other, the second one is no longer permitted.
const CHANGE: &str = "
WITH locked AS MATERIALIZED (
    SELECT email, role, disabled FROM users
    WHERE email = $1 OR email = $4 OR (role = 'ADMIN' AND NOT disabled)
    ORDER BY email FOR NO KEY UPDATE
), verdict AS MATERIALIZED (
    SELECT CASE
        WHEN $4::text IS NOT NULL AND NOT EXISTS (
            SELECT FROM locked WHERE email = $4 AND role = $5 AND NOT disabled) THEN 'not permitted'
        WHEN NOT EXISTS (SELECT FROM locked WHERE email = $1) THEN 'nobody'
        WHEN $4::text IS NOT NULL AND NOT EXISTS (
            SELECT FROM locked WHERE CASE email
                WHEN $1 THEN COALESCE($2, role) = 'ADMIN' AND NOT COALESCE($3, disabled)
                ELSE role = 'ADMIN' AND NOT disabled END) THEN 'last admin'
        ELSE 'done' END AS outcome
), changed AS (
    UPDATE users SET role = COALESCE($2, role), disabled = COALESCE($3, disabled), sessions_not_before =
        CASE WHEN $3 THEN greatest(sessions_not_before + 1, $6) ELSE sessions_not_before END
    WHERE email = $1 AND (SELECT outcome FROM verdict) = 'done'
    RETURNING email, password_hash, role, disabled, created_at, sessions_not_before
)
SELECT outcome, changed.* FROM verdict LEFT JOIN changed ON true";

fn adding<'q>(user: &'q UserRow, by: &'q ChangedBy) -> PgQuery<'q> {
    let (changer, role) = changer(by);
    sqlx::query(ADD)
        .bind(&user.email)
        .bind(&user.password_hash)
        .bind(&user.role)
        .bind(user.disabled)
        .bind(user.created_at.0)
        .bind(user.sessions_not_before.0)
        .bind(changer)
        .bind(role)
}

impl PostgresStore {
    /// Adds the first user under a lock on the table. It takes two statements, because a statement does not
    /// see what was committed while it waited for its lock.
    async fn add_first_user(&self, user: &UserRow) -> Result<UserAdded> {
        let begin = "BEGIN; LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE";
        let mut transaction = self.begin(begin, self.answer_timeout).await?;
        let any = transaction.rows(sqlx::query("SELECT FROM users LIMIT 1")).await?;
        if any.is_empty() {
            transaction.rows(adding(user, &ChangedBy::SetUp)).await?;
        }
        transaction.commit().await?;
        Ok(if any.is_empty() { UserAdded::Done } else { UserAdded::Taken })
    }
}

#[async_trait]
impl UserStore for PostgresStore {
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>> {
        let query = sqlx::query(
            "SELECT email, password_hash, role, disabled, created_at, sessions_not_before FROM users WHERE email = $1",
        );
        let rows = self.read(query.bind(email)).await?;
        rows.first().map(|row| Ok(decode::<UserColumns>(row)?.into())).transpose()
    }

    async fn add_user(&self, user: &UserRow, by: &ChangedBy) -> Result<UserAdded> {
        if matches!(by, ChangedBy::SetUp) {
            return self.add_first_user(user).await;
        }
        let rows = self.write(adding(user, by)).await?;
        let row = rows.first().ok_or_else(|| Error::Unknown("no word on the user to be added".to_owned()))?;
        Ok(match (column::<bool>(row, 0)?, column::<bool>(row, 1)?) {
            (true, _) => UserAdded::Done,
            (false, true) => UserAdded::Taken,
            (false, false) => UserAdded::NotPermitted,
        })
    }

    async fn set_password_hash(
        &self,
        email: &str,
        password_hash: &str,
        judged: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        let query = sqlx::query(
            "UPDATE users SET password_hash = $2, sessions_not_before = greatest(sessions_not_before + 1, $3)
             WHERE email = $1 AND ($4::text IS NULL OR password_hash = $4 AND NOT disabled)",
        );
        Ok(self.change(query.bind(email).bind(password_hash).bind(now.0).bind(judged)).await? == 1)
    }

    async fn change_user(
        &self,
        email: &str,
        change: &UserChange,
        by: &ChangedBy,
        now: Timestamp,
    ) -> Result<UserChanged> {
        let (changer, role) = changer(by);
        let query = sqlx::query(CHANGE)
            .bind(email)
            .bind(change.role.as_deref())
            .bind(change.disabled)
            .bind(changer)
            .bind(role)
            .bind(now.0);
        let rows = self.write(query).await?;
        let row = rows.first().ok_or_else(|| Error::Unknown("no word on the change of a user".to_owned()))?;
        match column::<&str>(row, 0)? {
            "done" => Ok(UserChanged::Done(decode::<UserColumns>(row)?.into())),
            "nobody" => Ok(UserChanged::Nobody),
            "last admin" => Ok(UserChanged::LastAdmin),
            _ => Ok(UserChanged::NotPermitted),
        }
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
