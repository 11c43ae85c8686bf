//! Chains: one writer each, one batch under way each.

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

/// A seal.
pub type Mac = [u8; 32];

/// How many chains a batch pins at most, the newest first.
pub(super) const PINS_MAX: u32 = 256;

/// The pause before the database is asked again where the chains are, if it has not answered.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What stands before the first batch.
pub(super) const NOTHING_BEFORE: Mac = [0; 32];

/// The secret that seals.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The secret as it was given.
    pub fn of(secret: &[u8]) -> Self {
        Key(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// What tells one secret from another, and does not tell it.
    pub(super) fn mark(&self) -> Vec<u8> {
        hmac::sign(&self.0, b"hygeia audit secret").as_ref()[..8].to_vec()
    }

    /// The seal of an anchor at `head`.
    pub(super) fn seal_anchor(&self, head: &AuditHead) -> Mac {
        let mut sealing = self.sealing();
        sealing.update(b"hygeia audit anchor 1\0");
        sealing.update(head.chain.as_bytes());
        sealing.update(&head.seq.to_be_bytes());
        sealing.update(&head.mac);
        ended(&sealing)
    }

    /// What seals bytes that come one after the other.
    pub(super) fn sealing(&self) -> hmac::Context {
        hmac::Context::with_key(&self.0)
    }

    /// The seal of a batch. Its body holds the seal of the one before it.
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

/// The secrets that rows may be sealed with: the present one, and those from before it was changed.
#[derive(Clone, Debug)]
pub struct Keys {
    present: Key,
    older: Vec<Key>,
}

impl Keys {
    /// New seals are made with `present`.
    pub fn new(present: Key, older: Vec<Key>) -> Self {
        Keys { present, older }
    }

    /// These, and some from before.
    pub fn with_older(mut self, older: impl IntoIterator<Item = Key>) -> Self {
        self.older.extend(older);
        self
    }

    /// The secret that new seals are made with.
    pub fn present(&self) -> &Key {
        &self.present
    }

    /// Whether `batch` is as somebody with one of the secrets wrote it. Where it belongs, its neighbours tell.
    pub fn have_sealed(&self, batch: &AuditBatch) -> bool {
        self.iter().any(|key| key.seal(batch) == batch.mac)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.present).chain(&self.older)
    }
}

/// The seal of all that `sealing` was given.
pub(super) fn ended(sealing: &hmac::Context) -> Mac {
    let mut mac = [0; 32];
    mac.copy_from_slice(sealing.clone().sign().as_ref());
    mac
}

/// One chain, in the hands of whoever has a transaction under way.
pub struct Chain {
    id: Uuid,
    next_seq: i64,
    last: Mac,
    /// When the last batch was sealed.
    last_at: Timestamp,
    /// Of which moment its pins are, those in the database or those in its next batch.
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

    /// The batch that was sealed has become durable.
    fn goes_on_from(&mut self, batch: &AuditBatch) {
        self.next_seq = batch.seq + 1;
        self.last = batch.mac;
        self.last_at = batch.at;
        self.pins.clear();
    }

    /// Has the next batch pin `heads` too.
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
    /// Those that no transaction has. As many as there were transactions at the same time.
    free: Mutex<Vec<Chain>>,
    seen: Mutex<Seen>,
}

/// Where the chains there are end, as far as this writer knows.
#[derive(Default)]
struct Seen {
    /// When the database was asked last.
    asked_at: Option<MonoTime>,
    /// Of which moment `heads` are.
    of: Option<MonoTime>,
    heads: Vec<AuditHead>,
}

impl Chains {
    /// Chains of `writer` (`node-name#boot-id/part`), which pin what else there is once in `pins_every`, and tell `growth` of
    /// each batch.
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

    /// A chain for one transaction, with what it has to pin. It waits for nothing: it pins what `look` has seen.
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

    /// Reads where the chains are, if what is known of that is old. To be called after a transaction and not within
    /// one: a database that does not answer this must hold up no change.
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

    /// Whether what was read at `moment` is to be read anew.
    fn is_old(&self, moment: Option<MonoTime>) -> bool {
        moment.is_none_or(|at| self.shared.clock.mono().since(at) >= self.shared.pins_every)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch of `chain`, which holds `entries`.
    pub fn seal(&self, chain: &Chain, entries: Vec<Access>) -> AuditBatch {
        let Shared { key, writer, clock, .. } = &*self.shared;
        // No entry is younger than its batch, whatever the clocks of this and another node say. And no batch is
        // younger than the next one of its chain, so that the rows before any moment are the beginning of the chain.
        let newest = entries.iter().map(|access| access.at).max().unwrap_or_default();
        let at = newest.max(clock.now()).max(chain.last_at);
        let terms = Terms::of(&entries).0;
        let opening = (chain.next_seq == 0).then(|| (writer.clone(), key.mark()));
        let content = Content { before: chain.last, opening, pins: chain.pins.clone(), entries };
        let body = write(&content, at);
        let unsealed =
            AuditBatch { chain: chain.id, seq: chain.next_seq, at, mac: NOTHING_BEFORE, body, terms };
        AuditBatch { mac: key.seal(&unsealed), ..unsealed }
    }

    /// The transaction of `batch` has ended. If its outcome is not known the chain ends with it, and the next
    /// transaction begins another one: two batches must never have the same place.
    pub fn ended<T>(&self, mut chain: Chain, batch: &AuditBatch, result: &store::Result<T>) {
        match result {
            Ok(_) => {
                self.shared.growth.note();
                chain.goes_on_from(batch);
                self.put_back(chain);
            }
            Err(store::Error::Unavailable(_)) => self.put_back(chain),
            // It may have come about.
            Err(store::Error::Unknown(_) | store::Error::Broken(_)) => self.shared.growth.note(),
        }
    }

    /// Writes a batch that pins `heads`, and records nothing. Answers with where it is.
    ///
    /// # Errors
    /// The database cannot be written to.
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
