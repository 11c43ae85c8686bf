//! Tests of the pipeline over a real socket, with endpoints that wait, fail or panic on demand.

mod connections;
mod frame;
mod hostile;
mod messages;
mod pipeline;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::actors::audit::AuditHandle;
use crate::auth::Auth;
use crate::auth::fake::{FakeClock, FakeUsers, auth};
use crate::clock::SystemClock;
use crate::domain::access::Action;
use crate::domain::ids::PatientId;
use crate::error::ErrorCode;

use super::listener::{Drained, Listener};
use super::pipeline::{Admission, Call, Edge, Effect, Endpoint, Handler, Takes, Verb, router};
use super::problem::Failure;
use super::{Settings, reply};

const EMAIL: &str = "ada@example.com";
const PATIENT: PatientId = PatientId(uuid::Uuid::from_u128(7));
/// Far longer than any test takes, so that a hang fails the test and a slow machine does not.
const PATIENCE: Duration = Duration::from_secs(20);

/// State that controls the endpoints.
struct Switches {
    /// `/hold` waits for a permit of this semaphore.
    gate: Semaphore,
    /// Number of requests that `/hold` has received.
    held: AtomicUsize,
    /// Whether the body of `/big` was dropped.
    big_let_go: AtomicBool,
}

struct LetGo(Arc<Switches>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.big_let_go.store(true, Ordering::SeqCst);
    }
}

type Shared = Arc<Switches>;

static ENDPOINTS: [Endpoint<Shared>; 18] = [
    endpoint(Verb::Get, "/open", Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::OK)) }.boxed())),
    endpoint(Verb::Post, "/open", Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::OK)) }.boxed())),
    endpoint(
        Verb::Get,
        "/named/{id}",
        Handler::Named(Action::OwnToken, |_, call| {
            async move { reply::json(StatusCode::OK, &*call.ctx.caller.subject) }.boxed()
        }),
    ),
    endpoint(
        Verb::Post,
        "/named/{id}",
        Handler::Named(Action::OwnToken, |_, call| {
            async move { reply::json(StatusCode::OK, &call.body.len()) }.boxed()
        }),
    ),
    endpoint(
        Verb::Get,
        "/same",
        Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::NOT_MODIFIED)) }.boxed()),
    ),
    Endpoint {
        takes: Takes::MergePatch,
        ..endpoint(
            Verb::Patch,
            "/patch",
            Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::OK)) }.boxed()),
        )
    },
    Endpoint {
        takes: Takes::Nothing,
        ..endpoint(
            Verb::Post,
            "/bodiless",
            Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::OK)) }.boxed()),
        )
    },
    endpoint(Verb::Get, "/hold", Handler::Open(|app, _| hold(app).boxed())),
    endpoint(Verb::Get, "/never", Handler::Named(Action::OwnToken, |_, _| std::future::pending().boxed())),
    endpoint(Verb::Put, "/never", Handler::Named(Action::OwnToken, |_, _| std::future::pending().boxed())),
    endpoint(
        Verb::Post,
        "/register/late",
        Handler::Named(Action::OwnToken, |_, call| register(call, false).boxed()),
    ),
    endpoint(
        Verb::Post,
        "/register/unknown",
        Handler::Named(Action::OwnToken, |_, call| register(call, true).boxed()),
    ),
    endpoint(Verb::Get, "/panic", Handler::Open(|_, _| async { panic!("canary") }.boxed())),
    endpoint(Verb::Get, "/long", Handler::Open(|_, _| async { long(None) }.boxed())),
    endpoint(Verb::Get, "/long/tagged", Handler::Open(|_, _| async { long(Some("\"7\"")) }.boxed())),
    endpoint(Verb::Get, "/auth/long", Handler::Open(|_, _| async { long(None) }.boxed())),
    endpoint(Verb::Get, "/big", Handler::Open(|app, _| async move { Ok(big(Arc::clone(&app))) }.boxed())),
    Endpoint {
        admission: Admission::Exempt,
        ..endpoint(
            Verb::Get,
            "/exempt",
            Handler::Open(|_, _| async { Ok(reply::empty(StatusCode::OK)) }.boxed()),
        )
    },
];

const fn endpoint(verb: Verb, path: &'static str, handler: Handler<Shared>) -> Endpoint<Shared> {
    let (takes, effect) = match verb {
        Verb::Get | Verb::Delete => (Takes::Nothing, Effect::Reads),
        Verb::Post | Verb::Put | Verb::Patch => (Takes::Json, Effect::Writes),
    };
    Endpoint {
        verb,
        path,
        refuses: &[],
        query: &["canary"],
        takes,
        effect,
        admission: Admission::Counted,
        handler,
    }
}

async fn hold(app: Arc<Shared>) -> Result<Response, Failure> {
    app.held.fetch_add(1, Ordering::SeqCst);
    app.gate.acquire().await.expect("never closed").forget();
    Ok(reply::empty(StatusCode::OK))
}

/// Announces the patient that it would register; then returns an unknown outcome, or never answers.
async fn register(call: Call, answers: bool) -> Result<Response, Failure> {
    call.registers.set(PATIENT);
    if answers {
        return Err(Failure::new(ErrorCode::OutcomeUnknown, "no answer"));
    }
    std::future::pending().await
}

/// Long enough to be compressed.
fn long(etag: Option<&'static str>) -> Result<Response, Failure> {
    let mut response = reply::json(StatusCode::OK, &vec!["much of the same"; 500])?;
    if let Some(etag) = etag {
        response.headers_mut().insert(http::header::ETAG, http::HeaderValue::from_static(etag));
    }
    Ok(response)
}

/// A response of 256 MiB, more than all buffers between the server and a client.
fn big(app: Arc<Shared>) -> Response {
    let let_go = LetGo(Shared::clone(&app));
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = stream::repeat(piece).take(256).map(move |piece| {
        let _held = &let_go;
        Ok::<_, std::io::Error>(piece)
    });
    Response::new(Body::from_stream(pieces))
}

/// A running server with these endpoints.
struct Bench {
    address: SocketAddr,
    switches: Shared,
    token: String,
    stop: CancellationToken,
    serving: JoinHandle<Drained>,
}

impl Bench {
    async fn start(settings: Settings) -> Self {
        let (users, clock) = (FakeUsers::with(EMAIL), FakeClock::new());
        let auth: Auth = auth(&users, &clock);
        let token = auth.login(EMAIL, "password123", None).await.expect("logged in").token.text;
        let switches = Arc::new(Switches {
            gate: Semaphore::new(0),
            held: AtomicUsize::new(0),
            big_let_go: AtomicBool::new(false),
        });
        let edge =
            Edge::new(&settings, auth, AuditHandle::off(), Arc::new(SystemClock), Shared::clone(&switches));
        let router = router(&edge, &ENDPOINTS);
        let listener = Listener::bind(settings).await.expect("a free port");
        let (address, stop) = (listener.local_addr(), CancellationToken::new());
        let serving = tokio::spawn(listener.serve(router, stop.clone().cancelled_owned()));
        Bench { address, switches, token, stop, serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends one request as text on a connection of its own, and returns everything until the connection
    /// ends.
    async fn raw(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.address).await.expect("connected");
        connection.write_all(request.as_bytes()).await.expect("sent");
        read_all(&mut connection).await
    }

    /// Waits until `condition` holds, for `PATIENCE` at most.
    async fn until(&self, what: &str, condition: impl Fn(&Switches) -> bool) {
        let began = Instant::now();
        while !condition(&self.switches) {
            assert!(began.elapsed() < PATIENCE, "waited for: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn settings() -> Settings {
    Settings { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Settings::default() }
}

/// Reads everything until the other side closes the connection.
async fn read_all(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the response also ends the connection.
    _ = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut bytes))
        .await
        .expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}
