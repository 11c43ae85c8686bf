//! The yardstick of `GET` by id: axum with nothing but what the answer needs. It verifies the token of
//! each request and returns the same JSON as we do, without a lookup.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::role::{self, Process};
use crate::{Result, node};

/// A patient as our API shows it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PatientView {
    pub(crate) id: String,
    name: String,
    email: String,
    address: String,
    date_of_birth: String,
    registered_date: String,
    version: i64,
}

impl PatientView {
    /// One as long as those that the load registers.
    pub(crate) fn sample() -> PatientView {
        PatientView {
            id: uuid::Uuid::nil().to_string(),
            name: "Bench Patient".into(),
            email: "hot-123@example.com".into(),
            address: "1 Bench Street, Benchtown".into(),
            date_of_birth: "1980-05-17".into(),
            registered_date: "2026-01-02".into(),
            version: 1,
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    #[allow(dead_code, reason = "that it is there is verified with the rest")]
    sub: String,
}

struct Shared {
    key: DecodingKey,
    validation: Validation,
    patient: PatientView,
}

/// A running yardstick.
pub(crate) struct Yardstick {
    _process: Process,
    pub(crate) address: SocketAddr,
}

/// Starts one that shows `patient`.
pub(crate) async fn start(patient: PatientView) -> Result<Yardstick> {
    let started = tokio::task::spawn_blocking(move || -> Result<Yardstick> {
        let mut process = Process::start("yardstick", &patient)?;
        let address = process.heard()?;
        Ok(Yardstick { _process: process, address })
    });
    started.await?
}

/// The other process.
pub(crate) fn role() -> Result<()> {
    let patient: PatientView = role::task()?;
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_aud = false;
    let key = DecodingKey::from_secret(node::JWT_SECRET.as_bytes());
    let shared = Arc::new(Shared { key, validation, patient });
    let app = Router::new().route("/api/patients/{id}", get(show)).with_state(shared);
    tokio::runtime::Runtime::new()?.block_on(async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        role::tell(&listener.local_addr()?)?;
        tokio::select! {
            served = axum::serve(listener, app) => Ok(served?),
            dismissed = tokio::task::spawn_blocking(role::until_dismissed) => dismissed?,
        }
    })
}

async fn show(
    State(shared): State<Arc<Shared>>,
    Path(_id): Path<uuid::Uuid>,
    headers: HeaderMap,
) -> std::result::Result<Json<PatientView>, StatusCode> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or(StatusCode::UNAUTHORIZED)?;
    jsonwebtoken::decode::<Claims>(token, &shared.key, &shared.validation)
        .map_err(|_| StatusCode::UNAUTHORIZED)?;
    Ok(Json(shared.patient.clone()))
}
