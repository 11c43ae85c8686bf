//! Every route there is: the one table behind the router and the documentation.

use std::sync::Arc;

use futures::FutureExt;

use crate::error::ErrorCode::{self, AlreadyExists, Forbidden, Invalid, NotFound, Unauthenticated};

use super::AppState;
use super::pipeline::{Admission, Effect, Endpoint, Handler, Takes, Verb};
use super::{OpsState, analytics, billing, cluster, docs, login, ops, patients};

/// Methods of one path stand together.
pub(super) static ROUTES: [Endpoint<AppState>; 18] = [
    open(
        Verb::Post,
        "/auth/login",
        &[Unauthenticated],
        Takes::Json,
        Handler::Open(|s, c| login::login(s, c).boxed()),
    ),
    named(Verb::Get, "/auth/validate", &[], Handler::Named(|s, c| login::validate(s, c).boxed())),
    named(Verb::Get, "/api/patients", &[Invalid], Handler::Named(|s, c| patients::list(s, c).boxed())),
    named(
        Verb::Post,
        "/api/patients",
        &[AlreadyExists],
        Handler::Named(|s, c| patients::register(s, c).boxed()),
    ),
    named(
        Verb::Get,
        "/api/patients/{id}",
        &[Invalid, NotFound],
        Handler::Named(|s, c| patients::get(s, c).boxed()),
    ),
    named(
        Verb::Put,
        "/api/patients/{id}",
        &[Invalid, NotFound, AlreadyExists],
        Handler::Named(|s, c| patients::update(s, c).boxed()),
    ),
    named(
        Verb::Delete,
        "/api/patients/{id}",
        &[Invalid, NotFound],
        Handler::Named(|s, c| patients::delete(s, c).boxed()),
    ),
    named(Verb::Get, "/api/analytics/summary", &[], Handler::Named(|s, c| analytics::summary(s, c).boxed())),
    named(
        Verb::Get,
        "/api/billing/accounts/{patientId}",
        &[Invalid, NotFound],
        Handler::Named(|s, c| billing::account(s, c).boxed()),
    ),
    exempt("/health/live", Handler::Open(|_, c| ops::live(c).boxed())),
    exempt("/health/ready", Handler::Open(|s, c| ops::ready(s.health.clone(), c).boxed())),
    exempt("/metrics", Handler::Open(|s, c| ops::metrics(Arc::clone(&s.metrics), c).boxed())),
    named(Verb::Get, "/cluster", &[Forbidden], Handler::Named(|s, c| cluster::status(s, c).boxed())),
    open(
        Verb::Get,
        "/api-docs/patients",
        &[],
        Takes::Nothing,
        Handler::Open(|s, c| docs::patients(s, c).boxed()),
    ),
    open(Verb::Get, "/api-docs/auth", &[], Takes::Nothing, Handler::Open(|s, c| docs::auth(s, c).boxed())),
    open(Verb::Get, "/swagger-ui", &[], Takes::Nothing, Handler::Open(|s, c| docs::to_swagger(s, c).boxed())),
    open(Verb::Get, "/swagger-ui/", &[], Takes::Nothing, Handler::Open(|s, c| docs::swagger(s, c).boxed())),
    open(
        Verb::Get,
        "/swagger-ui/{*file}",
        &[NotFound],
        Takes::Nothing,
        Handler::Open(|s, c| docs::swagger(s, c).boxed()),
    ),
];

/// What a node answers that is no front.
pub(super) static OPS_ROUTES: [Endpoint<OpsState>; 3] = [
    exempt("/health/live", Handler::Open(|_, c| ops::live(c).boxed())),
    exempt("/health/ready", Handler::Open(|s, c| ops::ready(s.health.clone(), c).boxed())),
    exempt("/metrics", Handler::Open(|s, c| ops::metrics(Arc::clone(&s.metrics), c).boxed())),
];

const fn named(
    verb: Verb,
    path: &'static str,
    refuses: &'static [ErrorCode],
    handler: Handler<AppState>,
) -> Endpoint<AppState> {
    let (takes, effect) = match verb {
        Verb::Get => (Takes::Nothing, Effect::Reads),
        Verb::Delete => (Takes::Nothing, Effect::Writes),
        Verb::Post | Verb::Put => (Takes::Json, Effect::Writes),
    };
    Endpoint { verb, path, refuses, takes, effect, admission: Admission::Counted, handler }
}

/// None of the open endpoints changes anything.
const fn open(
    verb: Verb,
    path: &'static str,
    refuses: &'static [ErrorCode],
    takes: Takes,
    handler: Handler<AppState>,
) -> Endpoint<AppState> {
    Endpoint { verb, path, refuses, takes, effect: Effect::Reads, admission: Admission::Counted, handler }
}

const fn exempt<S>(path: &'static str, handler: Handler<S>) -> Endpoint<S> {
    Endpoint {
        verb: Verb::Get,
        path,
        refuses: &[],
        takes: Takes::Nothing,
        effect: Effect::Reads,
        admission: Admission::Exempt,
        handler,
    }
}
