//! Random histories, compared with a simple model in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::world::{Region, id, list};
use crate::domain::ids::{CommandId, Epoch};
use crate::domain::patient::{Patient, PatientEvent, PatientState};
use crate::store::AppendOutcome::{self, Committed, Conflict, EmailTaken, Fenced};
use crate::store::{PatientAppend, Store};

/// The expected content of the store.
#[derive(Default)]
struct Model {
    /// The newest event of each patient, deleted or not.
    newest: HashMap<u128, PatientEvent>,
    emails: BTreeMap<String, u128>,
    commands: Vec<(u128, CommandId)>,
    events: u64,
}

impl Model {
    /// Returns the expected outcome of `row`; does not change the model.
    fn judge(
        &self,
        row: &PatientAppend,
        fenced: bool,
        claimed: &mut BTreeMap<String, u128>,
    ) -> AppendOutcome {
        let n = row.recorded.patient_id().0.as_u128();
        let before = self.newest.get(&n);
        let follows = match (before, &row.recorded.event) {
            (None, PatientEvent::Registered(_)) => true,
            (Some(PatientEvent::Deleted(_)) | None, _) | (Some(_), PatientEvent::Registered(_)) => false,
            (Some(before), event) => event.version() == before.version() + 1,
        };
        if fenced {
            return Fenced;
        }
        if !follows || self.commands.contains(&(n, row.recorded.command_id)) {
            return Conflict;
        }
        let key = row.recorded.event.patient().details.email_key();
        let keeps = before.is_some_and(|b| b.patient().details.email_key() == key);
        if keeps || matches!(row.recorded.event, PatientEvent::Deleted(_)) {
            return Committed;
        }
        if self.emails.contains_key(&key) || claimed.contains_key(&key) {
            return EmailTaken;
        }
        claimed.insert(key, n);
        Committed
    }

    fn write(&mut self, row: &PatientAppend) {
        let n = row.recorded.patient_id().0.as_u128();
        self.emails.retain(|_, owner| *owner != n);
        if !matches!(row.recorded.event, PatientEvent::Deleted(_)) {
            self.emails.insert(row.recorded.event.patient().details.email_key(), n);
        }
        self.newest.insert(n, row.recorded.event.clone());
        self.commands.push((n, row.recorded.command_id));
        self.events += 1;
    }
}

/// Returns a random row, valid or not.
fn random_row(rng: &mut fastrand::Rng, region: &Region, model: &Model, n: u128) -> PatientAppend {
    let email = format!("{}@example.com", ["a", "b", "c", "A", "B", "d"][rng.usize(..6)]);
    let known = model.newest.get(&n).map(|event| Patient::clone(event.patient()));
    let mut row = match known {
        Some(before) if rng.u8(..10) < 6 => region.update(&before, &email),
        Some(before) if rng.u8(..10) < 6 => region.delete(&before),
        _ => region.register(n, &email),
    };
    if rng.u8(..20) == 0
        && let PatientEvent::Updated(after) | PatientEvent::Deleted(after) = &mut row.recorded.event
    {
        Arc::make_mut(after).version += 1;
    }
    if rng.u8(..10) == 0
        && let Some((_, command)) = model.commands.iter().find(|(owner, _)| *owner == n)
    {
        row.recorded.command_id = *command;
    }
    row
}

async fn compare(region: &Region, model: &Model) {
    for (n, event) in &model.newest {
        let state = region.state(id(*n)).await;
        assert!(state == crate::domain::patient::evolve(event), "patient {n}: {state:?}");
        if let PatientState::Deleted(version) = state {
            let history = region.store.history(id(*n), 0, 1000).await.expect("events");
            assert_eq!(i64::try_from(history.len()).expect("small"), version);
        }
    }
    let living: Vec<Patient> = list(&region.store, 1000).await.expect("a page");
    let mut keys: Vec<(String, u128)> =
        living.iter().map(|p| (p.details.email_key(), p.id.0.as_u128())).collect();
    keys.sort();
    assert_eq!(keys, model.emails.clone().into_iter().collect::<Vec<_>>());
    let depth = region.store.outbox_depth().await.expect("a depth");
    assert_eq!(depth.unpublished_rows, model.events);
}

pub(super) async fn random_histories_match_the_model(store: Arc<dyn Store>) {
    let seed = std::env::var("HYGEIA_SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("HYGEIA_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let region = Region::start(&store).await;
    let mut model = Model::default();
    for step in 0..150 {
        let mut numbers: Vec<u128> = (1..=6).collect();
        rng.shuffle(&mut numbers);
        numbers.truncate(rng.usize(1..=5));
        let mut batch: Vec<PatientAppend> =
            numbers.iter().map(|n| random_row(&mut rng, &region, &model, *n)).collect();
        let fenced: Vec<bool> = batch.iter().map(|_| rng.u8(..15) == 0).collect();
        for (row, _) in batch.iter_mut().zip(&fenced).filter(|(_, fenced)| **fenced) {
            row.epoch = Epoch(row.epoch.0 + 1);
        }
        // Claims are decided in the order of addresses, then ids.
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|n| {
            let recorded = &batch[*n].recorded;
            (recorded.event.patient().details.email_key(), recorded.patient_id())
        });
        let (mut claimed, mut expected) = (BTreeMap::new(), vec![Fenced; batch.len()]);
        for n in order {
            expected[n] = model.judge(&batch[n], fenced[n], &mut claimed);
        }
        let outcomes = store.commit_patients(&batch).await.expect("outcomes");
        assert_eq!(outcomes, expected, "seed {seed}, step {step}");
        for (row, _) in batch.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Committed) {
            model.write(row);
        }
        if step % 30 == 29 {
            compare(&region, &model).await;
        }
    }
}
