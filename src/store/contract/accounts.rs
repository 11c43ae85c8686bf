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
use crate::store::{AccountAppend, Store, UserRow};

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
        assert!(store.add_user(&user(email)).await.expect("an answer"));
    }
    let mut other = user("a@example.com");
    other.role = "OTHER".to_owned();
    assert!(!store.add_user(&other).await.expect("an answer"));
    assert_eq!(store.find_user("a@example.com").await.expect("an answer"), Some(user("a@example.com")));

    assert!(store.set_password_hash("a@example.com", "$2b$04$y", Timestamp(7)).await.expect("an answer"));
    assert!(!store.set_password_hash("x@example.com", "$2b$04$y", Timestamp(7)).await.expect("an answer"));
    assert!(store.set_user_disabled("a@example.com", true).await.expect("an answer"));
    assert!(!store.set_user_disabled("x@example.com", true).await.expect("an answer"));
    let found = store.find_user("a@example.com").await.expect("an answer").expect("a user");
    assert!(found.disabled && found.password_hash == "$2b$04$y");
    assert_eq!(found.sessions_not_before, Timestamp(7));
    assert!(store.set_user_role("a@example.com", "AUDITOR").await.expect("an answer"));
    assert!(!store.set_user_role("x@example.com", "AUDITOR").await.expect("an answer"));
    let found = store.find_user("a@example.com").await.expect("an answer").expect("a user");
    assert_eq!(found.role, "AUDITOR");

    let page = store.list_users(None, 3).await.expect("users");
    let emails: Vec<_> = page.iter().map(|u| u.email.as_str()).collect();
    assert_eq!(emails, ["B@example.com", "a@example.com", "b@example.com"]);
    let rest = store.list_users(Some("b@example.com"), 3).await.expect("users");
    assert_eq!(rest.iter().map(|u| u.email.as_str()).collect::<Vec<_>>(), ["c@example.com"]);
}

pub(super) async fn a_store_answers_a_ping(store: Arc<dyn Store>) {
    let before = SystemClock.now();
    let told = store.ping().await.expect("an answer");
    // A server of one's own choosing may have another clock.
    let off_us = (told.0 - before.0).abs();
    assert!(off_us < 60_000_000 || std::env::var_os("HYGEIA_TEST_POSTGRES").is_some(), "{off_us}");
    store.close().await;
    assert!(matches!(store.ping().await, Err(crate::store::Error::Unavailable(_))));
}
