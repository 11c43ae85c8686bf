//! What logins leave behind: keys that sign tokens, sessions with their refresh tokens, failed attempts.
//!
//! Times are those of the caller's clock: the clocks of nodes may differ by seconds, and whoever reads what
//! others wrote allows for that.

use async_trait::async_trait;

use super::{Result, UserStore};
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;

/// The SHA-256 of what is not stored itself.
pub type Hash = [u8; 32];

/// A used refresh token is known as such until this many younger ones of its session were given out.
pub const USED_TOKENS_KEPT: i64 = 256;

/// A key that signs tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKeyRow {
    /// One more than that of the key before.
    pub generation: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Tokens are signed with it from then on: time for every node to know it first.
    pub signs_from: Timestamp,
    /// Until when its tokens hold; `None` for the youngest key.
    pub verifies_until: Option<Timestamp>,
    /// Its name in tokens.
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
    /// Whether it is encrypted.
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
    /// The keys, youngest first, at most `limit_rows`.
    async fn signing_keys(&self, limit_rows: u32) -> Result<Vec<SigningKeyRow>>;
    /// Adds `key`, unless its generation is taken: then the answer is false. Of keys before it those without an
    /// end get `older_until`, or whatever end they have that is sooner.
    async fn add_signing_key(&self, key: &SigningKeyRow, older_until: Timestamp) -> Result<bool>;
    /// Deletes keys whose end lies before `before`, at most `limit_rows`; answers how many.
    async fn delete_signing_keys(&self, before: Timestamp, limit_rows: u32) -> Result<u64>;
    /// The secret `name`: `proposed` if it is made by this call.
    async fn shared_secret(&self, name: &str, proposed: &SharedSecret) -> Result<SharedSecret>;
}

/// A session just begun.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its name in tokens.
    pub id: SessionId,
    /// Whose it is.
    pub subject: String,
    /// The user's `UserRow::sessions_not_before` when the password was judged.
    pub generation: Timestamp,
    /// When it begins.
    pub created_at: Timestamp,
    /// From then on it cannot be refreshed.
    pub ends_at: Timestamp,
    /// From then on it may be forgotten.
    pub keep_until: Timestamp,
    /// Of its first refresh token.
    pub token: Hash,
}

/// A session that was ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokedSession {
    /// Which.
    pub id: SessionId,
    /// When.
    pub revoked_at: Timestamp,
    /// Until when tokens of it could still seem to hold.
    pub keep_until: Timestamp,
}

/// The end of a session before its time.
#[derive(Clone, Copy, Debug)]
pub struct Revocation {
    /// When.
    pub at: Timestamp,
    /// `RevokedSession::keep_until`
    pub keep_until: Timestamp,
}

/// What became of a refresh token that was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It was good, and is used now; the next one is stored.
    Done {
        /// Its session.
        session: SessionId,
        /// Whose.
        subject: String,
        /// `UserRow::role`, now.
        role: String,
        /// `UserRow::sessions_not_before`, now.
        generation: Timestamp,
        /// `NewSession::ends_at`
        ends_at: Timestamp,
    },
    /// It had been used before, and the session goes on no more. Somebody has a copy.
    Reused {
        /// Its session.
        session: SessionId,
    },
    /// It is unknown, has lain unused for too long, its session is over or of an earlier generation, or its user is
    /// disabled.
    Refused,
}

/// Sessions and their refresh tokens.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Adds `session`, if its user is enabled and still has the hash `judged` and the generation of the session;
    /// `None` if not. Of the sessions of its subject that are not revoked all but the youngest `sessions_max` are;
    /// answers with those.
    async fn start_session(
        &self,
        session: &NewSession,
        judged: &str,
        sessions_max: u32,
        revocation: Revocation,
    ) -> Result<Option<Vec<SessionId>>>;
    /// Takes the refresh token `used` for `next`, if it is good, was given after `given_after`, and its user is still
    /// let in. Of calls at the same time one gets through.
    async fn rotate_token(
        &self,
        used: &Hash,
        next: &Hash,
        given_after: Timestamp,
        revocation: Revocation,
    ) -> Result<Rotation>;
    /// Ends a session; false if it is unknown, or was revoked before.
    async fn revoke_session(&self, id: SessionId, revocation: Revocation) -> Result<bool>;
    /// Ends all sessions of `subject` and begins the next generation, so that no login under way escapes; answers
    /// with the sessions that had not been ended.
    async fn revoke_sessions_of(&self, subject: &str, revocation: Revocation) -> Result<Vec<SessionId>>;
    /// Sessions revoked after `after` (a time and, at that time, an id) in that order, at most `limit_rows`.
    async fn revoked_sessions(
        &self,
        after: (Timestamp, SessionId),
        limit_rows: u32,
    ) -> Result<Vec<RevokedSession>>;
    /// Deletes sessions that may be forgotten, at most `limit_rows`; answers how many.
    async fn delete_sessions(&self, now: Timestamp, limit_rows: u32) -> Result<u64>;
}

/// How often something was tried in the window that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// This one included.
    pub count: u32,
    /// From then on counting begins anew.
    pub window_ends: Timestamp,
}

/// Attempts to log in, counted over all nodes.
#[async_trait]
pub trait AttemptStore: Send + Sync {
    /// Counts one attempt under each of `keys`, in the window that is open or in a new one until `window_ends`;
    /// answers in their order.
    async fn count_attempts(
        &self,
        keys: [&Hash; 2],
        now: Timestamp,
        window_ends: Timestamp,
    ) -> Result<[Attempts; 2]>;
    /// An attempt was none that counts: forgets all of `cleared`, and one of `lessened`.
    async fn forgive_attempts(&self, cleared: &Hash, lessened: &Hash) -> Result<()>;
    /// Deletes windows that ended before `before`, at most `limit_rows`; answers how many.
    async fn delete_attempts(&self, before: Timestamp, limit_rows: u32) -> Result<u64>;
}

/// What it takes to know callers.
pub trait CallerStore: UserStore + KeyStore + SessionStore + AttemptStore {}

impl<T: UserStore + KeyStore + SessionStore + AttemptStore> CallerStore for T {}
