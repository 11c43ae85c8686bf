//! The layer around every call of any service: trace, admission, deadline, panics, one log line, metrics, and
//! the metadata of the response.
//!
//! Invariants:
//! - The response is sent before the caller's deadline and before the server's own.
//! - A status created by the library is translated to the codes of `error.rs`.
//! - A panic ends only its own call.

use std::convert::Infallible;
use std::mem;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

use super::connection::ConnectionInfo;
use super::{form, status};
use crate::context::TraceContext;
use crate::context::fields::{repeated, trace_of};
use crate::domain::access::{Action, Caller};
use crate::domain::time::{Clock, MonoTime};
use crate::error::{Error, ErrorCode};

/// Maximum part of the budget that is held back, so that the response is still sent in time.
const RESERVE_MAX: Duration = Duration::from_millis(20);

/// Maximum number of open streams of probes (health `Watch`, reflection), which the server does not end by
/// itself.
pub(super) const PROBE_STREAMS_MAX: usize = 64;

/// What a service knows about its call; stored in the extensions of the request.
#[derive(Clone)]
pub(super) struct Call {
    /// The span of this hop.
    pub(super) trace: TraceContext,
    /// Deadline for work on the call.
    pub(super) deadline: MonoTime,
    /// Address of the client.
    pub(super) from: Option<IpAddr>,
    method: Method,
    /// Set once work has begun that may have an effect.
    begun: Arc<AtomicBool>,
    /// The slots of the call, held while there is work on it, even if the caller has disconnected.
    permits: Arc<Permits>,
}

impl Call {
    /// Checks that the caller's role is permitted the called method.
    ///
    /// # Errors
    /// `Forbidden`: the role is not permitted, or the method has no action.
    pub(super) fn permit(&self, caller: &Caller) -> Result<Action, Error> {
        let role = caller.role.as_str();
        match self.method.action() {
            Some(action) if action.permits(caller.role) => Ok(action),
            Some(action) => {
                let said = format!("The role {role} is not permitted {}", action.as_str());
                Err(Error::new(ErrorCode::Forbidden, said))
            }
            None => Err(Error::new(ErrorCode::Forbidden, "There is nothing to be permitted here")),
        }
    }

    /// Marks that work with an effect begins. From here on, a missing answer means that the outcome is
    /// unknown.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }
}

/// A tower layer that wraps the services in `Enveloped`.
#[derive(Clone)]
pub(super) struct Envelope {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    timeout: Duration,
    metadata_max_bytes: u32,
    calls: Arc<Semaphore>,
    probe_streams: Arc<Semaphore>,
}

impl Envelope {
    /// Creates the layer with the limits over all connections: number of calls, time and metadata of each.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        timeout: Duration,
        in_flight_max: usize,
        metadata_max_bytes: u32,
    ) -> Self {
        let calls = Arc::new(Semaphore::new(in_flight_max.min(Semaphore::MAX_PERMITS)));
        let probe_streams = Arc::new(Semaphore::new(PROBE_STREAMS_MAX));
        Envelope { shared: Arc::new(Shared { clock, timeout, metadata_max_bytes, calls, probe_streams }) }
    }
}

impl<S> Layer<S> for Envelope {
    type Service = Enveloped<S>;

    fn layer(&self, inner: S) -> Enveloped<S> {
        Enveloped { inner, shared: Arc::clone(&self.shared) }
    }
}

/// The services inside the layer.
#[derive(Clone)]
pub(super) struct Enveloped<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Enveloped<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Call the service that was polled ready, not its clone.
        let spare = self.inner.clone();
        let ready = mem::replace(&mut self.inner, spare);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { Ok(shared.answer(ready, request).await) })
    }
}

impl Shared {
    async fn answer<S>(&self, service: S, mut request: Request<Body>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let began = self.clock.mono();
        let method = method(request.uri().path());
        let budget = grpc_timeout(request.headers()).map_or(self.timeout, |asked| asked.min(self.timeout));
        // The service gets the shortest limit, so that its own error for a missed deadline, which is more
        // precise, arrives first.
        let reserve = (budget / 10).min(RESERVE_MAX);
        let trace = trace_of(request.headers());
        if let Some(code) = form::of_no_call(&request) {
            log(Method::Other, code.as_str(), &trace, self.clock.mono().since(began));
            return with_trace(form::refused(code), &trace);
        }
        let formed = form::size(request.headers(), self.metadata_max_bytes).and(once(request.headers()));
        let answer = match formed.and_then(|()| self.admit(method, &request)) {
            Ok(permits) => {
                let call = Call {
                    trace,
                    deadline: began.plus(budget.saturating_sub(2 * reserve)),
                    from: request.extensions().get::<ConnectionInfo>().and_then(|connection| connection.from),
                    method,
                    begun: Arc::default(),
                    permits: Arc::new(permits),
                };
                request.extensions_mut().insert(call.clone());
                let answer = run(service, request, &call, budget.saturating_sub(reserve)).await;
                if method.is_probe_stream() {
                    answer.map(|response| holding(response, call.permits))
                } else {
                    answer
                }
            }
            Err(error) => Err(error),
        };
        let (response, code) = finish(answer, &trace);
        log(method, code, &trace, self.clock.mono().since(began));
        response
    }

    /// Takes the slots of a call; the permits hold them. Single health requests are always admitted, because
    /// a busy server must not appear dead.
    fn admit(&self, method: Method, request: &Request<Body>) -> Result<Permits, Error> {
        let full = |_| Error::new(ErrorCode::Overloaded, "Too many calls at the same time");
        if method.is_probe_stream() {
            return Ok((None, Some(Arc::clone(&self.probe_streams).try_acquire_owned().map_err(full)?)));
        }
        let Method::CreateBillingAccount = method else { return Ok((None, None)) };
        let on_connection = match request.extensions().get::<ConnectionInfo>() {
            Some(connection) => Some(Arc::clone(&connection.calls).try_acquire_owned().map_err(full)?),
            None => None,
        };
        let on_server = Arc::clone(&self.calls).try_acquire_owned().map_err(full)?;
        Ok((on_connection, Some(on_server)))
    }
}

/// Checks that metadata which allows only one value has only one.
fn once(headers: &HeaderMap) -> Result<(), Error> {
    match repeated(headers) {
        Some(name) => {
            Err(Error::new(ErrorCode::Invalid, format!("The metadata \"{name}\" is given more than once")))
        }
        None => Ok(()),
    }
}

type Permits = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// Returns `response`, which releases `permits` at the end of its stream.
fn holding(response: Response<Body>, permits: Arc<Permits>) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &permits;
            frame
        }))
    })
}

async fn run<S>(
    mut service: S,
    request: Request<Body>,
    call: &Call,
    limit: Duration,
) -> Result<Response<Body>, Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let served = AssertUnwindSafe(async move { service.call(request).await }).catch_unwind();
    match tokio::time::timeout(limit, served).await {
        Ok(Ok(Ok(response))) => Ok(response),
        Ok(Ok(Err(never))) => match never {},
        // The panic hook has logged the message and the place.
        Ok(Err(_panic)) => Err(Error::new(ErrorCode::Internal, "Something is wrong on our side")),
        Err(_elapsed) if call.begun.load(Ordering::Relaxed) => {
            Err(Error::new(ErrorCode::OutcomeUnknown, "The time was up before the answer came"))
        }
        Err(_elapsed) => Err(Error::new(ErrorCode::DeadlineExceeded, "The time was up; nothing was done")),
    }
}

/// Returns the response with its metadata, and the name of its code.
fn finish(answer: Result<Response<Body>, Error>, trace: &TraceContext) -> (Response<Body>, &'static str) {
    let told = |error: &Error| (status::of_error(error).into_http(), error.code.as_str());
    let (response, code) = match answer {
        Err(error) => told(&error),
        Ok(response) => match status::failure(response.headers()) {
            None => (response, "OK"),
            Some(Ok(code)) => (response, code),
            Some(Err(error)) => (status::retold(response.headers(), &error), error.code.as_str()),
        },
    };
    (with_trace(response, trace), code)
}

fn with_trace(mut response: Response<Body>, trace: &TraceContext) -> Response<Body> {
    if let Ok(id) = HeaderValue::from_str(&format!("{:032x}", trace.trace_id)) {
        response.headers_mut().insert(status::TRACE_ID, id);
    }
    response
}

fn log(method: Method, code: &'static str, hop: &TraceContext, took: Duration) {
    let is_probe = matches!(method, Method::Health | Method::Watch);
    let method = method.as_str();
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "hygeia::grpc",
                method,
                code,
                trace = format_args!("{:032x}", hop.trace_id),
                span = format_args!("{:016x}", hop.span_id),
                parent = format_args!("{:016x}", hop.parent_id),
                duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            )
        };
    }
    match (is_probe, code) {
        (false, _) => line!(info),
        (true, "OK") => line!(debug),
        (true, _) => line!(warn),
    }
    metrics::counter!("hygeia_grpc_calls_total", "method" => method, "code" => code).increment(1);
    metrics::histogram!("hygeia_grpc_call_seconds", "method" => method).record(took.as_secs_f64());
}

/// The methods that logs and metrics distinguish. All other paths are `Other`, because callers can invent any
/// number of them, with any content.
#[derive(Clone, Copy)]
pub(super) enum Method {
    CreateBillingAccount,
    Health,
    Watch,
    Reflection,
    Other,
}

impl Method {
    /// Returns whether the method answers with a stream that only its caller ends.
    const fn is_probe_stream(self) -> bool {
        matches!(self, Method::Watch | Method::Reflection)
    }

    /// Returns the action that a caller must be permitted; `None` if the method is open to everybody or
    /// unknown.
    pub(super) const fn action(self) -> Option<Action> {
        match self {
            Method::CreateBillingAccount => Some(Action::AccountOpen),
            Method::Health | Method::Watch | Method::Reflection | Method::Other => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Method::CreateBillingAccount => "BillingService/CreateBillingAccount",
            Method::Health | Method::Watch => "grpc.health.v1.Health",
            Method::Reflection => "grpc.reflection",
            Method::Other => "other",
        }
    }
}

fn method(path: &str) -> Method {
    match path {
        "/BillingService/CreateBillingAccount" => Method::CreateBillingAccount,
        "/grpc.health.v1.Health/Watch" => Method::Watch,
        _ if path.starts_with("/grpc.health.v1.Health/") => Method::Health,
        _ if path.starts_with("/grpc.reflection.") => Method::Reflection,
        _ => Method::Other,
    }
}

/// Returns the caller's own limit: at most eight digits and a unit (gRPC over HTTP/2, "Requests"). A
/// malformed value counts as absent.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_limit_is_read_as_the_protocol_writes_it() {
        let read = |text: &'static str| {
            grpc_timeout(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        for bad in ["", "m", "1", "+1m", "123456789n", "1x", "1.5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
