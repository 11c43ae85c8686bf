//! Sessions: one per login, refreshed with a refresh token that is valid once. A session ends early by a
//! logout, by the second use of a refresh token, or when it is not refreshed in time.
//!
//! Invariants:
//! - Only the SHA-256 of a refresh token is stored.
//! - No token is accepted before the revoked sessions are known, or if they were last read more than
//!   `STALE_AFTER` ago; the database is read first. So a node that has just started or resumed from suspend
//!   also knows the revocations.
//! - A revocation is committed to the database before it is announced.
//! - A session starts or is refreshed in a transaction that checks its user: at the start against the
//!   password check, at a refresh against the generation of the session. A password change, a disabling and a
//!   logout from all sessions start a new generation and end all sessions of the previous one.
//! - Memory is bounded: with more than `revocations_max` revoked sessions, no token is accepted.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::domain::ids::SessionId;
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, CallerStore, Hash, NewSession, Revocation, Rotation};

use super::fault::Fault;
use super::together::Together;
use super::{CLOCKS_APART_MAX, Judged, Settings, lookup_failed, timed};

/// The longest time until every node knows a revocation. No decision uses older data.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// The number of revoked sessions read per statement.
const PAGE_ROWS: u32 = 1000;
/// The number of random bytes in a refresh token, and the length of its text.
const TOKEN_BYTES: usize = 32;
const TOKEN_CHARS: usize = 43;
/// The most sessions deleted per statement. Each deletion also deletes the session's refresh tokens.
const DELETED_ROWS_MAX: u32 = 50;

/// Called with the sessions that this node revokes, to announce them to other nodes.
pub type Announce = Arc<dyn Fn(&[SessionId]) + Send + Sync>;

#[derive(Default)]
struct Revoked {
    /// Per revoked session: the latest time at which a token of it may still be valid.
    until: HashMap<SessionId, Timestamp>,
    /// When the last read of the database began, by both clocks.
    asked_at: Option<(MonoTime, Timestamp)>,
    /// Whether more sessions are revoked than fit.
    overflown: bool,
}

pub(super) struct Sessions {
    store: Arc<dyn CallerStore>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    /// The longest remaining lifetime of a token after the last refresh of its session.
    outlives: Duration,
    lasts: Duration,
    /// The lifetime of a refresh token.
    idles: Duration,
    per_user_max: u32,
    revocations_max: usize,
    revoked: RwLock<Revoked>,
    reading: Together,
    announce: OnceLock<Announce>,
}

/// A newly started or refreshed session.
pub(super) struct Grant {
    pub(super) session: SessionId,
    /// The generation of the user in the transaction of the grant.
    pub(super) generation: Timestamp,
    pub(super) ends_at: Timestamp,
    pub(super) refresh_token: String,
    pub(super) refresh_expires_in: Duration,
}

impl Sessions {
    pub(super) fn new(settings: &Settings, store: Arc<dyn CallerStore>, clock: Arc<dyn Clock>) -> Self {
        Sessions {
            store,
            clock,
            timeout: settings.lookup_timeout(),
            outlives: settings.token_ttl() + CLOCKS_APART_MAX,
            lasts: Duration::from_secs(settings.session_ttl_seconds),
            idles: Duration::from_secs(settings.session_idle_seconds),
            per_user_max: settings.sessions_per_user_max,
            revocations_max: settings.revocations_max,
            revoked: RwLock::default(),
            reading: Together::default(),
            announce: OnceLock::new(),
        }
    }

    /// Registers `announce`, which is called with the sessions that this node revokes. Call it once.
    pub(super) fn announce_with(&self, announce: Announce) {
        let _ = self.announce.set(announce);
    }

    /// Refuses tokens of a revoked session.
    pub(super) async fn check(&self, session: SessionId) -> Result<()> {
        if let Some(answer) = self.known(session) {
            return answer;
        }
        // Boxed, because this future is large and rarely needed; inline it would enlarge the future of every
        // request.
        Box::pin(self.read()).await?;
        self.known(session)
            .unwrap_or_else(|| Err(Error::new(ErrorCode::Unavailable, "Sessions are not known")))
    }

    /// Returns the answer from memory; `None` if the data is too old.
    fn known(&self, session: SessionId) -> Option<Result<()>> {
        let now = self.clock.mono();
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let (asked_at, _) = revoked.asked_at?;
        if revoked.until.contains_key(&session) {
            return Some(Err(super::token::refused()));
        }
        if now.since(asked_at) > STALE_AFTER {
            return None;
        }
        if revoked.overflown {
            let detail = "More sessions were revoked than can be remembered";
            return Some(Err(Error::new(ErrorCode::Overloaded, detail)));
        }
        Some(Ok(()))
    }

    /// Reads the revoked sessions from the database. Callers that arrive during a read share the next one.
    pub(super) async fn read(&self) -> std::result::Result<(), Fault> {
        self.reading.look(self.read_now()).await
    }

    async fn read_now(&self) -> std::result::Result<(), Fault> {
        let asked_at = (self.clock.mono(), self.clock.now());
        let (before, overflown) = {
            let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
            (revoked.asked_at, revoked.overflown)
        };
        let since = match before {
            // A node with another clock, or a slow commit, may have added rows with an earlier time since the
            // last read.
            Some((_, before)) if !overflown => back(before, CLOCKS_APART_MAX),
            // Read everything again: sessions that did not fit must be found.
            _ => back(asked_at.1, self.outlives),
        };
        let mut after = (since, SessionId(Uuid::nil()));
        let fits = loop {
            let asking = self.store.revoked_sessions(after, PAGE_ROWS);
            let page = timed(self.timeout, asking).await;
            let page = page.map_err(|error| Fault::of_database("sessions", &error))?;
            let full = page.len() >= PAGE_ROWS as usize;
            if let Some(last) = page.last() {
                after = (last.revoked_at, last.id);
            }
            if !self.remember(page.into_iter().map(|row| (row.id, row.keep_until))) {
                break false;
            }
            if !full {
                break true;
            }
        };
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.overflown = !fits;
        revoked.asked_at = Some(asked_at);
        Ok(())
    }

    /// Records revoked sessions and drops those whose tokens have expired. Returns false if not all fit.
    fn remember(&self, sessions: impl Iterator<Item = (SessionId, Timestamp)>) -> bool {
        let now = self.clock.now();
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.until.retain(|_, until| *until > now);
        let mut fits = true;
        for (id, until) in sessions.filter(|(_, until)| *until > now) {
            if revoked.until.len() < self.revocations_max || revoked.until.contains_key(&id) {
                revoked.until.insert(id, until);
            } else {
                fits = false;
            }
        }
        if !fits && !revoked.overflown {
            tracing::error!(max = self.revocations_max, "too many revoked sessions to remember");
            revoked.overflown = true;
        }
        metrics::gauge!("hygeia_sessions_revoked").set(revoked.until.len() as f64);
        fits
    }

    /// Records that another node revoked `sessions`.
    pub(super) fn revoked_elsewhere(&self, sessions: &[SessionId]) {
        let until = forth(self.clock.now(), self.outlives);
        self.remember(sessions.iter().map(|id| (*id, until)));
    }

    /// Starts a session for `subject` after the password check `judged`; `None` if the user was changed
    /// since.
    pub(super) async fn start(&self, subject: &str, judged: &Judged) -> Result<Option<Grant>> {
        let (refresh_token, token) = new_token()?;
        let (now, generation) = (self.clock.now(), judged.generation);
        let ends_at = forth(now, self.lasts);
        let session = NewSession {
            id: SessionId(Uuid::now_v7()),
            subject: subject.to_owned(),
            generation,
            created_at: now,
            ends_at,
            keep_until: forth(ends_at, self.outlives),
            token,
        };
        let starting =
            self.store.start_session(&session, &judged.password_hash, self.per_user_max, self.revocation());
        let Some(surplus) = timed(self.timeout, starting).await.map_err(|error| write_failed(&error))? else {
            return Ok(None);
        };
        self.tell(&surplus);
        let refresh_expires_in = self.until_idle(now, ends_at);
        Ok(Some(Grant { session: session.id, generation, ends_at, refresh_token, refresh_expires_in }))
    }

    /// Exchanges `refresh_token`. Returns the subject, the user's present role, and the grant.
    pub(super) async fn refresh(&self, refresh_token: &str) -> Result<(String, String, Grant)> {
        if refresh_token.len() != TOKEN_CHARS {
            return Err(not_good());
        }
        let (next, next_hash) = new_token()?;
        let used = hash_of(refresh_token);
        let revocation = self.revocation();
        let given_after = back(revocation.at, self.idles);
        let rotating = self.store.rotate_token(&used, &next_hash, given_after, revocation);
        match timed(self.timeout, rotating).await.map_err(|error| write_failed(&error))? {
            Rotation::Done { session, subject, role, generation, ends_at } => {
                let refresh_expires_in = self.until_idle(revocation.at, ends_at);
                let grant = Grant { session, generation, ends_at, refresh_token: next, refresh_expires_in };
                Ok((subject, role, grant))
            }
            Rotation::Reused { session } => {
                tracing::warn!(%session, "a refresh token was used a second time: its session is revoked");
                metrics::counter!("hygeia_refresh_tokens_reused_total").increment(1);
                self.tell(&[session]);
                Err(not_good())
            }
            Rotation::Refused => Err(not_good()),
        }
    }

    /// Revokes a session.
    pub(super) async fn revoke(&self, session: SessionId) -> Result<()> {
        let revoking = self.store.revoke_session(session, self.revocation());
        timed(self.timeout, revoking).await.map_err(|error| write_failed(&error))?;
        self.tell(&[session]);
        Ok(())
    }

    /// Revokes all sessions of `subject` and returns their number.
    pub(super) async fn revoke_all(&self, subject: &str) -> Result<usize> {
        let revoking = self.store.revoke_sessions_of(subject, self.revocation());
        let ended = timed(self.timeout, revoking).await.map_err(|error| write_failed(&error))?;
        self.tell(&ended);
        Ok(ended.len())
    }

    /// Deletes ended sessions, a bounded number per call.
    pub(super) async fn delete_dead(&self) -> Result<()> {
        let deleting = self.store.delete_sessions(self.clock.now(), DELETED_ROWS_MAX);
        timed(self.timeout, deleting).await.map(drop).map_err(|error| lookup_failed("sessions", &error))
    }

    /// Records sessions that were revoked in the database, and announces them to other nodes.
    fn tell(&self, sessions: &[SessionId]) {
        if sessions.is_empty() {
            return;
        }
        metrics::counter!("hygeia_sessions_revoked_total").increment(sessions.len() as u64);
        self.revoked_elsewhere(sessions);
        if let Some(announce) = self.announce.get() {
            announce(sessions);
        }
    }

    /// Returns the lifetime of a refresh token issued at `now`.
    fn until_idle(&self, now: Timestamp, ends_at: Timestamp) -> Duration {
        let left = ends_at.0.saturating_sub(now.0);
        self.idles.min(Duration::from_micros(u64::try_from(left).unwrap_or(0)))
    }

    fn revocation(&self) -> Revocation {
        let at = self.clock.now();
        Revocation { at, keep_until: forth(at, self.outlives) }
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).until.len()
    }
}

/// Returns a new refresh token and the hash that is stored.
fn new_token() -> Result<(String, Hash)> {
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random).map_err(|_| Error::new(ErrorCode::Internal, "No session can begin"))?;
    let text = URL_SAFE_NO_PAD.encode(random);
    let hash = hash_of(&text);
    Ok((text, hash))
}

fn hash_of(text: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

fn not_good() -> Error {
    Error::new(ErrorCode::Unauthenticated, "The refresh token does not hold: log in again")
}

fn write_failed(error: &store::Error) -> Error {
    match error {
        store::Error::Unknown(_) => {
            tracing::warn!(%error, "what became of a session is not known");
            Error::new(ErrorCode::OutcomeUnknown, "What became of the session is not known")
        }
        _ => lookup_failed("sessions", error),
    }
}

fn micros(by: Duration) -> i64 {
    i64::try_from(by.as_micros()).unwrap_or(i64::MAX)
}

fn forth(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_add(micros(by)))
}

fn back(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_sub(micros(by)))
}
