//! The analytics projection.

use std::sync::Arc;

use futures::future::join_all;
use time::Date;
use time::macros::date;

use super::world::id;
use crate::domain::analytics::{Counts, Observation};
use crate::domain::event::EventType::{self, Created, Deleted, Updated};
use crate::domain::time::Timestamp;
use crate::store::{Applied, PartitionOffset, ProjectionSource, Store};

const DAY_US: i64 = 86_400_000_000;
const OLD: Date = date!(1950 - 05 - 05);
const NEW: Date = date!(1990 - 09 - 09);
/// The day before each of these days, the day itself, and the ends of their months and years.
const BIRTHS: [Date; 13] = [
    date!(1949 - 12 - 31),
    date!(1950 - 04 - 30),
    date!(1950 - 05 - 04),
    OLD,
    date!(1950 - 05 - 31),
    date!(1950 - 06 - 01),
    date!(1950 - 12 - 31),
    date!(1990 - 01 - 01),
    date!(1990 - 08 - 31),
    date!(1990 - 09 - 08),
    NEW,
    date!(1990 - 10 - 01),
    date!(1990 - 12 - 31),
];

/// The expected counts, with this many births on `OLD` and on `NEW`.
fn births(old: i64, new: i64) -> (i64, Vec<(Date, i64)>) {
    let both = old + new;
    let counts = [0, 0, 0, old, old, old, old, old, old, old, both, both, both];
    (both, BIRTHS.into_iter().zip(counts).collect())
}

fn source() -> ProjectionSource {
    ProjectionSource { group: "analytics".to_owned(), broker: "b1".to_owned(), topic: "patient".to_owned() }
}

fn seen(n: u128, version: i64, event_type: EventType, birth: Option<Date>) -> Observation {
    let at = Timestamp(i64::try_from(n).expect("small") * DAY_US + DAY_US - 1);
    Observation { patient_id: id(n), version, event_type, at, date_of_birth: birth }
}

fn at(partition: i32, next_offset: i64) -> PartitionOffset {
    PartitionOffset { partition, next_offset }
}

async fn counts(store: &Arc<dyn Store>) -> Counts {
    store.counts(date!(1970 - 01 - 01), &BIRTHS).await.expect("counts")
}

pub(super) async fn counts_add_up(store: Arc<dyn Store>) {
    let none = counts(&store).await;
    assert_eq!((none.living, none.born_by), births(0, 0));
    assert!(none.by_event_type.is_empty() && none.registrations.is_empty());
    let batch = [
        seen(1, 1, Created, Some(OLD)),
        seen(2, 1, Created, Some(OLD)),
        seen(1, 2, Updated, Some(NEW)),
        seen(3, 1, Created, Some(NEW)),
    ];
    let applied = store.apply(&source(), &[at(0, 4)], &batch).await.expect("applied");
    assert_eq!(applied, Applied { counted: 4, repeated: 0, given_up: 0 });
    let batch = [seen(2, 2, Deleted, None), seen(3, 2, Updated, Some(NEW))];
    let all = counts(&store).await;
    assert_eq!((all.living, all.born_by), births(1, 2));
    store.apply(&source(), &[at(0, 6)], &batch).await.expect("applied");
    let all = counts(&store).await;
    assert_eq!(all.by_event_type, [(Created, 3), (Updated, 2), (Deleted, 1)]);
    assert_eq!((all.living, all.born_by.clone()), births(0, 2));
    let days = [date!(1970 - 01 - 02), date!(1970 - 01 - 03), date!(1970 - 01 - 04)];
    assert_eq!(all.registrations, days.map(|day| (day, 1)), "UTC days");
    let later = store.counts(date!(1970 - 01 - 04), &BIRTHS).await.expect("counts");
    assert_eq!(later.registrations, [(days[2], 1)]);
    assert_eq!((later.by_event_type, later.born_by), (all.by_event_type, all.born_by));
}

pub(super) async fn repeats_have_no_effect(store: Arc<dyn Store>) {
    let batch = [
        seen(1, 1, Created, Some(OLD)),
        seen(1, 1, Created, Some(OLD)),
        seen(1, 2, Updated, Some(NEW)),
        seen(1, 1, Created, Some(OLD)),
    ];
    let applied = store.apply(&source(), &[at(0, 4)], &batch).await.expect("applied");
    assert_eq!(applied, Applied { counted: 2, repeated: 2, given_up: 0 });
    let before = counts(&store).await;
    let applied = store.apply(&source(), &[at(0, 4)], &batch).await.expect("applied");
    assert_eq!(applied, Applied { counted: 0, repeated: 4, given_up: 0 });
    assert_eq!(counts(&store).await, before);
    // A deleted patient remains known.
    store.apply(&source(), &[], &[seen(1, 3, Deleted, None)]).await.expect("applied");
    let applied = store.apply(&source(), &[], &batch).await.expect("applied");
    assert_eq!(applied, Applied { counted: 0, repeated: 4, given_up: 0 });
    let all = counts(&store).await;
    assert_eq!((all.living, all.born_by), births(0, 0));
}

/// After partitions were added, a patient's events lie in several of them, and nothing keeps their order.
pub(super) async fn any_order_counts_each_once(store: Arc<dyn Store>) {
    let life = [
        seen(1, 1, Created, Some(OLD)),
        seen(1, 2, Updated, Some(OLD)),
        seen(1, 3, Updated, Some(NEW)),
        seen(2, 1, Created, Some(OLD)),
        seen(2, 2, Deleted, None),
    ];
    for n in [2, 4, 1, 3, 0] {
        let once = [life[n].clone()];
        let applied = store.apply(&source(), &[], &once).await.expect("applied");
        assert_eq!(applied, Applied { counted: 1, ..Applied::default() }, "{n}");
        let all = counts(&store).await;
        assert_eq!((all.living, all.born_by), births(0, 1), "what the newest version says holds: {n}");
        let applied = store.apply(&source(), &[], &once).await.expect("applied");
        assert_eq!(applied, Applied { repeated: 1, ..Applied::default() }, "{n}");
    }
    let all = counts(&store).await;
    assert_eq!(all.by_event_type, [(Created, 2), (Updated, 2), (Deleted, 1)]);
    assert_eq!(all.registrations, [date!(1970 - 01 - 02), date!(1970 - 01 - 03)].map(|day| (day, 1)));
}

pub(super) async fn offsets_never_go_back(store: Arc<dyn Store>) {
    assert!(store.offsets(&source()).await.expect("offsets").is_empty());
    store.apply(&source(), &[at(0, 10), at(1, 5)], &[]).await.expect("applied");
    store.apply(&source(), &[at(0, 7), at(1, 6), at(2, 1)], &[]).await.expect("applied");
    let offsets = store.offsets(&source()).await.expect("offsets");
    assert_eq!(offsets, [at(0, 10), at(1, 6), at(2, 1)]);
    let applied = store.apply(&source(), &[], &[]).await.expect("applied");
    assert_eq!(applied, Applied::default());
}

pub(super) async fn offsets_belong_to_their_source(store: Arc<dyn Store>) {
    store.apply(&source(), &[at(0, 10)], &[]).await.expect("applied");
    let others = [
        ProjectionSource { group: "other".to_owned(), ..source() },
        ProjectionSource { broker: "b2".to_owned(), ..source() },
        ProjectionSource { topic: "other".to_owned(), ..source() },
    ];
    for other in others {
        assert!(store.offsets(&other).await.expect("offsets").is_empty());
        store.apply(&other, &[at(0, 1)], &[]).await.expect("applied");
        assert_eq!(store.offsets(&other).await.expect("offsets"), [at(0, 1)]);
    }
    assert_eq!(store.offsets(&source()).await.expect("offsets"), [at(0, 10)]);
}

pub(super) async fn parallel_consumers_count_once(store: Arc<dyn Store>) {
    // Several consumers get the same events, as after a rebalance that one of them has not noticed.
    let batch: Arc<Vec<Observation>> = Arc::new(
        (1..=60).flat_map(|n| [seen(n, 1, Created, Some(OLD)), seen(n, 2, Updated, Some(NEW))]).collect(),
    );
    let tasks = (0..6).map(|task: usize| {
        let (store, batch) = (Arc::clone(&store), Arc::clone(&batch));
        tokio::spawn(async move {
            let mut counted = 0;
            for chunk in batch.chunks(20 + task * 2) {
                counted += store.apply(&source(), &[at(0, 120)], chunk).await.expect("applied").counted;
            }
            counted
        })
    });
    let mut counted = 0;
    for task in join_all(tasks).await {
        counted += task.expect("no panic");
    }
    assert_eq!(counted, 120);
    let all = counts(&store).await;
    assert_eq!(all.by_event_type, [(Created, 60), (Updated, 60)]);
    assert_eq!((all.living, all.born_by), births(0, 60));
}
