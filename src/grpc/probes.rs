//! The services for monitoring tools: health (`grpc.health.v1`), which reports the state of `Health`, and
//! reflection, in both versions in use.

use std::time::Duration;

use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{Builder, Error};

use super::BillingServer;
use crate::health::Health;
use crate::proto::FILE_DESCRIPTOR_SET;

/// How often `Health` is polled; this is the maximum age of a probe's answer.
const LOOK: Duration = Duration::from_millis(250);

/// Reports that nothing is served yet, or any more.
pub(super) async fn not_serving(reporter: &HealthReporter) {
    tell(reporter, ServingStatus::NotServing).await;
}

/// Reports the state of `health` to probes, until the task is aborted.
pub(super) async fn follow(health: Health, reporter: HealthReporter) {
    let mut told = None;
    loop {
        let status = match health.snapshot() {
            (true, _) => ServingStatus::Serving,
            (false, _) => ServingStatus::NotServing,
        };
        // Report only changes, because each report wakes every watcher.
        if told != Some(status) {
            tell(&reporter, status).await;
            told = Some(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn tell(reporter: &HealthReporter, status: ServingStatus) {
    // The empty name stands for the whole server (gRPC health checking protocol).
    for service in ["", BillingServer::NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// Returns a reflection builder with the served descriptors.
pub(super) fn described<'a>() -> Builder<'a> {
    Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Why reflection could not be set up: the compiled-in descriptors are inconsistent.
pub(super) type ReflectionError = Error;
