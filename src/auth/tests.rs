//! What callers see of logins and tokens.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::domain::access::Role;
use crate::domain::time::Clock;
use crate::error::ErrorCode;
use crate::store;

use super::fake::{FakeClock, FakeUsers, SECRET, auth, settings};
use super::{Auth, Error, SecretText, Settings, Users, bearer};

const EMAIL: &str = "ada@example.com";

fn signed(secret: &[u8], algorithm: Algorithm, claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).expect("signed")
}

fn claims(clock: &FakeClock) -> Value {
    let now = clock.now().0 / 1_000_000;
    json!({"sub": EMAIL, "role": "ADMIN", "iss": "hygeia", "iat": now, "exp": now + 60})
}

#[tokio::test]
async fn a_login_gives_a_token_that_names_the_caller() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(" ADA@example.com ", "password123").await.expect("logged in");
    assert_eq!(token.expires_in, Duration::from_secs(3600));
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
        let error = auth.login(email, password).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        said.push(error);
    }
    said.dedup();
    assert_eq!(said.len(), 1);
}

#[tokio::test]
async fn tokens_that_are_not_ours_do_not_hold() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let good = claims(&clock);
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed
    };
    let without = |key: &str| {
        let mut changed = good.clone();
        changed.as_object_mut().expect("an object").remove(key);
        changed
    };
    let key = SECRET.as_bytes();
    let holds = signed(key, Algorithm::HS256, &good);
    auth.authenticate(&holds).await.expect("the pattern itself holds");

    let payload = holds.split('.').nth(1).expect("three parts");
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    let past = clock.now().0 / 1_000_000 - 3;
    let mut cases = vec![String::new(), "garbage".into(), "a.b.c".into(), none, "x".repeat(100_000)];
    cases.push(signed(b"another secret that is long enough", Algorithm::HS256, &good));
    cases.push(signed(key, Algorithm::HS512, &good));
    cases.push(signed(key, Algorithm::HS256, &with("iss", json!("elsewhere"))));
    cases.push(signed(key, Algorithm::HS256, &with("role", json!("OWNER"))));
    cases.push(signed(key, Algorithm::HS256, &with("sub", json!("nobody@example.com"))));
    cases.push(signed(key, Algorithm::HS256, &with("exp", json!(past))));
    cases.push(signed(key, Algorithm::HS256, &with("exp", json!("never"))));
    for required in ["sub", "role", "iss", "exp"] {
        cases.push(signed(key, Algorithm::HS256, &without(required)));
    }
    let (body, signature) = holds.rsplit_once('.').expect("three parts");
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    cases.push(format!("{body}.{first}{}", &signature[1..]));
    for (n, token) in cases.iter().enumerate() {
        let error = auth.authenticate(token).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated, "case {n}");
    }
}

#[tokio::test]
async fn a_token_ends_also_when_it_is_remembered() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123").await.expect("logged in").text;
    auth.authenticate(&token).await.expect("holds");
    clock.step(Duration::from_secs(3599));
    auth.authenticate(&token).await.expect("still holds");
    clock.step(Duration::from_secs(6));
    let error = auth.authenticate(&token).await.expect_err("over");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_disabled_user_is_out_within_the_time_of_the_cache() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123").await.expect("logged in").text;
    auth.authenticate(&token).await.expect("holds");
    let admin = Users::new(&settings(), users.clone(), clock.clone());
    admin.set_disabled(EMAIL, true).await.expect("disabled");
    clock.step(Duration::from_millis(1000));
    let error = auth.authenticate(&token).await.expect_err("out");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    admin.set_disabled(EMAIL, false).await.expect("enabled");
    clock.step(Duration::from_millis(1000));
    auth.authenticate(&token).await.expect("in again");
}

#[tokio::test]
async fn a_database_that_is_away_is_not_the_callers_fault() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123").await.expect("logged in").text;
    users.fail(Some(store::Error::Unavailable("away".into())));
    let failed = auth.authenticate(&token).await.expect_err("away");
    assert_eq!(failed.code, ErrorCode::Unavailable);
    assert_eq!(auth.login(EMAIL, "password123").await.expect_err("away").code, ErrorCode::Unavailable);
    users.fail(None);
    auth.authenticate(&token).await.expect("the failure is not remembered");
}

#[tokio::test]
async fn a_database_that_says_nothing_is_given_up_on() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let hasty = Settings { user_lookup_timeout_ms: 20, ..settings() };
    let auth = Auth::new(hasty, users.clone(), clock.clone()).expect("made");
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
        let settings =
            Settings { jwt_secret: Some(SecretText::from(text.to_owned())), ..Settings::default() };
        Auth::new(settings, FakeUsers::new(), FakeClock::new()).map(|_| ()).map_err(|e| (e.to_string(), e))
    };
    let missing = Auth::new(Settings::default(), FakeUsers::new(), FakeClock::new()).map(|_| ());
    assert_eq!(missing, Err(Error::SecretMissing));
    assert_eq!(with("  ").map_err(|e| e.1), Err(Error::SecretMissing));
    assert_eq!(with("!short").map_err(|e| e.1), Err(Error::SecretTooShort { bytes: 6 }));
    // 40 characters, but base64 of 30 bytes.
    let (text, error) = with(&"QUJD".repeat(10)).expect_err("too short");
    assert_eq!(error, Error::SecretTooShort { bytes: 30 });
    // 32 hexadecimal digits are 128 bits of randomness, however long they look.
    assert_eq!(with(&"0f".repeat(16)).map_err(|e| e.1), Err(Error::SecretTooShort { bytes: 24 }));
    assert!(text.contains("HYGEIA__AUTH__JWT_SECRET") && text.contains("openssl rand -base64 48"), "{text}");
    assert_eq!(with(&"QUJD".repeat(11)), Ok(()));
    assert_eq!(with(SECRET), Ok(()));
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
    let auth = auth(&users, &clock);
    let token = auth.login(EMAIL, "password123").await.expect("logged in");
    let listed = Users::new(&settings(), users, clock).list(None, 10).await.expect("listed");
    let printed = format!("{:?} {token:?} {listed:?}", settings());
    for secret in [SECRET, &token.text, EMAIL, "$2b$"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[tokio::test]
async fn an_administrator_makes_and_changes_users() {
    let (users, clock) = (FakeUsers::new(), FakeClock::new());
    let admin = Users::new(&settings(), users.clone(), clock.clone());
    admin.create("Ada@Example.com", "password123", Role::Admin).await.expect("made");
    let again = admin.create(EMAIL, "password123", Role::Admin).await.expect_err("taken");
    assert_eq!(again.code, ErrorCode::AlreadyExists);
    let wrong = admin.create("not an address", "short", Role::Admin).await.expect_err("invalid");
    assert_eq!(wrong.fields.into_keys().collect::<Vec<_>>(), ["email", "password"]);
    let long = admin.create("b@example.com", &"x".repeat(73), Role::Admin).await.expect_err("too long");
    assert_eq!(long.fields["password"], "Password cannot exceed 72 bytes");

    admin.set_password("ADA@example.com", "another password").await.expect("set");
    let auth = auth(&users, &clock);
    auth.login(EMAIL, "another password").await.expect("the new one holds");
    assert!(auth.login(EMAIL, "password123").await.is_err(), "the old one does not");
    for failed in [
        admin.set_password("nobody@example.com", "password123").await,
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
    let auth = Auth::new(small, users.clone(), clock.clone()).expect("made");
    for n in 0..50 {
        let mut claims = claims(&clock);
        claims["sub"] = json!(format!("user-{n}@example.com"));
        let token = signed(SECRET.as_bytes(), Algorithm::HS256, &claims);
        assert!(auth.authenticate(&token).await.is_err());
    }
    assert_eq!(auth.inner.callers.remembered(), 4);
    assert_eq!(auth.inner.signer.remembered(), 4);
}
