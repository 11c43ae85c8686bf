//! Keys, sessions and attempts to log in.

use std::sync::Arc;

use futures::future::join_all;
use uuid::Uuid;

use super::world::START;
use crate::domain::ids::SessionId;
use crate::domain::time::Timestamp;
use crate::store::{
    Attempts, ChangedBy, Hash, NewSession, Revocation, RevokedSession, Rotation, SharedSecret, SigningKeyRow,
    Store, USED_TOKENS_KEPT, UserChange, UserRow,
};

/// The time this many seconds after `START`.
fn at(seconds: i64) -> Timestamp {
    Timestamp(START + seconds * 1_000_000)
}

fn hash(n: u32) -> Hash {
    let mut hash = [7; 32];
    hash[..4].copy_from_slice(&n.to_be_bytes());
    hash
}

fn revocation(seconds: i64) -> Revocation {
    Revocation { at: at(seconds), keep_until: at(seconds + 100) }
}

fn key(generation: i64) -> SigningKeyRow {
    SigningKeyRow {
        generation,
        created_at: at(generation),
        signs_from: at(generation + 10),
        verifies_until: None,
        kid: Uuid::new_v4().to_string(),
        public_key: vec![1; 32],
        private_key: vec![2; 80],
        sealed: generation == 2,
    }
}

fn session(id: u128, subject: &str, begins: i64, token: u32) -> NewSession {
    NewSession {
        id: SessionId(Uuid::from_u128(id)),
        subject: subject.to_owned(),
        generation: at(0),
        created_at: at(begins),
        ends_at: at(begins + 1_000),
        keep_until: at(begins + 1_100),
        token: hash(token),
    }
}

const HASH: &str = "$2b$04$x";

/// Adds a user with the generation of `session`.
async fn user(store: &Arc<dyn Store>, email: &str) {
    let user = UserRow {
        email: email.to_owned(),
        password_hash: HASH.to_owned(),
        role: "CLINICIAN".to_owned(),
        disabled: false,
        created_at: at(0),
        sessions_not_before: at(0),
    };
    store.add_user(&user, &ChangedBy::Operator).await.expect("an answer");
}

/// Starts a session, and adds its user if needed.
async fn start(store: &Arc<dyn Store>, session: &NewSession) -> Vec<SessionId> {
    user(store, &session.subject).await;
    start_among(store, session, 100).await.expect("as judged")
}

async fn start_among(
    store: &Arc<dyn Store>,
    session: &NewSession,
    sessions_max: u32,
) -> Option<Vec<SessionId>> {
    let revocation = Revocation { at: session.created_at, ..revocation(0) };
    store.start_session(session, HASH, sessions_max, revocation).await.expect("an answer")
}

/// Rotates a token, however long ago it was issued.
async fn rotate(store: &Arc<dyn Store>, used: u32, next: u32, now: i64) -> Rotation {
    rotate_given_after(store, used, next, (-1_000, now)).await
}

async fn rotate_given_after(
    store: &Arc<dyn Store>,
    used: u32,
    next: u32,
    (given_after, now): (i64, i64),
) -> Rotation {
    let (used, next) = (hash(used), hash(next));
    store.rotate_token(&used, &next, at(given_after), revocation(now)).await.expect("an answer")
}

async fn revoked(store: &Arc<dyn Store>) -> Vec<RevokedSession> {
    store.revoked_sessions((at(-1), SessionId(Uuid::nil())), 100).await.expect("an answer")
}

pub(super) async fn a_generation_of_keys_is_made_once(store: Arc<dyn Store>) {
    assert_eq!(store.signing_keys(10).await.expect("an answer"), []);
    let tries = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.add_signing_key(&key(1), at(0)).await.expect("an answer") })
    });
    let won: Vec<bool> = join_all(tries).await.into_iter().map(|task| task.expect("no panic")).collect();
    assert_eq!(won.iter().filter(|won| **won).count(), 1);

    let (second, third) = (key(2), key(3));
    assert!(store.add_signing_key(&second, at(50)).await.expect("an answer"));
    assert!(!store.add_signing_key(&key(2), at(1)).await.expect("an answer"), "the loser changes nothing");
    assert!(store.add_signing_key(&third, at(90)).await.expect("an answer"));
    let keys = store.signing_keys(10).await.expect("keys");
    assert_eq!(keys.iter().map(|key| key.generation).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(keys[0], third);
    assert_eq!(keys[1], SigningKeyRow { verifies_until: Some(at(90)), ..second });
    assert_eq!(keys[2].verifies_until, Some(at(50)), "an end is never put off");
    assert_eq!(store.signing_keys(2).await.expect("keys").len(), 2);
}

pub(super) async fn dead_keys_are_deleted_and_the_youngest_never(store: Arc<dyn Store>) {
    for (generation, end) in [(1, 0), (2, 50), (3, 90)] {
        assert!(store.add_signing_key(&key(generation), at(end)).await.expect("an answer"));
    }
    assert_eq!(store.delete_signing_keys(at(50), 10).await.expect("an answer"), 0);
    assert_eq!(store.delete_signing_keys(at(1_000_000), 1).await.expect("an answer"), 1);
    assert_eq!(store.delete_signing_keys(at(1_000_000), 10).await.expect("an answer"), 1);
    assert_eq!(store.signing_keys(10).await.expect("keys").len(), 1);
}

pub(super) async fn a_shared_secret_is_made_once(store: Arc<dyn Store>) {
    let proposed = |n: u8| SharedSecret { value: vec![n; 32], sealed: n == 1 };
    assert_eq!(store.shared_secret("a", &proposed(1)).await.expect("made"), proposed(1));
    assert_eq!(store.shared_secret("a", &proposed(2)).await.expect("known"), proposed(1));
    assert_eq!(store.shared_secret("b", &proposed(2)).await.expect("made"), proposed(2));
}

pub(super) async fn a_refresh_token_is_good_once_and_its_reuse_ends_the_session(store: Arc<dyn Store>) {
    let begun = session(1, "a@example.com", 0, 1);
    assert_eq!(start(&store, &begun).await, []);
    let rotate = |used, next, now| rotate(&store, used, next, now);
    let done = Rotation::Done {
        session: begun.id,
        subject: "a@example.com".to_owned(),
        role: "CLINICIAN".to_owned(),
        generation: begun.generation,
        ends_at: begun.ends_at,
    };
    assert_eq!(rotate(99, 2, 1).await, Rotation::Refused, "nobody knows it");
    assert_eq!(rotate(1, 2, 1).await, done);
    assert_eq!(rotate(2, 3, 2).await, done);
    assert_eq!(revoked(&store).await, []);
    assert_eq!(rotate(1, 4, 3).await, Rotation::Reused { session: begun.id });
    assert_eq!(
        revoked(&store).await,
        [RevokedSession { id: begun.id, revoked_at: at(3), keep_until: at(103) }]
    );
    assert_eq!(rotate(3, 5, 4).await, Rotation::Refused, "the good one is good no more");
    assert_eq!(rotate(1, 5, 4).await, Rotation::Refused);
    assert!(!store.revoke_session(begun.id, revocation(5)).await.expect("an answer"), "it is over");
}

pub(super) async fn of_rotations_at_once_one_gets_through(store: Arc<dyn Store>) {
    start(&store, &session(1, "a@example.com", 0, 1)).await;
    let tries = (0..8).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { rotate(&store, 1, 100 + n, 1).await })
    });
    let ended: Vec<Rotation> =
        join_all(tries).await.into_iter().map(|task| task.expect("no panic")).collect();
    let done = ended.iter().filter(|rotation| matches!(rotation, Rotation::Done { .. })).count();
    let reused = ended.iter().filter(|rotation| matches!(rotation, Rotation::Reused { .. })).count();
    assert_eq!((done, reused), (1, 1), "{ended:?}");
    assert_eq!(revoked(&store).await.len(), 1);
}

pub(super) async fn a_session_ends_in_its_time(store: Arc<dyn Store>) {
    start(&store, &session(1, "a@example.com", 0, 1)).await;
    let late = rotate(&store, 1, 2, 1_000).await;
    assert_eq!(late, Rotation::Refused);
    assert_eq!(store.delete_sessions(at(1_100), 10).await.expect("an answer"), 0);
    start(&store, &session(2, "a@example.com", 0, 3)).await;
    assert_eq!(store.delete_sessions(at(1_101), 1).await.expect("an answer"), 1);
    assert_eq!(store.delete_sessions(at(1_101), 10).await.expect("an answer"), 1);
    // The session's tokens are deleted with it, so their hashes can be used again.
    start(&store, &session(3, "a@example.com", 0, 1)).await;
}

pub(super) async fn a_token_that_lay_unused_for_too_long_is_good_no_more(store: Arc<dyn Store>) {
    let begun = session(1, "a@example.com", 0, 1);
    start(&store, &begun).await;
    let rotate = |used, next, given_after, now| rotate_given_after(&store, used, next, (given_after, now));
    let done = |rotation: &Rotation| matches!(rotation, Rotation::Done { .. });
    assert_eq!(rotate(1, 2, 0, 10).await, Rotation::Refused, "the first was given with the session");
    assert!(done(&rotate(1, 2, -1, 10).await), "nothing was changed by that");
    assert_eq!(rotate(2, 3, 10, 20).await, Rotation::Refused, "the next, when the one before was used");
    assert!(done(&rotate(2, 3, 9, 20).await));
    assert_eq!(revoked(&store).await, []);
    let again = rotate(2, 4, 100, 110).await;
    assert_eq!(again, Rotation::Reused { session: begun.id }, "a second use tells of a copy at any time");
}

pub(super) async fn used_tokens_are_kept_up_to_a_bound(store: Arc<dyn Store>) {
    start(&store, &session(1, "a@example.com", 0, 0)).await;
    let kept = u32::try_from(USED_TOKENS_KEPT).expect("small");
    for n in 0..=kept {
        let rotated = rotate(&store, n, n + 1, 1).await;
        assert!(matches!(rotated, Rotation::Done { .. }), "{n}");
    }
    let oldest = rotate(&store, 0, 9_999, 2).await;
    assert_eq!(oldest, Rotation::Refused, "forgotten");
    let next = rotate(&store, 1, 9_999, 2).await;
    assert!(matches!(next, Rotation::Reused { .. }), "{next:?}");
}

pub(super) async fn a_user_has_so_many_sessions_and_may_end_them_all(store: Arc<dyn Store>) {
    let id = |n: u128| SessionId(Uuid::from_u128(n));
    user(&store, "a@example.com").await;
    for n in 1..=3_u32 {
        let begun = session(n.into(), "a@example.com", n.into(), n);
        let surplus = start_among(&store, &begun, 2).await;
        assert_eq!(surplus, Some(if n == 3 { vec![id(1)] } else { vec![] }));
    }
    start(&store, &session(4, "b@example.com", 4, 4)).await;
    let mut ended = store.revoke_sessions_of("a@example.com", revocation(9)).await.expect("an answer");
    ended.sort();
    assert_eq!(ended, [id(2), id(3)]);
    assert_eq!(store.revoke_sessions_of("a@example.com", revocation(9)).await.expect("an answer"), []);
    let late = session(9, "a@example.com", 9, 9);
    assert_eq!(start_among(&store, &late, 2).await, None, "a login that was under way escapes neither");
    let other = rotate(&store, 4, 5, 10).await;
    assert!(matches!(other, Rotation::Done { .. }));

    let all = revoked(&store).await;
    assert_eq!(
        all.iter().map(|row| (row.id, row.revoked_at)).collect::<Vec<_>>(),
        [(id(1), at(3)), (id(2), at(9)), (id(3), at(9)),]
    );
    let page = store.revoked_sessions((at(3), id(1)), 1).await.expect("an answer");
    assert_eq!(page.iter().map(|row| row.id).collect::<Vec<_>>(), [id(2)]);
    assert!(store.revoke_session(id(4), revocation(11)).await.expect("an answer"));
    assert!(!store.revoke_session(id(77), revocation(11)).await.expect("an answer"), "unknown");
    assert_eq!(store.delete_sessions(at(112), 10).await.expect("an answer"), 4);
}

async fn disable(store: &Arc<dyn Store>, email: &str, disabled: bool) {
    let change = UserChange { disabled: Some(disabled), ..UserChange::default() };
    store.change_user(email, &change, &ChangedBy::Operator, at(0)).await.expect("changed");
}

pub(super) async fn a_session_begins_only_while_its_user_is_as_judged(store: Arc<dyn Store>) {
    let begun = session(1, "a@example.com", 5, 1);
    assert_eq!(start_among(&store, &begun, 9).await, None, "nobody");
    user(&store, "a@example.com").await;
    let other = store.start_session(&begun, "$2b$04$y", 9, revocation(0)).await;
    assert_eq!(other, Ok(None), "another hash");
    disable(&store, "a@example.com", true).await;
    assert_eq!(start_among(&store, &begun, 9).await, None, "disabled");
    disable(&store, "a@example.com", false).await;
    assert_eq!(start_among(&store, &begun, 9).await, None, "another generation, whatever the clock says");
    let found = store.find_user("a@example.com").await.expect("an answer").expect("a user");
    let next = NewSession { generation: found.sessions_not_before, ..begun };
    assert_eq!(start_among(&store, &next, 9).await, Some(vec![]));
    assert_eq!(revoked(&store).await, []);
}

pub(super) async fn a_session_goes_on_only_in_the_generation_of_its_user(store: Arc<dyn Store>) {
    for (n, change) in ["password", "disabled", "enabled again", "logged out"].into_iter().enumerate() {
        let n = u32::try_from(n).expect("small");
        let email = format!("{n}@example.com");
        // By a clock that is ahead of the one of the change.
        start(&store, &session(n.into(), &email, 500, 10 * n)).await;
        assert!(matches!(rotate(&store, 10 * n, 10 * n + 1, 501).await, Rotation::Done { .. }));
        match change {
            "password" => {
                assert_eq!(store.set_password_hash(&email, "$2b$04$y", None, at(-9)).await, Ok(true));
            }
            "logged out" => drop(store.revoke_sessions_of(&email, revocation(-9)).await.expect("an answer")),
            _ => disable(&store, &email, true).await,
        }
        if change == "enabled again" {
            disable(&store, &email, false).await;
        }
        assert_eq!(rotate(&store, 10 * n + 1, 10 * n + 2, 502).await, Rotation::Refused, "{change}");
        assert_eq!(rotate(&store, 10 * n, 10 * n + 2, 502).await, Rotation::Refused, "{change}");
    }
}

/// Logins and refreshes race with a change of the password. Whatever their results, no earlier session
/// continues.
pub(super) async fn no_session_outlives_a_change_of_the_password(store: Arc<dyn Store>) {
    for round in 0..20_u32 {
        let email = format!("{round}@example.com");
        let token = |n: u32| 1_000 * (round + 1) + n;
        let id = |n: u32| u128::from(token(n));
        start(&store, &session(id(0), &email, 0, token(0))).await;
        let logins = (1..6).map(|n| {
            let (store, begun) = (Arc::clone(&store), session(id(n), &email, 0, token(n)));
            tokio::spawn(async move { start_among(&store, &begun, 3).await.map(drop) })
        });
        let refresh = {
            let (store, used, next) = (Arc::clone(&store), token(0), token(100));
            tokio::spawn(async move { drop(rotate(&store, used, next, 1).await) })
        };
        let change = {
            let (store, email) = (Arc::clone(&store), email.clone());
            tokio::spawn(async move { store.set_password_hash(&email, "$2b$04$y", None, at(-9)).await })
        };
        for login in join_all(logins).await {
            let _ = login.expect("joined");
        }
        refresh.await.expect("joined");
        assert_eq!(change.await.expect("joined"), Ok(true));
        for n in (0..6).chain([100]) {
            let after = rotate(&store, token(n), token(200 + n), 2).await;
            assert_eq!(after, Rotation::Refused, "round {round}, token {n}");
        }
    }
}

pub(super) async fn attempts_are_counted_in_windows(store: Arc<dyn Store>) {
    let (account, address) = (hash(1), hash(2));
    let count = |now: i64| {
        let store = Arc::clone(&store);
        async move {
            let counted = store.count_attempts([&account, &address], at(now), at(now + 60)).await;
            counted.expect("counted")
        }
    };
    let both = |count: u32, ends: i64| [Attempts { count, window_ends: at(ends) }; 2];
    assert_eq!(count(0).await, both(1, 60));
    assert_eq!(count(59).await, both(2, 60), "the window does not move");
    assert_eq!(count(60).await, both(1, 120));
    count(61).await;
    store.forgive_attempts(&account, &address).await.expect("forgiven");
    let [of_account, of_address] = count(62).await;
    assert_eq!((of_account.count, of_address.count), (1, 2));
    assert_eq!(store.delete_attempts(at(120), 10).await.expect("an answer"), 0);
    assert_eq!(store.delete_attempts(at(1_000), 1).await.expect("an answer"), 1);
    assert_eq!(store.delete_attempts(at(1_000), 10).await.expect("an answer"), 1);
}

pub(super) async fn attempts_at_once_are_all_counted(store: Arc<dyn Store>) {
    let tries = (0..16_u32).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            // The keys come in either order.
            let (a, b) = (hash(1), hash(2));
            let keys = if n % 2 == 0 { [&a, &b] } else { [&b, &a] };
            store.count_attempts(keys, at(0), at(60)).await.expect("counted")
        })
    });
    join_all(tries).await;
    let [a, b] = store.count_attempts([&hash(1), &hash(2)], at(1), at(60)).await.expect("counted");
    assert_eq!((a.count, b.count), (17, 17));
}
