//! A database in memory for tests of the actors that move events: outbox, lease and projection, with injected
//! faults.

mod topic_log;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use time::Date;
use time::macros::date;
use uuid::Uuid;

use crate::domain::analytics::{Counts, Observation};
use crate::domain::event::{EventType, OutboxEvent, RecordedEvent};
use crate::domain::ids::{CommandId, Epoch, EventId, Kind, PatientId, ShardNo};
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::topic_log::LogAnchor;
use crate::kafka::Broker;
use crate::store::{
    Applied, Error, LeaseMark, LeaseRow, LeaseStore, OthersLease, OutboxDepth, OutboxRead, OutboxRows,
    OutboxStore, ParkRow, PartitionOffset, ProjectionSource, ProjectionStore, PutBack, Queue, Refenced,
    Result, Taken, TakenLease, TopicLog, UnreadableRow, Wanted,
};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing is done.
    Unavailable,
    /// Nothing is done, but the caller gets an unknown outcome.
    UnknownNotDone,
    /// The work is done, but the caller gets an unknown outcome.
    UnknownDone,
    /// The calling task panics.
    Panic,
}

#[derive(Default)]
struct Lease {
    owner: String,
    epoch: i64,
    renewal: i64,
    ttl: Duration,
    held: bool,
}

#[derive(Default)]
struct State {
    events: BTreeMap<i64, (OutboxEvent, Option<String>)>,
    lease: Lease,
    /// The number of attempts to take the lease.
    takes: usize,
    versions: HashMap<PatientId, (i64, Option<Date>)>,
    by_type: HashMap<EventType, i64>,
    registrations: BTreeMap<Date, i64>,
    offsets: HashMap<(String, String, String, i32), i64>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    put_back_takes: Duration,
    spoiled: HashSet<i64>,
    parked: HashMap<PatientId, ParkRow>,
    log: Option<TopicLog>,
    anchors: BTreeMap<i32, LogAnchor>,
    /// The last place of the replay, the time from which events are replayed, and the patients replayed out
    /// of turn.
    replay: Option<(PatientId, i64)>,
    replay_since: i64,
    replayed: HashSet<PatientId>,
}

impl State {
    fn name(&self) -> &str {
        self.log.as_ref().map_or("", |log| &log.name)
    }

    fn place(&self) -> (PatientId, i64) {
        self.replay.unwrap_or((PatientId(Uuid::nil()), 0))
    }

    fn replays(&self, log_no: i64) -> bool {
        self.log.as_ref().is_some_and(|log| log.no == log_no && !log.replay_done)
    }

    /// Puts an event back into the outbox, unless it is waiting there already or is too old for the replay.
    fn put_back(&mut self, seq: i64) -> u64 {
        let since = self.replay_since;
        let Some((event, published)) = self.events.get_mut(&seq) else { return 0 };
        if published.is_none() || event.recorded.at.0 < since {
            return 0;
        }
        (*published, event.replay) = (None, true);
        if let Some(log) = &mut self.log {
            log.replayed_rows += 1;
        }
        1
    }
}

/// The store; see the module.
#[derive(Default)]
pub(super) struct FakeStore {
    state: Mutex<State>,
}

impl FakeStore {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes the next calls of `call` fail like this.
    pub(super) fn order(&self, call: &'static str, faults: &[Fault]) {
        self.lock().faults.entry(call).or_default().extend(faults);
    }

    /// Makes the event at `seq` unreadable.
    pub(super) fn spoil(&self, seq: i64) {
        self.lock().spoiled.insert(seq);
    }

    /// Makes each later call that puts events back take this long.
    pub(super) fn slow_put_back(&self, takes: Duration) {
        self.lock().put_back_takes = takes;
    }

    /// Returns the number of attempts to take the lease, successful or not.
    pub(super) fn takes(&self) -> usize {
        self.lock().takes
    }

    /// Returns the number of injected faults that have not happened yet.
    pub(super) fn faults_left(&self) -> usize {
        self.lock().faults.values().map(VecDeque::len).sum()
    }

    /// Runs `work`, unless a fault is due.
    fn attempt<T>(&self, call: &'static str, work: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.lock();
        match state.faults.get_mut(call).and_then(VecDeque::pop_front) {
            None => Ok(work(&mut state)),
            Some(Fault::Unavailable) => Err(Error::Unavailable("as ordered".into())),
            Some(Fault::UnknownNotDone) => Err(Error::Unknown("as ordered".into())),
            Some(Fault::UnknownDone) => {
                work(&mut state);
                Err(Error::Unknown("as ordered".into()))
            }
            Some(Fault::Panic) => panic!("as ordered"),
        }
    }

    /// Commits an event at `seq`.
    pub(super) fn commit(&self, seq: i64, recorded: RecordedEvent) {
        let event = OutboxEvent { seq, shard: 0, recorded, replay: false, parks: 0 };
        assert!(self.lock().events.insert(seq, (event, None)).is_none(), "seq {seq} is taken");
    }

    /// Commits `events` with ascending sequence numbers.
    pub(super) fn commit_all(&self, events: impl IntoIterator<Item = RecordedEvent>) {
        let mut state = self.lock();
        let first = state.events.keys().next_back().map_or(1, |last| last + 1);
        for (seq, recorded) in (first..).zip(events) {
            state
                .events
                .insert(seq, (OutboxEvent { seq, shard: 0, recorded, replay: false, parks: 0 }, None));
        }
    }

    /// Replaces the log in use by another log of this cluster, which needs no replay.
    pub(super) fn begin(&self, cluster: &str) {
        let mut state = self.lock();
        let no = state.log.as_ref().map_or(0, |log| log.no) + 1;
        state.log =
            Some(TopicLog { no, name: cluster.into(), cluster: cluster.into(), ..topic_log::unknown() });
        state.anchors.clear();
    }

    /// Puts the log of `kafka` in use, if none was.
    pub(super) async fn know(&self, kafka: &dyn Broker) {
        let cluster = kafka.cluster_id().await.expect("a cluster");
        let topic = kafka.names().topic.to_string();
        let mut state = self.lock();
        if state.log.is_none() {
            state.log =
                Some(TopicLog { no: 1, name: cluster.clone(), cluster, topic, ..topic_log::unknown() });
        }
    }

    /// Returns the log in use.
    pub(super) fn log(&self) -> Option<TopicLog> {
        self.lock().log.clone()
    }

    /// Returns the number of parked rows.
    pub(super) fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    /// Makes every event readable again.
    pub(super) fn mend(&self) {
        self.lock().spoiled.clear();
    }

    /// Returns the number of events that are not marked as published.
    pub(super) fn unpublished_count(&self) -> usize {
        self.lock().events.values().filter(|(_, broker)| broker.is_none()).count()
    }

    /// Returns the last counted version of `patient`.
    pub(super) fn counted_version(&self, patient: PatientId) -> i64 {
        self.lock().versions.get(&patient).map_or(0, |v| v.0)
    }

    /// Returns the number of counted events.
    pub(super) fn counted(&self) -> i64 {
        self.lock().by_type.values().sum()
    }

    /// Returns the number of counted events of one type.
    pub(super) fn counted_of(&self, event_type: EventType) -> i64 {
        self.lock().by_type.get(&event_type).copied().unwrap_or(0)
    }
}

#[async_trait]
impl OutboxStore for FakeStore {
    async fn read_unpublished(&self, read: OutboxRead<'_>) -> Result<OutboxRows> {
        self.attempt("unpublished", |state| {
            let replays = read.replay_of.is_some_and(|no| state.replays(no));
            let free = |event: &&OutboxEvent| {
                let patient = event.recorded.patient_id();
                let parked = state.parked.get(&patient).is_some_and(|row| row.retry_at > read.now);
                let turn = !replays || patient < state.place().0 || state.replayed.contains(&patient);
                !parked && turn && !read.known.contains(&event.seq)
            };
            let waiting =
                state.events.values().filter(|(_, broker)| broker.is_none()).map(|(event, _)| event);
            let rows = waiting.filter(free).take(read.limit_rows as usize).map(|event| {
                let (patient_id, version) = (event.recorded.patient_id(), event.recorded.version());
                let parks = state.parked.get(&patient_id).filter(|row| row.seq == event.seq);
                let parks = parks.map_or(0, |row| row.parks);
                let spoiled = state.spoiled.contains(&event.seq);
                let event = OutboxEvent { parks, ..event.clone() };
                let place = UnreadableRow { seq: event.seq, patient_id, version, parks };
                Ok((place, if spoiled { Err(Error::Broken("spoiled".into())) } else { Ok(event) }))
            });
            OutboxRows::gather(rows, read.limit_rows)
        })?
    }

    async fn mark_published(&self, seqs: &[i64], log_no: i64, anchors: &[LogAnchor]) -> Result<bool> {
        self.attempt("mark_published", |state| {
            if state.log.as_ref().is_none_or(|log| log.no != log_no) {
                return false;
            }
            let name = state.name().to_owned();
            for seq in seqs {
                state.events.get_mut(seq).expect("a row").1 = Some(name.clone());
            }
            state.parked.retain(|_, row| !seqs.contains(&row.seq));
            for anchor in anchors {
                let last = state.anchors.entry(anchor.partition).or_insert(*anchor);
                if last.offset < anchor.offset {
                    *last = *anchor;
                }
            }
            true
        })
    }

    async fn park(&self, _queue: Queue, rows: &[ParkRow]) -> Result<()> {
        self.attempt("park", |state| state.parked.extend(rows.iter().map(|row| (row.patient_id, *row))))
    }

    async fn republish_forgotten(&self, broker: &str, after: Option<i64>, rows_max: u32) -> Result<PutBack> {
        let takes = self.lock().put_back_takes;
        tokio::time::sleep(takes).await;
        self.attempt("republish_forgotten", |state| {
            let (mut rows, mut seen, mut last) = (0, 0, None);
            let sent = state
                .events
                .iter_mut()
                .filter(|(seq, (_, broker))| broker.is_some() && after.is_none_or(|after| **seq > after));
            for (seq, (event, published)) in sent.take(rows_max as usize) {
                (seen, last) = (seen + 1, Some(*seq));
                let counted = state.versions.get(&event.recorded.patient_id()).map_or(0, |v| v.0);
                let elsewhere = published.as_deref().is_some_and(|p| p != broker);
                if elsewhere && event.recorded.version() > counted {
                    (*published, event.replay) = (None, true);
                    rows += 1;
                }
            }
            if let Some(log) = &mut state.log {
                log.replayed_rows += rows;
            }
            PutBack { rows, next: last.filter(|_| seen == rows_max) }
        })
    }

    async fn any_forgotten(&self, broker: &str) -> Result<bool> {
        self.attempt("any_forgotten", |state| {
            state.events.values().any(|(event, published)| {
                let counted = state.versions.get(&event.recorded.patient_id()).map_or(0, |v| v.0);
                published.as_deref().is_some_and(|p| p != broker) && event.recorded.version() > counted
            })
        })
    }

    async fn outbox_depth(&self) -> Result<OutboxDepth> {
        self.attempt("outbox_depth", |state| {
            let mut waiting = state.events.values().filter(|(_, broker)| broker.is_none());
            let oldest_at = waiting.clone().map(|(event, _)| event.recorded.at).min();
            let unpublished_rows = waiting.by_ref().count() as u64;
            let parked_events = state.parked.len() as u64;
            OutboxDepth { unpublished_rows, oldest_at, parked_events, ..OutboxDepth::default() }
        })
    }

    async fn unbilled(&self, _now: Timestamp, _limit_rows: u32) -> Result<OutboxRows> {
        Ok(OutboxRows::default())
    }

    async fn mark_billed(&self, _seqs: &[i64]) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl LeaseStore for FakeStore {
    async fn shard_count(&self, proposed: u16) -> Result<u16> {
        Ok(proposed)
    }

    async fn take(&self, _kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> Result<Taken> {
        self.attempt("acquire", |state| {
            state.takes += 1;
            let (lease, Wanted { shard, lapsed }) = (&mut state.lease, wanted[0]);
            let mark = LeaseMark { epoch: Epoch(lease.epoch), renewal: lease.renewal };
            if lease.held && lease.owner != owner && lapsed != Some(mark) {
                let other = OthersLease { shard, owner: lease.owner.clone(), mark, ttl: lease.ttl };
                return Taken { leases: Vec::new(), others: vec![other] };
            }
            let epoch = lease.epoch + 1;
            *lease = Lease { owner: owner.to_owned(), epoch, renewal: 0, ttl, held: true };
            Taken { leases: vec![TakenLease { shard, epoch: Epoch(epoch) }], others: Vec::new() }
        })
    }

    async fn refence(&self, _: Kind, _: &[TakenLease], _: &str, _: Duration) -> Result<Refenced> {
        unreachable!("a slice of the outbox needs no fence")
    }

    async fn renew(
        &self,
        _kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>> {
        self.attempt("renew", |state| {
            let lease = &mut state.lease;
            if lease.owner != owner || held.iter().any(|h| h.epoch != Epoch(lease.epoch)) {
                return Vec::new();
            }
            (lease.renewal, lease.ttl) = (lease.renewal + 1, ttl);
            held.iter().map(|h| h.shard).collect()
        })
    }

    async fn release(&self, _kind: Kind, _held: &[TakenLease], owner: &str) -> Result<()> {
        self.attempt("release", |state| {
            if state.lease.owner == owner {
                state.lease.held = false;
            }
        })
    }

    async fn others(&self, _kind: Kind, _owner: &str) -> Result<Vec<OthersLease>> {
        Ok(Vec::new())
    }

    async fn leases(&self, _kind: Kind) -> Result<Vec<LeaseRow>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ProjectionStore for FakeStore {
    async fn offsets(&self, source: &ProjectionSource) -> Result<Vec<PartitionOffset>> {
        self.attempt("offsets", |state| {
            let of_source = state.offsets.iter().filter(|((group, broker, topic, _), _)| {
                *group == source.group && *broker == source.broker && *topic == source.topic
            });
            of_source
                .map(|((.., partition), next)| PartitionOffset { partition: *partition, next_offset: *next })
                .collect()
        })
    }

    async fn apply(
        &self,
        source: &ProjectionSource,
        offsets: &[PartitionOffset],
        observations: &[Observation],
    ) -> Result<Applied> {
        self.attempt("apply", |state| {
            for offset in offsets {
                let (group, broker, topic) =
                    (source.group.clone(), source.broker.clone(), source.topic.clone());
                let next = state.offsets.entry((group, broker, topic, offset.partition)).or_insert(0);
                *next = offset.next_offset.max(*next);
            }
            let mut applied = Applied::default();
            for o in observations {
                let known = state.versions.get(&o.patient_id).map_or(0, |v| v.0);
                if o.version <= known {
                    applied.repeated += 1;
                    continue;
                }
                assert_eq!(o.version, known + 1, "a gap in the versions of {}", o.patient_id);
                state.versions.insert(o.patient_id, (o.version, o.date_of_birth));
                *state.by_type.entry(o.event_type).or_insert(0) += 1;
                if o.event_type == EventType::Created {
                    *state.registrations.entry(o.at.date()).or_insert(0) += 1;
                }
                applied.counted += 1;
            }
            applied
        })
    }

    async fn counts(&self, first_day: Date, born_by: &[Date]) -> Result<Counts> {
        self.attempt("counts", |state| {
            let births: Vec<Date> = state.versions.values().filter_map(|v| v.1).collect();
            let count = |day: Date| births.iter().filter(|birth| **birth <= day).count() as i64;
            Counts {
                by_event_type: state.by_type.iter().map(|(t, n)| (*t, *n)).collect(),
                registrations: state.registrations.range(first_day..).map(|(d, n)| (*d, *n)).collect(),
                living: count(Date::MAX),
                born_by: born_by.iter().map(|day| (*day, count(*day))).collect(),
            }
        })
    }
}

/// Returns the id of the `n`th patient.
pub(super) fn patient(n: usize) -> PatientId {
    PatientId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + n as u128))
}

/// Returns the event of patient `n` that leads to `version`: a registration, then updates.
pub(super) fn event(n: usize, version: i64) -> RecordedEvent {
    let event_type = if version == 1 { EventType::Created } else { EventType::Updated };
    event_of(n, version, event_type)
}

/// Returns the event of patient `n` of the given type that leads to `version`.
pub(super) fn event_of(n: usize, version: i64, event_type: EventType) -> RecordedEvent {
    let at = crate::clock::SystemClock.now();
    let details = PatientDetails {
        name: format!("Canary {n}").into(),
        email: format!("canary{n}@example.com").into(),
        address: "12 Canary Wharf".into(),
        date_of_birth: date!(1985 - 06 - 15),
        registered_date: date!(2024 - 01 - 10),
    };
    let patient = Patient { id: patient(n), version, created_at: Timestamp(1), restricted: false, details };
    RecordedEvent {
        event_id: EventId(Uuid::now_v7()),
        command_id: CommandId(Uuid::now_v7()),
        event: event_type.event(Arc::new(patient)),
        at,
        subject: "system:test".into(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        fingerprint: None,
    }
}

/// Waits until the condition holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + crate::kafka::testing::PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "no patience left: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
