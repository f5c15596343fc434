//! The one exporter: what other rooms count becomes Prometheus text.
//!
//! In: everything counted through the `metrics` crate after [`install`]. Out: text for `/metrics`. Never: more than
//! [`SERIES_MAX`] series, whatever a label is made of.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use ::metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, describe_counter, describe_gauge,
    gauge,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Most series (a name with its labels). One more is not recorded, only counted in [`SERIES_DROPPED`].
pub const SERIES_MAX: usize = 10_000;
/// Longest value of a label in bytes; a series with a longer one is not recorded.
pub const LABEL_BYTES_MAX: usize = 256;

/// Always 1; its labels say what runs: `program`, `version`.
pub const BUILD_INFO: &str = "hanse_build_info";
/// When the process started, in seconds since 1970, as Prometheus' own libraries call it.
pub const START_TIME: &str = "process_start_time_seconds";
/// Observations of series that were not recorded.
pub const SERIES_DROPPED: &str = "gateway_admin_series_dropped_total";
/// Whether `/readyz` says yes: 1 or 0.
pub const READY: &str = "gateway_admin_ready";

/// Upper bounds of what ends in `_seconds`: from a decision in memory to a slow handshake over half the world.
const SECONDS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    30.0,
];
/// Upper bounds of what ends in `_bytes`: 64 B to 64 MiB in steps of 16.
const BYTES: [f64; 6] = [64.0, 1024.0, 16_384.0, 262_144.0, 4_194_304.0, 67_108_864.0];
/// Upper bounds of everything else that is observed; without any, the exporter would make summaries, which cannot be
/// added over processes.
const OTHER: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Why metrics cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    #[error("buckets of histograms: {0}")]
    Buckets(#[from] BuildError),
    #[error("a metrics exporter is installed already in this process")]
    Installed,
}

/// A handle on the exporter.
#[derive(Clone, Debug)]
pub struct Exporter(PrometheusHandle);

impl Exporter {
    /// Everything recorded, in the text format 0.0.4.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds observations into their buckets, so that they do not pile up while nobody scrapes. [`serve`](crate::serve)
    /// calls it.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Starts recording for this process. Call it once, before anything is described or counted, and only if the admin
/// server will run: without it, counting costs nothing.
///
/// # Errors
/// A recorder is installed already.
pub fn install(program: &'static str, version: &'static str) -> Result<Exporter, InstallError> {
    let (recorder, exporter) = recorder()?;
    ::metrics::set_global_recorder(recorder).map_err(|_| InstallError::Installed)?;
    describe(program, version);
    Ok(exporter)
}

fn describe(program: &'static str, version: &'static str) {
    describe_gauge!(BUILD_INFO, Unit::Count, "What runs: always 1, the labels say program and version.");
    describe_gauge!(START_TIME, Unit::Seconds, "When the process started, in seconds since 1970.");
    describe_gauge!(READY, Unit::Count, "Whether the program is ready: 1 or 0.");
    describe_counter!(SERIES_DROPPED, Unit::Count, "Observations not recorded because there were too many series.");
    gauge!(BUILD_INFO, "program" => program, "version" => version).set(1.0);
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge!(START_TIME).set(started.as_secs_f64());
}

fn recorder() -> Result<(impl Recorder + Send + Sync + 'static, Exporter), InstallError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&OTHER)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES)?
        .build_recorder();
    let exporter = Exporter(recorder.handle());
    Ok((Bounded { inner: recorder, seen: RwLock::default() }, exporter))
}

/// Lets through what is known, and what is new while there is room.
struct Bounded<R> {
    inner: R,
    /// Whole keys: the hash that a key carries is quick and collides often.
    seen: RwLock<HashSet<Key>>,
}

impl<R: Recorder> Bounded<R> {
    fn admits(&self, key: &Key, metadata: &Metadata<'_>) -> bool {
        if self.seen.read().unwrap_or_else(PoisonError::into_inner).contains(key) {
            return true;
        }
        let short = key.labels().all(|label| label.value().len() <= LABEL_BYTES_MAX);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if short && seen.len() < SERIES_MAX {
            seen.insert(key.clone());
            return true;
        }
        self.inner.register_counter(&Key::from_static_name(SERIES_DROPPED), metadata).increment(1);
        false
    }
}

impl<R: Recorder> Recorder for Bounded<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        if self.admits(key, metadata) { self.inner.register_counter(key, metadata) } else { Counter::noop() }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        if self.admits(key, metadata) { self.inner.register_gauge(key, metadata) } else { Gauge::noop() }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        if self.admits(key, metadata) { self.inner.register_histogram(key, metadata) } else { Histogram::noop() }
    }
}

/// An exporter of its own, with one series in it.
#[cfg(test)]
pub(crate) fn exporter_for_test() -> Exporter {
    let (recorder, exporter) = recorder().expect("buckets");
    ::metrics::with_local_recorder(&recorder, || ::metrics::counter!("test_series_total").increment(1));
    exporter
}

#[cfg(test)]
mod tests;
