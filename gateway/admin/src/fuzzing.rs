//! What must hold of all texts in a configuration file; `fuzz/` looks for some of which it does not.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Never: in a product; only fuzzers and the
//! replay of their corpus (`testbed/tests/fuzz.rs`) turn the feature on.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use crate::config::{Admin, ConfigError, Log, duration, parse};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this room.
pub const TARGETS: &[Target] = &[("config_toml", config_toml), ("config_yaml", config_yaml)];

/// Inputs from which each target starts.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let texts: &[&str] = match target {
        "config_toml" => &[
            "[admin]\nlisten = \"127.0.0.1:9\"\nhosts = [\"a\"]\n[log]\nlevel = \"info,a=debug\"\nformat = \"json\"\n",
            "ttl = \"30s\"\nendpoints = [\"a:1\"]\n",
            "lisen = 1",
        ],
        "config_yaml" => &[
            "admin: {listen: '127.0.0.1:9', hosts: [a]}\nlog:\n  level: info\n  format: text\n",
            "ttl: 15m\nendpoints:\n  - a:1\n",
            "a: &a [*a]",
            "lisen: 1",
        ],
        _ => &[],
    };
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Every kind of value that the programs' own files hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    admin: Admin,
    log: Log,
    #[serde(deserialize_with = "duration::deserialize")]
    ttl: Duration,
    endpoints: Vec<String>,
}

impl Default for Sample {
    fn default() -> Self {
        Self { admin: Admin::default(), log: Log::default(), ttl: Duration::from_secs(1), endpoints: Vec::new() }
    }
}

pub fn config_toml(data: &[u8]) {
    config("c.toml", data);
}

pub fn config_yaml(data: &[u8]) {
    config("c.yaml", data);
}

/// A value, or an error that names the file and is no longer than what a person reads.
fn config(name: &str, data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match parse::<Sample>(Path::new(name), text) {
        Ok(sample) => {
            let _ = sample.log.check();
            let held = sample.admin.hosts.iter().chain(&sample.endpoints).map(String::len).sum::<usize>();
            assert!(held <= 64 * text.len(), "{held} bytes came of {}", text.len());
        }
        Err(ConfigError::Parse { path, message }) => {
            assert_eq!(path, Path::new(name));
            assert!(!message.is_empty() && message.len() < 4096 + 4 * text.len(), "{} bytes", message.len());
        }
        Err(other) => panic!("{other}"),
    }
}
