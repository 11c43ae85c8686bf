//! The limits of failed logins and of wrong current passwords.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::fake::eddsa;
use crate::auth::{Auth, Settings, Users};
use crate::domain::access::{Caller, Role};
use crate::error::{Error, ErrorCode, Result};

use super::{EMAIL, World};

fn at(address: &str) -> Option<IpAddr> {
    Some(address.parse().expect("an address"))
}

impl World {
    fn limited() -> Self {
        World::with(Settings { login_account_failures_max: 3, login_address_failures_max: 5, ..eddsa() })
    }

    /// Changes the password of `EMAIL` from `old` to `new`, as a client at `address`.
    async fn change(&self, node: &Auth, address: &str, old: &str, new: &str) -> Result<()> {
        let users = Users::new(&self.settings, Arc::clone(&self.users) as _, Arc::clone(&self.clock) as _);
        let caller =
            Caller { subject: EMAIL.into(), role: Role::Admin, from: at(address), break_glass: None };
        users.change_password(node, &caller, old, new).await
    }

    /// Tries a password change with a wrong current password.
    async fn guesses(&self, node: &Auth, address: &str) -> Error {
        self.change(node, address, "not the password", "violet-anchor").await.expect_err("refused")
    }
}

async fn fails(node: &Auth, email: &str, address: &str) -> Error {
    node.login(email, "not the password", at(address)).await.expect_err("refused")
}

#[tokio::test]
async fn an_account_waits_after_so_many_failures_whether_it_exists_or_not() {
    let world = World::limited();
    for email in [EMAIL, "nobody@example.com"] {
        let node = world.node();
        let mut said = Vec::new();
        for n in 0..5 {
            // The address does not matter.
            said.push(fails(&node, email, &format!("192.0.2.{n}")).await);
        }
        let codes: Vec<_> = said.iter().map(|error| error.code).collect();
        let (failed, limited) = (ErrorCode::Unauthenticated, ErrorCode::TooManyRequests);
        assert_eq!(codes, [failed, failed, failed, limited, limited], "{email}");
        assert_eq!(said[3].retry_after(), Some(Duration::from_secs(300)));
        let right = node.login(email, "password123", at("198.51.100.1")).await.expect_err("it has to wait");
        assert_eq!(right.code, limited);
        let elsewhere = world.node().login(email, "password123", at("198.51.100.1")).await;
        assert_eq!(elsewhere.expect_err("over all nodes").code, limited);
    }
    world.clock.step(Duration::from_secs(299));
    assert_eq!(fails(&world.node(), EMAIL, "192.0.2.1").await.retry_after(), Some(Duration::from_secs(1)));
    world.clock.step(Duration::from_secs(1));
    world.node().login(EMAIL, "password123", at("192.0.2.1")).await.expect("the window is over");
}

#[tokio::test]
async fn an_address_waits_after_so_many_failures_and_a_network_of_ipv6_is_one() {
    let world = World::limited();
    let node = world.node();
    for n in 0..5 {
        let error = fails(&node, &format!("user-{n}@example.com"), &format!("2001:db8:1:2::{n}")).await;
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
    let limited = node.login(EMAIL, "password123", at("2001:db8:1:2:ffff::1")).await.expect_err("limited");
    assert_eq!(limited.code, ErrorCode::TooManyRequests);
    node.login(EMAIL, "password123", at("2001:db8:1:3::1")).await.expect("another network");
    // The same address in another notation.
    for n in 0..5 {
        fails(&node, &format!("v4-{n}@example.com"), "192.0.2.7").await;
    }
    assert_eq!(fails(&node, "last@example.com", "::ffff:192.0.2.7").await.code, ErrorCode::TooManyRequests);
}

#[tokio::test]
async fn a_login_that_goes_well_counts_as_no_failure() {
    let world = World::limited();
    let node = world.node();
    for _ in 0..20 {
        node.login(EMAIL, "password123", at("192.0.2.1")).await.expect("logged in");
    }
    for _ in 0..3 {
        assert_eq!(fails(&node, EMAIL, "192.0.2.1").await.code, ErrorCode::Unauthenticated);
        node.login(EMAIL, "password123", at("192.0.2.1")).await.expect("it begins anew");
    }
    // The count of the address is not reset: a login to one's own account must not erase failed logins to
    // other accounts.
    for _ in 0..2 {
        assert_eq!(fails(&node, "other@example.com", "192.0.2.1").await.code, ErrorCode::Unauthenticated);
    }
    assert_eq!(fails(&node, "other@example.com", "192.0.2.1").await.code, ErrorCode::TooManyRequests);
}

#[tokio::test]
async fn attempts_at_once_do_not_slip_through_together() {
    let world = World::limited();
    let node = world.node();
    let tries = (0..10).map(|n| {
        let node = node.clone();
        tokio::spawn(async move { fails(&node, EMAIL, &format!("192.0.2.{n}")).await.code })
    });
    let codes: Vec<_> =
        futures::future::join_all(tries).await.into_iter().map(|code| code.expect("joined")).collect();
    let looked_at = codes.iter().filter(|code| **code == ErrorCode::Unauthenticated).count();
    assert_eq!(looked_at, 3, "{codes:?}");
}

#[tokio::test]
async fn a_wrong_old_password_counts_as_a_failed_login_of_the_account() {
    let world = World::limited();
    let node = world.node();
    for n in 0..3 {
        // On any node, from any address.
        let error = world.guesses(&world.node(), &format!("192.0.2.{n}")).await;
        assert_eq!((error.code, error.retry_after()), (ErrorCode::Forbidden, None));
    }
    let limited = world.guesses(&node, "192.0.2.9").await;
    assert_eq!(limited.code, ErrorCode::TooManyRequests);
    assert_eq!(limited.retry_after(), Some(Duration::from_secs(300)));
    let right = world.change(&node, "198.51.100.1", "password123", "violet-anchor").await;
    assert_eq!(right.expect_err("it has to wait").code, ErrorCode::TooManyRequests);
    let login = world.node().login(EMAIL, "password123", at("198.51.100.1")).await;
    assert_eq!(login.expect_err("logins too").code, ErrorCode::TooManyRequests);

    world.clock.step(Duration::from_secs(300));
    for _ in 0..2 {
        assert_eq!(fails(&node, EMAIL, "192.0.2.1").await.code, ErrorCode::Unauthenticated);
    }
    assert_eq!(world.guesses(&node, "192.0.2.1").await.code, ErrorCode::Forbidden);
    let limited = world.guesses(&node, "192.0.2.2").await;
    assert_eq!(limited.code, ErrorCode::TooManyRequests, "failed logins count here");
}

#[tokio::test]
async fn a_wrong_old_password_counts_as_a_failed_login_of_the_address() {
    let world = World::limited();
    let node = world.node();
    for n in 0..3 {
        fails(&node, &format!("user-{n}@example.com"), "192.0.2.7").await;
    }
    for _ in 0..2 {
        assert_eq!(world.guesses(&node, "192.0.2.7").await.code, ErrorCode::Forbidden);
    }
    assert_eq!(fails(&node, "last@example.com", "192.0.2.7").await.code, ErrorCode::TooManyRequests);
    assert_eq!(world.guesses(&node, "192.0.2.7").await.code, ErrorCode::TooManyRequests);
    world.change(&node, "192.0.2.8", "password123", "violet-anchor").await.expect("from elsewhere");
}

#[tokio::test]
async fn a_change_of_the_password_that_goes_well_counts_as_no_failure() {
    let world = World::limited();
    let node = world.node();
    let (mut old, mut new) = ("password123", "violet-anchor");
    for _ in 0..8 {
        world.change(&node, "192.0.2.1", old, new).await.expect("changed");
        (old, new) = (new, if new == "violet-anchor" { "copper-lantern" } else { "violet-anchor" });
    }
    // A new password that breaks the rules is refused before the current one is checked.
    for _ in 0..8 {
        let error = world.change(&node, "192.0.2.1", "not the password", "short").await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Invalid);
    }
    for _ in 0..2 {
        assert_eq!(world.guesses(&node, "192.0.2.1").await.code, ErrorCode::Forbidden);
    }
    world.change(&node, "192.0.2.1", old, new).await.expect("changed");
    for _ in 0..3 {
        assert_eq!(world.guesses(&node, "192.0.2.1").await.code, ErrorCode::Forbidden, "it begins anew");
    }
}

#[tokio::test]
async fn old_passwords_tried_at_once_do_not_slip_through_together() {
    let world = World::limited();
    let node = world.node();
    let addresses: Vec<_> = (0..10).map(|n| format!("192.0.2.{n}")).collect();
    let tries = addresses.iter().map(|address| world.guesses(&node, address));
    let codes: Vec<_> = futures::future::join_all(tries).await.into_iter().map(|error| error.code).collect();
    let looked_at = codes.iter().filter(|code| **code == ErrorCode::Forbidden).count();
    assert_eq!(looked_at, 3, "{codes:?}");
}

#[tokio::test]
async fn the_memory_of_who_waits_is_bounded_and_what_it_forgets_the_database_knows() {
    let settings =
        Settings { login_account_failures_max: 1, login_blocked_cached_max: 4, ..World::limited().settings };
    let world =
        World { settings: Settings { login_address_failures_max: 1000, ..settings }, ..World::limited() };
    let node = world.node();
    for n in 0..20 {
        for _ in 0..2 {
            fails(&node, &format!("user-{n}@example.com"), &format!("192.0.2.{n}")).await;
        }
    }
    assert_eq!(node.inner.limits.remembered(), 4);
    assert_eq!(fails(&node, "user-0@example.com", "198.51.100.1").await.code, ErrorCode::TooManyRequests);
}

/// Compares the fastest of many tries: the cost of the work itself, without other load on the machine.
#[tokio::test]
async fn known_and_unknown_accounts_take_the_same_time() {
    const TRIES: usize = 200;
    let settings = Settings {
        bcrypt_cost: 6,
        login_account_failures_max: 1_000_000,
        login_address_failures_max: 1_000_000,
        ..eddsa()
    };
    let world = World { settings, ..World::limited() };
    let node = world.node();
    let mut floors = [Duration::MAX; 2];
    for _ in 0..TRIES {
        for (floor, email) in floors.iter_mut().zip([EMAIL, "nobody@example.com"]) {
            let began = Instant::now();
            fails(&node, email, "192.0.2.1").await;
            *floor = (*floor).min(began.elapsed());
        }
    }
    let apart = floors[0].abs_diff(floors[1]);
    assert!(apart <= Duration::from_millis(2), "{floors:?}");
}
