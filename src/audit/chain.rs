//! Chains: each has one writer and at most one batch in flight.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use uuid::Uuid;

use super::entry::{Content, Terms, write};
use super::witness::Growth;
use crate::domain::audit::Access;
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::store::{self, AuditBatch, AuditHead, AuditStore};

/// The seal of a batch: its HMAC-SHA-256.
pub type Mac = [u8; 32];

/// The most chains that a batch pins, youngest first.
pub(super) const PINS_MAX: u32 = 256;

/// The pause before the heads are read again after a failed read.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The previous seal of the first batch of a chain.
pub(super) const NOTHING_BEFORE: Mac = [0; 32];

/// The secret for seals.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// Returns the key for `secret`.
    pub fn of(secret: &[u8]) -> Self {
        Key(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Returns a fingerprint that distinguishes secrets without revealing them.
    pub(super) fn mark(&self) -> Vec<u8> {
        hmac::sign(&self.0, b"hygeia audit secret").as_ref()[..8].to_vec()
    }

    /// Returns the seal of an anchor at `head`.
    pub(super) fn seal_anchor(&self, head: &AuditHead) -> Mac {
        let mut sealing = self.sealing();
        sealing.update(b"hygeia audit anchor 1\0");
        sealing.update(head.chain.as_bytes());
        sealing.update(&head.seq.to_be_bytes());
        sealing.update(&head.mac);
        ended(&sealing)
    }

    /// Returns a context that seals consecutive bytes.
    pub(super) fn sealing(&self) -> hmac::Context {
        hmac::Context::with_key(&self.0)
    }

    /// Returns the seal of a batch, whose body contains the seal of the previous batch.
    pub(super) fn seal(&self, batch: &AuditBatch) -> Mac {
        let mut sealing = self.sealing();
        sealing.update(b"hygeia audit batch 2\0");
        sealing.update(batch.chain.as_bytes());
        sealing.update(&batch.seq.to_be_bytes());
        sealing.update(&batch.at.0.to_be_bytes());
        sealing.update(&batch.body);
        ended(&sealing)
    }
}

/// The secrets of existing rows: the present one and the earlier ones.
#[derive(Clone, Debug)]
pub struct Keys {
    present: Key,
    older: Vec<Key>,
}

impl Keys {
    /// Returns keys whose new seals use `present`.
    pub fn new(present: Key, older: Vec<Key>) -> Self {
        Keys { present, older }
    }

    /// Adds earlier secrets.
    pub fn with_older(mut self, older: impl IntoIterator<Item = Key>) -> Self {
        self.older.extend(older);
        self
    }

    /// Returns the secret for new seals.
    pub fn present(&self) -> &Key {
        &self.present
    }

    /// Returns whether a holder of one of the secrets sealed `batch`. The position in the chain is checked by
    /// the neighbouring rows.
    pub fn have_sealed(&self, batch: &AuditBatch) -> bool {
        self.iter().any(|key| key.seal(batch) == batch.mac)
    }

    /// Returns all secrets, the present one first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.present).chain(&self.older)
    }
}

/// Returns the seal of everything passed to `sealing`.
pub(super) fn ended(sealing: &hmac::Context) -> Mac {
    let mut mac = [0; 32];
    mac.copy_from_slice(sealing.clone().sign().as_ref());
    mac
}

/// One chain, owned by at most one transaction at a time.
pub struct Chain {
    id: Uuid,
    next_seq: i64,
    last: Mac,
    /// When the last batch was sealed.
    last_at: Timestamp,
    /// When the heads that the chain pins, in its stored batches or in the next one, were read.
    pinned_of: Option<MonoTime>,
    pins: Vec<AuditHead>,
}

impl Chain {
    fn new() -> Self {
        Chain {
            id: Uuid::now_v7(),
            next_seq: 0,
            last: NOTHING_BEFORE,
            last_at: Timestamp::default(),
            pinned_of: None,
            pins: Vec::new(),
        }
    }

    /// Advances the chain after `batch` has become durable.
    fn goes_on_from(&mut self, batch: &AuditBatch) {
        self.next_seq = batch.seq + 1;
        self.last = batch.mac;
        self.last_at = batch.at;
        self.pins.clear();
    }

    /// Makes the next batch also pin `heads`.
    pub(super) fn pin(&mut self, heads: &[AuditHead]) {
        self.pins.extend(heads);
    }
}

/// The chains of one writer. Cloning is cheap.
#[derive(Clone)]
pub struct Chains {
    shared: Arc<Shared>,
}

struct Shared {
    key: Key,
    writer: String,
    store: Arc<dyn AuditStore>,
    clock: Arc<dyn Clock>,
    pins_every: Duration,
    growth: Growth,
    /// The chains that no transaction holds. There are as many chains as there were concurrent transactions.
    free: Mutex<Vec<Chain>>,
    seen: Mutex<Seen>,
}

/// The heads of all chains, as last read by this writer.
#[derive(Default)]
struct Seen {
    /// When the last read began, successful or not.
    asked_at: Option<MonoTime>,
    /// When `heads` were read.
    of: Option<MonoTime>,
    heads: Vec<AuditHead>,
}

impl Chains {
    /// Returns the chains of `writer` (`node-name#boot-id/part`). They pin the heads of other chains once per
    /// `pins_every`, and set `growth` with each batch.
    pub fn new(
        key: Key,
        writer: String,
        store: Arc<dyn AuditStore>,
        clock: Arc<dyn Clock>,
        pins_every: Duration,
        growth: Growth,
    ) -> Self {
        let (free, seen) = (Mutex::default(), Mutex::default());
        Chains { shared: Arc::new(Shared { key, writer, store, clock, pins_every, growth, free, seen }) }
    }

    /// Returns a chain for one transaction, with its pins. Does not wait: the pins come from the last `look`.
    pub fn take(&self) -> Chain {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut chain = free.unwrap_or_else(Chain::new);
        if self.is_old(chain.pinned_of) {
            let seen = self.seen();
            if seen.of > chain.pinned_of {
                chain.pins = seen.heads.iter().filter(|head| head.chain != chain.id).copied().collect();
                chain.pinned_of = seen.of;
            }
        }
        chain
    }

    /// Reads the heads of all chains if the last read is older than `pins_every`. Call it between
    /// transactions, not within one: a slow read must not delay a change.
    pub async fn look(&self) {
        let now = self.shared.clock.mono();
        {
            let mut seen = self.seen();
            let pause = self.shared.pins_every.min(LOOK_AGAIN);
            if !self.is_old(seen.of) || seen.asked_at.is_some_and(|at| now.since(at) < pause) {
                return;
            }
            seen.asked_at = Some(now);
        }
        match self.shared.store.audit_heads(None, PINS_MAX).await {
            Ok(heads) => {
                let mut seen = self.seen();
                (seen.of, seen.heads) = (Some(now), heads);
            }
            Err(error) => {
                tracing::warn!(%error, "the ends of the audit's chains were not read, and are not pinned")
            }
        }
    }

    /// Returns whether data read at `moment` has to be read again.
    fn is_old(&self, moment: Option<MonoTime>) -> bool {
        moment.is_none_or(|at| self.shared.clock.mono().since(at) >= self.shared.pins_every)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the next batch of `chain` with `entries`.
    pub fn seal(&self, chain: &Chain, entries: Vec<Access>) -> AuditBatch {
        let Shared { key, writer, clock, .. } = &*self.shared;
        // No entry is later than its batch, whatever the clocks of the nodes say. No batch is later than the
        // next one of its chain, so the rows before any time are the beginning of the chain.
        let newest = entries.iter().map(|access| access.at).max().unwrap_or_default();
        let at = newest.max(clock.now()).max(chain.last_at);
        let terms = Terms::of(&entries, at).0;
        let opening = (chain.next_seq == 0).then(|| (writer.clone(), key.mark()));
        let content = Content { before: chain.last, opening, pins: chain.pins.clone(), entries };
        let body = write(&content, at);
        let unsealed =
            AuditBatch { chain: chain.id, seq: chain.next_seq, at, mac: NOTHING_BEFORE, body, terms };
        AuditBatch { mac: key.seal(&unsealed), ..unsealed }
    }

    /// Ends the transaction of `batch`. If the outcome is unknown, the chain is abandoned and the next
    /// transaction starts a new one, because two batches must never have the same place.
    pub fn ended<T>(&self, mut chain: Chain, batch: &AuditBatch, result: &store::Result<T>) {
        match result {
            Ok(_) => {
                self.shared.growth.note();
                chain.goes_on_from(batch);
                self.put_back(chain);
            }
            Err(store::Error::Unavailable(_)) => self.put_back(chain),
            // The batch may have been stored.
            Err(store::Error::Unknown(_) | store::Error::Broken(_)) => self.shared.growth.note(),
        }
    }

    /// Writes a batch that pins `heads` and has no entries. Returns its head.
    ///
    /// # Errors
    /// The database cannot be written.
    pub(super) async fn append_pins(
        &self,
        store: &dyn AuditStore,
        heads: &[AuditHead],
    ) -> store::Result<AuditHead> {
        let mut chain = self.take();
        chain.pins = heads.iter().filter(|head| head.chain != chain.id).copied().collect();
        let batch = self.seal(&chain, Vec::new());
        let result = store.append_audit(&batch).await;
        self.ended(chain, &batch, &result);
        result.map(|()| AuditHead { chain: batch.chain, seq: batch.seq, mac: batch.mac })
    }

    fn put_back(&self, chain: Chain) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(chain);
    }
}
