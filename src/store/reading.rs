//! What a read of the outbox answers with when it meets rows that this program cannot read: an event of
//! a newer program, or a damaged one. It tells the others.
//!
//! Invariant: after a row that cannot be read there is none of the same patient.

use std::collections::HashSet;

use super::Result;
use crate::domain::event::OutboxEvent;
use crate::domain::ids::{PatientId, Version};

/// What a read of the outbox found.
#[derive(Clone, Debug, Default)]
pub struct OutboxRows {
    /// What could be read, in the order of `seq`.
    pub events: Vec<OutboxEvent>,
    /// Of each patient the first row that cannot be read. Later ones of that patient are left out of
    /// the answer.
    pub unreadable: Vec<UnreadableRow>,
    /// Whether as many rows were found as were asked for, whatever they are: there may be more.
    pub full: bool,
}

/// A row of the outbox whose event cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    /// `OutboxEvent::seq`
    pub seq: i64,
    /// Whose event it is.
    pub patient_id: PatientId,
    /// The version that the patient has after it.
    pub version: Version,
    /// How often it was parked before.
    pub parks: u32,
}

impl OutboxRows {
    /// Sorts the rows of a read of at most `limit_rows`, each with what came of reading it.
    ///
    /// # Errors
    /// That of a row which does not even tell whose it is.
    pub(crate) fn gather(
        rows: impl IntoIterator<Item = Result<(UnreadableRow, Result<OutboxEvent>)>>,
        limit_rows: u32,
    ) -> Result<Self> {
        let mut answer = OutboxRows::default();
        let mut held = HashSet::new();
        let mut found = 0;
        for row in rows {
            let (place, event) = row?;
            found += 1;
            if held.contains(&place.patient_id) {
                continue;
            }
            match event {
                Ok(event) => answer.events.push(event),
                Err(_) => {
                    held.insert(place.patient_id);
                    answer.unreadable.push(place);
                }
            }
        }
        answer.full = found >= limit_rows;
        Ok(answer)
    }
}
