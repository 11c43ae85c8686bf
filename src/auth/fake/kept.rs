//! Keys, sessions and attempts in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::FakeUsers;
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;
use crate::store::{
    AttemptStore, Attempts, Hash, KeyStore, NewSession, Result, Revocation, RevokedSession, Rotation,
    SessionStore, SharedSecret, SigningKeyRow, UserRow,
};

struct Session {
    begun: NewSession,
    revocation: Option<Revocation>,
}

/// The in-memory counterpart of the database tables.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) keys: Vec<SigningKeyRow>,
    secrets: BTreeMap<String, SharedSecret>,
    sessions: BTreeMap<SessionId, Session>,
    /// Refresh tokens by hash: the session, the time of issue, and whether the token was used.
    tokens: BTreeMap<Hash, (SessionId, Timestamp, bool)>,
    pub(crate) attempts: BTreeMap<Hash, Attempts>,
}

impl Kept {
    fn revoke(&mut self, ids: Vec<SessionId>, revocation: Revocation) -> Vec<SessionId> {
        for id in &ids {
            if let Some(session) = self.sessions.get_mut(id) {
                session.revocation = Some(revocation);
            }
        }
        ids
    }

    fn live(&self, subject: &str) -> Vec<SessionId> {
        let live = self.sessions.values().filter(|s| s.begun.subject == subject && s.revocation.is_none());
        let mut live: Vec<_> = live.map(|s| (s.begun.created_at, s.begun.id)).collect();
        live.sort();
        live.into_iter().map(|(_, id)| id).collect()
    }
}

#[async_trait]
impl KeyStore for FakeUsers {
    async fn signing_keys(&self, limit_rows: u32) -> Result<Vec<SigningKeyRow>> {
        self.key_reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.fails()?;
        let mut keys = self.kept().keys.clone();
        keys.sort_by_key(|key| -key.generation);
        keys.truncate(limit_rows as usize);
        Ok(keys)
    }

    async fn add_signing_key(&self, key: &SigningKeyRow, older_until: Timestamp) -> Result<bool> {
        self.fails()?;
        let keys = &mut self.kept().keys;
        if keys.iter().any(|known| known.generation == key.generation) {
            return Ok(false);
        }
        for older in keys.iter_mut() {
            older.verifies_until = Some(older.verifies_until.map_or(older_until, |end| end.min(older_until)));
        }
        keys.push(key.clone());
        Ok(true)
    }

    async fn delete_signing_keys(&self, before: Timestamp, _: u32) -> Result<u64> {
        self.fails()?;
        let keys = &mut self.kept().keys;
        let count = keys.len();
        keys.retain(|key| key.verifies_until.is_none_or(|end| end >= before));
        Ok((count - keys.len()) as u64)
    }

    async fn shared_secret(&self, name: &str, proposed: &SharedSecret) -> Result<SharedSecret> {
        self.fails()?;
        Ok(self.kept().secrets.entry(name.into()).or_insert_with(|| proposed.clone()).clone())
    }
}

#[async_trait]
impl SessionStore for FakeUsers {
    async fn start_session(
        &self,
        session: &NewSession,
        judged: &str,
        sessions_max: u32,
        revocation: Revocation,
    ) -> Result<Option<Vec<SessionId>>> {
        self.sessions_begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let _passed = self.sessions_gate.acquire().await;
        self.fails()?;
        let as_judged = |user: UserRow| {
            !user.disabled && user.password_hash == judged && user.sessions_not_before == session.generation
        };
        if !self.user(&session.subject).is_some_and(as_judged) {
            return Ok(None);
        }
        let mut kept = self.kept();
        let mut surplus = kept.live(&session.subject);
        surplus.truncate((surplus.len() + 1).saturating_sub(sessions_max as usize));
        kept.tokens.insert(session.token, (session.id, session.created_at, false));
        kept.sessions.insert(session.id, Session { begun: session.clone(), revocation: None });
        Ok(Some(kept.revoke(surplus, revocation)))
    }

    async fn rotate_token(
        &self,
        used: &Hash,
        next: &Hash,
        given_after: Timestamp,
        revocation: Revocation,
    ) -> Result<Rotation> {
        self.fails()?;
        let mut kept = self.kept();
        let Some((id, given_at, was_used)) = kept.tokens.get(used).copied() else {
            return Ok(Rotation::Refused);
        };
        let Some(session) = kept.sessions.get(&id) else { return Ok(Rotation::Refused) };
        let NewSession { subject, ends_at, generation: begun_under, .. } = session.begun.clone();
        let Some(user) = self.user(&subject) else { return Ok(Rotation::Refused) };
        let UserRow { role, disabled, sessions_not_before: generation, .. } = user;
        let is_over = session.revocation.is_some() || ends_at <= revocation.at;
        if is_over || disabled || begun_under < generation {
            return Ok(Rotation::Refused);
        }
        if was_used {
            kept.revoke(vec![id], revocation);
            return Ok(Rotation::Reused { session: id });
        }
        if given_at <= given_after {
            return Ok(Rotation::Refused);
        }
        kept.tokens.insert(*used, (id, given_at, true));
        kept.tokens.insert(*next, (id, revocation.at, false));
        Ok(Rotation::Done { session: id, subject, role, generation, ends_at })
    }

    async fn revoke_session(&self, id: SessionId, revocation: Revocation) -> Result<bool> {
        self.fails()?;
        let mut kept = self.kept();
        let live = kept.sessions.get(&id).is_some_and(|session| session.revocation.is_none());
        if live {
            kept.revoke(vec![id], revocation);
        }
        Ok(live)
    }

    async fn revoke_sessions_of(&self, subject: &str, revocation: Revocation) -> Result<Vec<SessionId>> {
        self.fails()?;
        self.next_generation(subject, revocation.at);
        let mut kept = self.kept();
        let live = kept.live(subject);
        Ok(kept.revoke(live, revocation))
    }

    async fn revoked_sessions(
        &self,
        after: (Timestamp, SessionId),
        limit_rows: u32,
    ) -> Result<Vec<RevokedSession>> {
        self.revocation_reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.fails()?;
        let kept = self.kept();
        let revoked = kept.sessions.values().filter_map(|session| {
            let Revocation { at, keep_until } = session.revocation?;
            Some(RevokedSession { id: session.begun.id, revoked_at: at, keep_until })
        });
        let mut rows: Vec<_> = revoked.filter(|row| (row.revoked_at, row.id) > after).collect();
        rows.sort_by_key(|row| (row.revoked_at, row.id));
        rows.truncate(limit_rows as usize);
        Ok(rows)
    }

    async fn delete_sessions(&self, _: Timestamp, _: u32) -> Result<u64> {
        self.fails().map(|()| 0)
    }
}

#[async_trait]
impl AttemptStore for FakeUsers {
    async fn count_attempts(
        &self,
        keys: [&Hash; 2],
        now: Timestamp,
        window_ends: Timestamp,
    ) -> Result<[Attempts; 2]> {
        self.fails()?;
        let mut kept = self.kept();
        Ok(keys.map(|key| {
            let fresh = Attempts { count: 0, window_ends };
            let counted = kept.attempts.entry(*key).or_insert(fresh);
            if counted.window_ends <= now {
                *counted = fresh;
            }
            counted.count += 1;
            *counted
        }))
    }

    async fn forgive_attempts(&self, cleared: &Hash, lessened: &Hash) -> Result<()> {
        self.fails()?;
        let mut kept = self.kept();
        kept.attempts.remove(cleared);
        if let Some(counted) = kept.attempts.get_mut(lessened) {
            counted.count = counted.count.saturating_sub(1);
        }
        Ok(())
    }

    async fn delete_attempts(&self, _: Timestamp, _: u32) -> Result<u64> {
        self.fails().map(|()| 0)
    }
}
