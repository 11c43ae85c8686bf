//! A light load of reads and writes through several fronts, of which nothing may fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{Node, PATIENCE, patient};

/// The pause between two rounds of a client.
const PAUSE: Duration = Duration::from_millis(20);

/// Clients at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

/// One client, which goes from front to front.
struct Caller {
    client: Client,
    fronts: Vec<String>,
    token: String,
    turn: usize,
}

impl Load {
    /// Begins: `count` clients, each of which registers, reads and changes patients of its own.
    pub(super) fn begin(fronts: &[&Node], token: &str, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..count).map(|number| {
            // A connection for each request, so that one that is refused was not used.
            let client = Client::builder().timeout(PATIENCE).no_proxy().pool_max_idle_per_host(0).build();
            let fronts = fronts.iter().map(|front| front.http_url().to_owned()).collect();
            let (client, token) = (client.expect("a client"), token.to_owned());
            let caller = Caller { client, fronts, token, turn: number };
            tokio::spawn(work(caller, number, Arc::clone(&stop)))
        });
        Load { clients: clients.collect(), stop }
    }

    /// Ends, and gives the ids of the patients that were registered.
    ///
    /// # Panics
    /// A request failed, or a client did nothing.
    pub(super) async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut registered = Vec::new();
        for client in self.clients {
            let of_one = client.await.unwrap_or_else(|error| panic!("a client failed: {error}"));
            assert!(!of_one.is_empty(), "a client did nothing");
            registered.extend(of_one);
        }
        registered
    }
}

async fn work(mut caller: Caller, number: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let nth = ids.len();
        let named = |what: &str| patient(format!("{number}-{nth}-{what}"));
        let (status, made) = caller.ask(Method::POST, "/api/patients", Some(named("new"))).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let path = format!("/api/patients/{}", made["id"].as_str().expect("an id"));
        assert_eq!(caller.ask(Method::GET, &path, None).await, (StatusCode::OK, made.clone()));
        let (status, changed) = caller.ask(Method::PUT, &path, Some(named("changed"))).await;
        assert_eq!((status, &changed["version"]), (StatusCode::OK, &json!(2)), "{changed}");
        assert_eq!(caller.ask(Method::GET, &path, None).await, (StatusCode::OK, changed));
        let (status, page) = caller.ask(Method::GET, "/api/patients?limit=5", None).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        ids.push(made["id"].as_str().expect("an id").to_owned());
        tokio::time::sleep(PAUSE).await;
    }
    ids
}

impl Caller {
    /// Asks the next front, or the one after it if that refuses the connection.
    async fn ask(&mut self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        for _ in 0..self.fronts.len() {
            self.turn += 1;
            let front = &self.fronts[self.turn % self.fronts.len()];
            let mut request = self.client.request(method.clone(), format!("{front}{path}"));
            request = request.bearer_auth(&self.token);
            if let Some(body) = &body {
                request = request.json(body);
            }
            match request.send().await {
                Ok(answer) => return (answer.status(), answer.json().await.expect("JSON")),
                Err(error) if error.is_connect() => {}
                Err(error) => panic!("{method} {path}: {error:?}"),
            }
        }
        panic!("{method} {path}: no front takes connections")
    }
}
