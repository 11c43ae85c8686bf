//! The judgement of a run: what is there once all has come to rest, and whether what clients were told can be explained.

use std::collections::BTreeMap;
use std::time::Duration;

use hygeia::proto::patient::events::PatientEvent;

use crate::driver::Driver;
use crate::invariants;
use crate::machinery::checker::{Verdict, check_address, check_patient, first_wrong};
use crate::machinery::findings::{Finding, Missed};
use crate::machinery::history::{Operation, Outcome, by_address, by_patient, shown};
use crate::machinery::ledger::{Events, effective, versions};
use crate::machinery::prompt::{self, Heard, Outage, Try, Why};
use crate::process::{PATIENCE, within};

/// Operations of an offending history that are shown, up to the one that cannot be explained.
const SHOWN_MAX: usize = 25;
/// Changes that a run must have acknowledged to say anything.
const ACKNOWLEDGED_MIN: usize = 50;
/// Of all changes, the share whose outcome may be unknown.
const UNKNOWN_MAX_PERCENT: usize = 10;
/// Changes that must be acknowledged before, during and after each fault of a node that holds patients.
const LOADED_MIN: usize = 5;
/// How long before and after such a fault they are counted.
const AROUND: Duration = Duration::from_secs(2);

/// From when to when a node that holds patients was stopped or cut off.
pub(crate) type Window = (Duration, Duration);

/// Everything recorded, with the time by when each operation was due.
pub(crate) fn operations(driver: &Driver, outages: &[Outage]) -> Vec<Operation> {
    let mut operations = driver.recorder.operations();
    for operation in &mut operations {
        let Operation { front, sent, returned, .. } = *operation;
        operation.due = prompt::due(front as usize, sent, returned, outages);
    }
    operations
}

/// Everything comes to rest; then what is there is compared with what was told. The database is at a URL, and `topic`
/// reads all events there are.
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
                    let outcome = driver.read(front, id, made_by).await;
                    matches!(outcome, Outcome::Record(_) | Outcome::Missing).then_some(())
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

/// Whether what clients saw can be explained. `events` are those of the table.
pub(crate) fn explained(driver: &Driver, events: &Events) -> Vec<Finding> {
    let mut found: Vec<Finding> = driver.recorder.surprises().into_iter().map(Finding::from).collect();
    let effective = effective(events, &driver.recorder.operations());
    for (id, window) in by_patient(&effective) {
        let versions = versions(events, id);
        let check = |window: &[Operation]| check_patient(window, &versions);
        found.extend(judged(&format!("patient {id}"), &window, check));
    }
    for (number, window) in by_address(&effective) {
        let check = |window: &[Operation]| check_address(number, window);
        found.extend(judged(&format!("contested address {number}"), &window, check));
    }
    found
}

/// Whether clients were answered in time, and whether there was enough load to say anything.
pub(crate) fn answered(driver: &Driver, outages: &[Outage], windows: &[Window]) -> Vec<Finding> {
    let late = prompt::unanswered(&driver.recorder.tries(), outages);
    let too_little = enough(&driver.recorder.operations(), windows);
    late.into_iter().chain(too_little).map(Finding::from).collect()
}

fn judged(what: &str, window: &[Operation], check: impl Fn(&[Operation]) -> Verdict) -> Option<Finding> {
    let verdict = check(window);
    if verdict == Verdict::Linearizable {
        return None;
    }
    let beginning = first_wrong(window, check).unwrap_or_default();
    let from = beginning.len().saturating_sub(SHOWN_MAX);
    let shown = shown(&beginning[from..]);
    let text = format!("{what}: {verdict:?}, after {from} operations and these:\n{shown}");
    Some(Finding { text, missed: Missed::of(&beginning).filter(|_| verdict == Verdict::Violated) })
}

/// What is missing for a run to say anything.
fn enough(operations: &[Operation], windows: &[Window]) -> Vec<String> {
    let mut wrong = Vec::new();
    let changes = || operations.iter().filter(|operation| operation.call.is_change());
    let is_made = |o: &&Operation| matches!(o.outcome, Outcome::Record(_) | Outcome::Ended | Outcome::Done);
    if changes().filter(is_made).count() < ACKNOWLEDGED_MIN {
        wrong.push("too little was acknowledged to say anything".into());
    }
    let (all, unknown) = (changes().count(), changes().filter(|o| o.outcome == Outcome::Unknown).count());
    if unknown * 100 > all * UNKNOWN_MAX_PERCENT {
        wrong.push(format!("the outcome of {unknown} of {all} changes is unknown"));
    }
    for (from, to) in windows {
        let between = |from: Duration, to: Duration| {
            changes().filter(is_made).filter(|o| o.returned >= from && o.returned < to).count()
        };
        let counts = [(from.saturating_sub(AROUND), *from), (*from, *to), (*to, *to + AROUND)]
            .map(|(from, to)| between(from, to));
        if counts.iter().any(|count| *count < LOADED_MIN) {
            wrong.push(format!(
                "the load around the fault from {from:.1?} to {to:.1?} was too little: {counts:?}"
            ));
        }
    }
    wrong
}

/// How long answers took, and for how long this program got no processor meanwhile: how busy the machine was.
pub(crate) fn slowness(tries: &[Try], outages: &[Outage]) -> String {
    let answered = tries.iter().filter(|asked| asked.heard == Heard::Answered);
    let mut took: Vec<_> = answered.map(|asked| asked.returned.saturating_sub(asked.sent)).collect();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).map_or(0, Duration::as_millis);
    let starved = outages.iter().filter(|outage| outage.why == Why::Starved);
    let starved: Duration = starved.map(|outage| outage.to.saturating_sub(outage.from)).sum();
    format!(
        "answered in {} ms (p50) and {} ms (p99), starved for {:.1} s",
        at(50),
        at(99),
        starved.as_secs_f64()
    )
}

/// What a run did, in one line.
pub(crate) fn summed(operations: &[Operation]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for operation in operations {
        let name = match operation.outcome {
            Outcome::Record(_)
            | Outcome::At { .. }
            | Outcome::Ended
            | Outcome::Done
            | Outcome::Account(_) => "done",
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
