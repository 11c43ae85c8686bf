//! The witness: records the heads of the chains, so that a removed end is noticed even after the writers have
//! become idle.
//!
//! The last rows of an idle chain are unprotected until another row follows them. So a node that has recorded
//! entries writes down the heads of the chains a while later and when it stops: in a chain of its own without
//! entries, and in its log. A person with access to the database need not have access to the log.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::chain::{Chains, PINS_MAX};
use crate::store::{self, AuditHead, AuditStore};

/// The most chains in one log line, youngest first. The row contains all of them.
const LOGGED_MAX: usize = 32;

/// Whether the chains of this process have grown since the last call of the witness. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Growth(Arc<AtomicBool>);

impl Default for Growth {
    /// Starts as grown: the chains that exist at the start must be recorded.
    fn default() -> Self {
        Growth(Arc::new(AtomicBool::new(true)))
    }
}

impl Growth {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Records the heads of the chains.
pub struct Witness {
    store: Arc<dyn AuditStore>,
    growth: Growth,
    /// The witness's own chains. They do not set `growth`: otherwise two nodes would record each other's
    /// records forever.
    chains: Chains,
    noted: Mutex<Vec<AuditHead>>,
}

impl Witness {
    /// Returns a witness of the chains that set `growth`. `chains` are the witness's own chains, to which it
    /// writes.
    pub fn new(store: Arc<dyn AuditStore>, growth: Growth, chains: Chains) -> Self {
        Witness { store, growth, chains, noted: Mutex::default() }
    }

    /// Records the heads of the chains, in a row and in the log, if the chains of this process have grown
    /// since the last call. Returns whether a row was written.
    ///
    /// # Errors
    /// The database cannot be read or written. The next call tries again.
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

/// Formats heads as `chain/place/seal`, like `hygeia audit verify --heads`, starting with the row that pins
/// the others.
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
