//! Test data: patients with meaningless data, and commands with new ids.

use std::sync::Arc;
use std::time::Duration;

use time::macros::date;
use uuid::Uuid;

use crate::domain::access::Caller;
use crate::domain::email::email_key;
use crate::domain::event::RecordedEvent;
use crate::domain::ids::{CommandId, Epoch, EventId, Kind, PatientId, ShardNo};
use crate::domain::patient::{Patient, PatientDetails, PatientEvent, PatientState};
use crate::domain::search::PatientSearch;
use crate::domain::time::Timestamp;
use crate::store::{AppendOutcome, PatientAppend, Result, Store, TakenLease};

/// Number of shards in these tests.
pub(in crate::store) const SHARDS: u16 = 4;
/// Longer than any test runs.
pub(in crate::store) const LONG: Duration = Duration::from_secs(600);
/// The time at which the tests start.
pub(in crate::store) const START: i64 = 1_700_000_000_000_000;

/// The id of the `n`th patient.
pub(in crate::store) fn id(n: u128) -> PatientId {
    PatientId(Uuid::from_u128(n))
}

/// Returns a new command id.
pub(in crate::store) fn new_command() -> CommandId {
    CommandId(Uuid::new_v4())
}

/// A region that holds the leases of all shards.
pub(in crate::store) struct Region {
    pub(in crate::store) store: Arc<dyn Store>,
    pub(in crate::store) owner: &'static str,
    pub(in crate::store) held: Vec<TakenLease>,
}

impl Region {
    /// Takes all shards.
    pub(in crate::store) async fn start(store: &Arc<dyn Store>) -> Region {
        let owner = "region#1";
        let shards: Vec<ShardNo> = (0..SHARDS).collect();
        let mut held = store.acquire(Kind::Patient, &shards, owner, LONG).await.expect("leases");
        held.sort_by_key(|lease| lease.shard);
        assert_eq!(held.len(), usize::from(SHARDS));
        Region { store: Arc::clone(store), owner, held }
    }

    pub(in crate::store) fn epoch(&self, shard: ShardNo) -> Epoch {
        self.held[usize::from(shard)].epoch
    }

    /// Builds the row of `event`, under this region's epoch.
    pub(in crate::store) fn append(&self, event: PatientEvent, released: Option<&str>) -> PatientAppend {
        let shard = event.patient().id.shard(SHARDS);
        PatientAppend {
            shard,
            epoch: self.epoch(shard),
            caller: Caller::system("test"),
            action: crate::domain::access::Action::PatientUpdate,
            released_email_key: released.map(email_key),
            recorded: RecordedEvent {
                event_id: EventId(Uuid::new_v4()),
                command_id: new_command(),
                at: Timestamp(START + event.version()),
                event,
                subject: "tester@example.com".into(),
                traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
                fingerprint: None,
            },
        }
    }

    /// Builds the registration of the `n`th patient.
    pub(in crate::store) fn register(&self, n: u128, email: &str) -> PatientAppend {
        self.append(PatientEvent::Registered(Arc::new(patient(n, email))), None)
    }

    /// Builds the next change of `before`, to another address.
    pub(in crate::store) fn update(&self, before: &Patient, email: &str) -> PatientAppend {
        let mut after = before.clone();
        after.version += 1;
        after.details.email = email.into();
        let changed = email_key(email) != before.details.email_key();
        self.append(PatientEvent::Updated(Arc::new(after)), changed.then_some(&*before.details.email))
    }

    /// Builds the deletion of `before`.
    pub(in crate::store) fn delete(&self, before: &Patient) -> PatientAppend {
        let mut after = before.clone();
        after.version += 1;
        self.append(PatientEvent::Deleted(Arc::new(after)), Some(&before.details.email))
    }

    /// Commits one row.
    pub(in crate::store) async fn commit(&self, row: &PatientAppend) -> AppendOutcome {
        let outcomes = self.store.commit_patients(std::slice::from_ref(row)).await.expect("a commit");
        assert_eq!(outcomes.len(), 1);
        outcomes[0]
    }

    /// Registers the `n`th patient, which must succeed.
    pub(in crate::store) async fn registered(&self, n: u128, email: &str) -> Patient {
        let row = self.register(n, email);
        assert_eq!(self.commit(&row).await, AppendOutcome::Committed);
        Patient::clone(row.recorded.event.patient())
    }

    /// Commits `row`, which must succeed. Returns the patient afterwards.
    pub(in crate::store) async fn done(&self, row: PatientAppend) -> Patient {
        assert_eq!(self.commit(&row).await, AppendOutcome::Committed);
        Patient::clone(row.recorded.event.patient())
    }

    pub(in crate::store) async fn state(&self, id: PatientId) -> PatientState {
        self.store.load_patient(id, None).await.expect("a state").state
    }
}

/// Returns patients that are not deleted, oldest record first.
pub(in crate::store) async fn list(store: &Arc<dyn Store>, limit_rows: u32) -> Result<Vec<Patient>> {
    store.search(&PatientSearch::all(None, limit_rows)).await.map(|page| page.patients)
}

/// The `n`th patient as registered.
pub(in crate::store) fn patient(n: u128, email: &str) -> Patient {
    let days = i64::try_from(n % 1000).expect("small");
    Patient {
        restricted: false,
        id: id(n),
        version: 1,
        created_at: Timestamp(START),
        details: PatientDetails {
            name: format!("Patient {n}").into(),
            email: email.into(),
            address: "1 Test Way".into(),
            date_of_birth: date!(1980 - 01 - 01) + time::Duration::days(days),
            registered_date: date!(2026 - 01 - 02),
        },
    }
}
