//! Logins and tokens, as callers see them.

mod forged;
mod keys;
mod limits;
mod sessions;
mod stale;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::access::Role;
use crate::domain::time::Clock;
use crate::error::ErrorCode;
use crate::store;

use super::fake::{FakeClock, FakeUsers, SECRET, auth, auth_with, eddsa, settings};
use super::{Auth, By, Error, SecretText, Settings, TokenAlgorithm, Users, bearer};

const EMAIL: &str = "ada@example.com";

/// A user database with the user `EMAIL`, and a clock, shared by several nodes.
struct World {
    users: Arc<FakeUsers>,
    clock: Arc<FakeClock>,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        World::with(eddsa())
    }

    fn with(settings: Settings) -> Self {
        World { users: FakeUsers::with(EMAIL), clock: FakeClock::new(), settings }
    }

    /// Returns another node.
    fn node(&self) -> Auth {
        auth_with(&self.settings, &self.users, &self.clock)
    }
}

fn signed(secret: &[u8], algorithm: Algorithm, claims: &Value) -> String {
    let header = Header { typ: Some("at+jwt".into()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).expect("signed")
}

fn claims(clock: &FakeClock) -> Value {
    let now = clock.now().0 / 1_000_000;
    json!({
        "sub": EMAIL, "role": "ADMIN", "iss": "hygeia", "aud": "hygeia", "iat": now, "exp": now + 60,
        "sid": Uuid::from_u128(1), "jti": Uuid::from_u128(2),
    })
}

#[tokio::test]
async fn a_login_gives_a_token_that_names_the_caller() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(" ADA@example.com ", "password123", None).await.expect("logged in").token;
    assert_eq!(token.expires_in, Duration::from_secs(900));
    let caller = auth.authenticate(&token.text).await.expect("holds");
    assert_eq!((&*caller.subject, caller.role), (EMAIL, Role::Admin));
}

#[tokio::test]
async fn failed_logins_are_alike() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    users.put("off@example.com", "password123");
    let auth = auth(&users, &clock);
    Users::new(&settings(), users.clone(), clock.clone())
        .set_disabled("Off@example.com", true)
        .await
        .expect("disabled");
    let long = "x".repeat(73);
    let endless = format!("{}@example.com", "x".repeat(10_000));
    let mut said = Vec::new();
    for (email, password) in [
        (EMAIL, "password124"),
        (EMAIL, ""),
        (EMAIL, &*long),
        ("nobody@example.com", "password123"),
        ("off@example.com", "password123"),
        (&*endless, "password123"),
        ("", ""),
    ] {
        let error = auth.login(email, password, None).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        said.push(error);
    }
    said.dedup();
    assert_eq!(said.len(), 1);
}

#[tokio::test]
async fn a_token_ends_also_when_it_is_remembered() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123", None).await.expect("logged in").token.text;
    auth.authenticate(&token).await.expect("holds");
    clock.step(Duration::from_secs(899));
    auth.authenticate(&token).await.expect("still holds");
    clock.step(Duration::from_secs(6));
    let error = auth.authenticate(&token).await.expect_err("over");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_disabled_user_is_out_within_the_time_of_the_cache() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123", None).await.expect("logged in").token.text;
    auth.authenticate(&token).await.expect("holds");
    let admin = Users::new(&settings(), users.clone(), clock.clone());
    admin.set_disabled(EMAIL, true).await.expect("disabled");
    clock.step(Duration::from_millis(1000));
    let error = auth.authenticate(&token).await.expect_err("out");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    admin.set_disabled(EMAIL, false).await.expect("enabled");
    clock.step(Duration::from_millis(1000));
    let error = auth.authenticate(&token).await.expect_err("a disabling ends sessions for good");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let again = auth.login(EMAIL, "password123", None).await.expect("logged in").token.text;
    auth.authenticate(&again).await.expect("in again");
}

#[tokio::test]
async fn a_database_that_is_away_is_not_the_callers_fault() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123", None).await.expect("logged in").token.text;
    users.fail(Some(store::Error::Unavailable("away".into())));
    let failed = auth.authenticate(&token).await.expect_err("away");
    assert_eq!(failed.code, ErrorCode::Unavailable);
    assert_eq!(auth.login(EMAIL, "password123", None).await.expect_err("away").code, ErrorCode::Unavailable);
    users.fail(None);
    auth.authenticate(&token).await.expect("the failure is not remembered");
}

#[tokio::test]
async fn a_database_that_says_nothing_is_given_up_on() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let hasty = Settings { user_lookup_timeout_ms: 20, ..settings() };
    let auth = auth_with(&hasty, &users, &clock);
    let token = signed(SECRET.as_bytes(), Algorithm::HS256, &claims(&clock));
    users.gate.forget_permits(usize::MAX);
    let failed = auth.authenticate(&token).await.expect_err("silent");
    assert_eq!(failed.code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn callers_of_one_user_share_one_question_even_if_the_first_goes_away() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = signed(SECRET.as_bytes(), Algorithm::HS256, &claims(&clock));
    users.gate.forget_permits(usize::MAX);
    let ask = || {
        let (auth, token) = (auth.clone(), token.clone());
        tokio::spawn(async move { auth.authenticate(&token).await })
    };
    let first = ask();
    while users.lookups.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let rest: Vec<_> = (0..20).map(|_| ask()).collect();
    tokio::task::yield_now().await;
    users.gate.add_permits(100);
    for asked in rest {
        asked.await.expect("joined").expect("holds");
    }
    assert_eq!(users.lookups.load(Ordering::SeqCst), 1);
}

#[test]
fn the_secret_must_be_there_and_long_enough() {
    let with = |text: &str| {
        let settings = Settings { jwt_secret: Some(SecretText::from(text.to_owned())), ..settings() };
        Auth::new(&settings, FakeUsers::new(), FakeClock::new()).map(|_| ()).map_err(|e| (e.to_string(), e))
    };
    let short = |bytes| Error::SecretTooShort { key: "jwt_secret", bytes };
    let hs256 = Settings { token_algorithm: TokenAlgorithm::HS256, ..Settings::default() };
    let missing = Auth::new(&hs256, FakeUsers::new(), FakeClock::new()).map(|_| ());
    assert_eq!(missing, Err(Error::SecretMissing));
    assert!(Auth::new(&Settings::default(), FakeUsers::new(), FakeClock::new()).is_ok(), "it makes keys");
    assert_eq!(with("  ").map_err(|e| e.1), Err(Error::SecretMissing));
    assert_eq!(with("!short").map_err(|e| e.1), Err(short(6)));
    // 40 characters, but base64 of 30 bytes.
    let (text, error) = with(&"QUJD".repeat(10)).expect_err("too short");
    assert_eq!(error, short(30));
    // 32 hexadecimal digits have only 128 bits of randomness, whatever their length as text.
    assert_eq!(with(&"0f".repeat(16)).map_err(|e| e.1), Err(short(24)));
    assert!(text.contains("auth.jwt_secret") && text.contains("openssl rand -base64 48"), "{text}");
    assert_eq!(with(&"QUJD".repeat(11)), Ok(()));
    assert_eq!(with(SECRET), Ok(()));
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123", None).await.expect("logged in");
    let listed = Users::new(&settings(), users, clock).list(None, 10).await.expect("listed");
    let printed = format!("{:?} {token:?} {listed:?}", settings());
    for secret in [SECRET, &token.token.text, &token.refresh_token, EMAIL, "$2b$"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[tokio::test]
async fn an_administrator_makes_and_changes_users() {
    let (users, clock) = (FakeUsers::new(), FakeClock::new());
    let admin = Users::new(&settings(), users.clone(), clock.clone());
    admin.create("Ada@Example.com", "violet-anchor", Role::Admin, By::Operator).await.expect("made");
    let again = admin.create(EMAIL, "violet-anchor", Role::Admin, By::Operator).await.expect_err("taken");
    assert_eq!(again.code, ErrorCode::AlreadyExists);
    let wrong =
        admin.create("not an address", "short", Role::Admin, By::Operator).await.expect_err("invalid");
    assert_eq!(wrong.fields.into_keys().collect::<Vec<_>>(), ["email", "password"]);
    let long = admin
        .create("b@example.com", &"x".repeat(73), Role::Admin, By::Operator)
        .await
        .expect_err("too long");
    assert_eq!(long.fields["password"], "Password cannot exceed 72 bytes");

    let common =
        admin.create("b@example.com", "Password123", Role::Admin, By::Operator).await.expect_err("common");
    assert_eq!(common.fields["password"], "Password is one of the most common ones");
    let demo = Users::new(&settings(), users.clone(), clock.clone()).allowing_common_passwords();
    assert!(demo.create("c@example.com", "short", Role::Admin, By::Operator).await.is_err());

    admin.set_password("ADA@example.com", "another password").await.expect("set");
    let auth = auth(&users, &clock);
    auth.login(EMAIL, "another password", None).await.expect("the new one holds");
    assert!(auth.login(EMAIL, "violet-anchor", None).await.is_err(), "the old one does not");
    for failed in [
        admin.set_password("nobody@example.com", "violet-anchor").await,
        admin.set_disabled("nobody@example.com", true).await,
    ] {
        assert_eq!(failed.expect_err("nobody").code, ErrorCode::NotFound);
    }
    let listed = admin.list(None, 10).await.expect("listed");
    assert_eq!(listed.into_iter().map(|user| user.email).collect::<Vec<_>>(), [EMAIL]);
    assert!(admin.list(Some(EMAIL), 10).await.expect("listed").is_empty());
}

#[test]
fn seals_differ_by_purpose_message_and_secret() {
    let auth = auth(&FakeUsers::new(), &FakeClock::new());
    let seal = auth.seal("cursor", b"abc");
    assert_eq!(seal, auth.seal("cursor", b"abc"));
    assert_ne!(seal, auth.seal("cursor", b"abd"));
    assert_ne!(seal, auth.seal("other", b"abc"));
}

#[test]
fn bad_settings_are_named() {
    assert!(settings().problems(true).is_empty());
    let weak: Vec<_> = settings().problems(false).into_iter().map(|(key, _)| key).collect();
    assert_eq!(weak, ["bcrypt_cost"]);
    let none = Settings { token_ttl_seconds: 0, users_cached_max: 0, ..settings() };
    assert_eq!(none.problems(true).len(), 2);
    let idle = Settings { token_ttl_seconds: 900, session_idle_seconds: 899, ..settings() };
    let problems = idle.problems(true);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].0, "session_idle_seconds");
    assert!(problems[0].1.starts_with("900 to "), "{problems:?}");
    let short = Settings { jwt_secret: Some(SecretText::from("canary".to_owned())), ..settings() };
    let problems = short.problems(true);
    assert_eq!(problems[0].0, "jwt_secret");
    assert!(!problems[0].1.contains("canary"), "{problems:?}");
}

#[test]
fn the_scheme_is_read_in_any_case() {
    assert_eq!(bearer("Bearer abc"), Some("abc"));
    assert_eq!(bearer("bEARER  abc "), Some("abc"));
    for bad in ["", "abc", "Basic abc", "Bearer", "Bearer ", "Bearerabc"] {
        assert_eq!(bearer(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn memory_stays_bounded_whatever_is_shown() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let small = Settings { tokens_cached_max: 4, users_cached_max: 4, ..settings() };
    let auth = auth_with(&small, &users, &clock);
    for n in 0..50 {
        let mut claims = claims(&clock);
        claims["sub"] = json!(format!("user-{n}@example.com"));
        let token = signed(SECRET.as_bytes(), Algorithm::HS256, &claims);
        assert!(auth.authenticate(&token).await.is_err());
    }
    assert_eq!(auth.inner.callers.remembered(), 4);
    assert_eq!(auth.inner.tokens.remembered(), 4);
}
