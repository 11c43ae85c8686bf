//! The patients whose events a reader of the outbox holds back, since it cannot read one of them. It says
//! so once per row, and asks the store for the others only: so those are never hidden behind what cannot
//! be read, and each patient's events stay in order.
//!
//! Invariant: at most `PATIENTS_MAX` are remembered. Beyond that the store still leaves them out, but has
//! to look at their rows each time.

use std::collections::HashSet;

use crate::domain::ids::PatientId;
use crate::store::UnreadableRow;

/// Patients remembered at most.
const PATIENTS_MAX: usize = 4_096;

/// See above.
pub(super) struct Held {
    reader: &'static str,
    patients: HashSet<PatientId>,
    /// There are more than are remembered.
    overflowed: bool,
}

impl Held {
    /// Nothing is held back yet by the actor of that name.
    pub(super) fn new(reader: &'static str) -> Self {
        // There from the start, so that a rate sees the first one.
        let _ = metrics::counter!("hygeia_outbox_unreadable_total", "reader" => reader);
        Held { reader, patients: HashSet::new(), overflowed: false }
    }

    /// Holds back the patients of these rows. Answers whether the next read will therefore see further.
    pub(super) fn note(&mut self, rows: &[UnreadableRow]) -> bool {
        let before = self.patients.len();
        for row in rows {
            if self.patients.contains(&row.patient_id) {
                continue;
            }
            if self.patients.len() >= PATIENTS_MAX {
                self.overflow();
                break;
            }
            self.patients.insert(row.patient_id);
            metrics::counter!("hygeia_outbox_unreadable_total", "reader" => self.reader).increment(1);
            tracing::error!(
                actor = self.reader,
                seq = row.seq,
                patient = %row.patient_id,
                version = row.version,
                "an event in the outbox cannot be read; it and what follows it for this patient is held \
                 back until this node starts again"
            );
        }
        self.patients.len() > before
    }

    fn overflow(&mut self) {
        if !std::mem::replace(&mut self.overflowed, true) {
            let remembered = PATIENTS_MAX;
            tracing::error!(actor = self.reader, remembered, "too many events in the outbox cannot be read");
        }
    }

    /// Whom the next read is to leave out.
    pub(super) fn patients(&self) -> Vec<PatientId> {
        self.patients.iter().copied().collect()
    }

    /// What health is told, if anything is held back.
    pub(super) fn explanation(&self) -> Option<String> {
        let least = if self.overflowed { "at least " } else { "" };
        let rows = self.patients.len();
        (rows > 0).then(|| {
            format!("{least}{rows} rows of the outbox cannot be read and hold back what follows for their patients")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::fake_store::patient;

    fn row(n: usize) -> UnreadableRow {
        UnreadableRow { seq: n as i64, patient_id: patient(n), version: 1 }
    }

    #[test]
    fn a_row_is_noted_once_and_what_is_remembered_is_bounded() {
        let mut held = Held::new("reader");
        assert_eq!(held.explanation(), None);
        assert!(held.note(&[row(1), row(2)]));
        assert!(!held.note(&[row(2)]) && !held.note(&[]));
        assert!(held.explanation().expect("a reason").starts_with("2 rows"));
        assert!(held.note(&(0..PATIENTS_MAX + 9).map(row).collect::<Vec<_>>()));
        assert_eq!(held.patients().len(), PATIENTS_MAX);
        assert!(!held.note(&[row(PATIENTS_MAX + 8)]), "no read sees further by it");
        assert!(held.explanation().expect("a reason").starts_with("at least 4096 rows"));
    }
}
