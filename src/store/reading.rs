//! The result of reading the outbox when some rows cannot be decoded: an event of a newer version of the
//! program, or a damaged row. Such rows are listed in the result and do not stop the other rows.
//!
//! Invariant: the result holds no row of a patient after a row of that patient that cannot be decoded.

use std::collections::HashSet;

use super::Result;
use crate::domain::event::OutboxEvent;
use crate::domain::ids::{PatientId, Version};

/// The result of reading the outbox.
#[derive(Clone, Debug, Default)]
pub struct OutboxRows {
    /// The decoded events, in the order of `seq`.
    pub events: Vec<OutboxEvent>,
    /// For each patient the first row that cannot be decoded. Later rows of that patient are left out.
    pub unreadable: Vec<UnreadableRow>,
    /// Whether as many rows were found as were requested, decodable or not, so that more may follow.
    pub full: bool,
}

/// A row of the outbox whose event cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    /// `OutboxEvent::seq`
    pub seq: i64,
    /// The patient of the event.
    pub patient_id: PatientId,
    /// The version of the event.
    pub version: Version,
    /// How often the row has been parked.
    pub parks: u32,
}

impl OutboxRows {
    /// Sorts the rows of a read of at most `limit_rows`, each with the result of decoding it.
    ///
    /// # Errors
    /// The error of a row whose place (patient, version) cannot be decoded.
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
