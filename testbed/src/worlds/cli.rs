//! One verb of the CLI, run to its end.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::process::hanse;

/// How long one verb may take; `--wait` gives up after 60 s itself.
const VERB_LIMIT: Duration = Duration::from_secs(70);

/// What a verb said, and how it ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit code: 0 done, 1 no, 2 usage, 3 unreachable, 4 not permitted, 5 failed.
    pub code: i32,
    /// Data: what a program reads.
    pub data: String,
    /// Words: what a person reads.
    pub words: String,
}

impl Answer {
    /// Runs `hanse` with `arguments` against the gateway at `socket`.
    ///
    /// # Errors
    /// It did not run, did not end in time, or was ended by a signal.
    pub async fn of(socket: &Path, arguments: &[&str]) -> Result<Self> {
        Self::by(hanse(), socket, arguments).await
    }

    /// The same by another executable.
    ///
    /// # Errors
    /// As [`Answer::of`].
    pub async fn by(executable: &Path, socket: &Path, arguments: &[&str]) -> Result<Self> {
        let running = Command::new(executable)
            .arg("--socket")
            .arg(socket)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(VERB_LIMIT, running).await.with_context(|| format!("{arguments:?} does not end"))??;
        Ok(Self {
            code: output.status.code().with_context(|| format!("{arguments:?} ended by a signal"))?,
            data: String::from_utf8(output.stdout)?,
            words: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The data, if it ended with code 0.
    ///
    /// # Errors
    /// Another code: the words say why.
    pub fn done(self) -> Result<String> {
        if self.code == 0 { Ok(self.data) } else { bail!("exit code {}: {}", self.code, self.words.trim_end()) }
    }

    /// The data as JSON, whatever the exit code.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.data)
            .with_context(|| format!("no JSON (exit code {}): {:?} {}", self.code, self.data, self.words))
    }

    /// Nothing unless it was refused with `code`, with no data, in words that hold each of `wanted`.
    ///
    /// # Errors
    /// It went otherwise.
    pub fn refused(&self, code: i32, wanted: &[&str]) -> Result<()> {
        ensure!(self.code == code, "exit code {}, {code} was expected: {}", self.code, self.words);
        ensure!(self.data.is_empty(), "a refusal has no data: {:?}", self.data);
        for text in wanted {
            ensure!(self.words.contains(text), "the words do not hold {text:?}: {}", self.words);
        }
        Ok(())
    }
}
