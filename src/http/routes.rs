//! The route table, from which the router and the documentation are built.

use futures::FutureExt;

use crate::domain::access::Action;
use crate::error::ErrorCode::{
    self, AlreadyExists, Invalid, KeyExpired, KeyReused, NotFound, OutcomeUnknown, PreconditionFailed,
    TooManyRequests, Unauthenticated,
};

use super::AppState;
use super::pipeline::{Admission, Effect, Endpoint, Handler, Takes, Verb};
use super::{
    OpsState, analytics, audit, billing, cluster, docs, history, login, ops, patients, search, users,
};

/// The methods of one path must be adjacent: the router removes only adjacent duplicates of paths.
pub(super) static ROUTES: [Endpoint<AppState>; 33] = [
    open(Verb::Get, "/", &[], Takes::Nothing, Handler::Open(|s, c| docs::index::index(s, c).boxed())),
    open(
        Verb::Post,
        "/auth/login",
        &[Unauthenticated, TooManyRequests, OutcomeUnknown],
        Takes::Json,
        Handler::Open(|s, c| login::login(s, c).boxed()),
    ),
    Endpoint {
        effect: Effect::Writes,
        ..open(
            Verb::Post,
            "/auth/refresh",
            &[Unauthenticated],
            Takes::Json,
            Handler::Open(|s, c| login::refresh(s, c).boxed()),
        )
    },
    Endpoint {
        takes: Takes::Nothing,
        ..named(
            Verb::Post,
            "/auth/logout",
            &[],
            Handler::Named(Action::OwnSessions, |s, c| login::logout(s, c).boxed()),
        )
    },
    Endpoint {
        takes: Takes::Nothing,
        ..named(
            Verb::Post,
            "/auth/logout-all",
            &[],
            Handler::Named(Action::OwnSessions, |s, c| login::logout_all(s, c).boxed()),
        )
    },
    open(
        Verb::Get,
        "/.well-known/jwks.json",
        &[],
        Takes::Nothing,
        Handler::Open(|s, c| login::keys(s, c).boxed()),
    ),
    named(
        Verb::Get,
        "/auth/validate",
        &[],
        Handler::Named(Action::OwnToken, |s, c| login::validate(s, c).boxed()),
    ),
    Endpoint {
        query: &search::PARAMETERS,
        ..named(
            Verb::Get,
            "/api/patients",
            &[Invalid],
            Handler::Named(Action::PatientList, |s, c| search::list(s, c).boxed()),
        )
    },
    named(
        Verb::Post,
        "/api/patients",
        &[AlreadyExists, KeyReused, KeyExpired],
        Handler::Named(Action::PatientRegister, |s, c| patients::register(s, c).boxed()),
    ),
    Endpoint {
        query: &patients::PARAMETERS,
        ..named(
            Verb::Get,
            "/api/patients/{id}",
            &[Invalid, NotFound, PreconditionFailed],
            Handler::Named(Action::PatientRead, |s, c| patients::get(s, c).boxed()),
        )
    },
    named(
        Verb::Put,
        "/api/patients/{id}",
        &[Invalid, NotFound, AlreadyExists, PreconditionFailed],
        Handler::Named(Action::PatientUpdate, |s, c| patients::update(s, c).boxed()),
    ),
    named(
        Verb::Patch,
        "/api/patients/{id}",
        &[Invalid, NotFound, AlreadyExists, PreconditionFailed, KeyReused, KeyExpired],
        Handler::Named(Action::PatientUpdate, |s, c| patients::patch(s, c).boxed()),
    ),
    named(
        Verb::Delete,
        "/api/patients/{id}",
        &[Invalid, NotFound, PreconditionFailed],
        Handler::Named(Action::PatientDelete, |s, c| patients::delete(s, c).boxed()),
    ),
    bodiless(
        Verb::Put,
        "/api/patients/{id}/restriction",
        &[Invalid, NotFound],
        Handler::Named(Action::PatientRestrict, |s, c| patients::restrict(s, c).boxed()),
    ),
    named(
        Verb::Delete,
        "/api/patients/{id}/restriction",
        &[Invalid, NotFound],
        Handler::Named(Action::PatientRestrict, |s, c| patients::unrestrict(s, c).boxed()),
    ),
    Endpoint {
        query: &history::PARAMETERS,
        ..named(
            Verb::Get,
            "/api/patients/{id}/history",
            &[Invalid, NotFound],
            Handler::Named(Action::PatientHistory, |s, c| history::history(s, c).boxed()),
        )
    },
    named(
        Verb::Get,
        "/api/analytics/summary",
        &[],
        Handler::Named(Action::AnalyticsRead, |s, c| analytics::summary(s, c).boxed()),
    ),
    named(
        Verb::Get,
        "/api/billing/accounts/{patientId}",
        &[Invalid, NotFound],
        Handler::Named(Action::AccountRead, |s, c| billing::account(s, c).boxed()),
    ),
    Endpoint {
        query: &users::PARAMETERS,
        ..named(
            Verb::Get,
            "/api/users",
            &[Invalid],
            Handler::Named(Action::UserList, |s, c| users::list(s, c).boxed()),
        )
    },
    named(
        Verb::Post,
        "/api/users",
        &[AlreadyExists],
        Handler::Named(Action::UserCreate, |s, c| users::create(s, c).boxed()),
    ),
    named(
        Verb::Patch,
        "/api/users/{email}",
        &[NotFound],
        Handler::Named(Action::UserChange, |s, c| users::change(s, c).boxed()),
    ),
    named(
        Verb::Post,
        "/api/users/me/password",
        &[TooManyRequests],
        Handler::Named(Action::OwnPassword, |s, c| users::password(s, c).boxed()),
    ),
    Endpoint {
        query: &audit::PARAMETERS,
        ..named(
            Verb::Get,
            "/api/audit",
            &[Invalid],
            Handler::Named(Action::AuditRead, |s, c| audit::list(s, c).boxed()),
        )
    },
    exempt("/health/live", Handler::Open(|_, c| ops::live(c).boxed())),
    exempt("/health/ready", Handler::Open(|s, c| ops::ready(s.health.clone(), c).boxed())),
    exempt("/metrics", Handler::Open(|s, c| ops::metrics(s.metrics.clone(), c).boxed())),
    named(
        Verb::Get,
        "/cluster",
        &[],
        Handler::Named(Action::ClusterRead, |s, c| cluster::status(s, c).boxed()),
    ),
    open(Verb::Get, "/openapi.json", &[], Takes::Nothing, Handler::Open(|s, c| docs::whole(s, c).boxed())),
    open(
        Verb::Get,
        "/api-docs/patients",
        &[],
        Takes::Nothing,
        Handler::Open(|s, c| docs::patients(s, c).boxed()),
    ),
    open(Verb::Get, "/api-docs/auth", &[], Takes::Nothing, Handler::Open(|s, c| docs::auth(s, c).boxed())),
    open(
        Verb::Get,
        "/swagger-ui",
        &[],
        Takes::Nothing,
        Handler::Open(|s, c| docs::swagger::redirect(s, c).boxed()),
    ),
    open(
        Verb::Get,
        "/swagger-ui/",
        &[],
        Takes::Nothing,
        Handler::Open(|s, c| docs::swagger::page(s, c).boxed()),
    ),
    open(
        Verb::Get,
        "/swagger-ui/{*file}",
        &[NotFound],
        Takes::Nothing,
        Handler::Open(|s, c| docs::swagger::file(s, c).boxed()),
    ),
];

/// The routes of a node without the front role.
pub(super) static OPS_ROUTES: [Endpoint<OpsState>; 3] = [
    exempt("/health/live", Handler::Open(|_, c| ops::live(c).boxed())),
    exempt("/health/ready", Handler::Open(|s, c| ops::ready(s.health.clone(), c).boxed())),
    exempt("/metrics", Handler::Open(|s, c| ops::metrics(s.metrics.clone(), c).boxed())),
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
        Verb::Patch => (Takes::MergePatch, Effect::Writes),
    };
    Endpoint { verb, path, refuses, query: &[], takes, effect, admission: Admission::Counted, handler }
}

/// An endpoint without a body: the path says everything.
const fn bodiless(
    verb: Verb,
    path: &'static str,
    refuses: &'static [ErrorCode],
    handler: Handler<AppState>,
) -> Endpoint<AppState> {
    Endpoint { takes: Takes::Nothing, ..named(verb, path, refuses, handler) }
}

/// An open endpoint with `Effect::Reads`. Only the endpoints under `/auth` change anything.
const fn open(
    verb: Verb,
    path: &'static str,
    refuses: &'static [ErrorCode],
    takes: Takes,
    handler: Handler<AppState>,
) -> Endpoint<AppState> {
    Endpoint {
        verb,
        path,
        refuses,
        query: &[],
        takes,
        effect: Effect::Reads,
        admission: Admission::Counted,
        handler,
    }
}

const fn exempt<S>(path: &'static str, handler: Handler<S>) -> Endpoint<S> {
    Endpoint {
        verb: Verb::Get,
        path,
        refuses: &[],
        query: &[],
        takes: Takes::Nothing,
        effect: Effect::Reads,
        admission: Admission::Exempt,
        handler,
    }
}
