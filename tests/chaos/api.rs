//! What a client may ask a front, and what the answers mean for a history.

use std::time::Duration;

use hygeia::proto::BillingRequest;
use hygeia::proto::billing_service_client::BillingServiceClient;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::machinery::answers::{Told, email_text, form, name, newest, patch_form, record, told};
use crate::machinery::history::{Call, Email, Look, Outcome, Record, Tag};
use crate::machinery::prompt::Heard;
use crate::process::{PATIENCE, within};

/// How long a client waits for an answer: longer than a node is stopped, and than it may take after that. So what a
/// node says when it goes on is heard, and an answer that comes too late is seen to be late.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(16);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Records on one page at most.
const PAGE_MAX: usize = 1000;

/// A way to all fronts.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    fronts: Vec<Front>,
    /// The nodes with a gRPC port, by number.
    accounts: Vec<(usize, BillingServiceClient<Channel>)>,
    /// Of a caller who may work with records.
    token: String,
    /// Of a caller who may see the counts and open accounts.
    admin: String,
}

/// Where a front is.
#[derive(Clone)]
pub(crate) struct Front {
    /// The number of its node.
    pub(crate) node: usize,
    pub(crate) url: String,
}

/// A name and a password.
pub(crate) type Login<'a> = (&'a str, &'a str);

/// One request about one patient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) call: Call,
    /// None for a registration.
    pub(crate) patient: Option<Uuid>,
    /// The registration of that patient, or this one.
    pub(crate) made_by: Tag,
    /// A version that is known to have been made: a history is asked for from there.
    pub(crate) known: i64,
    /// The `Idempotency-Key`.
    pub(crate) key: Option<&'a str>,
    /// How long the answer is waited for.
    pub(crate) wait: Duration,
}

/// How a try to ask ended, for a client that decides whether to ask again.
pub(crate) enum Attempt {
    /// An answer came; what is not JSON counts as null.
    Answered(StatusCode, Value),
    /// There was no connection, so nothing was sent.
    NotSent,
    /// The connection broke before the answer came.
    Broken,
    /// The client gave up waiting.
    GaveUp,
}

/// A page of records.
pub(crate) struct Listed {
    pub(crate) records: Vec<(Uuid, Record)>,
    /// Whether these are all.
    pub(crate) complete: bool,
}

impl Api {
    /// Logs both callers in at the first of `fronts`. `accounts` are the URLs of gRPC ports by node.
    pub(crate) async fn login(
        fronts: Vec<Front>,
        accounts: Vec<(usize, String)>,
        worker: Login<'_>,
        admin: Login<'_>,
    ) -> Result<Self, String> {
        let builder = Client::builder().timeout(CLIENT_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).no_proxy();
        let client = builder.build().map_err(|error| error.to_string())?;
        let url = format!("{}/auth/login", fronts[0].url);
        let (token, admin) = (log_in(&client, &url, worker).await?, log_in(&client, &url, admin).await?);
        let accounts = accounts.into_iter().map(|(node, url)| Ok((node, channel(url)?)));
        let accounts = accounts.collect::<Result<_, tonic::transport::Error>>();
        Ok(Api { client, fronts, accounts: accounts.map_err(|error| error.to_string())?, token, admin })
    }

    /// How many fronts there are.
    pub(crate) fn fronts(&self) -> usize {
        self.fronts.len()
    }

    /// The number of the node that is this front.
    pub(crate) fn node_of(&self, front: usize) -> usize {
        self.fronts[front].node
    }

    /// Asks a front about one patient.
    pub(crate) async fn ask(&self, front: usize, request: Request<'_>) -> (Heard, Told) {
        let sent = self.request(front, &request).send().await;
        let searched = match request.call {
            Call::Look(Look::Searched(_)) => true,
            Call::Look(Look::History) => {
                return heard(outcome_of(sent).await, |status, body| history(request, status, body));
            }
            _ => false,
        };
        if searched {
            return match page_of(sent).await {
                Ok(Ok(listed)) => (Heard::Answered, Told::plain(listed.look_for(request.patient))),
                Ok(Err(surprise)) => (Heard::Answered, surprise),
                Err(heard) => (heard, Told::plain(Outcome::Unknown)),
            };
        }
        heard(outcome_of(sent).await, |status, body| told(request.call, request.made_by, status, body))
    }

    fn request(&self, front: usize, request: &Request<'_>) -> RequestBuilder {
        let Request { call, patient, made_by, .. } = *request;
        let own = || format!("/api/patients/{}", patient.unwrap_or_default());
        let (method, path) = match call {
            Call::Register { .. } => (Method::POST, "/api/patients".to_owned()),
            Call::Look(Look::Get) => (Method::GET, own()),
            Call::Look(Look::Listed) => (Method::GET, format!("/api/patients?limit={PAGE_MAX}")),
            Call::Look(Look::Searched(email)) => {
                (Method::GET, format!("/api/patients?email={}", email_text(email, made_by)))
            }
            Call::Look(Look::History) => {
                (Method::GET, format!("{}/history?after={}&limit=200", own(), (request.known - 1).max(0)))
            }
            Call::Put { .. } => (Method::PUT, own()),
            Call::Patch { .. } => (Method::PATCH, own()),
            Call::Restrict { on: true } => (Method::PUT, format!("{}/restriction", own())),
            Call::Restrict { on: false } => (Method::DELETE, format!("{}/restriction", own())),
            Call::Delete { .. } => (Method::DELETE, own()),
            Call::OpenAccount => unreachable!("not asked of a front"),
        };
        let mut built = self.client.request(method, format!("{}{path}", self.fronts[front].url));
        built = built.bearer_auth(&self.token).timeout(request.wait).header("x-break-glass", "a test");
        built = match call {
            Call::Register { tag, email } | Call::Put { tag, email, .. } => {
                built.json(&form(&email_text(email, made_by), tag))
            }
            Call::Patch { tag, part, .. } => {
                let body = patch_form(part, tag, made_by).to_string();
                built.header("content-type", "application/merge-patch+json").body(body)
            }
            _ => built,
        };
        if let Some(version) = call.expected() {
            built = built.header("if-match", format!("\"{version}\""));
        }
        match request.key {
            Some(key) => built.header("idempotency-key", format!("\"{key}\"")),
            None => built,
        }
    }

    /// The first page of all records, as large as pages are. If there is none: how the try ended, and the surprise if
    /// it is one.
    pub(crate) async fn list(&self, front: usize) -> Result<Listed, (Heard, Option<String>)> {
        let call = Call::Look(Look::Listed);
        let request = Request { call, patient: None, made_by: 0, known: 0, key: None, wait: CLIENT_TIMEOUT };
        match page_of(self.request(front, &request).send().await).await {
            Ok(Ok(listed)) => Ok(listed),
            Ok(Err(told)) => Err((Heard::Answered, told.surprise)),
            Err(heard) => Err((heard, None)),
        }
    }

    /// How many nodes can be asked for accounts.
    pub(crate) fn accounts(&self) -> usize {
        self.accounts.len()
    }

    /// Opens the account of a patient that was registered with that tag and address; the number of the node that was
    /// asked comes with the answer.
    pub(crate) async fn open_account(
        &self,
        place: usize,
        patient: Uuid,
        (tag, email): (Tag, Email),
    ) -> (usize, Heard, Told) {
        let (node, mut client) = self.accounts[place].clone();
        let holder = BillingRequest {
            patient_id: patient.to_string(),
            name: name(tag),
            email: email_text(email, tag),
        };
        let mut request = tonic::Request::new(holder);
        if let Ok(value) = format!("Bearer {}", self.admin).parse() {
            request.metadata_mut().insert("authorization", value);
        }
        let answer = tokio::time::timeout(CLIENT_TIMEOUT, client.create_billing_account(request)).await;
        let (heard, told) = match answer {
            Err(_) => (Heard::GaveUp, Told::plain(Outcome::Unknown)),
            Ok(Ok(opened)) => {
                let told = match opened.into_inner().account_id.parse() {
                    Ok(id) => Told::plain(Outcome::Account(id)),
                    Err(_) => Told::strange("an account without an id".into()),
                };
                (Heard::Answered, told)
            }
            Ok(Err(status)) => account_refused(&status),
        };
        (node, heard, told)
    }

    /// `GET path` as ADMIN, if it is answered with 200 and JSON.
    pub(crate) async fn json(&self, front: usize, path: &str) -> Option<Value> {
        let request = self.client.get(format!("{}{path}", self.fronts[front].url)).bearer_auth(&self.admin);
        let response = request.send().await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        response.json().await.ok()
    }

    /// `POST path` as ADMIN, whatever comes of it.
    pub(crate) async fn post(&self, front: usize, path: &str, body: &Value) {
        let request = self.client.post(format!("{}{path}", self.fronts[front].url)).bearer_auth(&self.admin);
        request.json(body).send().await.ok();
    }

    /// One try to read a patient.
    pub(crate) async fn try_read(&self, front: usize, patient: Uuid) -> Attempt {
        self.attempt(front, Call::Look(Look::Get), Some(patient), 0).await
    }

    /// One try to replace the details of the patient that `made_by` registered. Each has details of its own: what changes
    /// nothing writes nothing.
    pub(crate) async fn try_update(&self, front: usize, patient: Uuid, made_by: Tag) -> Attempt {
        let tag = fastrand::u64(1 << 40..1 << 60);
        let call = Call::Put { tag, email: Email::Own, expected: None };
        self.attempt(front, call, Some(patient), made_by).await
    }

    /// One try to register a patient.
    pub(crate) async fn try_register(&self, front: usize, tag: Tag) -> Option<Uuid> {
        match self.attempt(front, Call::Register { tag, email: Email::Own }, None, tag).await {
            Attempt::Answered(StatusCode::CREATED, body) => body["id"].as_str()?.parse().ok(),
            _ => None,
        }
    }

    async fn attempt(&self, front: usize, call: Call, patient: Option<Uuid>, made_by: Tag) -> Attempt {
        let request = Request { call, patient, made_by, known: 0, key: None, wait: CLIENT_TIMEOUT };
        outcome_of(self.request(front, &request).send().await).await
    }
}

async fn log_in(client: &Client, url: &str, (user, password): Login<'_>) -> Result<String, String> {
    let body = json!({"email": user, "password": password});
    let login = || async {
        let response = client.post(url).json(&body).send().await.ok()?;
        let body: Value = response.json().await.ok()?;
        Some(body["token"].as_str()?.to_owned())
    };
    within(PATIENCE, login).await.ok_or_else(|| format!("{user} cannot log in"))
}

fn channel(url: String) -> Result<BillingServiceClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url)?.connect_timeout(CONNECT_TIMEOUT);
    Ok(BillingServiceClient::new(endpoint.connect_lazy()))
}

fn account_refused(status: &tonic::Status) -> (Heard, Told) {
    // What tonic itself says of a connection that could not be made or that broke has no details.
    let broken = std::error::Error::source(status).is_some();
    match status.code() {
        _ if broken => (Heard::Broken, Told::plain(Outcome::Unknown)),
        // Not found: the patient was deleted, or its registration, whose outcome was not known, never happened.
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::NotFound => {
            (Heard::Answered, Told::plain(Outcome::NotDone))
        }
        code => (Heard::Answered, Told::strange(format!("an account was refused with {code:?}"))),
    }
}

fn ended(error: &reqwest::Error) -> Attempt {
    if error.is_connect() {
        Attempt::NotSent
    } else if error.is_timeout() {
        Attempt::GaveUp
    } else {
        Attempt::Broken
    }
}

async fn outcome_of(sent: reqwest::Result<Response>) -> Attempt {
    match sent {
        Err(error) => ended(&error),
        Ok(response) => {
            let status = response.status();
            match response.bytes().await {
                Ok(body) => Attempt::Answered(status, serde_json::from_slice(&body).unwrap_or_default()),
                Err(error) => ended(&error),
            }
        }
    }
}

/// The meaning of the end of a try.
fn heard(attempt: Attempt, meaning: impl FnOnce(StatusCode, &Value) -> Told) -> (Heard, Told) {
    match attempt {
        Attempt::NotSent => (Heard::NotSent, Told::plain(Outcome::NotDone)),
        Attempt::Broken => (Heard::Broken, Told::plain(Outcome::Unknown)),
        Attempt::GaveUp => (Heard::GaveUp, Told::plain(Outcome::Unknown)),
        Attempt::Answered(status, body) => (Heard::Answered, meaning(status, &body)),
    }
}

/// The meaning of a page of a history.
fn history(request: Request<'_>, status: StatusCode, body: &Value) -> Told {
    match newest(body).filter(|_| status == StatusCode::OK) {
        Some(outcome) => Told::plain(outcome),
        None => told(request.call, request.made_by, status, body),
    }
}

/// A page of records; else the meaning of the answer, or how the try ended without one.
async fn page_of(sent: reqwest::Result<Response>) -> Result<Result<Listed, Told>, Heard> {
    let complete = sent.as_ref().is_ok_and(|response| !response.headers().contains_key("link"));
    let (status, body) = match outcome_of(sent).await {
        Attempt::Answered(status, body) => (status, body),
        Attempt::NotSent => return Err(Heard::NotSent),
        Attempt::Broken => return Err(Heard::Broken),
        Attempt::GaveUp => return Err(Heard::GaveUp),
    };
    if status != StatusCode::OK {
        return Ok(Err(told(Call::Look(Look::Listed), 0, status, &body)));
    }
    let records = body.as_array().and_then(|page| page.iter().map(|body| record(body, None)).collect());
    Ok(match records {
        Some(records) => Ok(Listed { records, complete }),
        None => Err(Told::strange("a page that cannot be read".into())),
    })
}

impl Listed {
    /// What the page says of a patient. It cannot say anything of one that may be on another page.
    pub(crate) fn look_for(&self, patient: Option<Uuid>) -> Outcome {
        match self.records.iter().find(|(id, _)| Some(*id) == patient) {
            Some((_, record)) => Outcome::Record(*record),
            None if self.complete => Outcome::Missing,
            None => Outcome::Unknown,
        }
    }
}
