//! Sessions from login to logout, over several nodes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::auth::fake::{eddsa, settings as hs256};
use crate::auth::{Auth, Login, Settings, Users};
use crate::domain::time::Clock;
use crate::error::ErrorCode;
use crate::store;

use super::{EMAIL, World};

async fn login(node: &Auth) -> Login {
    node.login(EMAIL, "password123", None).await.expect("logged in")
}

async fn refused(node: &Auth, token: &str) {
    let error = node.authenticate(token).await.expect_err("refused");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_session_goes_on_by_refreshing_and_each_refresh_token_is_good_once() {
    let world = World::new();
    let node = world.node();
    let first = login(&node).await;
    world.clock.step(Duration::from_secs(901 + 2));
    refused(&node, &first.token.text).await;
    let second = node.refresh(&first.refresh_token).await.expect("refreshed");
    node.authenticate(&second.token.text).await.expect("holds");
    let third = node.refresh(&second.refresh_token).await.expect("refreshed");

    let error = node.refresh(&first.refresh_token).await.expect_err("used");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    for token in [&second.token.text, &third.token.text] {
        refused(&node, token).await;
    }
    assert!(node.refresh(&third.refresh_token).await.is_err(), "the whole session is over");
}

#[tokio::test]
async fn what_is_no_refresh_token_changes_nothing() {
    let world = World::new();
    let node = world.node();
    let given = login(&node).await;
    let longer = format!("{}A", given.refresh_token);
    for bad in ["", "x", &"A".repeat(43), &longer, &given.token.text, &"x".repeat(100_000)] {
        let error = node.refresh(bad).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
    node.authenticate(&given.token.text).await.expect("holds");
    node.refresh(&given.refresh_token).await.expect("refreshed");
}

#[tokio::test]
async fn a_session_ends_for_good_after_its_time() {
    let world = World::new();
    let node = world.node();
    let mut given = login(&node).await;
    let idle = Duration::from_secs(world.settings.session_idle_seconds);
    let (mut left, step) = (Duration::from_secs(world.settings.session_ttl_seconds), idle / 2);
    while left > step {
        world.clock.step(step);
        left -= step;
        given = node.refresh(&given.refresh_token).await.expect("refreshed");
        assert_eq!(given.refresh_expires_in, idle.min(left));
    }
    world.clock.step(left);
    assert!(node.refresh(&given.refresh_token).await.is_err());
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends() {
    for algorithm in [eddsa(), hs256()] {
        let settings = Settings { token_ttl_seconds: 60, session_idle_seconds: 60, ..algorithm };
        let world = World { settings, ..World::new() };
        let node = world.node();
        let first = login(&node).await;
        assert_eq!(first.refresh_expires_in, Duration::from_secs(60));
        world.clock.step(Duration::from_millis(59_999));
        let second = node.refresh(&first.refresh_token).await.expect("in time");
        world.clock.step(Duration::from_secs(60));
        let error = node.refresh(&second.refresh_token).await.expect_err("too late");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        // The 2 s of clock leeway.
        world.clock.step(Duration::from_secs(2));
        refused(&node, &second.token.text).await;
        node.refresh(&login(&node).await.refresh_token).await.expect("another session goes on");
    }
}

/// The claim `exp` of a token.
fn end_of(token: &str) -> i64 {
    let claims = token.split('.').nth(1).expect("three parts");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64url");
    let claims: serde_json::Value = serde_json::from_slice(&claims).expect("JSON");
    claims["exp"].as_i64().expect("a number")
}

#[tokio::test]
async fn no_token_outlives_its_session() {
    for algorithm in [eddsa(), hs256()] {
        let world = World { settings: Settings { session_ttl_seconds: 1000, ..algorithm }, ..World::new() };
        let began = world.clock.now().0 / 1_000_000;
        world.clock.step(Duration::from_millis(500));
        let node = world.node();
        let first = login(&node).await;
        assert_eq!(first.token.expires_in, Duration::from_secs(900));
        assert_eq!(end_of(&first.token.text), began + 900);
        world.clock.step(Duration::from_secs(200));
        let second = node.refresh(&first.refresh_token).await.expect("refreshed");
        assert_eq!(second.token.expires_in, Duration::from_secs(800));
        assert_eq!(end_of(&second.token.text), began + 1000);
        world.clock.step(Duration::from_secs(799));
        let last = node.refresh(&second.refresh_token).await.expect("refreshed");
        assert_eq!(last.token.expires_in, Duration::from_secs(1));
        for given in [&second, &last] {
            node.authenticate(&given.token.text).await.expect("the session is not over");
        }
        // The rounding to whole seconds, and the 2 s of clock leeway.
        world.clock.step(Duration::from_millis(500 + 2000));
        for given in [&second, &last] {
            refused(&node, &given.token.text).await;
        }
        assert!(node.refresh(&last.refresh_token).await.is_err());
    }
}

#[tokio::test]
async fn where_sessions_are_shorter_than_tokens_a_login_gives_a_shorter_token() {
    for algorithm in [eddsa(), hs256()] {
        let world = World { settings: Settings { session_ttl_seconds: 100, ..algorithm }, ..World::new() };
        let node = world.node();
        let given = login(&node).await;
        assert_eq!(given.token.expires_in, Duration::from_secs(100));
        assert_eq!(end_of(&given.token.text), world.clock.now().0 / 1_000_000 + 100);
        world.clock.step(Duration::from_secs(102));
        refused(&node, &given.token.text).await;
    }
}

#[tokio::test]
async fn a_disabled_user_cannot_refresh() {
    let world = World::new();
    let node = world.node();
    let given = login(&node).await;
    let admin = Users::new(&world.settings, Arc::clone(&world.users) as _, Arc::clone(&world.clock) as _);
    admin.set_disabled(EMAIL, true).await.expect("disabled");
    world.clock.step(Duration::from_secs(1));
    let error = node.refresh(&given.refresh_token).await.expect_err("refused");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    admin.set_disabled(EMAIL, false).await.expect("enabled");
    world.clock.step(Duration::from_secs(1));
    refused(&node, &given.token.text).await;
}

#[tokio::test]
async fn after_a_change_of_the_password_no_older_refresh_token_is_good() {
    let world = World::new();
    let node = world.node();
    let (one, two) = (login(&node).await, login(&node).await);
    world.clock.step(Duration::from_secs(1));
    let admin = Users::new(&world.settings, Arc::clone(&world.users) as _, Arc::clone(&world.clock) as _);
    admin.set_password(EMAIL, "another password").await.expect("set");
    // The user cache of this node expires.
    world.clock.step(Duration::from_secs(2));
    for given in [one, two] {
        let error = node.refresh(&given.refresh_token).await.expect_err("it is of before");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        refused(&node, &given.token.text).await;
    }
    let new = node.login(EMAIL, "another password", None).await.expect("logged in");
    let new = node.refresh(&new.refresh_token).await.expect("one of after is good");
    node.authenticate(&new.token.text).await.expect("holds");
}

#[tokio::test]
async fn a_logout_ends_one_session_here_at_once_and_elsewhere_with_the_word_or_the_reading() {
    let world = World::new();
    let (here, told, reads) = (world.node(), world.node(), world.node());
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    here.announce_with(Arc::new(move |sessions| heard.lock().expect("held briefly").extend(sessions)));
    let (gone, stays) = (login(&here).await, login(&here).await);
    for node in [&here, &told, &reads] {
        node.authenticate(&gone.token.text).await.expect("holds");
    }
    here.logout(&gone.token.text).await.expect("logged out");
    refused(&here, &gone.token.text).await;
    assert!(here.refresh(&gone.refresh_token).await.is_err());

    let sessions = said.lock().expect("held briefly").clone();
    assert_eq!(sessions.len(), 1);
    told.revoked_elsewhere(&sessions);
    refused(&told, &gone.token.text).await;
    reads.authenticate(&gone.token.text).await.expect("it has not heard of it");
    reads.read_revocations().await.expect("read");
    refused(&reads, &gone.token.text).await;
    for node in [&here, &told, &reads] {
        node.authenticate(&stays.token.text).await.expect("another session");
    }
    here.logout(&gone.token.text).await.expect("once more is no mistake");
}

#[tokio::test]
async fn a_logout_everywhere_ends_all_and_a_new_login_holds() {
    let world = World::new();
    let node = world.node();
    let before = [login(&node).await, login(&node).await, login(&node).await];
    assert_eq!(node.logout_all(EMAIL).await.expect("logged out"), 3);
    for given in &before {
        refused(&node, &given.token.text).await;
    }
    // The clock has not moved: the session tells the tokens apart, not the time.
    let after = login(&node).await;
    node.authenticate(&after.token.text).await.expect("holds");
    assert_eq!(node.logout_all("nobody@example.com").await.expect("nothing to do"), 0);
}

#[tokio::test]
async fn who_starts_or_has_slept_asks_before_anyone_is_let_in() {
    let world = World::new();
    let node = world.node();
    let given = login(&node).await;
    node.logout(&given.token.text).await.expect("logged out");
    refused(&world.node(), &given.token.text).await;

    let sleeper = world.node();
    let other = login(&node).await;
    sleeper.authenticate(&other.token.text).await.expect("holds");
    node.logout(&other.token.text).await.expect("logged out");
    world.clock.step(Duration::from_secs(6));
    refused(&sleeper, &other.token.text).await;
    let third = login(&node).await;
    world.clock.step(Duration::from_secs(6));
    world.users.fail(Some(store::Error::Unavailable("away".into())));
    let error = sleeper.authenticate(&third.token.text).await.expect_err("nobody knows");
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn many_who_wait_share_the_readings() {
    let world = World::new();
    let node = world.node();
    let given = login(&node).await;
    let fresh = world.node();
    let reads = world.users.revocation_reads.load(Ordering::SeqCst);
    let asked = (0..50).map(|_| {
        let (fresh, token) = (fresh.clone(), given.token.text.clone());
        tokio::spawn(async move { fresh.authenticate(&token).await.map(drop) })
    });
    for answer in futures::future::join_all(asked).await {
        answer.expect("joined").expect("holds");
    }
    let reads = world.users.revocation_reads.load(Ordering::SeqCst) - reads;
    assert!(reads <= 2, "{reads}");
}

#[tokio::test]
async fn a_further_login_ends_the_oldest_session() {
    let world = World { settings: Settings { sessions_per_user_max: 2, ..eddsa() }, ..World::new() };
    let node = world.node();
    let mut given = Vec::new();
    for _ in 0..3 {
        given.push(login(&node).await);
        world.clock.step(Duration::from_millis(1));
    }
    refused(&node, &given[0].token.text).await;
    node.authenticate(&given[1].token.text).await.expect("holds");
    node.authenticate(&given[2].token.text).await.expect("holds");
}

#[tokio::test]
async fn more_revocations_than_fit_close_the_door_until_they_are_dead() {
    let world = World { settings: Settings { revocations_max: 3, ..eddsa() }, ..World::new() };
    let node = world.node();
    for _ in 0..3 {
        let gone = login(&node).await;
        node.logout(&gone.token.text).await.expect("logged out");
    }
    let given = login(&node).await;
    node.authenticate(&given.token.text).await.expect("at the limit");
    let gone = login(&node).await;
    node.logout(&gone.token.text).await.expect("logged out");
    let error = node.authenticate(&given.token.text).await.expect_err("one too many");
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert_eq!(node.inner.sessions.remembered(), 3);

    world.clock.step(Duration::from_secs(world.settings.token_ttl_seconds + 61));
    let next = node.refresh(&given.refresh_token).await.expect("refreshed");
    node.read_revocations().await.expect("read");
    node.authenticate(&next.token.text).await.expect("the others are dead");
    assert_eq!(node.inner.sessions.remembered(), 0);
}
