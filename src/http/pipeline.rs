//! What happens to every request, in this order: route (404, 405), token (401), role (403), body (413, 415, 408),
//! admission (503), handler; around it all the trace, the deadline, the catching of panics, and the notes. Endpoints
//! are data (`Endpoint`), so that the router and the documentation are made of the same table, and a handler that
//! needs a caller cannot be written down without the `Action` that its caller must be permitted.
//!
//! Admission comes last: a request that is still on its way, or from nobody known, takes no place from one that
//! could be worked on.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, HeaderMap};
use http::{HeaderName, HeaderValue, request};
use metrics::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::actors::audit::AuditHandle;
use crate::auth::{self, Auth};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::{Action, Caller};
use crate::domain::ids::PatientId;
use crate::domain::time::{Clock, MonoTime};
use crate::error::{Error, ErrorCode};

use super::accesses::{self, Accessed, Asked};
use super::client_address::TrustedProxies;
use super::observe::{Meter, TRACEPARENT, trace_of};
use super::patch::MERGE_PATCH_JSON;
use super::problem::Failure;
use super::{Settings, body};

/// What handlers end in.
pub(super) type Answer = BoxFuture<'static, Result<Response, Failure>>;

/// One method of one route.
pub(super) struct Endpoint<S: 'static> {
    pub(super) verb: Verb,
    /// The template, as axum writes it: `/api/patients/{id}`.
    pub(super) path: &'static str,
    /// How the handler itself refuses; for the documentation.
    pub(super) refuses: &'static [ErrorCode],
    pub(super) takes: Takes,
    pub(super) effect: Effect,
    pub(super) admission: Admission,
    pub(super) handler: Handler<S>,
}

/// The methods there are. A route that has `Get` answers HEAD too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Patch => "PATCH",
            Verb::Delete => "DELETE",
        }
    }

    const fn filter(self) -> MethodFilter {
        match self {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
            Verb::Put => MethodFilter::PUT,
            Verb::Patch => MethodFilter::PATCH,
            Verb::Delete => MethodFilter::DELETE,
        }
    }
}

/// What body an endpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Json,
    /// RFC 7396.
    MergePatch,
}

/// What it means if a handler is not over at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing was done.
    Reads,
    /// It may have been done.
    Writes,
}

/// Whether an endpoint counts towards `in_flight_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Counted,
    /// It must answer when the node is at its limit too.
    Exempt,
}

/// Who may call, and what then happens.
pub(super) enum Handler<S: 'static> {
    /// Anyone.
    Open(fn(Arc<S>, OpenCall) -> Answer),
    /// Whoever shows a token that holds, and whose role is permitted the action.
    Named(Action, fn(Arc<S>, Call) -> Answer),
}

/// A request of a caller who need not be known.
pub(super) struct OpenCall {
    /// Where it comes from.
    pub(super) from: Option<IpAddr>,
    pub(super) parts: request::Parts,
    pub(super) body: Bytes,
    pub(super) path: &'static str,
}

/// A request of a known caller.
pub(super) struct Call {
    pub(super) ctx: RequestContext,
    pub(super) parts: request::Parts,
    pub(super) body: Bytes,
    pub(super) path: &'static str,
    /// Where a handler says which patient it is about to register: an unknown outcome tells the caller.
    pub(super) registers: Arc<Registers>,
    /// Where a handler notes whose records it shows.
    pub(super) accessed: Arc<Accessed>,
}

/// Which patient is about to be registered, if one is.
#[derive(Default)]
pub(super) struct Registers(Mutex<Option<PatientId>>);

impl Registers {
    pub(super) fn set(&self, id: PatientId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    fn get(&self) -> Option<PatientId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the path the only placeholder of `template` stands for.
pub(super) fn tail<'a>(parts: &'a request::Parts, template: &str) -> &'a str {
    let fixed = template.find('{').unwrap_or(template.len());
    let after = template.rfind('}').map_or("", |end| &template[end + 1..]);
    let rest = parts.uri.path().get(fixed..).unwrap_or_default();
    rest.strip_suffix(after).unwrap_or_default()
}

/// The part of the deadline that is kept for ourselves: the actors answer a little sooner, and their answer,
/// which knows more than the edge, comes in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// What all endpoints share, and what their handlers speak to.
pub(super) struct Edge<S> {
    /// None where no endpoint asks who a caller is.
    auth: Option<Auth>,
    /// Where accesses are recorded before they are answered.
    audit: AuditHandle,
    clock: Arc<dyn Clock>,
    deadline: Duration,
    body_max_bytes: usize,
    proxies: TrustedProxies,
    admitted: Arc<Semaphore>,
    in_flight_max: usize,
    in_flight: Gauge,
    app: Arc<S>,
}

impl<S: Send + Sync + 'static> Edge<S> {
    pub(super) fn new(
        settings: &Settings,
        auth: impl Into<Option<Auth>>,
        audit: AuditHandle,
        clock: Arc<dyn Clock>,
        app: S,
    ) -> Arc<Self> {
        Arc::new(Edge {
            auth: auth.into(),
            audit,
            clock,
            deadline: Duration::from_millis(settings.request_deadline_ms),
            body_max_bytes: settings.body_max_bytes,
            // The settings were checked.
            proxies: TrustedProxies::parse(&settings.trusted_proxies).unwrap_or_default(),
            admitted: Arc::new(Semaphore::new(settings.in_flight_max)),
            in_flight_max: settings.in_flight_max,
            in_flight: metrics::gauge!("hygeia_http_in_flight"),
            app: Arc::new(app),
        })
    }

    /// Says how many requests are being worked on.
    pub(super) fn in_flight(&self) -> super::InFlight {
        let (admitted, most) = (Arc::clone(&self.admitted), self.in_flight_max);
        Arc::new(move || most.saturating_sub(admitted.available_permits()))
    }

    async fn serve(&self, endpoint: &'static Endpoint<S>, meter: &Meter, request: Request) -> Response {
        let began = self.clock.mono();
        let trace = trace_of(request.headers());
        let working = AssertUnwindSafe(self.within_deadline(endpoint, began, &trace, request));
        let outcome = working.catch_unwind().await.unwrap_or_else(|_panic| {
            meter.note_panic(&trace);
            Err(Failure::new(ErrorCode::Internal, "The request could not be worked on"))
        });
        self.finish(outcome, meter, &trace, began)
    }

    async fn within_deadline(
        &self,
        endpoint: &'static Endpoint<S>,
        began: MonoTime,
        trace: &TraceContext,
        request: Request,
    ) -> Result<Response, Failure> {
        let stage = Stage::new();
        let working = self.perform(endpoint, began, trace, request, &stage);
        let outcome = match tokio::time::timeout(self.deadline, working).await {
            Ok(outcome) => outcome,
            Err(_) => Err(stage.late(endpoint.effect)),
        };
        outcome.map_err(|failure| match failure.error.code {
            ErrorCode::OutcomeUnknown => Failure { registers: stage.registers.get(), ..failure },
            _ => failure,
        })
    }

    /// Works on the request, and has the access recorded before anybody is told what came of it.
    async fn perform(
        &self,
        endpoint: &'static Endpoint<S>,
        began: MonoTime,
        trace: &TraceContext,
        request: Request,
        stage: &Stage,
    ) -> Result<Response, Failure> {
        let named = accesses::patient_of(endpoint.path, request.uri().path());
        let outcome = self.work(endpoint, began, trace, request, stage).await;
        let (Handler::Named(action, _), Some(caller)) = (&endpoint.handler, stage.caller.get()) else {
            return outcome;
        };
        let patient = stage.registers.get().or(named);
        let (action, effect, accessed) = (*action, endpoint.effect, &*stage.accessed);
        let asked = Asked { action, effect, caller, trace, patient, accessed };
        accesses::recorded(&self.audit, self.clock.now(), asked, outcome).await
    }

    async fn work(
        &self,
        endpoint: &'static Endpoint<S>,
        began: MonoTime,
        trace: &TraceContext,
        request: Request,
        stage: &Stage,
    ) -> Result<Response, Failure> {
        let (parts, mut incoming) = request.into_parts();
        let checked = self.check(endpoint, &parts, &mut incoming, stage).await;
        let (caller, body) = match checked {
            Ok(checked) => checked,
            Err(failure) => {
                body::discard(&parts.headers, incoming).await;
                return Err(failure);
            }
        };
        let _admitted = self.admit(endpoint.admission)?;
        let (app, path) = (Arc::clone(&self.app), endpoint.path);
        stage.enter(Stage::HANDED_OVER);
        match (&endpoint.handler, caller) {
            (Handler::Open(handler), _) => {
                handler(app, OpenCall { from: self.proxies.client_of(&parts), parts, body, path }).await
            }
            (Handler::Named(_, handler), Some(caller)) => {
                let spent = self.clock.mono().since(began) + ANSWER_MARGIN;
                let budget = self.deadline.saturating_sub(spent);
                let ctx = RequestContext::new(caller, *trace, &*self.clock, budget);
                let registers = Arc::clone(&stage.registers);
                let accessed = Arc::clone(&stage.accessed);
                handler(app, Call { ctx, parts, body, path, registers, accessed }).await
            }
            (Handler::Named(..), None) => Err(Failure::new(ErrorCode::Unauthenticated, "A token is needed")),
        }
    }

    /// What stands before the handler: the token, then the body.
    async fn check(
        &self,
        endpoint: &'static Endpoint<S>,
        request: &request::Parts,
        incoming: &mut Body,
        stage: &Stage,
    ) -> Result<(Option<Caller>, Bytes), Failure> {
        let caller = match endpoint.handler {
            Handler::Open(_) => None,
            Handler::Named(action, _) => {
                let from = self.proxies.client_of(request);
                let caller = Caller { from, ..self.caller(&request.headers).await? };
                // Known from here on, also for the audit of a denial.
                let caller = stage.caller.get_or_init(|| caller).clone();
                if !action.permits(caller.role) {
                    return Err(forbidden(action, &caller));
                }
                Some(caller)
            }
        };
        let body = match endpoint.takes {
            Takes::Nothing => Bytes::new(),
            Takes::Json => {
                stage.enter(Stage::RECEIVING);
                body::receive(&request.headers, incoming, self.body_max_bytes, "application/json").await?
            }
            Takes::MergePatch => {
                stage.enter(Stage::RECEIVING);
                let received =
                    body::receive(&request.headers, incoming, self.body_max_bytes, MERGE_PATCH_JSON).await;
                received.map_err(|failure| Failure { takes_merge_patch: true, ..failure })?
            }
        };
        Ok((caller, body))
    }

    /// A place among the requests worked on, for as long as it is held.
    fn admit(&self, admission: Admission) -> Result<Option<Admitted<'_>>, Failure> {
        if admission == Admission::Exempt {
            return Ok(None);
        }
        match self.admitted.try_acquire() {
            Ok(permit) => Ok(Some(Admitted::new(permit, &self.in_flight))),
            Err(_) => Err(Failure::new(ErrorCode::Overloaded, "Too many requests are being worked on")),
        }
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Failure> {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(auth::bearer);
        let Some(token) = token else {
            return Err(Failure::new(
                ErrorCode::Unauthenticated,
                "A token is needed: Authorization: Bearer …",
            ));
        };
        let refused = |error| Failure { token_shown: true, ..Failure::from(error) };
        match &self.auth {
            Some(auth) => auth.authenticate(token).await.map_err(refused),
            None => Err(Failure::new(ErrorCode::Unavailable, "This node does not know callers")),
        }
    }

    /// The last of every request, failed or not.
    fn finish(
        &self,
        outcome: Result<Response, Failure>,
        meter: &Meter,
        trace: &TraceContext,
        began: MonoTime,
    ) -> Response {
        let mut response = outcome.unwrap_or_else(|failure| {
            meter.note_failure(failure.error.code);
            failure.into_response(trace)
        });
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::try_from(trace.to_string()) {
            headers.insert(HeaderName::from_static(TRACEPARENT), value);
        }
        // Answers are about patients: no cache on the way keeps them.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers
            .insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        meter.note(response.status().as_u16(), trace, self.clock.mono().since(began));
        response
    }

    /// Refuses what no endpoint takes.
    async fn refuse(
        &self,
        code: ErrorCode,
        detail: &'static str,
        meter: &Meter,
        request: Request,
    ) -> Response {
        let began = self.clock.mono();
        let trace = trace_of(request.headers());
        let (parts, incoming) = request.into_parts();
        if parts.headers.get(CONTENT_LENGTH).is_none_or(|length| length != "0") {
            body::discard(&parts.headers, incoming).await;
        }
        self.finish(Err(Failure::new(code, detail)), meter, &trace, began)
    }
}

/// What a caller is told who may not: the role, which is the caller's own, and the action, which the route names.
fn forbidden(action: Action, caller: &Caller) -> Failure {
    let (role, action) = (caller.role.as_str(), action.as_str());
    Failure::from(Error::new(ErrorCode::Forbidden, format!("The role {role} is not permitted {action}")))
}

/// How far a request has come: what being late means depends on it.
struct Stage {
    reached: AtomicU8,
    /// `Call::registers`
    registers: Arc<Registers>,
    /// Who asks, once that is known.
    caller: OnceLock<Caller>,
    /// `Call::accessed`
    accessed: Arc<Accessed>,
}

impl Stage {
    const CHECKING: u8 = 0;
    const RECEIVING: u8 = 1;
    const HANDED_OVER: u8 = 2;

    fn new() -> Self {
        Stage {
            reached: AtomicU8::new(Self::CHECKING),
            registers: Arc::default(),
            caller: OnceLock::new(),
            accessed: Arc::default(),
        }
    }

    fn enter(&self, stage: u8) {
        self.reached.store(stage, Ordering::Relaxed);
    }

    fn late(&self, effect: Effect) -> Failure {
        match (self.reached.load(Ordering::Relaxed), effect) {
            (Self::RECEIVING, _) => Failure::new(ErrorCode::RequestTimeout, "The body did not come in time"),
            (Self::HANDED_OVER, Effect::Writes) => Failure::new(
                ErrorCode::OutcomeUnknown,
                "There was no answer in time: the change may have been made, or may still be",
            ),
            _ => Failure::new(ErrorCode::DeadlineExceeded, "There was no answer in time"),
        }
    }
}

/// The place of one request, which it leaves also if it is dropped unfinished.
struct Admitted<'a> {
    _permit: SemaphorePermit<'a>,
    in_flight: &'a Gauge,
}

impl<'a> Admitted<'a> {
    fn new(permit: SemaphorePermit<'a>, in_flight: &'a Gauge) -> Self {
        in_flight.increment(1.0);
        Admitted { _permit: permit, in_flight }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.in_flight.decrement(1.0);
    }
}

/// The router of `endpoints`, with 404 and 405 for everything else.
pub(super) fn router<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    endpoints: &'static [Endpoint<S>],
) -> Router {
    router_of_part(edge, endpoints, "There is no such route")
}

/// As `router`; `unmatched` says what to do about a route that is not there.
pub(super) fn router_of_part<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    endpoints: &'static [Endpoint<S>],
    unmatched: &'static str,
) -> Router {
    let mut router = Router::new();
    let mut paths: Vec<&'static str> = endpoints.iter().map(|endpoint| endpoint.path).collect();
    paths.dedup();
    for path in paths {
        let mut methods = MethodRouter::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.path == path) {
            let meter = Arc::new(Meter::new(endpoint.verb.as_str(), path));
            let edge = Arc::clone(edge);
            let served = on(endpoint.verb.filter(), move |request: Request| {
                let (edge, meter) = (Arc::clone(&edge), Arc::clone(&meter));
                async move { edge.serve(endpoint, &meter, request).await }
            });
            methods = methods.merge(served);
        }
        let refused =
            refusal(edge, path, ErrorCode::MethodNotAllowed, "The Allow header names the methods there are");
        router = router.route(path, methods.fallback(refused));
    }
    let refused = refusal(edge, "unmatched", ErrorCode::NotFound, unmatched);
    router.fallback(refused).with_state(())
}

fn refusal<S: Send + Sync + 'static>(
    edge: &Arc<Edge<S>>,
    route: &'static str,
    code: ErrorCode,
    detail: &'static str,
) -> impl Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static {
    let (edge, meter) = (Arc::clone(edge), Arc::new(Meter::new("OTHER", route)));
    move |request| {
        let (edge, meter) = (Arc::clone(&edge), Arc::clone(&meter));
        async move { edge.refuse(code, detail, &meter, request).await }.boxed()
    }
}
