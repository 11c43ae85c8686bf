//! What a client may ask a front, and what the answers mean for a history.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::machinery::answers::{Told, form, record, told};
use crate::machinery::history::{Outcome, Tag};
use crate::process::{PATIENCE, within};

/// How long a client waits for an answer: longer than any node may take, and than most of the time for which
/// one is stopped, so that what it says when it goes on is heard.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A way to all fronts.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    fronts: Vec<String>,
    token: String,
}

/// How one try to ask ended, as somebody sees it who decides whether to ask again.
pub(crate) enum Attempt {
    /// An answer came; what is not JSON counts as null.
    Answered(StatusCode, Value),
    /// There was no connection, so nothing was sent.
    NotSent,
    /// The connection broke, or the wait was given up, before the answer was there.
    Broken,
}

/// A page of records.
pub(crate) struct Listed {
    pub(crate) records: Vec<(Uuid, i64, Tag)>,
    /// Whether these are all.
    pub(crate) complete: bool,
}

impl Api {
    /// Logs in at the first of `fronts`, which are URLs.
    pub(crate) async fn login(fronts: Vec<String>, user: &str, password: &str) -> Result<Self, String> {
        let builder = Client::builder().timeout(CLIENT_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).no_proxy();
        let client = builder.build().map_err(|error| error.to_string())?;
        let body = json!({"email": user, "password": password});
        let login = || async {
            let response = client.post(format!("{}/auth/login", fronts[0])).json(&body).send().await.ok()?;
            let body: Value = response.json().await.ok()?;
            Some(body["token"].as_str()?.to_owned())
        };
        let token = within(PATIENCE, login).await.ok_or("nobody can log in")?;
        Ok(Api { client, fronts, token })
    }

    /// How many fronts there are.
    pub(crate) fn fronts(&self) -> usize {
        self.fronts.len()
    }

    pub(crate) async fn register(&self, front: usize, email: &str, tag: Tag) -> Told {
        self.ask(front, Method::POST, "/api/patients", Some(form(email, tag))).await
    }

    pub(crate) async fn read(&self, front: usize, id: Uuid) -> Told {
        self.ask(front, Method::GET, &format!("/api/patients/{id}"), None).await
    }

    pub(crate) async fn update(&self, front: usize, id: Uuid, email: &str, tag: Tag) -> Told {
        self.ask(front, Method::PUT, &format!("/api/patients/{id}"), Some(form(email, tag))).await
    }

    /// The same, if the record has `version`.
    pub(crate) async fn update_if(
        &self,
        front: usize,
        id: Uuid,
        version: i64,
        (email, tag): (&str, Tag),
    ) -> Told {
        let (path, body) = (format!("/api/patients/{id}"), form(email, tag));
        let request = self.client.put(format!("{}{path}", self.fronts[front])).bearer_auth(&self.token);
        let request = request.header("if-match", format!("\"{version}\"")).json(&body);
        heard(Method::PUT, Self::outcome_of(request.send().await).await)
    }

    pub(crate) async fn delete(&self, front: usize, id: Uuid) -> Told {
        self.ask(front, Method::DELETE, &format!("/api/patients/{id}"), None).await
    }

    /// The first page of all records, as large as pages are.
    pub(crate) async fn list(&self, front: usize) -> Result<Listed, Option<String>> {
        let response = self.send(front, Method::GET, "/api/patients?limit=1000", None).await;
        let response = response.map_err(|_| None)?;
        let (status, complete) = (response.status(), !response.headers().contains_key("link"));
        let body: Value = response.json().await.map_err(|_| None)?;
        if status != StatusCode::OK {
            return Err(told(Method::GET, status, &body).surprise);
        }
        let records = body.as_array().and_then(|page| page.iter().map(record).collect::<Option<_>>());
        let records = records.ok_or_else(|| Some("a page that cannot be read".to_owned()))?;
        Ok(Listed { records, complete })
    }

    /// `GET path`, if it is answered with 200 and JSON.
    pub(crate) async fn json(&self, front: usize, path: &str) -> Option<Value> {
        let response = self.send(front, Method::GET, path, None).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        response.json().await.ok()
    }

    async fn send(
        &self,
        front: usize,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<Response> {
        let request = self.client.request(method, format!("{}{path}", self.fronts[front]));
        let request = request.bearer_auth(&self.token);
        match body {
            Some(body) => request.json(&body),
            None => request,
        }
        .send()
        .await
    }

    /// One try to read a patient.
    pub(crate) async fn try_read(&self, front: usize, id: Uuid) -> Attempt {
        self.attempt(front, Method::GET, &format!("/api/patients/{id}"), None).await
    }

    /// One try to change a patient.
    pub(crate) async fn try_update(&self, front: usize, id: Uuid, email: &str, tag: Tag) -> Attempt {
        self.attempt(front, Method::PUT, &format!("/api/patients/{id}"), Some(form(email, tag))).await
    }

    async fn attempt(&self, front: usize, method: Method, path: &str, body: Option<Value>) -> Attempt {
        Self::outcome_of(self.send(front, method, path, body).await).await
    }

    async fn outcome_of(sent: reqwest::Result<Response>) -> Attempt {
        match sent {
            Err(error) if error.is_connect() => Attempt::NotSent,
            Err(_) => Attempt::Broken,
            Ok(response) => {
                let status = response.status();
                match response.bytes().await {
                    Ok(body) => Attempt::Answered(status, serde_json::from_slice(&body).unwrap_or_default()),
                    Err(_) => Attempt::Broken,
                }
            }
        }
    }

    async fn ask(&self, front: usize, method: Method, path: &str, body: Option<Value>) -> Told {
        heard(method.clone(), self.attempt(front, method, path, body).await)
    }
}

/// What the end of a try means.
fn heard(method: Method, attempt: Attempt) -> Told {
    let unheard = |outcome| Told { outcome, patient: None, surprise: None };
    match attempt {
        Attempt::NotSent => unheard(Outcome::NotDone),
        Attempt::Broken => unheard(Outcome::Unknown),
        Attempt::Answered(StatusCode::NO_CONTENT, _) => unheard(Outcome::Ended),
        Attempt::Answered(status, body) => told(method, status, &body),
    }
}
