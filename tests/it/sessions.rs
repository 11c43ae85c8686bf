//! Sessions and keys over two fronts on one database, as processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Node, PASSWORD, Site, USER, eventually};
use crate::postgres::{Database, Postgres};

/// What is promised of a revocation.
const REACHES_WITHIN: Duration = Duration::from_secs(5);

fn front(site: Site, name: &str) -> Site {
    site.with("HYGEIA__NODE__NAME", name)
        .with("HYGEIA__NODE__ROLES", "front")
        .with("HYGEIA__CLUSTER__LISTEN", "127.0.0.1:0")
        .with("HYGEIA__CLUSTER__SECRET", "a secret of the cluster, 32 bytes or longer")
        .with("HYGEIA__AUDIT__SECRET", "a secret of the audit, 32 bytes or longer")
        .with("HYGEIA__KAFKA__BROKERS", "127.0.0.1:9")
        .with("HYGEIA__AUTH__KEYS_POLL_MS", "200")
        .with("HYGEIA__AUTH__KEY_PUBLISH_MS", "1000")
}

/// A front, the site to run tools with, and its database.
async fn first() -> (Site, Node, Database) {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    // Making the user runs the program, which has a runtime of its own.
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.unwrap();
    let site = front(site, "front-1");
    let node = Node::listening(site.spawn()).await;
    (site, node, database)
}

/// Another front on the same database, in the cluster of `join` or in none.
async fn second(database: &Database, join: Option<&Node>) -> (Site, Node) {
    let site = front(Site::bare().set_up().with("HYGEIA__STORE__URL", database.url()), "front-2");
    let site = match join {
        Some(node) => site.with("HYGEIA__CLUSTER__JOIN", node.cluster_address()),
        None => site,
    };
    let node = Node::listening(site.spawn()).await;
    (site, node)
}

async fn post(node: &Node, path: &str, body: &Value) -> (StatusCode, Value) {
    let url = format!("{}{path}", node.http_url());
    let answer = node.client().post(url).json(body).send().await.expect("an answer");
    (answer.status(), answer.json().await.unwrap_or_default())
}

/// The tokens of a login: for requests, and for the next ones.
async fn login(node: &Node) -> (String, String) {
    eventually("one can log in", || async {
        let (status, body) = post(node, "/auth/login", &json!({"email": USER, "password": PASSWORD})).await;
        (status == StatusCode::OK).then(|| tokens(&body))
    })
    .await
}

fn tokens(body: &Value) -> (String, String) {
    let text = |key: &str| body[key].as_str().expect(key).to_owned();
    (text("token"), text("refreshToken"))
}

async fn refresh(node: &Node, token: &str) -> (StatusCode, Value) {
    post(node, "/auth/refresh", &json!({"refreshToken": token})).await
}

async fn holds(node: &Node, token: &str) -> StatusCode {
    node.get(token, "/auth/validate").await.status()
}

async fn logout(node: &Node, token: &str, path: &str) {
    let url = format!("{}{path}", node.http_url());
    let answer = node.client().post(url).bearer_auth(token).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

/// How long `node` goes on to take `token`, which it took a moment ago.
async fn refused_after(node: &Node, token: &str, since: Instant) -> Duration {
    eventually("the token is refused", || async {
        (holds(node, token).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    since.elapsed()
}

#[tokio::test]
async fn a_session_that_nobody_refreshes_ends() {
    let site = Site::demo()
        .with("HYGEIA__AUTH__TOKEN_TTL_SECONDS", "1")
        .with("HYGEIA__AUTH__SESSION_IDLE_SECONDS", "1");
    let node = site.start().await;
    let credentials = json!({"email": USER, "password": site.password()});
    let login = || post(&node, "/auth/login", &credentials);
    let (status, left_alone) = login().await;
    assert_eq!((status, &left_alone["refreshExpiresIn"]), (StatusCode::OK, &json!(1)));
    let (token, refresh_token) = tokens(&left_alone);
    // The token holds for as long as its session may idle, and for the 2 s by which clocks may differ.
    refused_after(&node, &token, Instant::now()).await;
    let (status, _) = refresh(&node, &refresh_token).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    eventually("a session that is refreshed at once goes on", || async {
        let (_, fresh) = tokens(&login().await.1);
        (refresh(&node, &fresh).await.0 == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revocation_reaches_the_other_front_in_time_over_the_link_and_without_it() {
    let (_site, one, database) = first().await;
    for joined in [true, false] {
        let (_other_site, two) = second(&database, joined.then_some(&one)).await;
        for path in ["/auth/logout", "/auth/logout-all"] {
            let (token, again) = login(&one).await;
            assert_eq!(holds(&two, &token).await, StatusCode::OK);
            logout(&one, &token, path).await;
            let since = Instant::now();
            assert_eq!(holds(&one, &token).await, StatusCode::UNAUTHORIZED, "here at once");
            let after = refused_after(&two, &token, since).await;
            assert!(after < REACHES_WITHIN, "joined {joined}, {path}: {after:?}");
            println!("joined {joined}, {path}: refused after {after:?}");
            for node in [&one, &two] {
                assert_eq!(refresh(node, &again).await.0, StatusCode::UNAUTHORIZED);
            }
        }
    }
}

#[tokio::test]
async fn a_stolen_refresh_token_ends_the_session_on_every_front_and_one_that_starts_knows_it() {
    let (_site, one, database) = first().await;
    let (_other_site, two) = second(&database, Some(&one)).await;
    let (_, first) = login(&one).await;
    let (status, body) = refresh(&two, &first).await;
    assert_eq!(status, StatusCode::OK, "any front refreshes");
    let (token, next) = tokens(&body);
    assert_eq!(holds(&one, &token).await, StatusCode::OK);
    let (status, problem) = refresh(&one, &first).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("UNAUTHENTICATED")));
    let since = Instant::now();
    assert!(refused_after(&two, &token, since).await < REACHES_WITHIN);
    assert_eq!(refresh(&two, &next).await.0, StatusCode::UNAUTHORIZED);

    let (_third_site, three) = second(&database, None).await;
    // Its very first answer to this token.
    let status = eventually("it answers", || async {
        let status = holds(&three, &token).await;
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
    })
    .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn no_request_fails_while_keys_are_rotated() {
    let (site, one, database) = first().await;
    let (_other_site, two) = second(&database, Some(&one)).await;
    let (token, again) = login(&one).await;
    eventually("the other front answers", || async {
        (holds(&two, &token).await == StatusCode::OK).then_some(())
    })
    .await;
    let nodes = Arc::new([one, two]);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let working = {
        let (nodes, stop, asked) = (Arc::clone(&nodes), Arc::clone(&stop), Arc::clone(&asked));
        tokio::spawn(async move {
            let (mut token, mut again) = (token, again);
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                // Each front takes what the other has just signed.
                for node in nodes.iter() {
                    assert_eq!(holds(node, &token).await, StatusCode::OK, "after {turn} refreshes");
                }
                let (status, body) = refresh(&nodes[turn % 2], &again).await;
                assert_eq!(status, StatusCode::OK, "refresh {turn}");
                (token, again) = tokens(&body);
                turn += 1;
                asked.fetch_add(3, Ordering::Relaxed);
            }
        })
    };
    let site = Arc::new(site);
    let mut keys = Vec::new();
    for _ in 0..3 {
        let tool = Arc::clone(&site);
        let made = tokio::task::spawn_blocking(move || tool.run(&["keys", "rotate"], "")).await.unwrap();
        let kid = made.split('\t').next().expect("a key").to_owned();
        keys.push(kid.clone());
        for node in nodes.iter() {
            eventually("the key is told", || async {
                let set =
                    node.client().get(format!("{}/.well-known/jwks.json", node.http_url())).send().await;
                let set: Value = set.ok()?.json().await.ok()?;
                set["keys"].as_array()?.iter().any(|key| key["kid"] == kid.as_str()).then_some(())
            })
            .await;
        }
        // Until tokens are signed with it.
        eventually("the key signs", || async {
            let (status, body) =
                post(&nodes[0], "/auth/login", &json!({"email": USER, "password": PASSWORD})).await;
            assert_eq!(status, StatusCode::OK);
            let header = jsonwebtoken::decode_header(tokens(&body).0).expect("a header");
            (header.kid == Some(kid.clone())).then_some(())
        })
        .await;
        assert!(!working.is_finished(), "a request has failed");
    }
    stop.store(true, Ordering::Relaxed);
    working.await.expect("no request has failed");
    println!("{} requests, 3 rotations", asked.load(Ordering::Relaxed));
    let listed = tokio::task::spawn_blocking(move || site.run(&["keys", "list"], "")).await.unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");
    for kid in keys {
        assert!(listed.contains(&kid), "{listed}");
    }
}

#[tokio::test]
async fn too_many_failed_logins_must_wait_on_every_front() {
    let (_site, one, database) = first().await;
    let (_other_site, two) = second(&database, None).await;
    login(&one).await;
    login(&two).await;
    for email in [USER, "nobody@example.com"] {
        let body = json!({"email": email, "password": "not the password"});
        let mut failed = 0;
        let refused = loop {
            let node = if failed % 2 == 0 { &one } else { &two };
            let url = format!("{}/auth/login", node.http_url());
            let answer = node.client().post(url).json(&body).send().await.expect("an answer");
            if answer.status() != StatusCode::UNAUTHORIZED {
                break answer;
            }
            failed += 1;
        };
        assert_eq!((failed, refused.status()), (20, StatusCode::TOO_MANY_REQUESTS), "{email}");
        let wait: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
        assert!((1..=300).contains(&wait), "{wait}");
        let problem: Value = refused.json().await.expect("JSON");
        assert_eq!(problem["code"], json!("TOO_MANY_REQUESTS"));
        let right = json!({"email": email, "password": PASSWORD});
        for node in [&one, &two] {
            assert_eq!(post(node, "/auth/login", &right).await.0, StatusCode::TOO_MANY_REQUESTS);
        }
    }
}

#[tokio::test]
async fn too_many_wrong_old_passwords_must_wait_on_every_front() {
    let (_site, one, database) = first().await;
    let (_other_site, two) = second(&database, None).await;
    let (token, _) = login(&one).await;
    login(&two).await;
    let change = async |node: &Node, old: &str| {
        let url = format!("{}/api/users/me/password", node.http_url());
        let body = json!({"oldPassword": old, "newPassword": "a newer password"});
        node.client().post(url).bearer_auth(&token).json(&body).send().await.expect("an answer")
    };
    let mut wrong = 0;
    let refused = loop {
        let answer = change(if wrong % 2 == 0 { &one } else { &two }, "not the password").await;
        if answer.status() != StatusCode::FORBIDDEN {
            break answer;
        }
        wrong += 1;
    };
    assert_eq!((wrong, refused.status()), (20, StatusCode::TOO_MANY_REQUESTS));
    let wait: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=300).contains(&wait), "{wait}");
    let problem: Value = refused.json().await.expect("JSON");
    assert_eq!(problem["code"], json!("TOO_MANY_REQUESTS"));
    for node in [&one, &two] {
        assert_eq!(change(node, PASSWORD).await.status(), StatusCode::TOO_MANY_REQUESTS);
        let right = json!({"email": USER, "password": PASSWORD});
        assert_eq!(post(node, "/auth/login", &right).await.0, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(holds(node, &token).await, StatusCode::OK, "what was given goes on");
    }
}

/// Logs in with `password`; the tokens, if it was let in.
async fn login_with(node: &Node, password: &str) -> Option<(String, String)> {
    let (status, body) = post(node, "/auth/login", &json!({"email": USER, "password": password})).await;
    (status == StatusCode::OK).then(|| tokens(&body))
}

async fn new_password(node: &Node, token: &str, old: &str, new: &str) -> StatusCode {
    let url = format!("{}/api/users/me/password", node.http_url());
    let body = json!({"oldPassword": old, "newPassword": new});
    node.client().post(url).bearer_auth(token).json(&body).send().await.expect("an answer").status()
}

/// Whoever has the old password tries all the while, at both fronts, and with tokens of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_puts_out_whoever_has_the_old_one() {
    let (site, one, database) = first().await;
    let (_other_site, two) = second(&database, Some(&one)).await;
    login(&two).await;
    let (site, nodes) = (Arc::new(site), Arc::new([one, two]));
    let mut password = PASSWORD.to_owned();
    for round in 0..4 {
        let next = format!("violet anchor of round {round}");
        let before = login_with(&nodes[0], &password).await.expect("logged in");
        let elsewhere = login_with(&nodes[1], &password).await.expect("logged in");
        for (node, (token, _)) in nodes.iter().zip([&before, &elsewhere]) {
            assert_eq!(holds(node, token).await, StatusCode::OK, "the user is remembered now");
        }
        let (stop, tried) = (Arc::new(AtomicBool::new(false)), password.clone());
        let guessing = nodes.iter().enumerate().map(|(n, _)| {
            let (nodes, stop, tried) = (Arc::clone(&nodes), Arc::clone(&stop), tried.clone());
            tokio::spawn(async move {
                let mut given = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match login_with(&nodes[n], &tried).await {
                        Some(tokens) => given.push(tokens),
                        None => break,
                    }
                }
                given
            })
        });
        let guessing: Vec<_> = guessing.collect();
        if round % 2 == 0 {
            let set = new_password(&nodes[0], &before.0, &password, &next).await;
            if set == StatusCode::NO_CONTENT {
                assert_eq!(holds(&nodes[0], &before.0).await, StatusCode::UNAUTHORIZED, "here at once");
            } else {
                // A machine that is too busy answers too late, and goes on.
                assert_eq!(set, StatusCode::GATEWAY_TIMEOUT);
                eventually("the password is set", || async { login_with(&nodes[1], &next).await.map(drop) })
                    .await;
            }
        } else {
            let (tool, next) = (Arc::clone(&site), next.clone());
            let set = tokio::task::spawn_blocking(move || tool.run(&["user", "passwd", USER], &next));
            set.await.expect("set");
        }
        for (node, (_, again)) in nodes.iter().zip([&before, &elsewhere]) {
            assert_eq!(refresh(node, again).await.0, StatusCode::UNAUTHORIZED, "at once, everywhere");
        }
        let since = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let mut given = vec![before, elsewhere];
        for guesser in guessing {
            given.extend(guesser.await.expect("no panic"));
        }
        println!("round {round}: {} sessions of before", given.len());
        for (token, again) in &given {
            for node in nodes.iter() {
                assert!(refused_after(node, token, since).await < REACHES_WITHIN);
                assert_eq!(refresh(node, again).await.0, StatusCode::UNAUTHORIZED, "round {round}");
            }
        }
        // What a refused refresh gave nobody, and what was given after the change holds.
        let (token, again) = login_with(&nodes[1], &next).await.expect("logged in");
        assert_eq!(holds(&nodes[0], &token).await, StatusCode::OK);
        assert_eq!(refresh(&nodes[0], &again).await.0, StatusCode::OK);
        password = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_disabled_and_let_in_again_has_no_session_of_before() {
    let (site, one, _database) = first().await;
    let (token, again) = login(&one).await;
    let site = Arc::new(site);
    for command in ["disable", "enable"] {
        let tool = Arc::clone(&site);
        tokio::task::spawn_blocking(move || tool.run(&["user", command, USER], "")).await.expect("done");
    }
    assert_eq!(refresh(&one, &again).await.0, StatusCode::UNAUTHORIZED);
    refused_after(&one, &token, Instant::now()).await;
    let (token, _) = login(&one).await;
    assert_eq!(holds(&one, &token).await, StatusCode::OK);
}
