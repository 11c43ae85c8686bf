//! Compares the index of terms with the rows. Triggers maintain the index, but its tables can be written to
//! like any other, and a search does not find a row that the index lacks.

use std::hash::{BuildHasher, RandomState};

use futures::TryStreamExt;
use sqlx::sqlite::SqliteRow;

use super::super::{SqliteStore, column, fault};
use crate::store::{Error, Result};

/// A sum over pairs of term and id that does not depend on their order. The hash key is random in each run,
/// so nobody can construct another set with the same sum.
struct Sum {
    keyed: RandomState,
    sum: u64,
}

impl Sum {
    fn add(&mut self, term: u32, id: i64) {
        self.sum = self.sum.wrapping_add(self.keyed.hash_one((term, id)));
    }
}

/// Compares all rows with the whole index, in one snapshot. The duration grows with the size of the audit.
pub(super) async fn fit(store: &SqliteStore) -> Result<bool> {
    let failed = |error: sqlx::Error| fault::of(&error).at(&store.path.display().to_string());
    let mut moment = store.readers.begin().await.map_err(failed)?;
    let keyed = RandomState::new();
    let mut of_rows = Sum { keyed: keyed.clone(), sum: 0 };
    let mut of_index = Sum { keyed, sum: 0 };
    let mut rows = sqlx::query("SELECT id, at, terms FROM audit_batches").fetch(&mut *moment);
    while let Some(row) = next(store, rows.try_next()).await? {
        let (id, at, terms): (i64, i64, Vec<u8>) = (column(&row, 0)?, column(&row, 1)?, column(&row, 2)?);
        let (terms, rest) = terms.as_chunks::<4>();
        if id >> 10 != at || !rest.is_empty() {
            return Ok(false);
        }
        for term in terms {
            of_rows.add(u32::from_be_bytes(*term), id);
        }
    }
    drop(rows);
    let mut held = sqlx::query("SELECT term, doc FROM audit_terms_held").fetch(&mut *moment);
    while let Some(row) = next(store, held.try_next()).await? {
        let (word, id): (String, i64) = (column(&row, 0)?, column(&row, 1)?);
        let Ok(term) = u32::from_str_radix(&word, 16) else { return Ok(false) };
        of_index.add(term, id);
    }
    Ok(of_rows.sum == of_index.sum)
}

async fn next(
    store: &SqliteStore,
    row: impl Future<Output = sqlx::Result<Option<SqliteRow>>>,
) -> Result<Option<SqliteRow>> {
    match tokio::time::timeout(store.answer_timeout, row).await {
        Ok(row) => row.map_err(|error| fault::of(&error).at(&store.path.display().to_string())),
        Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
    }
}
