//! Logs to standard error, as text for people or as JSON lines for machines.

use std::{fmt, io::IsTerminal};

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// `--log-format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The filter is malformed, or another subscriber is already in place.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{level}` is not a log level: {problem}; write error, warn, info, debug, trace or TARGET=LEVEL,...")]
    Level { level: String, problem: String },
    #[error("logging is already set up")]
    Already,
}

/// Sets up logging for the whole process. `level` is a level or a list of `TARGET=LEVEL`.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(level: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = parse(level)?;
    let base = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => base.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => base.with(layer.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| TelemetryError::Already)
}

/// # Errors
/// [`TelemetryError::Level`]; used by `--config-check`, too.
pub fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(level)
        .map_err(|error| TelemetryError::Level { level: level.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_level_is_named() {
        assert!(parse("info,kiln_worker=debug").is_ok());
        let error = parse("kiln=loud").expect_err("no such level").to_string();
        assert!(error.contains("`kiln=loud`") && error.contains("TARGET=LEVEL"), "{error}");
    }
}
