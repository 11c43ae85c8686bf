//! Reads the access log, page by page, newest entries first.

use std::sync::Arc;

use uuid::Uuid;

use crate::audit::{Keys, PROMPT_US, Terms, read, term_of_patient};
use crate::domain::access::Action;
use crate::domain::audit::{Access, Outcome};
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, AuditBatch, AuditPosition, AuditSearch, AuditStore};

/// The maximum number of batches per search of the store.
const BATCHES_PAGE: u32 = 16;
/// The maximum number of searches per page. A page may be shorter than requested and still have a next page.
const ROUNDS_MAX: usize = 32;
/// How much later than its entries a batch may be sealed, in microseconds: no request lives longer.
const BATCH_LAG_US: i64 = 600_000_000;

/// A search of the access log. Entries must match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// The patient whose record was accessed.
    pub patient: Option<PatientId>,
    /// The subject of the caller.
    pub subject: Option<String>,
    /// The requested action.
    pub action: Option<Action>,
    /// The outcome.
    pub outcome: Option<Outcome>,
    /// At this time or later.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

/// The position of an entry, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPlace {
    /// The time at which the entry's batch was sealed.
    pub sealed_at: Timestamp,
    /// The chain of the batch.
    pub chain: Uuid,
    /// The position of the batch in its chain.
    pub seq: i64,
    /// The position of the entry in its batch.
    pub index: u32,
}

/// A page of entries.
#[derive(Clone, Debug, Default)]
pub struct AuditPage {
    /// The matching entries, each with its position.
    pub entries: Vec<(AuditPlace, Access)>,
    /// The position after which the next page continues, if there may be more.
    pub next: Option<AuditPlace>,
}

/// Reads the access log. Cloning is cheap.
#[derive(Clone)]
pub struct AuditReader {
    store: Arc<dyn AuditStore>,
    /// Rows that none of these keys has sealed are not shown.
    keys: Option<Keys>,
}

impl AuditQuery {
    fn terms(&self) -> Vec<i32> {
        let mut terms: Vec<i32> = self.patient.map(term_of_patient).into_iter().collect();
        terms.extend(self.subject.as_deref().map(Terms::of_subject));
        terms.extend(self.action.map(Terms::of_action));
        terms.extend(self.outcome.map(Terms::of_outcome));
        terms
    }

    /// Returns the search for the batches from `position` on, and where to continue when it finds no more.
    ///
    /// Of the batches that were sealed later than `PROMPT_US` after `until`, only the late ones can match. They
    /// are searched for by their term, because there can be a hundred thousand batches between an entry and the
    /// latest batch that may hold it.
    fn next_search(&self, position: AuditPosition) -> (AuditSearch, Option<AuditPosition>) {
        let from = self.from.unwrap_or(Timestamp(i64::MIN));
        let search = AuditSearch { terms: self.terms(), from, until: position, limit_rows: BATCHES_PAGE };
        match self.until.map(|until| Timestamp(until.0.saturating_add(PROMPT_US))) {
            Some(prompt) if position.at > prompt => {
                let terms = [search.terms, vec![Terms::of_late()]].concat();
                let then = AuditPosition { at: prompt, chain: Uuid::max(), seq: i64::MAX };
                let after = Timestamp(prompt.0.saturating_add(1));
                (AuditSearch { terms, from: from.max(after), ..search }, Some(then))
            }
            _ => (search, None),
        }
    }

    fn fits(&self, access: &Access) -> bool {
        self.patient.is_none_or(|patient| access.patients.contains(&patient))
            && self.subject.as_deref().is_none_or(|subject| *access.caller.subject == *subject)
            && self.action.is_none_or(|action| access.action == action)
            && self.outcome.is_none_or(|outcome| access.outcome == outcome)
            && self.from.is_none_or(|from| access.at >= from)
            && self.until.is_none_or(|until| access.at < until)
    }
}

impl AuditReader {
    /// Creates a reader of the rows in `store` that are sealed with one of `keys`. Without keys, reading
    /// fails.
    pub fn new(store: Arc<dyn AuditStore>, keys: Option<Keys>) -> Self {
        AuditReader { store, keys }
    }

    /// Returns at most `limit` entries that match `query` and follow `after`.
    ///
    /// # Errors
    /// `Unavailable` if the database cannot be read or there is no secret. `Internal` if a row cannot be
    /// decoded.
    pub async fn page(
        &self,
        query: &AuditQuery,
        after: Option<AuditPlace>,
        limit: usize,
    ) -> Result<AuditPage> {
        let Some(keys) = &self.keys else {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "The audit cannot be read: this node records nothing (audit.enabled), and has no secret to tell what \
                 was recorded from what was put in",
            ));
        };
        let youngest = query.until.map_or(i64::MAX, |until| until.0.saturating_add(BATCH_LAG_US));
        let mut position = match after {
            Some(place) => AuditPosition { at: place.sealed_at, chain: place.chain, seq: place.seq },
            None => AuditPosition { at: Timestamp(youngest), chain: Uuid::max(), seq: i64::MAX },
        };
        let mut page = AuditPage::default();
        for _ in 0..ROUNDS_MAX {
            let (search, then) = query.next_search(position);
            let found = self.store.search_audit(&search).await.map_err(|error| failed(&error))?;
            for batch in found.batches.iter().filter(|batch| is_sealed(keys, batch)) {
                for (place, access) in self.found(query, batch).await? {
                    if after.is_some_and(|after| !is_after(place, after)) {
                        continue;
                    }
                    if page.entries.len() == limit {
                        page.next = page.entries.last().map(|(place, _)| *place);
                        return Ok(page);
                    }
                    page.entries.push((place, access));
                }
            }
            let Some(AuditPosition { at, chain, seq }) = found.looked_to.or(then) else {
                page.next = None;
                return Ok(page);
            };
            // Everything at this position was read; all that follows is older.
            page.next = Some(AuditPlace { sealed_at: at, chain, seq, index: 0 });
            position = AuditPosition { at, chain, seq: seq.saturating_sub(1) };
        }
        Ok(page)
    }

    /// Returns the matching entries of `batch`, newest first. Leaves out a change that was submitted but not
    /// made, because another entry records the answer to its caller.
    async fn found(&self, query: &AuditQuery, batch: &AuditBatch) -> Result<Vec<(AuditPlace, Access)>> {
        let content = read(&batch.body, batch.at).map_err(|error| {
            tracing::error!(chain = %batch.chain, seq = batch.seq, %error, "a row of the audit cannot be read");
            Error::new(ErrorCode::Internal, "A row of the audit cannot be read; hygeia audit verify says more")
        })?;
        let changes: Vec<_> = content
            .entries
            .iter()
            .filter_map(|access| Some((*access.patients.first()?, access.change?)))
            .collect();
        let made = match changes.is_empty() {
            true => Vec::new(),
            false => self.store.changes_made(&changes).await.map_err(|error| failed(&error))?,
        };
        let mut made = made.into_iter();
        let mut found = Vec::new();
        for (index, mut access) in (0..).zip(content.entries) {
            if access.change.is_some() && !access.patients.is_empty() {
                if !made.next().unwrap_or_default() {
                    continue;
                }
                access.outcome = Outcome::Done;
            }
            if query.fits(&access) {
                let (chain, seq) = (batch.chain, batch.seq);
                found.push((AuditPlace { sealed_at: batch.at, chain, seq, index }, access));
            }
        }
        found.reverse();
        Ok(found)
    }
}

/// Returns whether the seal of `batch` is valid. If not, the row was changed, inserted, or sealed with a
/// secret that this node does not have.
fn is_sealed(keys: &Keys, batch: &AuditBatch) -> bool {
    let sealed = keys.have_sealed(batch);
    if !sealed {
        metrics::counter!("hygeia_audit_unsealed_total").increment(1);
        tracing::error!(chain = %batch.chain, seq = batch.seq, "a row of the audit is not shown: its seal does not fit; hygeia audit verify says more");
    }
    sealed
}

/// Returns whether `place` comes after `other` in the order of pages.
fn is_after(place: AuditPlace, other: AuditPlace) -> bool {
    let key = |place: AuditPlace| (place.sealed_at, place.chain, place.seq, place.index);
    key(place) < key(other)
}

fn failed(error: &store::Error) -> Error {
    tracing::warn!(%error, "the audit cannot be read");
    Error::new(ErrorCode::Unavailable, "The audit cannot be read")
}

#[cfg(test)]
mod tests;
