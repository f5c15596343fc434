//! The signals that a program lives by.

use std::{fmt, io};

use tokio::signal::unix::{Signal as Stream, SignalKind, signal as listen};

/// What somebody asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGTERM: finish and go.
    Terminate,
    /// SIGINT, Ctrl-C: the same.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Reload,
}

impl Signal {
    /// Whether the process should end.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Terminate | Self::Interrupt)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Reload => "SIGHUP",
        })
    }
}

/// Listens for all of them. Make it early: until then each has its default effect, which ends the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
}

impl Signals {
    /// # Errors
    /// The operating system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

/// Waits for SIGTERM or SIGINT and says which came, for programs that do not reload.
///
/// # Errors
/// The operating system refuses a handler.
pub async fn signal() -> io::Result<Signal> {
    let mut signals = Signals::new()?;
    loop {
        let signal = signals.next().await;
        if signal.ends() {
            return Ok(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;

    fn raise(name: &str) {
        let status = Command::new("kill").args(["-s", name, &std::process::id().to_string()]).status();
        assert!(status.expect("kill is there").success());
    }

    #[tokio::test]
    async fn tells_the_signals_apart_and_which_of_them_end() {
        let mut signals = Signals::new().expect("handlers");
        for (name, expected, ends) in
            [("TERM", Signal::Terminate, true), ("HUP", Signal::Reload, false), ("INT", Signal::Interrupt, true)]
        {
            raise(name);
            let got = tokio::time::timeout(Duration::from_secs(10), signals.next()).await.expect(name);
            assert_eq!((got, got.ends(), got.to_string()), (expected, ends, format!("SIG{name}")));
        }
    }
}
