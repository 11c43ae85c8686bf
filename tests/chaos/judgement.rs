//! The judgement of a run: what is there once all has come to rest, and whether what clients were told can be
//! explained.

use std::collections::BTreeMap;

use hygeia::proto::patient::events::PatientEvent;

use crate::driver::Driver;
use crate::invariants;
use crate::machinery::checker::{Verdict, check_address, check_patient, first_wrong};
use crate::machinery::history::{Operation, Outcome, by_address, by_patient, shown};
use crate::process::{PATIENCE, within};

/// Violations that are told in full.
const TOLD_MAX: usize = 5;
/// Operations of an offending history that are shown, up to the one that cannot be.
const SHOWN_MAX: usize = 25;
/// Changes that a run must have acknowledged to say anything.
const ACKNOWLEDGED_MIN: usize = 50;

/// What a run came to in one line, or every violation in words; `wrong` are those that are known already.
pub(crate) fn verdict(driver: &Driver, mut wrong: Vec<String>) -> Result<String, String> {
    let operations = driver.recorder.operations();
    wrong.extend(driver.recorder.surprises());
    wrong.extend(judge(&operations));
    if wrong.is_empty() {
        return Ok(summed(&operations));
    }
    let more = wrong.len().saturating_sub(TOLD_MAX);
    wrong.truncate(TOLD_MAX);
    let more = if more > 0 { format!("\n… and {more} more") } else { String::new() };
    Err(format!("{}{more}\n{}", wrong.join("\n"), summed(&operations)))
}

/// Everything comes to rest; then what is there is compared with what was told. The database is at a URL, and
/// `topic` reads all events there are.
pub(crate) async fn settle<F: Future<Output = Result<Vec<PatientEvent>, String>>>(
    driver: &Driver,
    database: &str,
    topic: impl FnOnce() -> F,
) -> Result<Vec<String>, String> {
    let mut wrong = Vec::new();
    let (made, taken) = within(PATIENCE, || async {
        let (made, taken) = driver.rivals().await;
        // On a pair one front may have to say that it serves nothing.
        (made + taken > 1).then_some((made, taken))
    })
    .await
    .ok_or("no registration works after everything is healed")?;
    if made != 1 {
        wrong.push(format!("{made} of parallel registrations of one address were made, {taken} refused"));
    }
    for (id, life) in by_patient(&driver.recorder.operations()) {
        let made_by = life[0].made_by;
        for fronts in driver.ways() {
            let mut turns = fronts.iter().cycle();
            let read = || {
                let front = turns.next().copied().unwrap_or_default();
                async move {
                    let outcome = driver.read(0, front, id, made_by).await;
                    matches!(outcome, Outcome::Record { .. } | Outcome::Missing).then_some(())
                }
            };
            if within(PATIENCE, read).await.is_none() {
                return Err(format!("{id} cannot be read through {fronts:?} after everything is healed"));
            }
        }
    }
    let summary = invariants::rest(database, driver.api()).await?;
    let (topic, operations) = (topic().await?, driver.recorder.operations());
    wrong.extend(invariants::violations(database, &topic, &summary, &operations).await?);
    Ok(wrong)
}

/// Whether what clients saw can be explained.
fn judge(operations: &[Operation]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut look = |what: String, window: &[Operation], check: fn(&[Operation]) -> Verdict| {
        let verdict = check(window);
        if verdict != Verdict::Linearizable {
            let beginning = first_wrong(window, check).unwrap_or_default();
            let from = beginning.len().saturating_sub(SHOWN_MAX);
            let shown = shown(&beginning[from..]);
            wrong.push(format!("{what}: {verdict:?}, after {from} operations and these:\n{shown}"));
        }
    };
    for (id, window) in by_patient(operations) {
        look(format!("patient {id}"), &window, check_patient);
    }
    for (number, window) in by_address(operations) {
        look(format!("contested address {number}"), &window, check_address);
    }
    let changes = operations.iter().filter(|o| matches!(o.outcome, Outcome::Record { .. } | Outcome::Ended));
    if changes.count() < ACKNOWLEDGED_MIN {
        wrong.push("too little was acknowledged to say anything".into());
    }
    wrong
}

fn summed(operations: &[Operation]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for operation in operations {
        let name = match operation.outcome {
            Outcome::Record { .. } | Outcome::Ended => "done",
            Outcome::Missing | Outcome::Taken | Outcome::Stale => "refused",
            Outcome::NotDone => "not done",
            Outcome::Unknown => "unknown",
        };
        *counts.entry(name).or_default() += 1;
    }
    let patients = by_patient(operations).len();
    let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    format!("{} operations on {patients} patients: {}", operations.len(), counts.join(", "))
}
