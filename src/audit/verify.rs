//! Verifies every batch, and the references between chains.

use std::collections::{HashMap, HashSet};
use std::fmt;

use uuid::Uuid;

use super::archive::{Archive, Run};
use super::chain::{Keys, Mac, NOTHING_BEFORE};
use super::entry::{Content, Terms, read, term_of_patient};
use crate::domain::audit::{Access, Change};
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::Timestamp;
use crate::store::{
    self, AuditAnchor, AuditArchiveStore, AuditBatch, AuditHead, AuditPosition, AuditSearch, EventAt,
};

/// The number of chains per read.
pub(super) const CHAINS_PAGE: u32 = 256;
/// The number of batches per read.
pub(super) const BATCHES_PAGE: u32 = 64;

/// A fault and its place. The rows of a chain after a bad row are not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The chain.
    pub chain: Uuid,
    /// The sequence number of the row.
    pub seq: i64,
    /// The description of the fault.
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} row {}: {}", self.chain, self.seq, self.what)
    }
}

/// The result of a verification.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of batches: rows of the database.
    pub batches: u64,
    /// The number of entries in the batches.
    pub entries: u64,
    /// The number of anchors: chains with archived rows.
    pub anchors: u64,
    /// The number of chains in the given archives that continue in an archive that was not given.
    pub open_runs: u64,
    /// The head of each chain with rows. Store the heads elsewhere to compare them later.
    pub heads: Vec<AuditHead>,
    /// The faults of rows; empty if there are none.
    pub faults: Vec<Fault>,
    /// Whether the index of terms differs from the terms of the rows.
    pub terms_lost: bool,
}

/// Returns whether `anchor` was sealed with one of the secrets.
pub(super) fn anchored(keys: &Keys, anchor: &AuditAnchor) -> bool {
    keys.iter().any(|key| key.seal_anchor(&anchor.head) == anchor.seal)
}

/// Returns all anchors by chain.
pub(super) async fn anchors_of<S: AuditArchiveStore + ?Sized>(
    store: &S,
) -> store::Result<HashMap<Uuid, AuditAnchor>> {
    let mut anchors = HashMap::new();
    let mut after = None;
    loop {
        let page = store.audit_anchors(after, CHAINS_PAGE).await?;
        let Some(last) = page.last() else { return Ok(anchors) };
        after = Some(last.head.chain);
        anchors.extend(page.into_iter().map(|anchor| (anchor.head.chain, anchor)));
    }
}

/// Verifies every chain in `store` under `keys`, and that `archives` continue in the database. The archives
/// themselves must already have been checked by `read_archive`.
///
/// # Errors
/// The database cannot be read.
pub async fn verify<S: AuditArchiveStore + ?Sized>(
    store: &S,
    keys: &Keys,
    archives: &[Archive],
) -> store::Result<Report> {
    let mut verifier = Verifier {
        store,
        keys,
        anchors: anchors_of(store).await?,
        report: Report::default(),
        pins: HashMap::new(),
        chains: HashSet::new(),
    };
    verifier.verify_anchors();
    let mut before = None;
    loop {
        let heads = store.audit_heads(before, CHAINS_PAGE).await?;
        let Some(last) = heads.last() else { break };
        before = Some(last.chain);
        for head in heads {
            verifier.verify_chain(head.chain).await?;
        }
    }
    verifier.verify_pins().await?;
    verifier.verify_joints(archives).await?;
    verifier.report.terms_lost = !store.audit_terms_fit().await?;
    Ok(verifier.report)
}

struct Verifier<'a, S: ?Sized> {
    store: &'a S,
    keys: &'a Keys,
    anchors: HashMap<Uuid, AuditAnchor>,
    report: Report,
    /// The newest pin of each chain.
    pins: HashMap<Uuid, AuditHead>,
    /// The chains with rows.
    chains: HashSet<Uuid>,
}

impl<S: AuditArchiveStore + ?Sized> Verifier<'_, S> {
    /// Reports and drops anchors that were not sealed with a known secret. Their chains are treated as if
    /// they had no anchor.
    fn verify_anchors(&mut self) {
        let forged = self.anchors.values().filter(|anchor| !anchored(self.keys, anchor));
        let mut forged: Vec<AuditHead> = forged.map(|anchor| anchor.head).collect();
        forged.sort_unstable_by_key(|head| head.chain);
        for AuditHead { chain, seq, .. } in forged {
            self.anchors.remove(&chain);
            let what = "its anchor was changed, put in, or sealed with another secret";
            self.report.faults.push(Fault { chain, seq, what });
        }
        self.report.anchors = self.anchors.len() as u64;
    }

    async fn verify_chain(&mut self, chain: Uuid) -> store::Result<()> {
        self.chains.insert(chain);
        let begins = self.anchors.get(&chain).map(|anchor| (anchor.head.seq + 1, anchor.head.mac));
        let (mut seq, mut last): (i64, Mac) = begins.unwrap_or((0, NOTHING_BEFORE));
        // Read from the lowest possible sequence number, so that a row before the anchor is noticed. Read the
        // last row of each page again, so that a second row at its place is noticed.
        let mut last_row = None;
        loop {
            let from = last_row.unwrap_or(i64::MIN);
            let mut page = self.store.audit_batches(chain, from, BATCHES_PAGE).await?;
            if page.first().is_some_and(|first| last_row == Some(first.seq) && first.mac == last) {
                page.remove(0);
            }
            if page.is_empty() {
                self.report.heads.push(AuditHead { chain, seq: seq - 1, mac: last });
                return Ok(());
            }
            for batch in page {
                self.report.batches += 1;
                match check(self.keys, &batch, seq, &last) {
                    Ok(Content { pins, entries, .. }) => {
                        self.report.entries += entries.len() as u64;
                        self.note_pins(pins);
                        self.verify_events(chain, seq, &entries).await?;
                    }
                    Err(what) => {
                        // All later rows depend on this one, so one fault per chain is enough.
                        self.report.faults.push(Fault { chain, seq, what });
                        return Ok(());
                    }
                }
                (seq, last, last_row) = (batch.seq + 1, batch.mac, Some(batch.seq));
            }
        }
    }

    /// Looks for the event of each submitted change. The event may be missing, because a submitted change may
    /// have been refused. In that case an entry must claim the event in its place, or no later event may
    /// exist. The record of a patient must have the version of the newest event; otherwise events at the end
    /// are missing or were added.
    async fn verify_events(&mut self, chain: Uuid, seq: i64, entries: &[Access]) -> store::Result<()> {
        let submitted = entries.iter().filter_map(|access| Some((*access.patients.first()?, access.change?)));
        let submitted: Vec<(PatientId, Change)> = submitted.collect();
        if submitted.is_empty() {
            return Ok(());
        }
        let places: Vec<(PatientId, Version)> =
            submitted.iter().map(|(patient, change)| (*patient, change.version)).collect();
        let there = self.store.events_at(&places).await?;
        for ((patient, change), EventAt { event, newest, record }) in submitted.into_iter().zip(there) {
            let what = match event {
                Some(event) if event != change.event && !self.is_claimed(patient, event).await? => {
                    "the history has another event in the place of this change, and no entry tells of it"
                }
                None if newest > change.version => {
                    "the event of this change is missing, and later ones are there"
                }
                _ if newest != record && change.version >= newest.min(record) => {
                    "the history of the patient ends before the record does, or after it"
                }
                _ => continue,
            };
            self.report.faults.push(Fault { chain, seq, what });
        }
        Ok(())
    }

    /// Returns whether an entry claims `event`. An archived entry may claim it, so the result is true if any
    /// anchor exists.
    async fn is_claimed(&self, patient: PatientId, event: EventId) -> store::Result<bool> {
        if !self.anchors.is_empty() {
            return Ok(true);
        }
        let youngest = AuditPosition { at: Timestamp(i64::MAX), chain: Uuid::max(), seq: i64::MAX };
        let mut search = AuditSearch {
            terms: vec![term_of_patient(patient)],
            from: Timestamp(i64::MIN),
            until: youngest,
            limit_rows: BATCHES_PAGE,
        };
        loop {
            let found = self.store.search_audit(&search).await?;
            let contents = found.batches.iter().filter_map(|batch| read(&batch.body, batch.at).ok());
            let claims = |access: &Access| access.change.is_some_and(|change| change.event == event);
            if contents.flat_map(|content| content.entries).any(|access| claims(&access)) {
                return Ok(true);
            }
            match found.looked_to {
                Some(AuditPosition { at, chain, seq }) if seq > i64::MIN => {
                    search.until = AuditPosition { at, chain, seq: seq - 1 };
                }
                _ => return Ok(false),
            }
        }
    }

    fn note_pins(&mut self, pinned: Vec<AuditHead>) {
        for pin in pinned {
            let newest = self.pins.entry(pin.chain).or_insert(pin);
            if newest.seq < pin.seq {
                *newest = pin;
            }
        }
    }

    async fn verify_pins(&mut self) -> store::Result<()> {
        let mut pins: Vec<AuditHead> = self.pins.drain().map(|(_, pin)| pin).collect();
        pins.sort_unstable_by_key(|pin| pin.chain);
        for pin in pins {
            let what = match self.seal_at(pin).await? {
                Place::Seal(mac) if mac == pin.mac => continue,
                Place::Archived => continue,
                Place::Seal(_) => "another chain saw a row with another seal there",
                Place::Missing => "the row is missing: another chain saw it",
            };
            self.report.faults.push(Fault { chain: pin.chain, seq: pin.seq, what });
        }
        Ok(())
    }

    /// Returns what the chain has at the place of `head`.
    async fn seal_at(&self, head: AuditHead) -> store::Result<Place> {
        if let Some(anchor) = self.anchors.get(&head.chain).filter(|anchor| anchor.head.seq >= head.seq) {
            let at_end = anchor.head.seq == head.seq;
            return Ok(if at_end { Place::Seal(anchor.head.mac) } else { Place::Archived });
        }
        let there = self.store.audit_batches(head.chain, head.seq, 1).await?;
        let there = there.first().filter(|batch| batch.seq == head.seq);
        Ok(there.map_or(Place::Missing, |batch| Place::Seal(batch.mac)))
    }

    /// Checks that the database continues each chain of each archive after its last row: with the anchor at
    /// that row, with the row itself if the archiving was interrupted, or with the next archive.
    async fn verify_joints(&mut self, archives: &[Archive]) -> store::Result<()> {
        let runs = archives.iter().flat_map(|archive| &archive.runs);
        let next: HashMap<(Uuid, i64), Mac> =
            runs.clone().map(|run| ((run.last.chain, run.first_seq), run.before)).collect();
        for Run { last: head, .. } in runs {
            let AuditHead { chain, seq, mac } = *head;
            let what = match (self.seal_at(*head).await?, next.get(&(chain, seq + 1))) {
                (Place::Seal(there), _) if there == mac => continue,
                (Place::Archived, Some(before)) if *before == mac => continue,
                (Place::Archived, None) => {
                    self.report.open_runs += 1;
                    continue;
                }
                (Place::Archived, Some(_)) => "the archive made next goes on from another row",
                (Place::Seal(_), _) => "the archive ends with another row than the database goes on from",
                (Place::Missing, _) => {
                    "the archive joins nothing: neither its last row nor an anchor is there"
                }
            };
            self.report.faults.push(Fault { chain, seq, what });
        }
        Ok(())
    }
}

/// The content of a place in a chain.
enum Place {
    /// A row or an anchor with this seal.
    Seal(Mac),
    /// An archived row with later archived rows.
    Archived,
    /// No row and no anchor.
    Missing,
}

/// Returns the content of `batch` if it belongs at `seq`.
pub(super) fn check(
    keys: &Keys,
    batch: &AuditBatch,
    seq: i64,
    before: &Mac,
) -> Result<Content, &'static str> {
    if batch.seq < seq {
        return Err("another row stands at a place that is taken, or before the anchor");
    }
    if batch.seq > seq {
        return Err("the row is missing");
    }
    let content = read(&batch.body, batch.at);
    if let Ok(content) = &content
        && let Some((_, mark)) = &content.opening
        && keys.iter().all(|key| *mark != key.mark())
    {
        return Err("it is sealed by another secret");
    }
    if !keys.have_sealed(batch) {
        return Err("the seal does not fit: it was changed, or put in");
    }
    let content = content.map_err(|_| "its content cannot be read by this version")?;
    if content.before != *before {
        return Err("it was written after another row than the one before it");
    }
    if (seq == 0) != content.opening.is_some() {
        return Err("it opens a chain at the wrong place");
    }
    if Terms::of(&content.entries, batch.at).0 != batch.terms {
        return Err("its search terms were changed");
    }
    Ok(content)
}
