//! The witness: it notes where chains end, so that an end that is cut off is missed, also where nobody writes any more.
//!
//! A chain that rests proves nothing by its last rows: the next row would. So a node that has recorded something
//! notes, a while later and when it stops, where the chains are: in a chain of its own, which has no entries, and in
//! its log, which a person with access to the database need not have.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::chain::{Chains, PINS_MAX};
use crate::store::{self, AuditHead, AuditStore};

/// How many chains a line of the log names, the youngest first. The row has them all.
const LOGGED_MAX: usize = 32;

/// Whether the chains of this process have grown since the witness looked. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Growth(Arc<AtomicBool>);

impl Default for Growth {
    /// They have: what was there at the start has to be noted.
    fn default() -> Self {
        Growth(Arc::new(AtomicBool::new(true)))
    }
}

impl Growth {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Notes where the chains are.
pub struct Witness {
    store: Arc<dyn AuditStore>,
    growth: Growth,
    /// Its own, which count for no growth: two nodes would go on noting each other's notes.
    chains: Chains,
    noted: Mutex<Vec<AuditHead>>,
}

impl Witness {
    /// Of the chains that tell `growth`; writes to `chains`, which are its own.
    pub fn new(store: Arc<dyn AuditStore>, growth: Growth, chains: Chains) -> Self {
        Witness { store, growth, chains, noted: Mutex::default() }
    }

    /// Notes where the chains are, in a row and in the log, if those of this process have grown since the last time.
    /// Whether it did.
    ///
    /// # Errors
    /// The database cannot be read, or not be written to: the next call tries again.
    pub async fn note(&self) -> store::Result<bool> {
        if !self.growth.0.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let noted = self.note_now().await;
        if noted.is_err() {
            self.growth.note();
        }
        noted
    }

    async fn note_now(&self) -> store::Result<bool> {
        let heads = self.store.audit_heads(None, PINS_MAX).await?;
        let new: Vec<AuditHead> = {
            let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            heads.iter().filter(|head| !noted.contains(head)).copied().collect()
        };
        if new.is_empty() {
            return Ok(false);
        }
        let own = self.chains.append_pins(&*self.store, &new).await?;
        tracing::info!(heads = text_of(&new, own), "where the chains of the audit are");
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = heads;
        Ok(true)
    }
}

/// `chain/place/seal`, as `hygeia audit verify --heads` has them, of the row that notes the others first.
fn text_of(heads: &[AuditHead], own: AuditHead) -> String {
    let mut text = String::new();
    let others = heads.iter().filter(|head| head.chain != own.chain);
    for AuditHead { chain, seq, mac } in std::iter::once(&own).chain(others).take(LOGGED_MAX) {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{chain}/{seq}/");
        for byte in mac {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}
