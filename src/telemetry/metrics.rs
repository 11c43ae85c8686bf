//! The recorder behind the `metrics` macros, in the Prometheus format. It opens no port; the HTTP edge serves
//! the rendered text.

use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// From 100 µs, a read from memory, to 30 s, longer than any deadline.
const SECONDS: [f64; 17] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// Buckets for the sizes of batches, queues and replies.
const COUNTS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// Buckets for the sizes of bodies and messages, in bytes.
const BYTES: [f64; 9] = [64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Why the recorder could not be installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Buckets(#[from] BuildError),
    #[error("a recorder is there already")]
    Twice,
}

/// Installs the recorder of the process.
pub(super) fn install() -> Result<PrometheusHandle, Error> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| Error::Twice)?;
    super::catalogue::describe();
    Ok(handle)
}

/// Returns a recorder whose histogram buckets depend on the end of the metric's name: `_bytes`, `_rows` or
/// `_count`; all others have buckets in seconds.
pub(super) fn recorder() -> Result<PrometheusRecorder, Error> {
    let suffix = |end: &str| Matcher::Suffix(end.to_owned());
    Ok(PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(suffix("_bytes"), &BYTES)?
        .set_buckets_for_metric(suffix("_rows"), &COUNTS)?
        .set_buckets_for_metric(suffix("_count"), &COUNTS)?
        .build_recorder())
}
