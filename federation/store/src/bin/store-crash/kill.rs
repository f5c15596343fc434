//! Kill -9 at any instant.
//!
//! A child writes and says before each apply what it intends, and after it that it was acknowledged, on a pipe. The
//! parent kills it and opens a copy of what it left: every acknowledged write must be there, and of the applies under
//! way each must be there whole or not at all. The original is never opened by the parent, so that the next child
//! starts on exactly what the kill left, and may be killed on it again.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use federation_store::{Change, Expect, Key, Kind, Revision, Store};

use crate::{
    Options,
    world::{Random, copy, open, value},
};

/// Writers at once in the child, so that they share flushes.
const WRITERS: u64 = 4;
/// Keys of each writer.
const KEYS: u64 = 40;
const EARLY: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_millis(300);

/// One writer's rows: name to the operation that wrote it.
type Rows = BTreeMap<String, u64>;

/// What the parent knows of one writer.
#[derive(Default)]
struct Writer {
    acknowledged: Rows,
    /// The rows as they will be if the apply under way was made.
    intended: Option<Rows>,
}

#[derive(Default)]
struct Tally {
    kills_early: u64,
    killed_before_open: u64,
    acked: u64,
    lost: u64,
    failed_opens: u64,
    damaged: u64,
    bytes_max: u64,
}

pub(crate) async fn campaign(options: &Options) -> Result<(), String> {
    let (cycles, seed) = (options.count, options.seed);
    let store = options.directory.join("store");
    let examined = options.directory.join("copy");
    let mut random = Random::new(seed);
    let mut writers: HashMap<u64, Writer> = HashMap::new();
    let mut tally = Tally::default();
    for cycle in 0..cycles {
        let early = cycle % 2 == 0;
        let span = if early { EARLY } else { LATE };
        let delay = Duration::from_micros(random.below(span.as_micros() as u64));
        tally.kills_early += u64::from(early);
        run_and_kill(&store, seed, cycle, delay, &mut writers, &mut tally)?;
        copy(&store, &examined).map_err(|error| format!("copy: {error}"))?;
        if let Err(problem) = examine(&examined, &mut writers, &mut tally).await {
            eprintln!("cycle {cycle}, seed {seed}: {problem}; the store is in {}", store.display());
            break;
        }
        tally.bytes_max = tally.bytes_max.max(std::fs::metadata(store.join("rows/db")).map_or(0, |file| file.len()));
    }
    let Tally { kills_early, killed_before_open, acked, lost, failed_opens, damaged, bytes_max } = tally;
    println!(
        "{{\"cycles\":{cycles},\"seed\":{seed},\"kills_early\":{kills_early},\"killed_before_open\":{killed_before_open},\
         \"acked\":{acked},\"lost\":{lost},\"failed_opens\":{failed_opens},\"damaged\":{damaged},\
         \"bytes_max\":{bytes_max}}}"
    );
    if lost + failed_opens + damaged > 0 {
        return Err("the store broke its promise".to_owned());
    }
    std::fs::remove_dir_all(&options.directory).map_err(|error| format!("cleaning up: {error}"))
}

/// Starts a child, kills it after `delay`, and takes in what it said.
fn run_and_kill(
    store: &Path,
    seed: u64,
    cycle: u64,
    delay: Duration,
    writers: &mut HashMap<u64, Writer>,
    tally: &mut Tally,
) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(["child", "--seed", &seed.to_string(), "--start", &cycle.to_string(), "--dir"])
        .arg(store)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("child: {error}"))?;
    let output = child.stdout.take().ok_or("child has no output")?;
    let reader = thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    thread::sleep(delay);
    child.kill().map_err(|error| format!("kill: {error}"))?;
    child.wait().map_err(|error| format!("wait: {error}"))?;
    let lines = reader.join().map_err(|_| "reader panicked")?;
    tally.killed_before_open += u64::from(!lines.iter().any(|line| line == "open"));
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["open"] => {}
            // intend <writer> <operation> <name>=put|delete …
            ["intend", writer, operation, ref changes @ ..] => {
                let writer = writers.entry(number(writer)?).or_default();
                let mut rows = writer.acknowledged.clone();
                for change in changes {
                    match change.split_once('=') {
                        Some((name, "put")) => _ = rows.insert(name.to_owned(), number(operation)?),
                        Some((name, _)) => _ = rows.remove(name),
                        None => return Err(format!("child said {line:?}")),
                    }
                }
                writer.intended = Some(rows);
            }
            ["done", writer] => {
                let writer = writers.entry(number(writer)?).or_default();
                writer.acknowledged = writer.intended.take().ok_or("done without intent")?;
                tally.acked += 1;
            }
            ["refused", ..] => {
                tally.failed_opens += 1;
                return Err(format!("cycle {cycle}: {line}"));
            }
            // The kill cut a line: what it announced was not begun, or was not acknowledged.
            _ if !line.starts_with("failed") => {}
            _ => return Err(format!("cycle {cycle}: child {line}")),
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("child said {text:?} where a number belongs"))
}

/// Opens what a kill left and compares it with what was acknowledged.
async fn examine(path: &Path, writers: &mut HashMap<u64, Writer>, tally: &mut Tally) -> Result<(), String> {
    let store = open(path).await.map_err(|error| {
        tally.failed_opens += 1;
        error.to_string()
    })?;
    if let Some(damage) = store.damaged().first() {
        tally.damaged += 1;
        return Err(damage.to_string());
    }
    let listed = store.list(Kind::Record, b"").await.map_err(|error| error.to_string())?;
    let mut found: HashMap<u64, Rows> = HashMap::new();
    for row in listed {
        let name = String::from_utf8_lossy(&row.key.name).into_owned();
        let operation = row.value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if row.value != value(operation, &name) {
            tally.lost += 1;
            return Err(format!("row {name} holds something that was never written"));
        }
        let writer = name.split('/').next().unwrap_or_default();
        found.entry(number(writer)?).or_default().insert(name, operation);
    }
    for (number, writer) in writers.iter_mut() {
        let found = found.remove(number).unwrap_or_default();
        let intended = writer.intended.take();
        if found != writer.acknowledged && intended.as_ref() != Some(&found) {
            let wanted = &writer.acknowledged;
            tally.lost += wanted.iter().filter(|(name, operation)| found.get(*name) != Some(operation)).count() as u64;
            tally.lost = tally.lost.max(1);
            return Err(format!("writer {number}: found {found:?}, acknowledged {wanted:?}, under way {intended:?}"));
        }
        writer.acknowledged = found;
    }
    if !found.is_empty() {
        tally.lost += 1;
        return Err(format!("rows of nobody: {found:?}"));
    }
    Ok(())
}

/// The child: opens the store and writes until it is killed.
pub(crate) async fn child(options: &Options) -> Result<(), String> {
    let store = match open(&options.directory).await {
        Ok(store) => store,
        Err(error) => {
            say(&format!("refused {error}"));
            return Err(error.to_string());
        }
    };
    if let Some(damage) = store.damaged().first() {
        say(&format!("refused {damage}"));
        return Err(damage.to_string());
    }
    say("open");
    let rows = store.list(Kind::Record, b"").await.map_err(|error| error.to_string())?;
    let revisions: HashMap<Vec<u8>, Revision> = rows.into_iter().map(|row| (row.key.name, row.revision)).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let seed = options.seed ^ (options.start << 20) ^ (writer << 56);
            tokio::spawn(write(Arc::clone(&store), writer, options.start, Random::new(seed), revisions.clone()))
        })
        .collect();
    for writer in writers {
        if let Ok(Err(problem)) = writer.await {
            say(&format!("failed {problem}"));
            return Err(problem);
        }
    }
    Ok(())
}

async fn write(
    store: Arc<dyn Store>,
    writer: u64,
    start: u64,
    mut random: Random,
    mut revisions: HashMap<Vec<u8>, Revision>,
) -> Result<(), String> {
    for step in 0..100_000 {
        let operation = (start << 24) | step;
        let mut names: Vec<_> = (0..=random.below(4)).map(|_| format!("{writer}/{}", random.below(KEYS))).collect();
        names.sort();
        names.dedup();
        let mut said = format!("intend {writer} {operation}");
        let mut changes = Vec::new();
        for name in &names {
            let key = Key::new(Kind::Record, name.as_bytes());
            let delete = random.below(5) == 0;
            let change = if delete { Change::delete(key) } else { Change::put(key, value(operation, name)) };
            let expected = revisions.get(name.as_bytes()).map_or(Expect::Absent, |revision| Expect::Is(*revision));
            said += &format!(" {name}={}", if delete { "delete" } else { "put" });
            changes.push(change.expecting(expected));
        }
        say(&said);
        let deleted: Vec<_> = changes.iter().map(|change| matches!(change, Change::Delete { .. })).collect();
        let revision = store.apply(changes).await.map_err(|error| error.to_string())?;
        say(&format!("done {writer}"));
        for (name, deleted) in names.into_iter().zip(deleted) {
            if deleted {
                revisions.remove(name.as_bytes());
            } else {
                revisions.insert(name.into_bytes(), revision);
            }
        }
    }
    Ok(())
}

/// One line in one write, so that lines of several writers do not mix and a kill loses none that was said.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    // Nobody listens any more once the parent has gone; then the kill comes too.
    _ = output.write_all(format!("{line}\n").as_bytes()).and_then(|()| output.flush());
}
