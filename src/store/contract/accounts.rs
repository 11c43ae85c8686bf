//! Accounts, users, and the store as a whole.

use std::sync::Arc;

use futures::future::join_all;
use uuid::Uuid;

use super::world::{LONG, START, id};
use crate::clock::SystemClock;
use crate::domain::account::{Account, AccountStatus};
use crate::domain::ids::{AccountId, Epoch, Kind};
use crate::domain::time::{Clock, Timestamp};
use crate::store::AppendOutcome::{Committed, Conflict, Fenced};
use crate::store::{AccountAppend, ChangedBy, Store, UserAdded, UserChange, UserChanged, UserRow};

fn account(n: u128, epoch: Epoch) -> AccountAppend {
    let account = Account {
        id: AccountId(Uuid::new_v4()),
        patient_id: id(n),
        name: "A Name".into(),
        email: "a@example.com".into(),
        status: AccountStatus::Active,
        opened_at: Timestamp(START),
    };
    AccountAppend { shard: 0, epoch, account: Arc::new(account) }
}

async fn epoch(store: &Arc<dyn Store>) -> Epoch {
    store.acquire(Kind::Billing, &[0], "a#1", LONG).await.expect("a lease")[0].epoch
}

pub(super) async fn a_patient_has_one_account(store: Arc<dyn Store>) {
    let epoch = epoch(&store).await;
    assert_eq!(store.load_account(id(1)).await.expect("an answer"), None);
    let batch = [account(1, epoch), account(2, epoch), account(1, epoch)];
    assert_eq!(store.commit_accounts(&batch).await.expect("outcomes"), [Committed, Committed, Conflict]);
    assert_eq!(store.load_account(id(1)).await.expect("an answer"), Some(Arc::clone(&batch[0].account)));
    let tasks = (0..8).map(|_| {
        let (store, batch) = (Arc::clone(&store), [account(2, epoch), account(3, epoch)]);
        tokio::spawn(async move { store.commit_accounts(&batch).await.expect("outcomes") })
    });
    let outcomes: Vec<_> = join_all(tasks).await.into_iter().map(|task| task.expect("no panic")).collect();
    assert!(outcomes.iter().all(|o| o[0] == Conflict));
    assert_eq!(outcomes.iter().filter(|o| o[1] == Committed).count(), 1);
}

pub(super) async fn accounts_are_fenced(store: Arc<dyn Store>) {
    let old = epoch(&store).await;
    let new = epoch(&store).await;
    let batch = [account(1, old), account(2, new)];
    assert_eq!(store.commit_accounts(&batch).await.expect("outcomes"), [Fenced, Committed]);
    assert_eq!(store.load_account(id(1)).await.expect("an answer"), None);
}

fn user(email: &str) -> UserRow {
    UserRow {
        email: email.to_owned(),
        password_hash: "$2b$04$x".to_owned(),
        role: "ADMIN".to_owned(),
        disabled: false,
        created_at: Timestamp(START),
        sessions_not_before: Timestamp(0),
    }
}

pub(super) async fn users_are_kept(store: Arc<dyn Store>) {
    assert_eq!(store.find_user("a@example.com").await.expect("an answer"), None);
    for email in ["b@example.com", "a@example.com", "c@example.com", "B@example.com"] {
        assert_eq!(store.add_user(&user(email), &ChangedBy::Operator).await, Ok(UserAdded::Done));
    }
    let mut other = user("a@example.com");
    other.role = "OTHER".to_owned();
    assert_eq!(store.add_user(&other, &ChangedBy::Operator).await, Ok(UserAdded::Taken));
    assert_eq!(store.find_user("a@example.com").await.expect("an answer"), Some(user("a@example.com")));

    let set =
        |email: &'static str, judged, at| store.set_password_hash(email, "$2b$04$y", judged, Timestamp(at));
    assert_eq!(set("a@example.com", None, 7).await, Ok(true));
    assert_eq!(set("x@example.com", None, 7).await, Ok(false));
    assert_eq!(set("a@example.com", Some("$2b$04$x"), 9).await, Ok(false), "it is another by now");
    assert_eq!(set("a@example.com", Some("$2b$04$y"), 7).await, Ok(true));
    let found = store.find_user("a@example.com").await.expect("an answer").expect("a user");
    assert_eq!(found, UserRow { password_hash: "$2b$04$y".into(), ..of_generation("a@example.com", 8) });
    let change = |email: &'static str, role: Option<&str>, disabled| {
        let (store, change) = (Arc::clone(&store), UserChange { role: role.map(str::to_owned), disabled });
        async move { store.change_user(email, &change, &ChangedBy::Operator, Timestamp(5)).await }
    };
    let both = UserRow { role: "AUDITOR".into(), disabled: true, ..found };
    let both = UserRow { sessions_not_before: Timestamp(9), ..both };
    let done = change("a@example.com", Some("AUDITOR"), Some(true)).await;
    assert_eq!(done, Ok(UserChanged::Done(both.clone())), "generations rise whatever the clock says");
    assert_eq!(store.find_user("a@example.com").await, Ok(Some(both.clone())));
    assert_eq!(change("x@example.com", Some("AUDITOR"), Some(true)).await, Ok(UserChanged::Nobody));
    let judged = set("a@example.com", Some("$2b$04$y"), 20).await;
    assert_eq!(judged, Ok(false), "a disabled user has nothing to change");
    let enabled = UserRow { disabled: false, ..both };
    assert_eq!(change("a@example.com", None, Some(false)).await, Ok(UserChanged::Done(enabled)));

    let page = store.list_users(None, 3).await.expect("users");
    let emails: Vec<_> = page.iter().map(|u| u.email.as_str()).collect();
    assert_eq!(emails, ["B@example.com", "a@example.com", "b@example.com"]);
    let rest = store.list_users(Some("b@example.com"), 3).await.expect("users");
    assert_eq!(rest.iter().map(|u| u.email.as_str()).collect::<Vec<_>>(), ["c@example.com"]);
}

fn of_generation(email: &str, generation: i64) -> UserRow {
    UserRow { sessions_not_before: Timestamp(generation), ..user(email) }
}

fn by(email: &str, role: &str) -> ChangedBy {
    ChangedBy::User { email: email.to_owned(), role: role.to_owned() }
}

pub(super) async fn an_administrator_is_judged_again_and_one_is_always_left(store: Arc<dyn Store>) {
    for email in ["a@example.com", "b@example.com", "c@example.com"] {
        assert_eq!(store.add_user(&user(email), &ChangedBy::Operator).await, Ok(UserAdded::Done));
    }
    let disable = UserChange { disabled: Some(true), ..UserChange::default() };
    let change = async |email: &str, change: &UserChange, changer: &ChangedBy| {
        let changed = store.change_user(email, change, changer, Timestamp(5)).await.expect("an answer");
        match changed {
            UserChanged::Done(_) => "done",
            UserChanged::Nobody => "nobody",
            UserChanged::NotPermitted => "not permitted",
            UserChanged::LastAdmin => "last admin",
        }
    };
    assert_eq!(change("b@example.com", &disable, &by("a@example.com", "ADMIN")).await, "done");
    for changer in
        [by("b@example.com", "ADMIN"), by("a@example.com", "CLINICIAN"), by("x@example.com", "ADMIN")]
    {
        assert_eq!(change("a@example.com", &disable, &changer).await, "not permitted");
        assert_eq!(store.add_user(&user("d@example.com"), &changer).await, Ok(UserAdded::NotPermitted));
    }
    let demote = UserChange { role: Some("BILLING".into()), disabled: None };
    assert_eq!(change("c@example.com", &demote, &by("a@example.com", "ADMIN")).await, "done");
    for change_of_last in [&disable, &demote] {
        let last = change("a@example.com", change_of_last, &by("a@example.com", "ADMIN")).await;
        assert_eq!(last, "last admin");
    }
    let added = store.add_user(&user("d@example.com"), &by("a@example.com", "ADMIN")).await;
    assert_eq!(added, Ok(UserAdded::Done));
    assert_eq!(
        store.add_user(&user("d@example.com"), &by("a@example.com", "ADMIN")).await,
        Ok(UserAdded::Taken)
    );
    assert_eq!(store.add_user(&user("e@example.com"), &ChangedBy::SetUp).await, Ok(UserAdded::Taken));
}

/// Each ADMIN disables the next one, all concurrently.
pub(super) async fn administrators_who_disable_each_other_at_once_leave_one(store: Arc<dyn Store>) {
    for round in 0..20 {
        let emails: Vec<String> = (0..4).map(|n| format!("{round}-{n}@example.com")).collect();
        for email in &emails {
            assert_eq!(store.add_user(&user(email), &ChangedBy::Operator).await, Ok(UserAdded::Done));
        }
        let changes = (0..emails.len()).map(|n| {
            let (store, changer) = (Arc::clone(&store), by(&emails[n], "ADMIN"));
            let other = emails[(n + 1) % emails.len()].clone();
            let disable = UserChange { disabled: Some(true), ..UserChange::default() };
            tokio::spawn(async move { store.change_user(&other, &disable, &changer, Timestamp(5)).await })
        });
        for changed in join_all(changes).await {
            changed.expect("joined").expect("an answer");
        }
        let mut left = Vec::new();
        for email in &emails {
            let user = store.find_user(email).await.expect("an answer").expect("a user");
            left.extend((!user.disabled).then_some(user.email));
        }
        assert!(!left.is_empty(), "round {round}");
        // The next round starts without them.
        for email in &left {
            let disable = UserChange { disabled: Some(true), ..UserChange::default() };
            store.change_user(email, &disable, &ChangedBy::Operator, Timestamp(5)).await.expect("disabled");
        }
    }
}

pub(super) async fn of_set_ups_at_once_one_adds_the_first_user(store: Arc<dyn Store>) {
    let tries = (0..8).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let by = if n == 7 { ChangedBy::Operator } else { ChangedBy::SetUp };
            store.add_user(&user(&format!("{n}@example.com")), &by).await.expect("an answer")
        })
    });
    let added: Vec<UserAdded> =
        join_all(tries).await.into_iter().map(|added| added.expect("joined")).collect();
    let by_set_up = added[..7].iter().filter(|added| **added == UserAdded::Done).count();
    assert!(by_set_up <= 1 && added[7] == UserAdded::Done, "{added:?}");
}

pub(super) async fn a_store_answers_a_ping(store: Arc<dyn Store>) {
    let before = SystemClock.now();
    let told = store.ping().await.expect("an answer");
    // A server that the user chose may have another clock.
    let off_us = (told.0 - before.0).abs();
    assert!(off_us < 60_000_000 || std::env::var_os("HYGEIA_TEST_POSTGRES").is_some(), "{off_us}");
    store.close().await;
    assert!(matches!(store.ping().await, Err(crate::store::Error::Unavailable(_))));
}
