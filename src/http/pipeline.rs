//! What happens to every request, in this order: route (404, 405), token (401), its caller's limit (429), role (403), body
//! (413, 415, 408), admission (503), handler; around it all the frame (trace, request id, headers of every answer), the
//! deadline, the catching of panics, and the notes. Endpoints are data (`Endpoint`), so that the router and the
//! documentation are made of the same table, and a handler that needs a caller cannot be written down without the
//! `Action` that its caller must be permitted. OPTIONS is answered for every route, and is no endpoint.
//!
//! Admission comes last: a request that is still on its way, or from nobody known, takes no place from one that
//! could be worked on.
//!
//! A handler that changes something runs in a task of its own, with the recording of the access: a caller who goes away,
//! or a deadline, ends neither. So there is no change without its entry in the audit.

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

/// What handlers end in.
pub(super) type Answer = BoxFuture<'static, Result<Response, Failure>>;

/// One method of one route.
pub(super) struct Endpoint<S: 'static> {
    pub(super) verb: Verb,
    /// The template, as axum writes it: `/api/patients/{id}`.
    pub(super) path: &'static str,
    /// How the handler itself refuses; for the documentation.
    pub(super) refuses: &'static [ErrorCode],
    /// The parameters that its query may have.
    pub(super) query: &'static [&'static str],
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

/// What body an endpoint takes. Of a patch it is told in `Accept-Patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Json,
    /// RFC 7396.
    MergePatch,
}

impl Takes {
    /// None: no body.
    pub(super) const fn media_type(self) -> Option<&'static str> {
        match self {
            Takes::Nothing => None,
            Takes::Json => Some("application/json"),
            Takes::MergePatch => Some(MERGE_PATCH_JSON),
        }
    }
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

/// How long a change may go on after its deadline. The calls of a handler have limits of their own, which are shorter.
const CHANGE_GRACE: Duration = Duration::from_secs(20);

/// A request that has passed all checks.
struct Ready {
    answer: Answer,
    /// Its place, until its access is recorded.
    _admitted: Option<Admitted>,
}

/// What the recording of an access needs, beside what came of it.
struct Recorded {
    path: &'static str,
    /// What the answer may be compressed with.
    accepted: Option<Coding>,
    action: Option<Action>,
    effect: Effect,
    trace: TraceContext,
    /// The patient that the path names.
    named: Option<PatientId>,
    stage: Arc<Stage>,
}

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
    compressor: Compressor,
    frame: Frame,
    admitted: Arc<Semaphore>,
    in_flight_max: usize,
    in_flight: Gauge,
    /// Changes under way.
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
            // The settings were checked.
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

    /// Says how many requests are being worked on.
    pub(super) fn in_flight(&self) -> super::InFlight {
        let (admitted, most) = (Arc::clone(&self.admitted), self.in_flight_max);
        Arc::new(move || most.saturating_sub(admitted.available_permits()))
    }

    /// The changes that go on without their callers: to be waited for before the node stops.
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

    /// Works on the request, and has the access recorded before anybody is told what came of it.
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
            // While the request holds its place.
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

    /// Checks the request, and has its handler make what is to be done.
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
        // A body that no endpoint wants is not waited for.
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

    /// What stands before the handler: the token, the limit of whose it is, then the body.
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
                // Known from here on, also for the audit of a denial.
                let caller = stage.caller.get_or_init(|| caller).clone();
                // Counted first: a denial is a row of the audit, and the limit bounds those too.
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

    /// A place among the requests worked on, for as long as it is held.
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

    /// The last of every request, failed or not.
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

/// What a caller is told who may not: the role, which is the caller's own, and the action, which the route names.
fn forbidden(action: Action, caller: &Caller) -> Failure {
    let (role, action) = (caller.role.as_str(), action.as_str());
    Failure::from(Error::new(ErrorCode::Forbidden, format!("The role {role} is not permitted {action}")))
}
