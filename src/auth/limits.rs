//! Limits failed logins per account and per client address. The counts are in the database, so they hold
//! across all nodes. The password check before a password change counts as a login.
//!
//! Invariants:
//! - An attempt is counted before its password is checked, and uncounted if the password is correct. So
//!   concurrent attempts cannot exceed the limit together.
//! - An unknown account is counted and refused like an existing one.
//! - An account or address known to be at its limit is refused from memory, without a database access. That
//!   memory is bounded.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use lru::LruCache;

use crate::domain::time::{Clock, Timestamp};
use crate::error::{Error, Result};
use crate::store::{CallerStore, Hash};

use super::{Settings, lookup_failed, timed};

/// The most expired windows deleted per statement.
const DELETED_ROWS_MAX: u32 = 1000;

/// The keys under which an attempt is counted.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    account: Hash,
    address: Hash,
}

impl Attempt {
    /// Returns an attempt on the account of `email` from `address`. For IPv6 the 64-bit network counts,
    /// because a host can use any address in it.
    pub(super) fn new(email: &str, address: Option<IpAddr>) -> Self {
        let address = match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets()[..8].to_vec(),
            None => Vec::new(),
        };
        Attempt { account: key(b"account", email.as_bytes()), address: key(b"address", &address) }
    }
}

fn key(kind: &[u8], what: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(kind);
    context.update(&[0]);
    context.update(what);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

pub(super) struct Limits {
    store: Arc<dyn CallerStore>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    account_max: u32,
    address_max: u32,
    window: Duration,
    /// Until when each account or address is refused.
    blocked: Mutex<LruCache<Hash, Timestamp>>,
}

impl Limits {
    pub(super) fn new(settings: &Settings, store: Arc<dyn CallerStore>, clock: Arc<dyn Clock>) -> Self {
        let capacity = NonZeroUsize::new(settings.login_blocked_cached_max).unwrap_or(NonZeroUsize::MIN);
        Limits {
            store,
            clock,
            timeout: settings.lookup_timeout(),
            account_max: settings.login_account_failures_max,
            address_max: settings.login_address_failures_max,
            window: Duration::from_secs(settings.login_window_seconds),
            blocked: Mutex::new(LruCache::new(capacity)),
        }
    }

    /// Refuses an attempt that is known to exceed a limit.
    pub(super) fn check(&self, attempt: &Attempt) -> Result<()> {
        let now = self.clock.now();
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        let until =
            [&attempt.account, &attempt.address].into_iter().filter_map(|key| blocked.peek(key)).max();
        match until.filter(|until| **until > now) {
            Some(until) => Err(too_many(now, *until)),
            None => Ok(()),
        }
    }

    /// Counts an attempt. Refuses the attempt if it exceeds a limit.
    pub(super) async fn count(&self, attempt: &Attempt) -> Result<()> {
        let now = self.clock.now();
        let window = i64::try_from(self.window.as_micros()).unwrap_or(i64::MAX);
        let ends = Timestamp(now.0.saturating_add(window));
        let counting = self.store.count_attempts([&attempt.account, &attempt.address], now, ends);
        let counted = timed(self.timeout, counting).await.map_err(|error| lookup_failed("logins", &error))?;
        let [account, address] = counted;
        let over = [
            (attempt.account, account, account.count > self.account_max),
            (attempt.address, address, address.count > self.address_max),
        ];
        let mut until = None;
        for (key, counted, _) in over.into_iter().filter(|(_, _, over)| *over) {
            self.blocked.lock().unwrap_or_else(PoisonError::into_inner).put(key, counted.window_ends);
            until = until.max(Some(counted.window_ends));
        }
        match until {
            Some(until) => {
                metrics::counter!("hygeia_logins_blocked_total").increment(1);
                Err(too_many(now, until))
            }
            None => Ok(()),
        }
    }

    /// Uncounts a successful attempt: clears the account's count and lowers the address's count by one. If
    /// the database fails, the login still succeeds.
    pub(super) async fn forgive(&self, attempt: &Attempt) {
        let forgiving = self.store.forgive_attempts(&attempt.account, &attempt.address);
        if let Err(error) = timed(self.timeout, forgiving).await {
            tracing::warn!(%error, "a login that went well stays counted as one that failed");
        }
    }

    /// Deletes expired windows, a bounded number per call.
    pub(super) async fn delete_dead(&self) -> Result<()> {
        let deleting = self.store.delete_attempts(self.clock.now(), DELETED_ROWS_MAX);
        timed(self.timeout, deleting).await.map(drop).map_err(|error| lookup_failed("logins", &error))
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn too_many(now: Timestamp, until: Timestamp) -> Error {
    let wait_us = until.0.saturating_sub(now.0).max(0).unsigned_abs();
    Error::too_many_requests("Too many logins have failed", Duration::from_micros(wait_us))
}
