//! Sessions. Each change is a transaction of the one writer.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{SqliteQuery, SqliteStore, change, column, decode, rows};
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;
use crate::store::codec::{RevokedColumns, ShownToken};
use crate::store::{
    Hash, NewSession, Result, Revocation, RevokedSession, Rotation, SessionStore, USED_TOKENS_KEPT,
};

const REVOKE: &str =
    "UPDATE sessions SET revoked_at = $2, keep_until = $3 WHERE id = $1 AND revoked_at IS NULL";

/// Selects a refresh token with its session. A token's issue time is the use of the token before it; for the
/// first token it is the start of the session.
const FIND: &str = "
SELECT t.session_id, s.subject, u.role, u.sessions_not_before AS user_generation, s.ends_at,
    s.revoked_at IS NULL AND s.ends_at > $2 AND NOT u.disabled
        AND COALESCE(s.user_generation, s.created_at) >= u.sessions_not_before AS live,
    t.used_at IS NOT NULL AS used, COALESCE(before.used_at, s.created_at) <= $3 AS stale, t.generation
FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id JOIN users u ON u.email = s.subject
LEFT JOIN refresh_tokens before ON before.session_id = t.session_id AND before.generation = t.generation - 1
WHERE t.hash = $1";

fn ids(rows: &[SqliteRow]) -> Result<Vec<SessionId>> {
    rows.iter().map(|row| Ok(SessionId(column::<Uuid>(row, 0)?))).collect()
}

fn revoke(id: Uuid, revocation: Revocation) -> SqliteQuery<'static> {
    sqlx::query(REVOKE).bind(id).bind(revocation.at.0).bind(revocation.keep_until.0)
}

impl SqliteStore {
    /// Runs one statement as a transaction. Returns the number of rows changed.
    pub(super) async fn change_many(&self, query: SqliteQuery<'static>) -> Result<u64> {
        self.writer.write(move |connection| Box::pin(change(connection, query))).await
    }
}

async fn start(
    connection: &mut SqliteConnection,
    session: NewSession,
    judged: String,
    sessions_max: u32,
    revocation: Revocation,
) -> Result<Option<Vec<SessionId>>> {
    let add = sqlx::query(
        "INSERT INTO sessions (id, subject, created_at, ends_at, keep_until, user_generation)
         SELECT $1, $2, $3, $4, $5, $6 FROM users
         WHERE email = $2 AND password_hash = $7 AND sessions_not_before = $6 AND NOT disabled",
    )
    .bind(session.id.0)
    .bind(session.subject.clone())
    .bind(session.created_at.0)
    .bind(session.ends_at.0)
    .bind(session.keep_until.0)
    .bind(session.generation.0)
    .bind(judged);
    if change(connection, add).await? == 0 {
        return Ok(None);
    }
    change(connection, token(&session.token, session.id.0, 1)).await?;
    let surplus = sqlx::query(
        "UPDATE sessions SET revoked_at = $4, keep_until = $5 WHERE id IN (
             SELECT id FROM sessions WHERE subject = $1 AND revoked_at IS NULL AND ends_at > $2 AND id <> $6
             ORDER BY created_at DESC, id DESC LIMIT -1 OFFSET $3)
         RETURNING id",
    )
    .bind(session.subject)
    .bind(session.created_at.0)
    .bind(sessions_max.saturating_sub(1))
    .bind(revocation.at.0)
    .bind(revocation.keep_until.0)
    .bind(session.id.0);
    ids(&rows(connection, surplus).await?).map(Some)
}

fn token(hash: &Hash, session: Uuid, generation: i64) -> SqliteQuery<'static> {
    sqlx::query("INSERT INTO refresh_tokens (hash, session_id, generation) VALUES ($1, $2, $3)")
        .bind(hash.to_vec())
        .bind(session)
        .bind(generation)
}

async fn rotate(
    connection: &mut SqliteConnection,
    used: Hash,
    next: Hash,
    given_after: Timestamp,
    revocation: Revocation,
) -> Result<Rotation> {
    let find = sqlx::query(FIND).bind(used.to_vec()).bind(revocation.at.0).bind(given_after.0);
    let found = rows(connection, find).await?;
    let Some(row) = found.first() else { return Ok(Rotation::Refused) };
    let (shown, generation) = (decode::<ShownToken>(row)?, column::<i64>(row, 8)?);
    let session = shown.session_id;
    let rotation = shown.into_rotation();
    match rotation {
        Rotation::Done { .. } => {
            let mark = sqlx::query("UPDATE refresh_tokens SET used_at = $2 WHERE hash = $1");
            change(connection, mark.bind(used.to_vec()).bind(revocation.at.0)).await?;
            change(connection, token(&next, session, generation + 1)).await?;
            let forget = sqlx::query("DELETE FROM refresh_tokens WHERE session_id = $1 AND generation <= $2");
            change(connection, forget.bind(session).bind(generation - USED_TOKENS_KEPT)).await?;
        }
        Rotation::Reused { .. } => drop(change(connection, revoke(session, revocation)).await?),
        Rotation::Refused => {}
    }
    Ok(rotation)
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn start_session(
        &self,
        session: &NewSession,
        judged: &str,
        sessions_max: u32,
        revocation: Revocation,
    ) -> Result<Option<Vec<SessionId>>> {
        let (session, judged) = (session.clone(), judged.to_owned());
        self.writer
            .write(move |connection| Box::pin(start(connection, session, judged, sessions_max, revocation)))
            .await
    }

    async fn rotate_token(
        &self,
        used: &Hash,
        next: &Hash,
        given_after: Timestamp,
        revocation: Revocation,
    ) -> Result<Rotation> {
        let (used, next) = (*used, *next);
        self.writer
            .write(move |connection| Box::pin(rotate(connection, used, next, given_after, revocation)))
            .await
    }

    async fn revoke_session(&self, id: SessionId, revocation: Revocation) -> Result<bool> {
        Ok(self.change_many(revoke(id.0, revocation)).await? == 1)
    }

    async fn revoke_sessions_of(&self, subject: &str, revocation: Revocation) -> Result<Vec<SessionId>> {
        let query = sqlx::query(
            "UPDATE sessions SET revoked_at = $2, keep_until = $3
             WHERE subject = $1 AND revoked_at IS NULL RETURNING id",
        );
        let query = query.bind(subject.to_owned()).bind(revocation.at.0).bind(revocation.keep_until.0);
        let next = sqlx::query(
            "UPDATE users SET sessions_not_before = max(sessions_not_before + 1, $2) WHERE email = $1",
        );
        let next = next.bind(subject.to_owned()).bind(revocation.at.0);
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    change(connection, next).await?;
                    ids(&rows(connection, query).await?)
                })
            })
            .await
    }

    async fn revoked_sessions(
        &self,
        after: (Timestamp, SessionId),
        limit_rows: u32,
    ) -> Result<Vec<RevokedSession>> {
        let query = sqlx::query(
            "SELECT id, revoked_at, keep_until FROM sessions
             WHERE revoked_at IS NOT NULL AND (revoked_at, id) > ($1, $2) ORDER BY revoked_at, id LIMIT $3",
        );
        let rows = self.read(query.bind(after.0.0).bind(after.1.0).bind(limit_rows)).await?;
        rows.iter().map(|row| Ok(decode::<RevokedColumns>(row)?.into())).collect()
    }

    async fn delete_sessions(&self, now: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM sessions WHERE id IN
                 (SELECT id FROM sessions WHERE keep_until < $1 ORDER BY keep_until LIMIT $2)",
        );
        self.change_many(query.bind(now.0).bind(limit_rows)).await
    }
}
