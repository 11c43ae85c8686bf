//! Patients: what is committed, what is refused, and what is read back.

use std::sync::Arc;

use uuid::Uuid;

use super::world::{Region, id, list, new_command, patient};
use crate::domain::ids::{Epoch, Fingerprint};
use crate::domain::patient::{PatientEvent, PatientState};
use crate::domain::search::{Filter, PatientSearch};
use crate::store::AppendOutcome::{Committed, Conflict, EmailTaken, Fenced};
use crate::store::Store;

pub(super) async fn a_life_is_recorded(store: Arc<dyn Store>) {
    assert!(store.is_empty().await.expect("an answer"));
    let region = Region::start(&store).await;
    assert_eq!(region.state(id(1)).await, PatientState::Absent);

    let registered = region.registered(1, "Ada@example.com").await;
    assert_eq!(region.state(id(1)).await, PatientState::Active(Arc::new(registered.clone())));
    let updated = region.done(region.update(&registered, "ada@example.org")).await;
    assert_eq!(region.state(id(1)).await, PatientState::Active(Arc::new(updated.clone())));
    region.done(region.delete(&updated)).await;
    assert_eq!(region.state(id(1)).await, PatientState::Deleted(3));

    let history = store.history(id(1), 0, 10).await.expect("events");
    let versions: Vec<_> = history.iter().map(|e| (e.version(), e.event_type().code())).collect();
    assert_eq!(versions, [(1, 1), (2, 2), (3, 3)]);
    assert!(!store.is_empty().await.expect("an answer"), "a deleted patient was registered once");
}

pub(super) async fn a_mixed_batch_hurts_nobody(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let known = region.registered(1, "taken@example.com").await;
    let mut fenced = region.register(3, "three@example.com");
    fenced.epoch = Epoch(fenced.epoch.0 + 1);
    let mut gap = region.update(&known, "gap@example.com");
    if let PatientEvent::Updated(after) = &mut gap.recorded.event {
        Arc::make_mut(after).version = 9;
    }
    let batch = [
        region.register(2, "two@example.com"),
        fenced,
        region.register(4, "TAKEN@example.com"),
        gap,
        region.register(5, "five@example.com"),
    ];
    let outcomes = store.commit_patients(&batch).await.expect("outcomes");
    assert_eq!(outcomes, [Committed, Fenced, EmailTaken, Conflict, Committed]);
    assert!(matches!(region.state(id(2)).await, PatientState::Active(_)));
    assert!(matches!(region.state(id(5)).await, PatientState::Active(_)));
    for refused in [3, 4] {
        assert_eq!(region.state(id(refused)).await, PatientState::Absent);
        assert!(store.history(id(refused), 0, 9).await.expect("events").is_empty());
    }
    assert_eq!(region.state(id(1)).await, PatientState::Active(Arc::new(known)));
    // The addresses of refused rows are free.
    region.registered(6, "three@example.com").await;
    region.registered(7, "gap@example.com").await;
}

pub(super) async fn an_empty_batch_is_nothing(store: Arc<dyn Store>) {
    assert_eq!(store.commit_patients(&[]).await.expect("outcomes"), []);
    assert_eq!(store.commit_accounts(&[]).await.expect("outcomes"), []);
}

pub(super) async fn a_command_is_carried_out_once(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let row = region.register(1, "one@example.com");
    assert_eq!(region.commit(&row).await, Committed);
    assert_eq!(region.commit(&row).await, Conflict);

    // The same command for the next version, as from a caller that reloaded the state but not the command.
    let mut again = region.update(row.recorded.event.patient(), "two@example.com");
    again.recorded.command_id = row.recorded.command_id;
    assert_eq!(region.commit(&again).await, Conflict);

    let loaded = store.load_patient(id(1), Some(row.recorded.command_id)).await.expect("a state");
    assert_eq!(loaded.applied.as_ref(), Some(&row.recorded));
    assert_eq!(loaded.state, PatientState::Active(Arc::clone(row.recorded.event.patient())));
    let other = store.load_patient(id(1), Some(new_command())).await.expect("a state");
    assert_eq!(other.applied, None);
    // A command id belongs to its patient.
    let elsewhere = store.load_patient(id(2), Some(row.recorded.command_id)).await.expect("a state");
    assert_eq!(elsewhere.applied, None);
    let mut shared = region.register(2, "two@example.com");
    shared.recorded.command_id = row.recorded.command_id;
    assert_eq!(region.commit(&shared).await, Committed);
}

pub(super) async fn versions_must_follow(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let first = region.registered(1, "one@example.com").await;
    let second = region.done(region.update(&first, "one@example.com")).await;
    assert_eq!(region.commit(&region.update(&first, "x@example.com")).await, Conflict);
    assert_eq!(region.commit(&region.delete(&first)).await, Conflict);
    assert_eq!(region.commit(&region.register(1, "y@example.com")).await, Conflict);
    let nobody = patient(2, "nobody@example.com");
    assert_eq!(region.commit(&region.update(&nobody, "nobody@example.com")).await, Conflict);
    assert_eq!(region.state(id(1)).await, PatientState::Active(Arc::new(second)));
}

pub(super) async fn a_deleted_id_is_never_used_again(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let first = region.registered(1, "one@example.com").await;
    let deleted = region.done(region.delete(&first)).await;
    assert_eq!(region.commit(&region.register(1, "one@example.com")).await, Conflict);
    assert_eq!(region.commit(&region.update(&deleted, "one@example.com")).await, Conflict);
    assert_eq!(region.commit(&region.delete(&deleted)).await, Conflict);
    assert_eq!(region.state(id(1)).await, PatientState::Deleted(2));
}

pub(super) async fn deletion_and_change_free_the_address(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    assert_eq!(region.commit(&region.register(2, "ONE@example.com")).await, EmailTaken);
    let one = region.done(region.update(&one, "uno@example.com")).await;
    let two = region.registered(2, "ONE@example.com").await;
    assert_eq!(region.commit(&region.update(&two, "Uno@example.com")).await, EmailTaken);
    assert_eq!(region.state(id(2)).await, PatientState::Active(Arc::new(two.clone())));
    region.done(region.delete(&one)).await;
    region.done(region.update(&two, "Uno@example.com")).await;
    // A deletion frees the address even if the caller does not name it.
    let three = region.registered(3, "three@example.com").await;
    let mut unnamed = region.delete(&three);
    unnamed.released_email_key = None;
    region.done(unnamed).await;
    region.registered(4, "three@example.com").await;
}

pub(super) async fn a_change_of_case_keeps_the_address(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    let mut row = region.update(&one, "ONE@example.com");
    // As from a caller that compares the addresses as written instead of their keys.
    row.released_email_key = Some("one@example.com".to_owned());
    let one = region.done(row).await;
    assert_eq!(&*one.details.email, "ONE@example.com");
    assert_eq!(region.commit(&region.register(2, "one@example.com")).await, EmailTaken);
}

pub(super) async fn an_address_freed_in_a_batch_is_not_free_within_it(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    let batch = [region.update(&one, "uno@example.com"), region.register(2, "one@example.com")];
    assert_eq!(store.commit_patients(&batch).await.expect("outcomes"), [Committed, EmailTaken]);
    region.registered(2, "one@example.com").await;
}

pub(super) async fn one_address_twice_in_a_batch(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let batch = [region.register(2, "One@example.com"), region.register(1, "one@example.com")];
    let outcomes = store.commit_patients(&batch).await.expect("outcomes");
    assert_eq!(outcomes, [EmailTaken, Committed], "the smaller id is first");
}

pub(super) async fn the_own_address_is_a_conflict(store: Arc<dyn Store>) {
    // A registration of unknown outcome was committed. The shard that tries again does not know of it, not
    // even of the id.
    let region = Region::start(&store).await;
    region.registered(1, "one@example.com").await;
    assert_eq!(region.commit(&region.register(1, "one@example.com")).await, Conflict);
}

/// A store may commit a single registration by another statement than a batch. Both must decide the same.
pub(super) async fn a_registration_alone_and_in_company_decide_the_same(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    for (alone, base) in [(true, 1_000), (false, 2_000)] {
        let mail = |n: u128| format!("p{}@example.com", base + n);
        let living = region.registered(base + 1, &mail(1)).await;
        let gone = region.registered(base + 2, &mail(2)).await;
        region.done(region.delete(&gone)).await;
        let mut stale = region.register(base + 3, &mail(3));
        stale.epoch = Epoch(stale.epoch.0 + 1);
        let rows = [
            (region.register(base + 4, &mail(4)), Committed),
            (region.register(base + 5, &living.details.email.to_uppercase()), EmailTaken),
            (stale, Fenced),
            (region.register(base + 1, &mail(6)), Conflict),
            (region.register(base + 1, &mail(1)), Conflict),
            (region.register(base + 2, &mail(7)), Conflict),
            (region.register(base + 8, &mail(2)), Committed),
        ];
        for (nth, (row, expected)) in rows.into_iter().enumerate() {
            let company = region.register(base + 100 + nth as u128, &mail(100 + nth as u128));
            let batch = if alone { vec![row] } else { vec![row, company] };
            let outcomes = store.commit_patients(&batch).await.expect("a commit");
            assert_eq!(outcomes[0], expected, "row {nth}, alone: {alone}");
            assert!(
                outcomes[1..].iter().all(|outcome| *outcome == Committed),
                "row {nth} hurts its neighbour"
            );
        }
        assert_eq!(region.state(id(base + 1)).await, PatientState::Active(Arc::new(living)));
        let depth = store.outbox_depth().await.expect("a depth");
        assert_eq!(depth.unpublished_rows, if alone { 5 } else { 5 + 5 + 7 }, "nothing of what was refused");
    }
}

pub(super) async fn a_restricted_patient_is_kept_so_and_left_out_of_lists(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.registered(2, "two@example.com").await;
    let mut restricted = region.update(&one, "one@example.com");
    if let PatientEvent::Updated(patient) = &mut restricted.recorded.event {
        Arc::make_mut(patient).restricted = true;
    }
    let one = region.done(restricted).await;
    assert!(one.restricted);
    assert_eq!(region.state(id(1)).await, PatientState::Active(Arc::new(one.clone())));
    let history = store.history(id(1), 0, 10).await.expect("an answer");
    assert_eq!(
        history.iter().map(|event| event.event.patient().restricted).collect::<Vec<_>>(),
        [false, true]
    );
    let listed = async || {
        let mut found = Vec::new();
        for filter in [Filter::All, Filter::Begins("one".into()), Filter::Email("one@example.com".into())] {
            let sort = filter.sorts()[0];
            let search = PatientSearch { filter, sort, descending: false, after: None, limit_rows: 10 };
            let page = store.search(&search).await.expect("a page");
            found.extend(page.patients.iter().map(|patient| patient.id));
        }
        found
    };
    assert_eq!(listed().await, [id(2)]);
    // The restriction can be removed again.
    let mut open = region.update(&one, "one@example.com");
    if let PatientEvent::Updated(patient) = &mut open.recorded.event {
        Arc::make_mut(patient).restricted = false;
    }
    assert!(!region.done(open).await.restricted);
    assert_eq!(listed().await.len(), 4, "two among all, and one by each filter");
}

pub(super) async fn what_a_request_said_is_kept_with_its_event(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    // For a single row, in a batch, and for a change.
    let said = |n: u128| Some(Fingerprint(Uuid::from_u128(n)));
    let mut rows = [1, 2, 3].map(|n| region.register(n, &format!("p{n}@example.com")));
    rows[0].recorded.fingerprint = said(1);
    rows[1].recorded.fingerprint = said(2);
    assert_eq!(region.commit(&rows[0]).await, Committed);
    assert_eq!(store.commit_patients(&rows[1..]).await.expect("outcomes"), [Committed, Committed]);
    let mut change = region.update(rows[0].recorded.event.patient(), "p1@example.com");
    change.recorded.fingerprint = said(9);
    region.done(change.clone()).await;
    for row in rows.iter().chain([&change]) {
        let (id, command) = (row.recorded.patient_id(), row.recorded.command_id);
        let loaded = store.load_patient(id, Some(command)).await.expect("a state");
        assert_eq!(loaded.applied.as_ref(), Some(&row.recorded));
    }
    assert!(store.history(id(1), 0, 9).await.expect("events") == [rows[0].recorded.clone(), change.recorded]);
}

pub(super) async fn history_is_in_order_and_limited(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let mut now = region.registered(1, "v1@example.com").await;
    for version in 2..=6 {
        now = region.done(region.update(&now, &format!("v{version}@example.com"))).await;
    }
    region.registered(2, "other@example.com").await;
    let history = store.history(id(1), 0, 4).await.expect("events");
    let emails: Vec<_> = history.iter().map(|e| e.event.patient().details.email.to_string()).collect();
    assert_eq!(emails, ["v1@example.com", "v2@example.com", "v3@example.com", "v4@example.com"]);
    let later = store.history(id(1), 4, 9).await.expect("events");
    assert_eq!(later.iter().map(|e| e.version()).collect::<Vec<_>>(), [5, 6]);
    assert!(store.history(id(1), 6, 9).await.expect("events").is_empty());
}

pub(super) async fn texts_come_back_as_they_were(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let mut row = region.register(1, "o'neil+\u{fc}@example.com");
    if let PatientEvent::Registered(p) = &mut row.recorded.event {
        let details = &mut Arc::make_mut(p).details;
        details.name = "N\u{e1}me \"quoted\" \\ {braces,commas} NULL".into();
        details.address = "line one\nline two\t\u{1f3e5}".into();
        details.date_of_birth = time::macros::date!(1850 - 01 - 01);
    }
    let before = region.done(row.clone()).await;
    let PatientState::Active(after) = region.state(id(1)).await else { panic!("it is there") };
    assert!(*after == before, "the record is not the same");
    assert!(store.history(id(1), 0, 1).await.expect("events") == [row.recorded], "the event is not the same");
    assert!(list(&store, 1).await.expect("a page") == [before], "the list is not the same");
}
