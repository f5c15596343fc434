//! Secrets as canaries: two clusters join and a workload enrols with everything logged, good tokens and bad ones, and
//! then every place that others read is searched for them.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proto::convert::parse_join_token;
use testbed::worlds::{Cluster, Failure, Plan, Workload, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(120);
/// Everything that the programs would ever say.
const LOUD: &str = "[log]\nlevel = \"trace\"";

/// A secret in every form in which it could slip out.
struct Canary {
    what: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Canary {
    fn text(what: &'static str, text: &str) -> Self {
        // Without what every token begins with, and not the end alone: a part of it is a leak too.
        let middle = text.get(40..text.len() - 8).expect("a token is longer").as_bytes().to_vec();
        Self { what, forms: vec![middle] }
    }

    fn bytes(what: &'static str, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{bytes:?}");
        // Neither bracket: the list may go on.
        let list = list.trim_matches(['[', ']']).to_owned();
        Self { what, forms: vec![bytes.to_vec(), hex.to_uppercase().into(), hex.into(), list.into()] }
    }

    fn in_bytes(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form))
    }
}

/// Every place below `folder` that holds one of the canaries: which, and the file. Counts the files.
fn leaks(folder: &Path, canaries: &[Canary], found: &mut Vec<(String, PathBuf)>) -> Result<usize> {
    let mut searched = 0;
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            searched += leaks(&path, canaries, found)?;
        } else if kind.is_file() {
            let bytes = std::fs::read(&path)?;
            searched += 1;
            let hold = canaries.iter().filter(|canary| canary.in_bytes(&bytes));
            found.extend(hold.map(|canary| (canary.what.to_owned(), path.clone())));
        }
    }
    Ok(searched)
}

/// Looks at the command line and the environment of every process of ours until told to stop.
fn watch_processes(canaries: Arc<Vec<Canary>>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(usize, Vec<String>)> {
    std::thread::spawn(move || {
        let (mut verbs, mut found) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
                let holds = |part: &[u8]| line.windows(part.len()).any(|window| window == part);
                if !holds(b"hanse") {
                    continue;
                }
                verbs += usize::from(holds(b"link\0join"));
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                let hold = canaries.iter().filter(|canary| canary.in_bytes(&line) || canary.in_bytes(&environment));
                found.extend(hold.map(|canary| format!("{} in a process: {}", canary.what, line.escape_ascii())));
            }
        }
        (verbs, found)
    })
}

async fn metrics(address: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut reply = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut reply)).await??;
    ensure!(reply.windows(8).any(|window| window == b"gateway_"), "no metrics");
    Ok(reply)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_a_log_a_store_a_metric_an_answer_or_a_command_line() -> Result<(), Failure> {
    World::tell(LIMIT, async |world| {
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let loud = format!("{LOUD}\n\n[admin]\nlisten = \"{admin}\"");
        let east = Cluster::start(world, Plan::new("east").inbound().with(&loud)).await?;
        let west = Cluster::start(world, Plan::new("west").with(LOUD)).await?;
        let late = Cluster::start(world, Plan::new("west").under("late").with(LOUD)).await?;

        let text = east.token("west", &[]).await?;
        let token = parse_join_token(&text)?;
        let kek = std::fs::read(east.folder().join("kek"))?;
        let canaries = Arc::new(vec![
            Canary::text("a token", &text),
            Canary::bytes("a token's secret", &token.secret.0),
            Canary::bytes("the key file's key", &kek),
        ]);
        let stop = Arc::new(AtomicBool::new(false));
        let watching = watch_processes(canaries.clone(), stop.clone());

        let mut said = Vec::new();
        let mut cut = text.clone();
        cut.truncate(text.len() - 3);
        for (who, token) in [(&west, &cut), (&west, &text), (&late, &text), (&west, &text)] {
            let answer = who.join(token, &[]).await?;
            said.push(format!("{} {} {}", answer.code, answer.data, answer.words));
        }
        ensure!(said.iter().filter(|answer| answer.starts_with("0 ")).count() == 1, "{said:?}");
        let clerk = Workload::by_token(world, &east, "clerk.books", None).await?;
        for arguments in
            [&["status", "-o", "json"][..], &["link", "list", "-o", "json"], &["cert", "status", "-o", "json"]]
        {
            said.push(east.run(arguments).await?);
            said.push(west.run(arguments).await?);
        }
        stop.store(true, Ordering::Relaxed);
        let (verbs, mut found) = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        ensure!(verbs > 0, "no verb was seen while it ran, so nothing was looked at");

        let root = east.folder().parent().context("the world's folder")?;
        let workload = std::fs::read_to_string(root.join("clerk.books.east/token"))?;
        let workload = [Canary::text("a workload's token", workload.trim())];
        said.push(String::from_utf8_lossy(&metrics(&admin).await?).into_owned());
        for canary in canaries.iter().chain(&workload) {
            let hold = said.iter().filter(|text| canary.in_bytes(text.as_bytes()));
            found.extend(hold.map(|text| format!("{} in {text}", canary.what)));
        }

        let mut files = Vec::new();
        let searched = leaks(root, &canaries, &mut files)? + leaks(root, &workload, &mut files)?;
        ensure!(searched > 10 && east.output().contains("TRACE"), "only {searched} files, or the logs are not loud");
        // That the search finds, these show: where operator and service manager keep the secrets.
        let kept = |path: &Path| {
            path.ends_with("join.token") || path.ends_with("east/kek") || path.ends_with("clerk.books.east/token")
        };
        let (expected, leaked): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, path)| kept(path));
        let whats: BTreeSet<_> = expected.iter().map(|(what, _)| what.as_str()).collect();
        ensure!(
            whats == BTreeSet::from(["a token", "the key file's key", "a workload's token"]),
            "the search did not find what lies there: {expected:?}"
        );
        found.extend(leaked.into_iter().map(|(what, path)| format!("{what} in {}", path.display())));
        ensure!(found.is_empty(), "{found:#?}");
        drop(clerk);
        Ok(())
    })
    .await
}
