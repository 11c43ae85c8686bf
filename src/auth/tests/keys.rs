//! The life cycle of EdDSA keys.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jsonwebtoken::decode_header;
use serde_json::Value;

use crate::auth::fake::{auth_with, eddsa};
use crate::auth::{Auth, KeyAdmin, SecretText, Settings};
use crate::error::ErrorCode;

use super::{EMAIL, World};

impl World {
    fn admin(&self) -> KeyAdmin {
        KeyAdmin::new(&self.settings, Arc::clone(&self.users) as _, Arc::clone(&self.clock) as _)
            .expect("made")
    }
}

async fn token(node: &Auth) -> String {
    node.login(EMAIL, "password123", None).await.expect("logged in").token.text
}

fn kid(token: &str) -> String {
    decode_header(token).expect("a header").kid.expect("a key's name")
}

#[tokio::test]
async fn nodes_that_start_at_once_use_one_key_and_know_each_others_tokens() {
    let world = World::new();
    let (one, two) = (world.node(), world.node());
    let (first, second) = tokio::join!(token(&one), token(&two));
    assert_eq!(kid(&first), kid(&second));
    assert_eq!(world.users.kept().keys.len(), 1);
    one.authenticate(&second).await.expect("holds");
    two.authenticate(&first).await.expect("holds");
    assert_eq!(one.seal("cursor", b"x"), two.seal("cursor", b"x"), "cursors too");
}

#[tokio::test]
async fn a_new_key_is_known_before_it_signs_and_the_old_one_holds_until_its_tokens_are_dead() {
    let world = World::new();
    let (one, two) = (world.node(), world.node());
    let before = token(&one).await;
    two.authenticate(&before).await.expect("holds");
    let made = world.admin().rotate(false).await.expect("rotated");
    one.read_keys().await.expect("read");
    // The other node has not read the new key yet, and does not need to.
    let between = token(&one).await;
    assert_eq!(kid(&between), kid(&before));
    two.authenticate(&between).await.expect("holds");

    world.clock.step(Duration::from_millis(world.settings.key_publish_ms));
    two.read_keys().await.expect("read");
    let after = token(&one).await;
    assert_eq!(kid(&after), made.kid);
    for node in [&one, &two] {
        for token in [&before, &between, &after] {
            node.authenticate(token).await.expect("holds");
        }
    }
    let told = two.key_set().await.expect("keys");
    assert_eq!(told.keys.iter().map(|key| key.kid.as_str()).collect::<Vec<_>>(), [&made.kid, &kid(&before)]);

    world.clock.step(Duration::from_secs(2 * world.settings.token_ttl_seconds + 61));
    one.delete_dead().await.expect("deleted");
    one.read_keys().await.expect("read");
    assert_eq!(one.key_set().await.expect("keys").keys.len(), 1);
    assert_eq!(world.users.kept().keys.len(), 1);
    token(&one).await;
}

#[tokio::test]
async fn a_node_that_does_not_know_a_key_asks_once_and_then_rests() {
    let world = World::new();
    let (one, two) = (world.node(), world.node());
    token(&two).await;
    world.admin().rotate(true).await.expect("rotated");
    one.read_keys().await.expect("read");
    let fresh = token(&one).await;
    two.authenticate(&fresh).await.expect("it asks, and knows it");

    let reads = world.users.key_reads.load(Ordering::SeqCst);
    let mut header: Value = serde_json::json!({"alg": "EdDSA", "typ": "at+jwt"});
    for n in 0..50 {
        use base64::Engine;
        header["kid"] = format!("nobody-{n}").into();
        let head = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header.to_string());
        assert!(two.authenticate(&format!("{head}.e30.AAAA")).await.is_err());
    }
    assert_eq!(world.users.key_reads.load(Ordering::SeqCst), reads, "it has just asked");
    world.clock.step(Duration::from_secs(1));
    let head = fresh.replacen('.', "x.", 1);
    assert!(two.authenticate(&head).await.is_err());
}

#[tokio::test]
async fn a_key_that_others_have_seen_is_given_up_at_once() {
    let world = World::new();
    let node = world.node();
    let stolen = token(&node).await;
    node.authenticate(&stolen).await.expect("holds, and is remembered");
    world.admin().rotate(true).await.expect("rotated");
    node.read_keys().await.expect("read");
    let error = node.authenticate(&stolen).await.expect_err("its key is gone");
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(node.key_set().await.expect("keys").keys.len(), 1);
    let fresh = token(&node).await;
    node.authenticate(&fresh).await.expect("holds");
}

#[tokio::test]
async fn keys_are_replaced_by_themselves_when_they_are_old() {
    let world = World::new();
    let (one, two) = (world.node(), world.node());
    token(&one).await;
    world.clock.step(Duration::from_secs(world.settings.key_rotation_hours * 3600 - 1));
    one.read_keys().await.expect("read");
    assert_eq!(world.users.kept().keys.len(), 1);
    world.clock.step(Duration::from_secs(1));
    let (a, b) = tokio::join!(one.read_keys(), two.read_keys());
    a.and(b).expect("read");
    one.read_keys().await.expect("read");
    assert_eq!(world.users.kept().keys.len(), 2, "one of them made it, once");
}

#[tokio::test]
async fn so_many_keys_and_no_more() {
    let world = World::new();
    let admin = world.admin();
    for _ in 0..16 {
        admin.rotate(false).await.expect("rotated");
    }
    let error = admin.rotate(false).await.expect_err("too many");
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert_eq!(admin.list().await.expect("keys").len(), 16);
}

#[tokio::test]
async fn an_encrypted_key_signs_nowhere_else_and_is_not_replaced_by_who_cannot_open_it() {
    let with = |text: &str| Settings { key_secret: Some(SecretText::from(text.repeat(48))), ..eddsa() };
    let world = World { settings: with("a"), ..World::new() };
    let good = token(&world.node()).await;
    assert!(world.users.kept().keys[0].sealed);
    for other in [with("b"), eddsa()] {
        let stranger = auth_with(&other, &world.users, &world.clock);
        let error = stranger.login(EMAIL, "password123", None).await.expect_err("no key");
        assert_eq!(error.code, ErrorCode::Unavailable);
        let why = stranger.read_keys().await.expect_err("it cannot open what seals either");
        assert!(why.contains("auth.key_secret"), "{why}");
    }
    world.clock.step(Duration::from_secs(10_000 * 3600));
    let stranger = auth_with(&eddsa(), &world.users, &world.clock);
    assert!(stranger.read_keys().await.is_err(), "it cannot open what seals either");
    assert_eq!(world.users.kept().keys.len(), 1);
    let admin = KeyAdmin::new(&eddsa(), Arc::clone(&world.users) as _, Arc::clone(&world.clock) as _);
    let error = admin.expect("made").rotate(false).await.expect_err("locked");
    assert!(error.detail.contains("auth.key_secret is not set"), "{error}");
    assert!(!good.is_empty());
}

#[tokio::test]
async fn a_node_whose_key_to_sign_was_sealed_by_another_says_so_and_goes_on_checking_tokens() {
    let mut world = World::new();
    let node = world.node();
    let before = token(&node).await;
    assert_eq!(node.why_unsigned(), None);
    world.settings.key_secret = Some(SecretText::from("k".repeat(48)));
    world.admin().rotate(true).await.expect("rotated");
    node.read_keys().await.expect("the keys can be read, if not opened");
    let why = node.why_unsigned().expect("a reason");
    assert!(why.contains("auth.key_secret is not set"), "{why}");
    let error = node.login(EMAIL, "password123", None).await.expect_err("no key");
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(!error.detail.contains("secret"), "a caller is not told of settings: {error}");
    let other = token(&world.node()).await;
    node.authenticate(&other).await.expect("checked");
    assert!(node.authenticate(&before).await.is_err(), "its key was revoked");
}

#[tokio::test]
async fn keys_in_the_clear_go_on_once_a_secret_is_set_and_the_next_is_encrypted() {
    let mut world = World::new();
    let before = token(&world.node()).await;
    world.settings.key_secret = Some(SecretText::from("k".repeat(48)));
    let node = world.node();
    node.authenticate(&before).await.expect("holds");
    world.admin().rotate(false).await.expect("rotated");
    let sealed: Vec<bool> = world.users.kept().keys.iter().map(|key| key.sealed).collect();
    assert_eq!(sealed, [false, true]);
}
