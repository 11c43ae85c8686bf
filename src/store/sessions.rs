//! Data of logins: keys that sign tokens, sessions with their refresh tokens, failed attempts.
//!
//! Times come from the caller's clock. The clocks of nodes may differ by seconds, so a reader must allow for
//! that in rows that other nodes wrote.

use async_trait::async_trait;

use super::{Result, UserStore};
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;

/// The SHA-256 of a value that is not stored itself.
pub type Hash = [u8; 32];

/// How many used refresh tokens of a session are remembered as used. A use of an older token is refused as
/// unknown.
pub const USED_TOKENS_KEPT: i64 = 256;

/// A key that signs tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeyRow {
    /// Generation: one more than that of the previous key.
    pub generation: i64,
    /// When the key was created.
    pub created_at: Timestamp,
    /// Tokens are signed with the key from this time on. The delay lets every node read the key first.
    pub signs_from: Timestamp,
    /// Until when tokens of the key hold; `None` for the youngest key.
    pub verifies_until: Option<Timestamp>,
    /// The key id in tokens (`kid`).
    pub kid: String,
    /// The 32 bytes of RFC 8032.
    pub public_key: Vec<u8>,
    /// PKCS #8 (RFC 8410), encrypted if `sealed`.
    pub private_key: Vec<u8>,
    /// Whether the private key is encrypted.
    pub sealed: bool,
}

/// Never prints the keys.
impl std::fmt::Debug for SigningKeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeyRow")
            .field("generation", &self.generation)
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

/// A secret that all nodes share.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSecret {
    /// The secret, encrypted if `sealed`.
    pub value: Vec<u8>,
    /// Whether the value is encrypted.
    pub sealed: bool,
}

/// Never prints the secret.
impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSecret").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

/// Keys that sign tokens, and other secrets that nodes share.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// Returns the keys, youngest first, at most `limit_rows`.
    async fn signing_keys(&self, limit_rows: u32) -> Result<Vec<SigningKeyRow>>;
    /// Adds `key` and returns true, unless its generation exists already. Earlier keys get the end
    /// `older_until`, unless their end is earlier.
    async fn add_signing_key(&self, key: &SigningKeyRow, older_until: Timestamp) -> Result<bool>;
    /// Deletes keys whose end lies before `before`, at most `limit_rows`. Returns their number.
    async fn delete_signing_keys(&self, before: Timestamp, limit_rows: u32) -> Result<u64>;
    /// Returns the secret `name`. Stores `proposed` first if there is no such secret.
    async fn shared_secret(&self, name: &str, proposed: &SharedSecret) -> Result<SharedSecret>;
}

/// A session to be started.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The session's id in tokens.
    pub id: SessionId,
    /// The user's e-mail address (the subject of tokens).
    pub subject: String,
    /// The user's `UserRow::sessions_not_before` when the password was checked.
    pub generation: Timestamp,
    /// When the session begins.
    pub created_at: Timestamp,
    /// The session cannot be refreshed from this time on.
    pub ends_at: Timestamp,
    /// The row may be deleted from this time on.
    pub keep_until: Timestamp,
    /// The hash of the session's first refresh token.
    pub token: Hash,
}

/// A session that was revoked before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokedSession {
    /// The session.
    pub id: SessionId,
    /// When it was revoked.
    pub revoked_at: Timestamp,
    /// Until when a token of the session could otherwise be accepted.
    pub keep_until: Timestamp,
}

/// The revocation of a session.
#[derive(Clone, Copy, Debug)]
pub struct Revocation {
    /// When the session is revoked.
    pub at: Timestamp,
    /// `RevokedSession::keep_until`
    pub keep_until: Timestamp,
}

/// The result of presenting a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The token was valid and is marked as used; the next token is stored.
    Done {
        /// The session of the token.
        session: SessionId,
        /// The user's e-mail address.
        subject: String,
        /// The user's present `UserRow::role`.
        role: String,
        /// The user's present `UserRow::sessions_not_before`.
        generation: Timestamp,
        /// `NewSession::ends_at`
        ends_at: Timestamp,
    },
    /// The token had been used before, so somebody has a copy. The session was revoked.
    Reused {
        /// The session of the token.
        session: SessionId,
    },
    /// The token is unknown or was unused for too long, its session has ended or is of an earlier generation,
    /// or its user is disabled.
    Refused,
}

/// Sessions and their refresh tokens.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Starts `session` if its user is enabled and still has the hash `judged` and the session's generation;
    /// otherwise returns `None`. Revokes all but the youngest `sessions_max` sessions of the subject, and
    /// returns the revoked ones.
    async fn start_session(
        &self,
        session: &NewSession,
        judged: &str,
        sessions_max: u32,
        revocation: Revocation,
    ) -> Result<Option<Vec<SessionId>>>;
    /// Replaces the refresh token `used` by `next` if `used` is valid, was issued after `given_after`, and
    /// its user is still enabled. Only one of several concurrent calls succeeds.
    async fn rotate_token(
        &self,
        used: &Hash,
        next: &Hash,
        given_after: Timestamp,
        revocation: Revocation,
    ) -> Result<Rotation>;
    /// Revokes a session. Returns false if it is unknown or was revoked before.
    async fn revoke_session(&self, id: SessionId, revocation: Revocation) -> Result<bool>;
    /// Revokes all sessions of `subject` and begins the next generation, so that a login in progress cannot
    /// start a session. Returns the sessions that were revoked by this call.
    async fn revoke_sessions_of(&self, subject: &str, revocation: Revocation) -> Result<Vec<SessionId>>;
    /// Returns sessions revoked after `after` (a time and, at that time, an id), in that order, at most
    /// `limit_rows`.
    async fn revoked_sessions(
        &self,
        after: (Timestamp, SessionId),
        limit_rows: u32,
    ) -> Result<Vec<RevokedSession>>;
    /// Deletes sessions whose `keep_until` has passed, at most `limit_rows`. Returns their number.
    async fn delete_sessions(&self, now: Timestamp, limit_rows: u32) -> Result<u64>;
}

/// The number of attempts in the current window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The attempts, including the present one.
    pub count: u32,
    /// When the window ends; counting begins anew then.
    pub window_ends: Timestamp,
}

/// Login attempts, counted over all nodes.
#[async_trait]
pub trait AttemptStore: Send + Sync {
    /// Counts one attempt under each of `keys`, in the current window or in a new one that ends at
    /// `window_ends`. Returns the counts in the order of `keys`.
    async fn count_attempts(
        &self,
        keys: [&Hash; 2],
        now: Timestamp,
        window_ends: Timestamp,
    ) -> Result<[Attempts; 2]>;
    /// Takes back an attempt that does not count: deletes the count of `cleared`, and lowers that of
    /// `lessened` by one.
    async fn forgive_attempts(&self, cleared: &Hash, lessened: &Hash) -> Result<()>;
    /// Deletes windows that ended before `before`, at most `limit_rows`. Returns their number.
    async fn delete_attempts(&self, before: Timestamp, limit_rows: u32) -> Result<u64>;
}

/// The stores that authentication needs.
pub trait CallerStore: UserStore + KeyStore + SessionStore + AttemptStore {}

impl<T: UserStore + KeyStore + SessionStore + AttemptStore> CallerStore for T {}
