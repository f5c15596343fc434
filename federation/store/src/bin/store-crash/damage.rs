//! Damage of a closed store's files.
//!
//! Each case copies a sound store, changes one file, and has a child open it twice (what the first start makes of the
//! damage must not look sound at the second). It must be whole, or say that it is damaged and give away no row that
//! differs, or refuse to open. A panic, a hang, an abort, or rows that differ are failures.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use federation_store::{Change, Key, Kind, StoreError};
use tokio::{process::Command, time::timeout};

use crate::{
    Options,
    world::{Random, copy, open, value},
};

/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Flip,
    Truncate,
    ZeroPage,
}

#[derive(Debug, Default)]
struct Tally {
    whole: u64,
    reported: u64,
    refused: u64,
    silent: u64,
    panicked: u64,
    hung: u64,
}

pub(crate) async fn campaign(options: &Options) -> Result<(), String> {
    let seed = options.seed;
    let mut random = Random::new(seed);
    let mut bases = Vec::new();
    for (number, rows) in [30, 400, 3000].into_iter().enumerate() {
        let path = options.directory.join(format!("base-{number}"));
        make_base(&path, rows, &mut random).await?;
        let copied = options.directory.join("expected");
        copy(&path, &copied).map_err(|error| error.to_string())?;
        let expected = kinds(&inspect_in_child(&copied).await.map_err(|fault| format!("sound store: {fault}"))?);
        bases.push((path, expected));
    }
    let mut tally = Tally::default();
    let mut failures = 0;
    for case in 0..options.count * 2 + options.count / 5 {
        let fault = if case < options.count {
            Fault::Flip
        } else if case < 2 * options.count {
            Fault::Truncate
        } else {
            Fault::ZeroPage
        };
        let (base, expected) = &bases[random.below(bases.len() as u64) as usize];
        let path = options.directory.join("case");
        copy(base, &path).map_err(|error| error.to_string())?;
        let what = spoil(&path, fault, &mut random).map_err(|error| error.to_string())?;
        for start in 0..2 {
            let problem = judge(inspect_in_child(&path).await, expected, &mut tally);
            if let Some(problem) = problem {
                failures += 1;
                let kept = options.directory.join(format!("failure-{case}"));
                copy(&path, &kept).map_err(|error| error.to_string())?;
                eprintln!("seed {seed}, case {case}, {what}, start {start}: {problem}; kept in {}", kept.display());
                break;
            }
        }
    }
    let Tally { whole, reported, refused, silent, panicked, hung } = tally;
    let (flips, pages) = (options.count, options.count / 5);
    println!(
        "{{\"flips\":{flips},\"truncations\":{flips},\"zero_pages\":{pages},\"seed\":{seed},\"starts_whole\":{whole},\
         \"starts_reported\":{reported},\"starts_refused\":{refused},\"silent\":{silent},\"panicked\":{panicked},\
         \"hung\":{hung}}}"
    );
    if failures > 0 {
        return Err("damage went unseen or unhandled".to_owned());
    }
    fs::remove_dir_all(&options.directory).map_err(|error| format!("cleaning up: {error}"))
}

/// A store with a past: rows that were overwritten and removed, over several starts.
async fn make_base(path: &Path, rows: u64, random: &mut Random) -> Result<(), String> {
    for start in 0..3 {
        let store = open(path).await.map_err(|error| error.to_string())?;
        for step in 0..rows / 10 {
            let mut changes = BTreeMap::new();
            for _ in 0..10 {
                let name = format!("{}", random.below(rows));
                let key = Key::new(Kind::ALL[random.below(5) as usize], name.as_bytes());
                let change = match random.below(6) {
                    0 => Change::delete(key.clone()),
                    _ => Change::put(key.clone(), value((start << 32) | step, &name)),
                };
                changes.insert(key, change);
            }
            store.apply(changes.into_values().collect()).await.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Changes one file of the store; most often the one that holds the rows.
fn spoil(path: &Path, fault: Fault, random: &mut Random) -> std::io::Result<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in [path.to_owned(), path.join("rows")] {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.metadata()?.len() > 0 && entry.file_name() != "lock" {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let rows = path.join("rows/db");
    let file = if random.below(4) > 0 { &rows } else { &files[random.below(files.len() as u64) as usize] };
    let handle = fs::OpenOptions::new().read(true).write(true).open(file)?;
    // Zeros at the end of the engine's file were never written: damage goes where something is.
    let length = written_length(&handle)?;
    let shown = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match fault {
        Fault::Flip => {
            let (at, bit) = (random.below(length), random.below(8));
            let mut byte = [0];
            handle.read_exact_at(&mut byte, at)?;
            handle.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
            Ok(format!("bit {bit} of byte {at} of {shown}"))
        }
        Fault::Truncate => {
            let to = random.below(length);
            handle.set_len(to)?;
            Ok(format!("{shown} cut to {to} of {length} bytes"))
        }
        Fault::ZeroPage => {
            let at = random.below(length.div_ceil(PAGE)) * PAGE;
            let zeros = vec![0; PAGE.min(length - at) as usize];
            handle.write_all_at(&zeros, at)?;
            Ok(format!("page at {at} of {shown} zeroed"))
        }
    }
}

/// Where the last byte that is not zero ends.
fn written_length(file: &fs::File) -> std::io::Result<u64> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1).max(1) as u64)
}

/// Adds the outcome to the tally, or says what is wrong with it.
fn judge(
    outcome: Result<Vec<String>, String>,
    expected: &BTreeMap<String, String>,
    tally: &mut Tally,
) -> Option<String> {
    let lines = match outcome {
        Ok(lines) => lines,
        Err(fault) if fault == "hung" => {
            tally.hung += 1;
            return Some(fault);
        }
        Err(fault) => {
            tally.panicked += 1;
            return Some(fault);
        }
    };
    if lines.iter().any(|line| line.starts_with("refused ")) {
        tally.refused += 1;
        return None;
    }
    let found = kinds(&lines);
    let differs = found.iter().any(|(kind, rows)| rows != "hidden" && Some(rows) != expected.get(kind));
    let damaged = lines.iter().any(|line| line.starts_with("damage "));
    let hidden = found.values().any(|rows| rows == "hidden");
    let written = lines.iter().any(|line| line == "written");
    if differs || found.len() != expected.len() || hidden && !damaged || damaged && written || !damaged && !written {
        tally.silent += 1;
        return Some(format!("expected {expected:?}, got {lines:?}"));
    }
    if damaged {
        tally.reported += 1
    } else {
        tally.whole += 1
    }
    None
}

/// Per kind, a hash of its rows, or "hidden".
fn kinds(lines: &[String]) -> BTreeMap<String, String> {
    let split = |line: &String| line.strip_prefix("kind ").and_then(|rest| rest.split_once(' ').map(own));
    lines.iter().filter_map(split).collect()
}

fn own((one, other): (&str, &str)) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

async fn inspect_in_child(path: &Path) -> Result<Vec<String>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    // A panic of the engine's that is caught still prints; whether the child ended well is what counts.
    command.args(["inspect", "--dir"]).arg(path).stderr(Stdio::null()).kill_on_drop(true);
    match timeout(PATIENCE, command.output()).await {
        Err(_) => Err("hung".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if !output.status.success() => Err(format!("child ended with {}", output.status)),
        Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()),
    }
}

/// The child: opens the store and says what is in it.
pub(crate) async fn inspect(options: &Options) -> Result<(), String> {
    let store = match open(&options.directory).await {
        Ok(store) => store,
        Err(error) => {
            println!("refused {error}");
            return Ok(());
        }
    };
    for kind in Kind::ALL {
        match store.list(kind, b"").await {
            Ok(rows) => {
                let mut hasher = DefaultHasher::new();
                for row in &rows {
                    (&row.key, &row.value, row.revision).hash(&mut hasher);
                }
                println!("kind {kind} {}/{:016x}", rows.len(), hasher.finish());
            }
            Err(StoreError::Damaged(_)) => println!("kind {kind} hidden"),
            Err(error) => return Err(error.to_string()),
        }
    }
    // Removing what is not there leaves the rows as they are.
    match store.apply(vec![Change::delete(Key::new(Kind::Local, "nothing"))]).await {
        Ok(_) => println!("written"),
        Err(StoreError::Damaged(_)) => {}
        Err(error) => return Err(error.to_string()),
    }
    for damage in store.damaged() {
        println!("damage {damage}");
    }
    Ok(())
}
