//! The recorder behind the `metrics` macros, in the Prometheus format. It listens nowhere: the HTTP
//! edge shows what it renders.

use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// From 100 µs, a hot read, to 30 s, longer than any deadline.
const SECONDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// Sizes of batches, queues and answers.
const COUNTS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Sizes of bodies and messages.
const BYTES: [f64; 9] = [64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Buckets(#[from] BuildError),
    #[error("a recorder is there already")]
    Twice,
}

/// Makes the recorder of the process.
pub(super) fn install() -> Result<PrometheusHandle, Error> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| Error::Twice)?;
    super::catalogue::describe();
    Ok(handle)
}

/// A histogram's buckets go by the end of its name: `_bytes`, `_rows`, `_count`; any other has those
/// of seconds.
pub(super) fn recorder() -> Result<PrometheusRecorder, Error> {
    let suffix = |end: &str| Matcher::Suffix(end.to_owned());
    Ok(PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(suffix("_bytes"), &BYTES)?
        .set_buckets_for_metric(suffix("_rows"), &COUNTS)?
        .set_buckets_for_metric(suffix("_count"), &COUNTS)?
        .build_recorder())
}
