//! Logs: one line per event on standard error, at a level that can change while the program runs.
//!
//! In: `tracing` events and spans. Out: lines that no text inside them can break. Never: writes to standard output,
//! which belongs to data.

mod line;

use std::{
    fmt, io,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

pub use line::FIELD_BYTES_MAX;
use line::Lines;

/// Longest filter in bytes.
const FILTER_BYTES_MAX: usize = 1024;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, target, sentence, fields.
    #[default]
    Text,
    /// For machines: one JSON object.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;
    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format(shown(text))),
        }
    }
}

/// Why logging cannot be set as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    #[error("log format {0:?} is unknown: give \"text\" or \"json\"")]
    Format(String),
    #[error(
        "log level {0:?}: give off, error, warn, info, debug or trace, with exceptions after it like \
         \"info,federation_link=debug\""
    )]
    Filter(String),
    #[error("log level has {0} bytes, at most 1024 are allowed")]
    TooLong(usize),
    #[error("logging is set up already in this process")]
    Installed,
    #[error("logging has ended")]
    Ended,
}

/// Changes the level later. A clone is another handle on the same filter.
#[derive(Clone)]
pub struct LogControl {
    reload: reload::Handle<Targets, Registry>,
    current: Arc<Mutex<String>>,
}

impl LogControl {
    /// Puts another filter in force at once: a level, or a level with exceptions (`info,gateway_dns=trace`).
    ///
    /// # Errors
    /// The filter cannot be read; the old one stays in force.
    pub fn set_level(&self, filter: &str) -> Result<(), TelemetryError> {
        let targets = parse(filter)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.reload.reload(targets).map_err(|_| TelemetryError::Ended)?;
        filter.clone_into(&mut current);
        Ok(())
    }

    /// The filter in force.
    pub fn level(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogControl({})", self.level())
    }
}

/// Starts logging to standard error for the whole process. Call it once, in `main`.
///
/// # Errors
/// The filter cannot be read, or logging was set up before.
pub fn init(format: Format, filter: &str) -> Result<LogControl, TelemetryError> {
    let (layer, control) = layer(format, filter, io::stderr())?;
    tracing_subscriber::registry().with(layer).try_init().map_err(|_| TelemetryError::Installed)?;
    Ok(control)
}

fn layer<W: io::Write + Send + 'static>(
    format: Format,
    filter: &str,
    writer: W,
) -> Result<(impl Layer<Registry> + Send + Sync, LogControl), TelemetryError> {
    let (filter_layer, reload) = reload::Layer::new(parse(filter)?);
    let current = Arc::new(Mutex::new(filter.to_owned()));
    Ok((Lines::new(format, writer).with_filter(filter_layer), LogControl { reload, current }))
}

/// Reads `level[,target=level]…`. A bare word that is no level would otherwise count as a target at trace, with all else
/// off: a typing error must not silence the log.
fn parse(filter: &str) -> Result<Targets, TelemetryError> {
    if filter.len() > FILTER_BYTES_MAX {
        return Err(TelemetryError::TooLong(filter.len()));
    }
    let wrong = || TelemetryError::Filter(shown(filter));
    let mut targets = Targets::new();
    for directive in filter.split(',').map(str::trim) {
        targets = match directive.split_once('=') {
            None => targets.with_default(level(directive).ok_or_else(wrong)?),
            Some((target, word)) => {
                let target = target.trim();
                let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
                if target.is_empty() || !target.chars().all(named) {
                    return Err(wrong());
                }
                targets.with_target(target, level(word.trim()).ok_or_else(wrong)?)
            }
        };
    }
    Ok(targets)
}

fn level(word: &str) -> Option<LevelFilter> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    LEVELS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| level)
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
