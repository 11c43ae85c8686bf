//! What the database says of users, remembered for a moment.
//!
//! Invariants:
//! - What is answered from memory was asked of the database less than `user_cache_ms` ago, and after the last change of
//!   that user by this node.
//! - At most one question per user is on its way, whoever waits for it. A question that failed, or that a change of the
//!   user has overtaken, is not remembered.

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

/// What a user may do, and the generation of tokens that hold; `None` for one who is unknown, disabled, or of a role
/// unknown here.
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
    /// Tells questions apart.
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

    /// The user as the database has it now.
    pub(super) async fn find(&self, email: &str) -> Result<Option<UserRow>> {
        // A token that somebody else signed with the shared secret may name anybody. No database holds a NUL in a
        // text, and PostgreSQL refuses the statement.
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

    /// What `subject` may do.
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

    /// This node has changed `subject`, or may have: the next request asks the database again.
    pub(super) fn forget(&self, subject: &str) {
        self.lock().pop(subject);
    }

    /// Asks in a task of its own: a caller who goes away leaves the others their answer.
    fn ask(&self, subject: Arc<str>, number: u64) -> Question {
        let this = self.clone();
        let asking = tokio::spawn(async move {
            let asked_at = this.clock.mono();
            let user = this.find(&subject).await?;
            let standing = user
                .filter(|user| !user.disabled)
                .and_then(|user| Some((Role::parse(&user.role)?, user.sessions_not_before)));
            let mut known = this.lock();
            // The user may have been changed, and forgotten, since the question was sent.
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

/// Whether the answer to that question is still to be remembered.
fn awaits(known: &LruCache<Arc<str>, Known>, subject: &str, number: u64) -> bool {
    matches!(known.peek(subject), Some(Known::Asked { number: last, .. }) if *last == number)
}
