//! Reads a program's configuration file: TOML or YAML by its ending, unknown keys refused.
//!
//! In: a path. Out: the program's own `Config`, or an error that names file, place and fix.
//! Never: knows any key; each program's `Config` does.

use std::{
    fs,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

/// Largest configuration file in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than 1 MiB: is it a configuration file?", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: the file must end in .toml, .yaml or .yml, so that its format is known", .0.display())]
    Ending(PathBuf),
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
}

/// Which key of a file is wrong, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{}: {key}: {message}", path.display())]
    Value { path: PathBuf, key: &'static str, message: String },
}

/// `[admin]`: metrics, probes and, for an edge, the status page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// TCP address. Left out: none.
    pub listen: Option<SocketAddr>,
    /// Host names by which it may be asked, besides addresses and `localhost`.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level or a filter such as `info,federation_link=debug`. Default `info`.
    pub level: String,
    /// `text` (default) or `json`.
    pub format: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: "text".into() }
    }
}

impl Log {
    /// # Errors
    /// The format is neither of the two; the text says so.
    pub fn check(&self) -> Result<(), String> {
        match self.format.as_str() {
            "text" | "json" => Ok(()),
            other => Err(format!("{other:?} is neither \"text\" nor \"json\"")),
        }
    }
}

/// Reads the file at `path` as a `T`, which should refuse unknown fields (`#[serde(deny_unknown_fields)]`).
///
/// # Errors
/// The file cannot be read, is too large, has no known ending, or does not parse: an unknown key is named with its line
/// and the nearest key that exists.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(read)?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    parse(path, &text)
}

/// Reads the text of the file at `path`, whose ending tells its format.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let parsed = match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => toml::from_str(text).map_err(|error| error.to_string()),
        Some("yaml" | "yml") => serde_norway::from_str(text).map_err(|error| yaml_message(&error)),
        _ => return Err(ConfigError::Ending(path.to_owned())),
    };
    parsed.map_err(|message| ConfigError::Parse { path: path.to_owned(), message: with_nearest_key(message) })
}

/// The parser leaves out the place of whatever is wrong with the first line.
fn yaml_message(error: &serde_norway::Error) -> String {
    let message = error.to_string();
    if message.contains(" at line ") {
        return message;
    }
    match error.location() {
        Some(place) => format!("{message} at line {} column {}", place.line(), place.column()),
        None => message,
    }
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `y`, `z`".
fn with_nearest_key(message: String) -> String {
    let Some((_, rest)) = message.split_once("unknown field `") else { return message };
    let mut quoted = rest.split('`');
    let unknown = quoted.next().unwrap_or_default();
    // Every second piece after the unknown field is a quoted key.
    let nearest = quoted.skip(1).step_by(2).min_by_key(|known| distance(unknown, known));
    match nearest {
        Some(known) => format!("{}; did you mean `{known}`?", message.trim_end()),
        None => message,
    }
}

/// Levenshtein distance over bytes. Keys are short, so the quadratic form will do.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, a) in from.bytes().enumerate() {
        let mut diagonal = at;
        let mut left = at + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.bytes()) {
            let above = *cell;
            *cell = (diagonal + usize::from(a != b)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = at + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A span of time as people write it: `"30s"`, `"15m"`, `"1h"`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    /// For `#[serde(with = …)]`.
    ///
    /// # Errors
    /// A text that is no duration, named with what one looks like.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("duration {text:?}: {error}; write it like \"30s\" or \"15m\"")))
    }
}

/// `drain`: how long a program that is told to end waits until what is under way is answered, while it serves as ever.
pub mod drain {
    use std::time::Duration;

    /// Unless the configuration says otherwise.
    pub const fn default() -> Duration {
        Duration::from_secs(30)
    }

    /// Longest that can be configured.
    const MAX: Duration = Duration::from_secs(60 * 60);

    /// # Errors
    /// What is wrong with the value of the key.
    pub fn check(value: Duration) -> Result<(), String> {
        match value <= MAX {
            true => Ok(()),
            false => Err(format!("{} is longer than 1h", humantime::format_duration(value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        listen: String,
        #[serde(default, deserialize_with = "duration::deserialize")]
        ttl: Duration,
    }

    fn check(name: &str, text: &str) -> Result<Sample, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        fs::write(&path, text).expect("write");
        load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_toml_and_yaml() {
        let wanted = Sample { listen: "a".into(), ttl: Duration::from_secs(30) };
        assert_eq!(check("c.toml", "listen = \"a\"\nttl = \"30s\""), Ok(wanted));
        assert_eq!(check("c.yaml", "listen: a\nttl: 15m").map(|s| s.ttl), Ok(Duration::from_secs(900)));
    }

    #[test]
    fn names_the_nearest_key() {
        for (name, text) in [("c.toml", "lisen = \"a\""), ("c.yml", "lisen: a")] {
            let message = check(name, text).expect_err("unknown key");
            assert!(message.contains("`lisen`") && message.contains("did you mean `listen`?"), "{message}");
            assert!(message.contains("line 1"), "{message}");
        }
    }

    #[test]
    fn names_a_bad_duration_and_a_bad_ending() {
        let message = check("c.toml", "listen = \"a\"\nttl = \"soon\"").expect_err("no duration");
        assert!(message.contains("\"soon\"") && message.contains("30s"), "{message}");
        assert!(check("c.json", "{}").expect_err("ending").contains(".toml"));
        assert!(load::<Sample>(Path::new("/nowhere/c.toml")).expect_err("missing").to_string().contains("/nowhere"));
    }

    #[test]
    fn refuses_a_file_over_the_bound() {
        let message = check("c.toml", &"#".repeat(CONFIG_BYTES_MAX as usize + 1)).expect_err("too large");
        assert!(message.contains("1 MiB"), "{message}");
    }
}
