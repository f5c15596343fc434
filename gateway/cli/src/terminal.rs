//! Where the verbs read and write: the process's own streams, or a test's.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    path::Path,
    time::SystemTime,
};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

/// Most bytes that are read of a file which should hold a token.
pub const TOKEN_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The streams of one run.
pub struct Terminal<'a> {
    /// Data.
    pub out: &'a mut (dyn Write + Send),
    /// Words.
    pub err: &'a mut (dyn Write + Send),
    pub input: &'a mut (dyn Read + Send),
    /// Whether `input` is a person who can be asked.
    pub asks: bool,
    /// Whether `out` takes colours: a terminal, and `NO_COLOR` (no-color.org) is not set.
    pub colour: bool,
    pub now: SystemTime,
}

impl Terminal<'_> {
    /// Runs `verb` on the process's own streams.
    pub(crate) async fn real<T>(verb: impl AsyncFnOnce(&mut Terminal<'_>) -> T) -> T {
        let (mut out, mut err, mut input) = (io::stdout(), io::stderr(), io::stdin());
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let (asks, colour) = (input.is_terminal(), out.is_terminal() && !plain);
        let mut terminal =
            Terminal { out: &mut out, err: &mut err, input: &mut input, asks, colour, now: SystemTime::now() };
        verb(&mut terminal).await
    }

    /// Writes data. Nobody is left to tell when the reader has gone.
    pub(crate) fn data(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    /// Writes one line of words.
    pub(crate) fn say(&mut self, words: &str) {
        let _ = writeln!(self.err, "{words}");
    }

    /// `text` in an ANSI colour, if colours are wanted.
    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Says what is about to happen and asks whether it should; anything but `yes` is no. Where nobody can be asked, no.
    ///
    /// # Errors
    /// Nobody can be asked, or standard input cannot be read.
    pub(crate) fn confirm(&mut self, what: &str) -> Result<bool, String> {
        self.say(what);
        if !self.asks {
            return Err("nobody can be asked here: say --yes if that is what you want".into());
        }
        let _ = write!(self.err, "Type yes to go on: ");
        let _ = self.err.flush();
        let answer = line(self.input).map_err(|error| format!("cannot read the answer: {error}"))?;
        Ok(answer.trim() == "yes")
    }

    /// Reads a token from a file, from standard input (`-`, or nobody to ask), or from a person, without echo.
    ///
    /// # Errors
    /// One line that says what could not be read and what to do.
    pub(crate) fn token(&mut self, file: Option<&Path>) -> Result<String, String> {
        let text = match file {
            Some(path) if path != Path::new("-") => {
                let fix = "give the file that holds what `hanse link token` printed, or '-' for standard input";
                let wrong = |error: io::Error| format!("cannot read the token from {}: {error}; {fix}", path.display());
                read(fs::File::open(path).map_err(wrong)?).map_err(wrong)?
            }
            None if self.asks => {
                let _ = write!(self.err, "Join token (what `hanse link token` printed on the other cluster): ");
                let _ = self.err.flush();
                let text = quietly(|| line(self.input)).map_err(|error| format!("cannot read the token: {error}"))?;
                self.say("");
                text
            }
            _ => read(&mut *self.input).map_err(|error| format!("cannot read the token from stdin: {error}"))?,
        };
        let token = text.trim();
        if token.is_empty() {
            return Err("no token was given: run `hanse link token` on a member and pass on what it prints".into());
        }
        Ok(token.to_owned())
    }
}

fn read(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(TOKEN_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TOKEN_FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 64 KiB, so it holds no token"));
    }
    Ok(text)
}

/// One line; a terminal hands them over one by one.
fn line(from: &mut (dyn Read + Send)) -> io::Result<String> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while bytes.len() < TOKEN_FILE_BYTES_MAX as usize {
        let count = from.read(&mut piece)?;
        let read = piece.get(..count).unwrap_or_default();
        match read.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                bytes.extend(read.iter().take(end));
                break;
            }
            None if read.is_empty() => break,
            None => bytes.extend(read),
        }
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Runs `ask` while the terminal on standard input, if it is one, does not show what is typed.
fn quietly<T>(ask: impl FnOnce() -> T) -> T {
    let stdin = io::stdin();
    let before = tcgetattr(stdin.as_fd()).ok();
    if let Some(before) = &before {
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        let _ = tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &hidden);
    }
    let answer = ask();
    if let Some(before) = &before {
        let _ = tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, before);
    }
    answer
}
