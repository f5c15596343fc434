//! A child of this program: asked by a line, answers with a line of JSON.
//!
//! In: its arguments. Out: answers, memory and CPU of it alone. Never: leaves it behind.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Longest wait for an answer: opening a store of thousands of records is one.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Clock ticks in a second of `/proc/PID/stat`, on every Linux that there is.
const TICKS: u64 = 100;
const PAGE_BYTES: usize = 4096;

pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    part: String,
}

impl Process {
    /// Starts this program with other arguments and waits until it says that it is ready.
    pub(super) async fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("this program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting a child")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let part = arguments.first().map(ToString::to_string).unwrap_or_default();
        let mut process = Self { child, input, output, part };
        process.answer().await?;
        Ok(process)
    }

    pub(super) async fn ask(&mut self, line: &str) -> Result<Value> {
        self.input.write_all(format!("{line}\n").as_bytes()).await.with_context(|| format!("asking {}", self.part))?;
        self.answer().await.with_context(|| format!("asked for {line:?}"))
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = timeout(ANSWER_LIMIT, self.output.next_line()).await;
        let line = line.with_context(|| format!("{} says nothing for {ANSWER_LIMIT:?}", self.part))??;
        let Some(line) = line else { bail!("{} is gone", self.part) };
        serde_json::from_str(&line).with_context(|| format!("{} says {line:?}", self.part))
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.part))
    }

    fn proc(&self, file: &str) -> Result<String> {
        let id = self.child.id().with_context(|| format!("{} is gone", self.part))?;
        std::fs::read_to_string(format!("/proc/{id}/{file}")).with_context(|| format!("/proc/{id}/{file}"))
    }

    /// Resident bytes.
    pub(super) fn resident(&self) -> Result<usize> {
        let text = self.proc("statm")?;
        let pages: usize = text.split_whitespace().nth(1).context("no resident pages")?.parse()?;
        Ok(pages * PAGE_BYTES)
    }

    /// CPU time so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let text = self.proc("stat")?;
        // The name may hold anything; what follows its last parenthesis does not.
        let (_, rest) = text.rsplit_once(')').context("no name")?;
        let ticks = |at: usize| rest.split_whitespace().nth(at).and_then(|text| text.parse::<u64>().ok());
        let (user, system) = (ticks(11).context("no user time")?, ticks(12).context("no system time")?);
        Ok(Duration::from_millis((user + system) * (1_000 / TICKS)))
    }
}
