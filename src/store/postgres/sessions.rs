//! Sessions. Each change is one statement, so that a refresh token is used once whatever happens
//! concurrently.
//!
//! Every statement that depends on the user locks the user's row before rows of sessions. So a change of the
//! user is ordered before or after the start or the refresh of a session, and no two statements deadlock.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{PostgresStore, column, decode, limit};
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;
use crate::store::codec::{RevokedColumns, ShownToken};
use crate::store::{
    Hash, NewSession, Result, Revocation, RevokedSession, Rotation, SessionStore, USED_TOKENS_KEPT,
};

/// Rotates a refresh token. The rows are locked before they are read, so that the second of two calls sees
/// that the token is used. A token's issue time is the use of the token before it; for the first token it is
/// the start of the session.
const ROTATE: &str = "
WITH owner AS MATERIALIZED (
    SELECT email, role, disabled, sessions_not_before FROM users
    WHERE email = (SELECT s.subject FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id WHERE t.hash = $1)
    FOR SHARE
), shown AS MATERIALIZED (
    SELECT t.session_id, t.generation, t.used_at IS NOT NULL AS used, s.subject, u.role,
        u.sessions_not_before AS user_generation, s.ends_at,
        s.revoked_at IS NULL AND s.ends_at > $3 AND NOT u.disabled
            AND COALESCE(s.user_generation, s.created_at) >= u.sessions_not_before AS live,
        COALESCE(before.used_at, s.created_at) <= $6 AS stale
    FROM owner u JOIN sessions s ON s.subject = u.email JOIN refresh_tokens t ON t.session_id = s.id
    LEFT JOIN refresh_tokens before ON before.session_id = t.session_id AND before.generation = t.generation - 1
    WHERE t.hash = $1 FOR UPDATE OF t, s
), good AS (
    SELECT session_id, generation FROM shown WHERE live AND NOT used AND NOT stale
), marked AS (
    UPDATE refresh_tokens SET used_at = $3 WHERE hash = $1 AND EXISTS (SELECT FROM good)
), added AS (
    INSERT INTO refresh_tokens (hash, session_id, generation) SELECT $2, session_id, generation + 1 FROM good
), forgotten AS (
    DELETE FROM refresh_tokens t USING good g
    WHERE t.session_id = g.session_id AND t.generation <= g.generation - $5
), revoked AS (
    UPDATE sessions SET revoked_at = $3, keep_until = $4
    WHERE id = (SELECT session_id FROM shown WHERE live AND used)
)
SELECT session_id, subject, role, user_generation, ends_at, live, used, stale FROM shown";

/// Starts a session. `surplus` does not see the added row, because parts of one statement share a snapshot.
const START: &str = "
WITH judged AS MATERIALIZED (
    SELECT FROM users WHERE email = $2 AND password_hash = $11 AND sessions_not_before = $10 AND NOT disabled
    FOR NO KEY UPDATE
), added AS (
    INSERT INTO sessions (id, subject, created_at, ends_at, keep_until, user_generation)
    SELECT $1, $2, $3, $4, $5, $10 FROM judged
), token AS (
    INSERT INTO refresh_tokens (hash, session_id, generation) SELECT $6, $1, 1 FROM judged
), surplus AS MATERIALIZED (
    SELECT s.id FROM judged, sessions s WHERE s.subject = $2 AND s.revoked_at IS NULL AND s.ends_at > $3
    ORDER BY s.created_at DESC, s.id DESC OFFSET $7
), revoked AS (
    UPDATE sessions SET revoked_at = $8, keep_until = $9
    WHERE id IN (SELECT id FROM surplus) AND revoked_at IS NULL RETURNING id
)
SELECT EXISTS (SELECT FROM judged), ARRAY(SELECT id FROM revoked)";

fn ids(rows: &[PgRow]) -> Result<Vec<SessionId>> {
    rows.iter().map(|row| Ok(SessionId(column::<Uuid>(row, 0)?))).collect()
}

#[async_trait]
impl SessionStore for PostgresStore {
    async fn start_session(
        &self,
        session: &NewSession,
        judged: &str,
        sessions_max: u32,
        revocation: Revocation,
    ) -> Result<Option<Vec<SessionId>>> {
        let query = sqlx::query(START)
            .bind(session.id.0)
            .bind(&session.subject)
            .bind(session.created_at.0)
            .bind(session.ends_at.0)
            .bind(session.keep_until.0)
            .bind(session.token.as_slice())
            .bind(limit(sessions_max.saturating_sub(1)))
            .bind(revocation.at.0)
            .bind(revocation.keep_until.0)
            .bind(session.generation.0)
            .bind(judged);
        let rows = self.write(query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let surplus = column::<Vec<Uuid>>(row, 1)?.into_iter().map(SessionId).collect();
        Ok(column::<bool>(row, 0)?.then_some(surplus))
    }

    async fn rotate_token(
        &self,
        used: &Hash,
        next: &Hash,
        given_after: Timestamp,
        revocation: Revocation,
    ) -> Result<Rotation> {
        let query = sqlx::query(ROTATE)
            .bind(used.as_slice())
            .bind(next.as_slice())
            .bind(revocation.at.0)
            .bind(revocation.keep_until.0)
            .bind(USED_TOKENS_KEPT)
            .bind(given_after.0);
        let rows = self.write(query).await?;
        let shown = rows.first().map(decode::<ShownToken>).transpose()?;
        Ok(shown.map_or(Rotation::Refused, ShownToken::into_rotation))
    }

    async fn revoke_session(&self, id: SessionId, revocation: Revocation) -> Result<bool> {
        let query = sqlx::query(
            "UPDATE sessions SET revoked_at = $2, keep_until = $3 WHERE id = $1 AND revoked_at IS NULL",
        );
        let query = query.bind(id.0).bind(revocation.at.0).bind(revocation.keep_until.0);
        Ok(self.change(query).await? == 1)
    }

    async fn revoke_sessions_of(&self, subject: &str, revocation: Revocation) -> Result<Vec<SessionId>> {
        let query = sqlx::query(
            "WITH owner AS MATERIALIZED (
                 UPDATE users SET sessions_not_before = greatest(sessions_not_before + 1, $2)
                 WHERE email = $1 RETURNING email
             )
             UPDATE sessions SET revoked_at = $2, keep_until = $3 WHERE id IN (
                 SELECT s.id FROM owner JOIN sessions s ON s.subject = owner.email
                 WHERE s.revoked_at IS NULL ORDER BY s.id FOR UPDATE OF s)
             AND revoked_at IS NULL RETURNING id",
        );
        ids(&self.write(query.bind(subject).bind(revocation.at.0).bind(revocation.keep_until.0)).await?)
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
        let rows = self.read(query.bind(after.0.0).bind(after.1.0).bind(limit(limit_rows))).await?;
        rows.iter().map(|row| Ok(decode::<RevokedColumns>(row)?.into())).collect()
    }

    async fn delete_sessions(&self, now: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM sessions WHERE id IN
                 (SELECT id FROM sessions WHERE keep_until < $1 ORDER BY keep_until LIMIT $2)",
        );
        self.change(query.bind(now.0).bind(limit(limit_rows))).await
    }
}
