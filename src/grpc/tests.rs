//! Tests with a server on a free port, billing that behaves as told, and a real client.

mod calls;
mod limits;
mod protocol;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use uuid::Uuid;

use super::*;
use crate::clock::SystemClock;
use crate::context::RequestContext;
use crate::domain::access::Caller;
use crate::domain::account::{Account, AccountStatus};
use crate::domain::ids::{AccountId, PatientId};
use crate::domain::time::Timestamp;
use crate::error::{Error as Failure, ErrorCode, Result};
use crate::health::Status as PartStatus;
use crate::proto::billing_service_client::BillingServiceClient;
use crate::proto::{BillingRequest, BillingResponse};

/// How long a condition may take before a test fails. Generous, because machines are busy.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENT: &str = "123e4567-e89b-12d3-a456-426614174000";
const NAME: &str = "Canary Holder";
const EMAIL: &str = "canary@example.com";
const TOKEN: &str = "canary-token";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Billing that behaves according to the name of the holder.
struct Fake {
    asked: Mutex<Vec<RequestContext>>,
    /// Calls with the name "wait" end when they get a permit.
    gate: Semaphore,
    waiting: AtomicUsize,
}

#[async_trait]
impl OpenAccounts for Fake {
    async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>> {
        self.asked.lock().unwrap().push(ctx.clone());
        match name {
            "panic" => panic!("on purpose"),
            "hang" => std::future::pending::<()>().await,
            "wait" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.gate.acquire().await.unwrap().forget();
            }
            "overloaded" => return Err(Failure::new(ErrorCode::Overloaded, "on purpose")),
            _ => {}
        }
        Ok(Arc::new(Account {
            id: AccountId(Uuid::from_u128(patient.0.as_u128() ^ 1)),
            patient_id: patient,
            name: name.into(),
            email: email.into(),
            status: AccountStatus::Active,
            opened_at: Timestamp(0),
        }))
    }
}

#[async_trait]
impl Authenticate for Fake {
    async fn authenticate(&self, bearer_token: &str) -> Result<Caller> {
        match bearer_token {
            TOKEN => Ok(Caller::system("test")),
            "hang" => std::future::pending().await,
            "away" => Err(Failure::new(ErrorCode::Unavailable, "on purpose")),
            _ => Err(Failure::new(ErrorCode::Unauthenticated, "The token does not hold")),
        }
    }
}

struct Running {
    address: SocketAddr,
    fake: Arc<Fake>,
    health: Health,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<std::result::Result<(), Error>>,
}

fn settings() -> Settings {
    Settings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..Settings::default() }
}

async fn start(settings: Settings) -> Running {
    let fake =
        Arc::new(Fake { asked: Mutex::default(), gate: Semaphore::new(0), waiting: AtomicUsize::new(0) });
    let health = Health::default();
    let state = GrpcState {
        billing: Arc::clone(&fake) as _,
        auth: Arc::clone(&fake) as _,
        audit: AuditHandle::off(),
        clock: Arc::new(SystemClock),
        health: health.clone(),
    };
    let server = Server::bind(settings, state).await.expect("a free port");
    let address = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(server.serve(async move { drop(stopped.await) }));
    Running { address, fake, health, stop: Some(stop), served }
}

impl Running {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.expect("connects")
    }

    async fn client(&self) -> BillingServiceClient<Channel> {
        BillingServiceClient::new(self.channel().await)
    }

    fn stop(&mut self) {
        self.stop.take().expect("stops once").send(()).expect("still serving");
    }
}

fn asking(name: &str) -> Request<BillingRequest> {
    let mut request =
        Request::new(BillingRequest { patient_id: PATIENT.into(), name: name.into(), email: EMAIL.into() });
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request
}

fn with(mut request: Request<BillingRequest>, key: &'static str, value: &str) -> Request<BillingRequest> {
    request.metadata_mut().insert(key, value.parse().unwrap());
    request
}

fn error_code(status: &Status) -> &str {
    assert_eq!(status.metadata().get("trace-id").expect("a trace id").len(), 32);
    status.metadata().get("error-code").expect("a name").to_str().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
