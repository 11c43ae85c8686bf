//! Decisions that are outdated by the time they take effect: passwords, generations, permissions of
//! administrators.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;

use crate::auth::fake::eddsa;
use crate::auth::{Auth, By, Change, Settings, Users};
use crate::domain::access::{Caller, Role};
use crate::domain::email::EmailKey;
use crate::error::ErrorCode;
use crate::store::{self, UserStore};

use super::{EMAIL, World};

const OLD: &str = "password123";
const NEW: &str = "another password";

impl World {
    /// Returns the user administration of `hygeia user`, which is outside any node.
    fn tool(&self) -> Users {
        Users::new(&self.settings, Arc::clone(&self.users) as _, Arc::clone(&self.clock) as _)
    }
}

fn caller(email: &str) -> Caller {
    Caller { subject: email.into(), role: Role::Admin, from: None, break_glass: None }
}

async fn login_held_up(world: &World, node: &Auth) -> tokio::task::JoinHandle<bool> {
    world.users.sessions_gate.forget_permits(usize::MAX);
    let begun = world.users.sessions_begun.load(Ordering::SeqCst);
    let node = node.clone();
    let login = tokio::spawn(async move { node.login(EMAIL, OLD, None).await.is_ok() });
    while world.users.sessions_begun.load(Ordering::SeqCst) == begun {
        tokio::task::yield_now().await;
    }
    login
}

#[tokio::test]
async fn a_login_that_a_change_of_its_user_overtakes_gives_no_session() {
    for change in ["password", "disabled", "disabled and enabled", "logged out everywhere"] {
        let world = World::new();
        let node = world.node();
        let login = login_held_up(&world, &node).await;
        match change {
            "password" => world.tool().set_password(EMAIL, NEW).await.expect("set"),
            "disabled" => world.tool().set_disabled(EMAIL, true).await.expect("disabled"),
            "disabled and enabled" => {
                world.tool().set_disabled(EMAIL, true).await.expect("disabled");
                world.tool().set_disabled(EMAIL, false).await.expect("enabled");
            }
            _ => assert_eq!(node.logout_all(EMAIL).await.expect("logged out"), 0),
        }
        world.users.sessions_gate.add_permits(1);
        assert!(!login.await.expect("joined"), "{change}");
    }
}

#[tokio::test]
async fn a_refresh_token_of_before_is_refused_at_once_on_every_node() {
    for disabled in [false, true] {
        let world = World::new();
        let (here, there) = (world.node(), world.node());
        let given = [here.login(EMAIL, OLD, None).await, there.login(EMAIL, OLD, None).await];
        let given = given.map(|login| login.expect("logged in"));
        for (node, login) in [&here, &there].into_iter().zip(&given) {
            node.authenticate(&login.token.text).await.expect("the user is remembered now");
        }
        match disabled {
            false => world.tool().set_password(EMAIL, NEW).await.expect("set"),
            true => world.tool().set_disabled(EMAIL, true).await.expect("disabled"),
        }
        // The clock stands still, so no cache entry has expired.
        for (node, login) in [&there, &here].into_iter().zip(&given) {
            let error = node.refresh(&login.refresh_token).await.expect_err("refused");
            assert_eq!(error.code, ErrorCode::Unauthenticated);
        }
        world.clock.step(Duration::from_secs(1));
        for login in &given {
            let error = here.authenticate(&login.token.text).await.expect_err("refused");
            assert_eq!(error.code, ErrorCode::Unauthenticated);
        }
    }
}

#[tokio::test]
async fn a_token_is_of_the_generation_that_its_session_was_in_when_it_was_given() {
    // A node whose clock is an hour ahead sets the password. The clock of the other node shows an earlier
    // time.
    let world = World::new();
    let node = world.node();
    let before = node.login(EMAIL, OLD, None).await.expect("logged in");
    world.clock.step(Duration::from_secs(3600));
    world.tool().set_password(EMAIL, NEW).await.expect("set");
    let slow = super::FakeClock::new();
    let behind = super::auth_with(&world.settings, &world.users, &slow);
    let after = behind.login(EMAIL, NEW, None).await.expect("logged in");
    behind.authenticate(&after.token.text).await.expect("holds");
    let after = behind.refresh(&after.refresh_token).await.expect("refreshed");
    behind.authenticate(&after.token.text).await.expect("holds");
    assert!(behind.authenticate(&before.token.text).await.is_err());
    // Then a node whose clock is behind sets the password again.
    let tool = Users::new(&world.settings, Arc::clone(&world.users) as _, Arc::clone(&slow) as _);
    tool.set_password(EMAIL, "a third password").await.expect("set");
    let fresh = super::auth_with(&world.settings, &world.users, &slow);
    assert!(fresh.authenticate(&after.token.text).await.is_err());
    assert!(behind.refresh(&after.refresh_token).await.is_err());
}

#[tokio::test]
async fn the_node_that_changes_a_user_forgets_what_it_remembers() {
    for (what, disable) in [("password", false), ("disabling", true)] {
        let world = World::new();
        let node = world.node();
        let users = world.tool().seen_by(&node);
        let given = node.login(EMAIL, OLD, None).await.expect("logged in");
        node.authenticate(&given.token.text).await.expect("remembered");
        // A read in flight during the change must not restore the old answer.
        world.clock.step(Duration::from_secs(2));
        world.users.gate.forget_permits(usize::MAX);
        let lookups = world.users.lookups.load(Ordering::SeqCst);
        let asking = {
            let (node, token) = (node.clone(), given.token.text.clone());
            tokio::spawn(async move { node.authenticate(&token).await })
        };
        while world.users.lookups.load(Ordering::SeqCst) == lookups {
            tokio::task::yield_now().await;
        }
        match disable {
            false => users.set_password(EMAIL, NEW).await.expect("set"),
            true => users.set_disabled(EMAIL, true).await.expect("disabled"),
        }
        world.users.gate.add_permits(100);
        let _ = asking.await.expect("joined");
        let error = node.authenticate(&given.token.text).await.expect_err(what);
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
}

#[tokio::test]
async fn of_two_changes_of_a_password_at_once_one_gets_through() {
    let settings = Settings { hashing_threads_max: 4, login_account_failures_max: 100, ..eddsa() };
    let world = World::with(settings);
    let node = world.node();
    let users = Arc::new(world.tool());
    let changes = (0..8).map(|n| {
        let (node, users) = (node.clone(), Arc::clone(&users));
        tokio::spawn(async move {
            let new = format!("a password of number {n}");
            users.change_password(&node, &caller(EMAIL), OLD, &new).await.map_err(|error| error.code)
        })
    });
    let came: Vec<_> = join_all(changes).await.into_iter().map(|came| came.expect("joined")).collect();
    assert_eq!(came.iter().filter(|came| came.is_ok()).count(), 1, "{came:?}");
    assert!(came.iter().all(|came| matches!(came, Ok(()) | Err(ErrorCode::Forbidden))), "{came:?}");
}

fn key(email: &str) -> EmailKey {
    EmailKey::sought(email).expect("an address")
}

#[tokio::test]
async fn administrators_who_change_each_other_leave_one() {
    let world = World::new();
    let others = ["bea@example.com", "cleo@example.com"];
    others.iter().for_each(|email| world.users.put(email, OLD));
    let users = world.tool();
    let [ada, bea, cleo] = [EMAIL, others[0], others[1]].map(caller);
    let off = Change { disabled: Some(true), ..Change::default() };
    let demoted = Change { role: Some(Role::Clinician), ..Change::default() };
    let code =
        |came: crate::error::Result<_>| came.map(drop).map_err(|error: crate::error::Error| error.code);
    assert_eq!(code(users.change(&key(others[0]), off, By::Caller(&ada)).await), Ok(()));
    // Bea's requests were authenticated before she was disabled.
    for change in [off, demoted] {
        assert_eq!(
            code(users.change(&key(EMAIL), change, By::Caller(&bea)).await),
            Err(ErrorCode::Forbidden)
        );
    }
    let new = users.create("new@example.com", NEW, Role::Admin, By::Caller(&bea)).await;
    assert_eq!(code(new), Err(ErrorCode::Forbidden));
    assert_eq!(code(users.change(&key(EMAIL), demoted, By::Caller(&cleo)).await), Ok(()));
    for change in [off, demoted] {
        let last = users.change(&key(others[1]), change, By::Caller(&cleo)).await;
        assert_eq!(code(last), Err(ErrorCode::Forbidden), "nobody would be left");
    }
    assert_eq!(code(users.change(&key(others[1]), off, By::Operator).await), Ok(()), "an operator may");
}

#[tokio::test]
async fn of_many_who_add_one_address_one_hashes() {
    let settings = Settings { hashing_threads_max: 1, hashing_queue_max: 2, ..eddsa() };
    let world = World::with(settings);
    let users = Arc::new(world.tool());
    let tries = (0..40).map(|_| {
        let users = Arc::clone(&users);
        tokio::spawn(async move {
            let came = users.create("new@example.com", NEW, Role::Clinician, By::Operator).await;
            came.map(drop).map_err(|error| error.code)
        })
    });
    let came: Vec<_> = join_all(tries).await.into_iter().map(|came| came.expect("joined")).collect();
    assert_eq!(came.iter().filter(|came| came.is_ok()).count(), 1, "{came:?}");
    assert!(came.iter().all(|came| matches!(came, Ok(()) | Err(ErrorCode::AlreadyExists))), "{came:?}");
    assert!(UserStore::find_user(&*world.users, "new@example.com").await.is_ok_and(|user| user.is_some()));
    world.users.fail(Some(store::Error::Unavailable("away".into())));
    let away = users.create("new@example.com", NEW, Role::Clinician, By::Operator).await.expect_err("away");
    assert_eq!(away.code, ErrorCode::Unavailable);
}
