//! `kill -9` at any moment: what was acknowledged is there, and every effect of it happens once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Node, Site, eventually, patient};
use crate::postgres::Postgres;

const WRITERS: usize = 8;

/// What the clients were told, over all rounds.
#[derive(Default)]
struct Told {
    /// Acknowledged registrations by id, with the highest version acknowledged.
    acknowledged: BTreeMap<String, i64>,
    /// Registrations that got no answer.
    unanswered: usize,
    deleted: Vec<String>,
}

/// One client: registers, changes and now and then deletes, until the node is gone.
async fn write_until_it_dies(
    base: String,
    client: reqwest::Client,
    token: String,
    name: String,
    told: Arc<Mutex<Told>>,
) {
    for n in 0.. {
        let body = patient(format!("{name}-{n}"));
        let sent = client.post(format!("{base}/api/patients")).bearer_auth(&token).json(&body).send().await;
        let Ok(response) = sent else {
            told.lock().expect("sane").unanswered += 1;
            return;
        };
        if response.status() != StatusCode::CREATED {
            told.lock().expect("sane").unanswered += 1;
            continue;
        }
        let Ok(created) = response.json::<Value>().await else { return };
        let id = created["id"].as_str().expect("an id").to_owned();
        told.lock().expect("sane").acknowledged.insert(id.clone(), 1);
        let url = format!("{base}/api/patients/{id}");
        if n % 3 == 0 {
            let Ok(response) = client.put(&url).bearer_auth(&token).json(&body).send().await else { return };
            if response.status() == StatusCode::OK {
                told.lock().expect("sane").acknowledged.insert(id.clone(), 2);
            }
        }
        if n % 7 == 0 {
            // From the moment it is sent the record may be gone.
            told.lock().expect("sane").acknowledged.remove(&id);
            let Ok(response) = client.delete(&url).bearer_auth(&token).send().await else { return };
            if response.status() == StatusCode::NO_CONTENT {
                told.lock().expect("sane").deleted.push(id);
            }
        }
    }
}

async fn crash_rounds(site: &Site, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..4 {
        let node = site.start().await;
        let token = node.login().await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (base, client, token) =
                    (node.http_url().to_owned(), node.client().clone(), token.clone());
                tokio::spawn(write_until_it_dies(
                    base,
                    client,
                    token,
                    format!("{round}-{w}"),
                    Arc::clone(&told),
                ))
            })
            .collect();
        // The fault's own schedule, from the seed: the moment of the kill must not follow from what was seen.
        tokio::time::sleep(Duration::from_millis(rng.u64(50..1_500))).await;
        node.kill().await;
        for writer in writers {
            writer.await.expect("no panic");
        }
    }
    let node = site.start().await;
    let told = std::mem::take(&mut *told.lock().expect("sane"));
    check(&node, &told).await;
}

async fn check(node: &Node, told: &Told) {
    assert!(told.acknowledged.len() > 20, "too little was written to say anything");
    let token = node.login().await;
    let listed = all_patients(node, &token).await;
    for (id, version) in &told.acknowledged {
        let found = listed.get(id).unwrap_or_else(|| panic!("acknowledged and lost: {id}"));
        assert!(found["version"].as_i64() >= Some(*version), "an acknowledged change of {id} is lost");
        assert_eq!(node.get_json(&token, &format!("/api/patients/{id}")).await, *found);
    }
    for id in &told.deleted {
        assert!(!listed.contains_key(id), "acknowledged as deleted and there: {id}");
    }
    let summary = node.counted(&token).await;
    assert_eq!(summary["totalPatients"], json!(listed.len()), "analytics is not exact");
    for id in listed.keys() {
        eventually("every patient has an account", || async {
            let response = node.get(&token, &format!("/api/billing/accounts/{id}")).await;
            (response.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
}

/// Every living patient, by id, over all pages.
async fn all_patients(node: &Node, token: &str) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut path = "/api/patients?limit=1000".to_owned();
    loop {
        let response = node.get(token, &path).await;
        assert_eq!(response.status(), StatusCode::OK);
        let link = response.headers().get("link").map(|l| l.to_str().expect("text").to_owned());
        let page: Vec<Value> = response.json().await.expect("JSON");
        all.extend(page.into_iter().map(|p| (p["id"].as_str().expect("an id").to_owned(), p)));
        let Some(link) = link else { return all };
        let target = link.split(['<', '>']).nth(1).expect("a target in the link");
        path = target.strip_prefix(node.http_url()).unwrap_or(target).to_owned();
    }
}

fn seed() -> u64 {
    let seed =
        std::env::var("HYGEIA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("replay with HYGEIA_SEED={seed}");
    seed
}

#[tokio::test]
async fn sqlite_loses_nothing() {
    crash_rounds(&Site::fresh(), seed()).await;
}

#[tokio::test]
async fn postgres_loses_nothing() {
    let database = Postgres::shared().create_database().await;
    crash_rounds(&Site::on_postgres(database.url()), seed()).await;
}

/// The database itself dies and comes back: the node goes on by itself.
#[tokio::test]
async fn a_crash_of_postgres_is_survived() {
    let server = Postgres::start_private(crate::postgres::Durability::Full);
    let database = server.create_database().await;
    let site = Site::on_postgres(database.url());
    let node = site.start().await;
    let token = node.login().await;
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..2 {
        let writing: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (base, client, token) =
                    (node.http_url().to_owned(), node.client().clone(), token.clone());
                tokio::spawn(write_until_it_dies(
                    base,
                    client,
                    token,
                    format!("{round}-{w}"),
                    Arc::clone(&told),
                ))
            })
            .collect();
        let enough = told.lock().expect("sane").acknowledged.len() + 50;
        eventually("some writes", || async {
            (told.lock().expect("sane").acknowledged.len() > enough).then_some(())
        })
        .await;
        server.stop(crate::postgres::Stop::Kill);
        eventually("the node says it is not ready", || async {
            (node.readiness().await == Some(StatusCode::SERVICE_UNAVAILABLE)).then_some(())
        })
        .await;
        for writer in &writing {
            writer.abort();
        }
        server.start();
        eventually("the node is ready again", || async {
            (node.readiness().await == Some(StatusCode::OK)).then_some(())
        })
        .await;
    }
    let told = std::mem::take(&mut *told.lock().expect("sane"));
    check(&node, &told).await;
}
