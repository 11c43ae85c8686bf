//! Chains: one writer each, one batch under way each.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use uuid::Uuid;

use super::entry::{Content, Terms, write};
use crate::domain::audit::Access;
use crate::domain::time::{Clock, MonoTime};
use crate::store::{self, AuditBatch, AuditHead, AuditStore};

/// A seal.
pub type Mac = [u8; 32];

/// How many chains a batch pins at most, the newest first.
const PINS_MAX: u32 = 256;

/// What stands before the first batch.
const NOTHING_BEFORE: Mac = [0; 32];

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

    /// The seal of a batch that follows the one sealed by `before`.
    pub(super) fn seal(&self, batch: &AuditBatch, before: &Mac) -> Mac {
        let mut sealing = hmac::Context::with_key(&self.0);
        sealing.update(b"hygeia audit batch 1\0");
        sealing.update(batch.chain.as_bytes());
        sealing.update(&batch.seq.to_be_bytes());
        sealing.update(&batch.at.0.to_be_bytes());
        sealing.update(before);
        sealing.update(&batch.body);
        let mut mac = [0; 32];
        mac.copy_from_slice(sealing.sign().as_ref());
        mac
    }
}

/// One chain, in the hands of whoever has a transaction under way.
pub struct Chain {
    id: Uuid,
    next_seq: i64,
    last: Mac,
    pinned_at: MonoTime,
    pins: Vec<AuditHead>,
}

impl Chain {
    fn new() -> Self {
        Chain {
            id: Uuid::now_v7(),
            next_seq: 0,
            last: NOTHING_BEFORE,
            pinned_at: MonoTime::default(),
            pins: Vec::new(),
        }
    }

    /// The batch that was sealed has become durable.
    fn goes_on_from(&mut self, batch: &AuditBatch) {
        self.next_seq = batch.seq + 1;
        self.last = batch.mac;
        self.pins.clear();
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
    /// Those that no transaction has. As many as there were transactions at the same time.
    free: Mutex<Vec<Chain>>,
}

impl Chains {
    /// Chains of `writer` (`node-name#boot-id/part`), which pin what else there is once in `pins_every`.
    pub fn new(
        key: Key,
        writer: String,
        store: Arc<dyn AuditStore>,
        clock: Arc<dyn Clock>,
        pins_every: Duration,
    ) -> Self {
        let shared = Shared { key, writer, store, clock, pins_every, free: Mutex::default() };
        Chains { shared: Arc::new(shared) }
    }

    /// A chain for one transaction, with what it has to pin.
    ///
    /// # Errors
    /// The database does not say what there is to pin. Nothing is lost by it.
    pub async fn take(&self) -> store::Result<Chain> {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut chain = free.unwrap_or_else(Chain::new);
        let now = self.shared.clock.mono();
        if chain.next_seq == 0 || now.since(chain.pinned_at) >= self.shared.pins_every {
            match self.shared.store.audit_heads(None, PINS_MAX).await {
                Ok(mut heads) => {
                    heads.retain(|head| head.chain != chain.id);
                    (chain.pins, chain.pinned_at) = (heads, now);
                }
                Err(error) => {
                    self.put_back(chain);
                    return Err(error);
                }
            }
        }
        Ok(chain)
    }

    /// The next batch of `chain`, which holds `entries`.
    pub fn seal(&self, chain: &Chain, entries: Vec<Access>) -> AuditBatch {
        let Shared { key, writer, clock, .. } = &*self.shared;
        // No entry is younger than its batch, whatever the clocks of this and another node say.
        let at = entries.iter().map(|access| access.at).max().unwrap_or_default().max(clock.now());
        let terms = Terms::of(&entries).0;
        let opening = (chain.next_seq == 0).then(|| (writer.clone(), key.mark()));
        let body = write(&Content { opening, pins: chain.pins.clone(), entries }, at);
        let unsealed =
            AuditBatch { chain: chain.id, seq: chain.next_seq, at, mac: NOTHING_BEFORE, body, terms };
        AuditBatch { mac: key.seal(&unsealed, &chain.last), ..unsealed }
    }

    /// The transaction of `batch` has ended. If its outcome is not known the chain ends with it, and the next
    /// transaction begins another one: two batches must never have the same place.
    pub fn ended<T>(&self, mut chain: Chain, batch: &AuditBatch, result: &store::Result<T>) {
        match result {
            Ok(_) => {
                chain.goes_on_from(batch);
                self.put_back(chain);
            }
            Err(store::Error::Unavailable(_)) => self.put_back(chain),
            Err(store::Error::Unknown(_) | store::Error::Broken(_)) => drop(chain),
        }
    }

    fn put_back(&self, chain: Chain) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(chain);
    }
}
