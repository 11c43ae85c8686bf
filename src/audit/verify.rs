//! Looks at every batch there is, and at what they say of each other.

use std::collections::HashMap;
use std::fmt;

use uuid::Uuid;

use super::chain::{Key, Mac};
use super::entry::{Terms, read};
use crate::store::{self, AuditBatch, AuditHead, AuditStore};

/// Chains asked for at once.
const CHAINS_PAGE: u32 = 256;
/// Batches asked for at once.
const BATCHES_PAGE: u32 = 64;

/// What is wrong, and where: the first of it in each chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The chain.
    pub chain: Uuid,
    /// The place in it.
    pub seq: i64,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} row {}: {}", self.chain, self.seq, self.what)
    }
}

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Batches: rows of the database.
    pub batches: u64,
    /// Entries in them.
    pub entries: u64,
    /// Where each chain ends: to be kept elsewhere, and compared later.
    pub heads: Vec<AuditHead>,
    /// What is wrong; empty if nothing is.
    pub faults: Vec<Fault>,
}

/// Checks every chain in `store` under `key`.
///
/// # Errors
/// The database cannot be read.
pub async fn verify(store: &dyn AuditStore, key: &Key) -> store::Result<Report> {
    let mut report = Report::default();
    let mut pins: HashMap<Uuid, AuditHead> = HashMap::new();
    let mut before = None;
    loop {
        let heads = store.audit_heads(before, CHAINS_PAGE).await?;
        let Some(last) = heads.last() else { break };
        before = Some(last.chain);
        for head in heads {
            verify_chain(store, key, head.chain, &mut report, &mut pins).await?;
        }
    }
    let mut pins: Vec<AuditHead> = pins.into_values().collect();
    pins.sort_unstable_by_key(|pin| pin.chain);
    for AuditHead { chain, seq, mac } in pins {
        let there = store.audit_batches(chain, seq, 1).await?;
        let what = match there.first().filter(|batch| batch.seq == seq) {
            Some(batch) if batch.mac == mac => continue,
            Some(_) => "another chain saw a row with another seal there",
            None => "the row is missing: another chain saw it",
        };
        report.faults.push(Fault { chain, seq, what });
    }
    Ok(report)
}

async fn verify_chain(
    store: &dyn AuditStore,
    key: &Key,
    chain: Uuid,
    report: &mut Report,
    pins: &mut HashMap<Uuid, AuditHead>,
) -> store::Result<()> {
    let (mut seq, mut last): (i64, Mac) = (0, [0; 32]);
    loop {
        let page = store.audit_batches(chain, seq, BATCHES_PAGE).await?;
        if page.is_empty() {
            report.heads.push(AuditHead { chain, seq: seq - 1, mac: last });
            return Ok(());
        }
        for batch in page {
            report.batches += 1;
            match check(key, &batch, seq, &last) {
                Ok((entries, pinned)) => {
                    report.entries += entries;
                    for pin in pinned {
                        let newest = pins.entry(pin.chain).or_insert(pin);
                        if newest.seq < pin.seq {
                            *newest = pin;
                        }
                    }
                }
                Err(what) => {
                    // What follows hangs on this one: one fault a chain says where to look.
                    report.faults.push(Fault { chain, seq, what });
                    return Ok(());
                }
            }
            (seq, last) = (batch.seq + 1, batch.mac);
        }
    }
}

/// How many entries `batch` has, and what it pins, if it is what belongs at `seq`.
fn check(
    key: &Key,
    batch: &AuditBatch,
    seq: i64,
    before: &Mac,
) -> Result<(u64, Vec<AuditHead>), &'static str> {
    if batch.seq != seq {
        return Err("the row is missing");
    }
    let content = read(&batch.body, batch.at);
    if let Ok(content) = &content
        && let Some((_, mark)) = &content.opening
        && *mark != key.mark()
    {
        return Err("it is sealed by another secret");
    }
    if key.seal(batch, before) != batch.mac {
        return Err("the seal does not fit: it was changed, or put in");
    }
    let content = content.map_err(|_| "its content cannot be read by this version")?;
    if (seq == 0) != content.opening.is_some() {
        return Err("it opens a chain at the wrong place");
    }
    if Terms::of(&content.entries).0 != batch.terms {
        return Err("its search terms were changed");
    }
    Ok((content.entries.len() as u64, content.pins))
}
