//! The steps of every request, in order: route (404, 405), message form (400, 501), token (401), rate limit
//! of the caller (429), role (403), query (400), body (413, 415, 408), admission (503), handler. Around all
//! of them stand the response headers, the deadline, the catching of panics, metrics and the log line.
//!
//! Endpoints are data (`Endpoint`): the router and the documentation are built from the same table. A handler
//! that needs a caller cannot be declared without the `Action` that the caller must be permitted. OPTIONS is
//! answered for every route and is not an endpoint.
//!
//! Admission comes last, so that a request that is still arriving, or has no authenticated caller, takes no
//! slot from one that is ready to run.
//!
//! A handler that changes something runs in a task of its own, together with the recording of its access.
//! Neither a client that disconnects nor the deadline stops that task, so no change is made without its entry
//! in the audit.

mod admitted;
mod beside;
mod router;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::MethodFilter;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap};
use http::request;
use metrics::Gauge;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::actors::audit::AuditHandle;
use crate::auth::{self, Auth};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::{Action, Caller};
use crate::domain::ids::PatientId;
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode};

use super::accesses::{self, Accessed, Asked};
use super::client_address::TrustedProxies;
use super::compress::{Coding, Compressor};
use super::frame::{Exchange, Frame};
use super::observe::Meter;
use super::patch::MERGE_PATCH_JSON;
use super::problem::Failure;
use super::query::Query;
use super::stage::{Registers, Stage};
use super::{Settings, body, break_glass, message};

use admitted::Admitted;
use beside::{Methods, Refusal};
pub(super) use router::{router, router_of_part};

/// The future that a handler returns.
pub(super) type Answer = BoxFuture<'static, Result<Response, Failure>>;

/// One method of one route.
pub(super) struct Endpoint<S: 'static> {
    pub(super) verb: Verb,
    /// Path template in axum's syntax: `/api/patients/{id}`.
    pub(super) path: &'static str,
    /// Error codes that the handler itself returns; used by the documentation.
    pub(super) refuses: &'static [ErrorCode],
    /// Names of the allowed query parameters.
    pub(super) query: &'static [&'static str],
    pub(super) takes: Takes,
    pub(super) effect: Effect,
    pub(super) admission: Admission,
    pub(super) handler: Handler<S>,
}

/// Supported methods. A route with `Get` also answers HEAD.
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

/// The kind of request body that an endpoint accepts. Responses to OPTIONS announce a patch type in
/// `Accept-Patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Json,
    /// A JSON Merge Patch (RFC 7396).
    MergePatch,
}

impl Takes {
    /// Returns the media type of the body, or `None` if the endpoint takes no body.
    pub(super) const fn media_type(self) -> Option<&'static str> {
        match self {
            Takes::Nothing => None,
            Takes::Json => Some("application/json"),
            Takes::MergePatch => Some(MERGE_PATCH_JSON),
        }
    }
}

/// What the deadline means for a handler that has not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing was changed.
    Reads,
    /// The change may have been made.
    Writes,
}

/// Whether an endpoint counts towards `in_flight_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Counted,
    /// Not counted, so that it is answered even when the node is at its limit.
    Exempt,
}

/// Which callers an endpoint admits, and the function that serves them.
pub(super) enum Handler<S: 'static> {
    /// Any caller.
    Open(fn(Arc<S>, OpenCall) -> Answer),
    /// A caller with a valid token whose role is permitted the action.
    Named(Action, fn(Arc<S>, Call) -> Answer),
}

/// A request whose caller need not be authenticated.
pub(super) struct OpenCall {
    /// Address of the client.
    pub(super) from: Option<IpAddr>,
    pub(super) parts: request::Parts,
    pub(super) body: Bytes,
    pub(super) path: &'static str,
}

/// A request of an authenticated caller.
pub(super) struct Call {
    pub(super) ctx: RequestContext,
    pub(super) parts: request::Parts,
    pub(super) body: Bytes,
    pub(super) path: &'static str,
    /// Set by a handler to the patient that it is about to register, so that an unknown outcome can name the
    /// id.
    pub(super) registers: Arc<Registers>,
    /// Set by a handler to the patients whose records it shows.
    pub(super) accessed: Arc<Accessed>,
}

/// Returns the part of the request path that the only placeholder of `template` stands for.
pub(super) fn tail<'a>(parts: &'a request::Parts, template: &str) -> &'a str {
    let fixed = template.find('{').unwrap_or(template.len());
    let after = template.rfind('}').map_or("", |end| &template[end + 1..]);
    let rest = parts.uri.path().get(fixed..).unwrap_or_default();
    rest.strip_suffix(after).unwrap_or_default()
}

/// Part of the deadline that the edge reserves. The actors answer this much earlier, so that their answer,
/// which says more than the edge knows, arrives in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// How long a change may continue after its deadline. The calls of a handler have shorter limits of their
/// own.
const CHANGE_GRACE: Duration = Duration::from_secs(20);

/// A request that has passed all checks.
struct Ready {
    answer: Answer,
    /// The slot of the request, held until its access is recorded.
    _admitted: Option<Admitted>,
}

/// Data for recording the access, except the outcome.
struct Recorded {
    path: &'static str,
    /// Coding in which the response may be compressed.
    accepted: Option<Coding>,
    action: Option<Action>,
    effect: Effect,
    trace: TraceContext,
    /// The patient named in the path.
    named: Option<PatientId>,
    stage: Arc<Stage>,
}

/// State shared by all endpoints, and the services of their handlers.
pub(super) struct Edge<S> {
    /// `None` if no endpoint requires a caller.
    auth: Option<Auth>,
    /// Records accesses before they are answered.
    audit: AuditHandle,
    clock: Arc<dyn Clock>,
    deadline: Duration,
    body_max_bytes: usize,
    proxies: TrustedProxies,
    compressor: Compressor,
    frame: Frame,
    admitted: Arc<Semaphore>,
    in_flight_max: usize,
    in_flight: Gauge,
    /// Changes in progress.
    changes: TaskTracker,
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
            // The settings were validated before, so parsing cannot fail here.
            proxies: TrustedProxies::parse(&settings.trusted_proxies, settings.forwarded_by)
                .unwrap_or_default(),
            compressor: Compressor::new(settings.compress_min_bytes),
            frame: Frame::new(settings),
            admitted: Arc::new(Semaphore::new(settings.in_flight_max)),
            in_flight_max: settings.in_flight_max,
            in_flight: metrics::gauge!("hygeia_http_in_flight"),
            changes: TaskTracker::new(),
            app: Arc::new(app),
        })
    }

    /// Returns a function that counts the requests being processed.
    pub(super) fn in_flight(&self) -> super::InFlight {
        let (admitted, most) = (Arc::clone(&self.admitted), self.in_flight_max);
        Arc::new(move || most.saturating_sub(admitted.available_permits()))
    }

    /// Returns the changes that continue without their clients. Wait for them before the node stops.
    pub(super) fn changes(&self) -> TaskTracker {
        self.changes.clone()
    }

    async fn serve(
        self: &Arc<Self>,
        endpoint: &'static Endpoint<S>,
        meter: &Meter,
        request: Request,
    ) -> Response {
        let exchange = self.frame.begin(request.headers(), self.clock.mono());
        let working = AssertUnwindSafe(self.within_deadline(endpoint, &exchange, request));
        let outcome = working.catch_unwind().await.unwrap_or_else(|_panic| {
            meter.note_panic(&exchange.trace);
            Err(Failure::new(ErrorCode::Internal, "The request could not be worked on"))
        });
        self.finish(outcome, meter, &exchange)
    }

    async fn within_deadline(
        self: &Arc<Self>,
        endpoint: &'static Endpoint<S>,
        exchange: &Exchange,
        request: Request,
    ) -> Result<Response, Failure> {
        let stage = Arc::new(Stage::new());
        let working = self.perform(endpoint, exchange, request, &stage);
        let outcome = match tokio::time::timeout(self.deadline, working).await {
            Ok(outcome) => outcome,
            Err(_) => Err(stage.late(endpoint.effect)),
        };
        outcome.map_err(|failure| match failure.error.code {
            ErrorCode::OutcomeUnknown => Failure { registers: stage.registers.get(), ..failure },
            _ => failure,
        })
    }

    /// Processes the request, and records the access before the outcome is returned.
    async fn perform(
        self: &Arc<Self>,
        endpoint: &'static Endpoint<S>,
        exchange: &Exchange,
        mut request: Request,
        stage: &Arc<Stage>,
    ) -> Result<Response, Failure> {
        if self.compressor.is_off() {
            request.headers_mut().remove(ACCEPT_ENCODING);
        }
        let recorded = Recorded {
            path: endpoint.path,
            accepted: Coding::accepted(request.headers()),
            action: match endpoint.handler {
                Handler::Named(action, _) => Some(action),
                Handler::Open(_) => None,
            },
            effect: endpoint.effect,
            trace: exchange.trace,
            named: accesses::patient_of(endpoint.path, request.uri().path()),
            stage: Arc::clone(stage),
        };
        if let Some(detail) = accesses::detail_of(endpoint.path, endpoint.verb, request.uri().path()) {
            stage.accessed.is_about(detail);
        }
        let ready = match self.ready(endpoint, exchange, request, stage).await {
            Ok(ready) => ready,
            Err(failure) => return self.record(recorded, Err(failure)).await,
        };
        let carried_out = Arc::clone(self).carry_out(ready, recorded);
        match endpoint.effect {
            Effect::Reads => carried_out.await,
            Effect::Writes => {
                let limit = self.deadline + CHANGE_GRACE;
                let task = self.changes.spawn(tokio::time::timeout(limit, carried_out));
                match task.await {
                    Ok(Ok(outcome)) => outcome,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Ok(Err(_)) | Err(_) => Err(stage.late(endpoint.effect)),
                }
            }
        }
    }

    async fn carry_out(self: Arc<Self>, ready: Ready, recorded: Recorded) -> Result<Response, Failure> {
        let Ready { answer, _admitted } = ready;
        let outcome = match answer.await {
            // Compressed while the request still holds its slot.
            Ok(answer) => Ok(self.compressor.apply(recorded.path, recorded.accepted, answer).await),
            Err(failure) => Err(failure),
        };
        self.record(recorded, outcome).await
    }

    async fn record(
        &self,
        recorded: Recorded,
        outcome: Result<Response, Failure>,
    ) -> Result<Response, Failure> {
        let Recorded { action, effect, trace, named, stage, path: _, accepted: _ } = recorded;
        let (Some(action), Some(caller)) = (action, stage.caller.get()) else { return outcome };
        if outcome.as_ref().is_err_and(|failure| failure.error.code == ErrorCode::Forbidden) {
            self.frame.charge_denial(caller, self.clock.mono());
        }
        let patient = stage.registers.get().or(named);
        let asked = Asked { action, effect, caller, trace: &trace, patient, accessed: &stage.accessed };
        accesses::recorded(&self.audit, self.clock.now(), asked, outcome).await
    }

    /// Checks the request, and calls its handler, which returns the future of the answer.
    async fn ready(
        &self,
        endpoint: &'static Endpoint<S>,
        exchange: &Exchange,
        request: Request,
        stage: &Stage,
    ) -> Result<Ready, Failure> {
        let (parts, mut incoming) = request.into_parts();
        let checked = self.check(endpoint, exchange, &parts, &mut incoming, stage).await;
        let (caller, body) = match checked {
            Ok(checked) => checked,
            Err(failure) => {
                body::discard(&parts.headers, incoming).await;
                return Err(failure);
            }
        };
        // Do not wait for a body that the endpoint does not take.
        drop(incoming);
        let admitted = self.admit(endpoint.admission)?;
        let (app, path) = (Arc::clone(&self.app), endpoint.path);
        stage.enter(Stage::HANDED_OVER);
        let answer = match (&endpoint.handler, caller) {
            (Handler::Open(handler), _) => {
                handler(app, OpenCall { from: self.proxies.client_of(&parts), parts, body, path })
            }
            (Handler::Named(_, handler), Some(caller)) => {
                let spent = self.clock.mono().since(exchange.began) + ANSWER_MARGIN;
                let budget = self.deadline.saturating_sub(spent);
                let ctx = RequestContext::new(caller, exchange.trace, &*self.clock, budget);
                let registers = Arc::clone(&stage.registers);
                let accessed = Arc::clone(&stage.accessed);
                handler(app, Call { ctx, parts, body, path, registers, accessed })
            }
            (Handler::Named(..), None) => {
                return Err(Failure::new(ErrorCode::Unauthenticated, "A token is needed"));
            }
        };
        Ok(Ready { answer, _admitted: admitted })
    }

    /// Checks everything before the handler: message form, token, rate limit, role, query, and body.
    async fn check(
        &self,
        endpoint: &'static Endpoint<S>,
        exchange: &Exchange,
        request: &request::Parts,
        incoming: &mut Body,
        stage: &Stage,
    ) -> Result<(Option<Caller>, Bytes), Failure> {
        message::check(request)?;
        let caller = match endpoint.handler {
            Handler::Open(_) => None,
            Handler::Named(action, _) => {
                let from = self.proxies.client_of(request);
                let break_glass = break_glass::reason(&request.headers);
                let caller = Caller { from, break_glass, ..self.caller(&request.headers).await? };
                // Set here, so that the audit of a denial also names the caller.
                let caller = stage.caller.get_or_init(|| caller).clone();
                // Count before the role check: a denial is a row of the audit, and the limit must bound those
                // too.
                self.frame.count(exchange, &caller)?;
                if !action.permits(caller.role) {
                    return Err(forbidden(action, &caller));
                }
                Some(caller)
            }
        };
        Query::read(request.uri.query(), endpoint.query)?;
        let body = match endpoint.takes.media_type() {
            None => Bytes::new(),
            Some(taken) => {
                stage.enter(Stage::RECEIVING);
                body::receive(&request.headers, incoming, self.body_max_bytes, taken).await?
            }
        };
        Ok((caller, body))
    }

    /// Takes a slot among the requests in flight; the returned value holds it.
    fn admit(&self, admission: Admission) -> Result<Option<Admitted>, Failure> {
        if admission == Admission::Exempt {
            return Ok(None);
        }
        match Arc::clone(&self.admitted).try_acquire_owned() {
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

    /// Builds the final response of every request, failed or not: headers, metrics, log line.
    fn finish(&self, outcome: Result<Response, Failure>, meter: &Meter, exchange: &Exchange) -> Response {
        let mut response = outcome.unwrap_or_else(|failure| {
            meter.note_failure(failure.error.code);
            failure.into_response(&exchange.trace)
        });
        self.frame.end(exchange, response.headers_mut());
        meter.note(response.status().as_u16(), exchange, self.clock.mono().since(exchange.began));
        response
    }
}

/// Returns the failure for a caller whose role is not permitted the action. The detail names the caller's
/// role and the route's action, which the caller knows already.
fn forbidden(action: Action, caller: &Caller) -> Failure {
    let (role, action) = (caller.role.as_str(), action.as_str());
    Failure::from(Error::new(ErrorCode::Forbidden, format!("The role {role} is not permitted {action}")))
}
