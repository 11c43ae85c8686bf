//! A short-lived cache of what the database says of users.
//!
//! Invariants:
//! - A cached answer was read from the database less than `user_cache_ms` ago, and after this node's last
//!   change of the user.
//! - At most one read per user is in flight, however many callers wait for it. The result of a read is not
//!   cached if the read failed or if the user was changed during the read.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use crate::domain::access::Role;
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::error::{Error, ErrorCode, Result};
use crate::store::{CallerStore, UserRow};

use super::Settings;

/// A user's role and generation; `None` if the user is unknown, disabled, or has a role that this version
/// does not know.
type Standing = Option<(Role, Timestamp)>;
type Question = Shared<BoxFuture<'static, Result<Standing>>>;

enum Known {
    Asked { number: u64, question: Question },
    Answered { standing: Standing, asked_at: MonoTime },
}

#[derive(Clone)]
pub(super) struct Callers {
    store: Arc<dyn CallerStore>,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    lookup_timeout: Duration,
    known: Arc<Mutex<LruCache<Arc<str>, Known>>>,
    /// The number of the next read.
    asked: Arc<AtomicU64>,
}

impl Callers {
    pub(super) fn new(settings: &Settings, store: Arc<dyn CallerStore>, clock: Arc<dyn Clock>) -> Self {
        let capacity = NonZeroUsize::new(settings.users_cached_max).unwrap_or(NonZeroUsize::MIN);
        Callers {
            store,
            clock,
            ttl: Duration::from_millis(settings.user_cache_ms),
            lookup_timeout: Duration::from_millis(settings.user_lookup_timeout_ms),
            known: Arc::new(Mutex::new(LruCache::new(capacity))),
            asked: Arc::default(),
        }
    }

    /// Reads the user from the database.
    pub(super) async fn find(&self, email: &str) -> Result<Option<UserRow>> {
        // A token signed by another holder of the shared secret may name any subject. No database stores a
        // NUL in text, and PostgreSQL refuses the statement.
        if email.contains('\0') {
            return Ok(None);
        }
        match tokio::time::timeout(self.lookup_timeout, self.store.find_user(email)).await {
            Ok(Ok(user)) => Ok(user),
            Ok(Err(error)) => {
                tracing::warn!(%error, "users cannot be looked up");
                Err(Error::new(ErrorCode::Unavailable, "Users cannot be looked up"))
            }
            Err(_) => {
                tracing::warn!("users cannot be looked up in time");
                Err(Error::new(ErrorCode::Unavailable, "Users cannot be looked up"))
            }
        }
    }

    /// Returns the role and generation of `subject`.
    pub(super) async fn standing(&self, subject: &Arc<str>) -> Result<Standing> {
        let (number, question) = {
            let now = self.clock.mono();
            let mut known = self.lock();
            match known.get(subject) {
                Some(Known::Answered { standing, asked_at }) if now.since(*asked_at) < self.ttl => {
                    return Ok(*standing);
                }
                Some(Known::Asked { number, question }) => (*number, question.clone()),
                _ => {
                    let number = self.asked.fetch_add(1, Ordering::Relaxed);
                    let question = self.ask(Arc::clone(subject), number);
                    known.put(Arc::clone(subject), Known::Asked { number, question: question.clone() });
                    (number, question)
                }
            }
        };
        let answer = question.await;
        if answer.is_err() {
            let mut known = self.lock();
            if awaits(&known, subject, number) {
                known.pop(subject);
            }
        }
        answer
    }

    /// Drops `subject` from the cache after this node has changed the user, or may have. The next request
    /// reads the database.
    pub(super) fn forget(&self, subject: &str) {
        self.lock().pop(subject);
    }

    /// Reads in a task of its own, so that the other callers get their answer even if the first one is
    /// cancelled.
    fn ask(&self, subject: Arc<str>, number: u64) -> Question {
        let this = self.clone();
        let asking = tokio::spawn(async move {
            let asked_at = this.clock.mono();
            let user = this.find(&subject).await?;
            let standing = user
                .filter(|user| !user.disabled)
                .and_then(|user| Some((Role::parse(&user.role)?, user.sessions_not_before)));
            let mut known = this.lock();
            // The user may have been changed, and dropped from the cache, since the read began.
            if awaits(&known, &subject, number) {
                known.put(subject, Known::Answered { standing, asked_at });
            }
            Ok(standing)
        });
        asking
            .map(|ended| {
                ended.unwrap_or_else(|_| Err(Error::new(ErrorCode::Internal, "Users cannot be looked up")))
            })
            .boxed()
            .shared()
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Arc<str>, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the answer to the read `number` may still be cached.
fn awaits(known: &LruCache<Arc<str>, Known>, subject: &str, number: u64) -> bool {
    matches!(known.peek(subject), Some(Known::Asked { number: last, .. }) if *last == number)
}
