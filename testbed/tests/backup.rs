//! A cluster loses its store and gets it back from a backup: what it said since comes back from the others, it writes on in
//! a new epoch, and nobody ever sees two records at one place. And what a backup, or a restore that is killed, never does.
//!
//! `HANSE_BACKUP_STATES=N` restores so many random states instead of ten, `HANSE_SEED=N` repeats them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use federation_identity::seal::Kek;
use federation_store::{Change, Key, Kind, Store, open_sled};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use testbed::worlds::{Answer, CONVERGE, Cluster, Failure, Plan, Process, World, hanse, link, until};
use tokio::time::{Instant, sleep};

/// Life of SVIDs where a root is rotated: the old one stays for that long.
const TTL: Duration = Duration::from_secs(4);
/// Rows of the large store, and how long its restore may take.
const ROWS: u32 = 100_000;
const RESTORE_LIMIT: Duration = Duration::from_secs(60);
/// Restores of it that are killed on the way, for each ten random states.
const KILLS: u64 = 4;

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary folder's path is not UTF-8")
}

fn store_of(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("data/store")
}

async fn back_up(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let file = cluster.folder().join(name);
    cluster.run(&["backup", "create", "-o", text(&file)?]).await?;
    Ok(file)
}

async fn try_restore(cluster: &Cluster, file: &Path) -> Result<Answer> {
    cluster.ask(&["backup", "restore", text(file)?, "--config", text(cluster.config())?]).await
}

/// Takes the store from a gateway that was killed, as a dead disk would, and restores it. Returns what was said.
async fn restore(cluster: &Cluster, file: &Path) -> Result<String> {
    std::fs::remove_dir_all(cluster.folder().join("data"))?;
    let answer = try_restore(cluster, file).await?;
    ensure!(answer.code == 0, "exit code {}: {}", answer.code, answer.words);
    Ok(answer.words)
}

/// Source and action of every rule, and the place in which its record stands.
async fn rules(cluster: &Cluster) -> Result<BTreeMap<(String, String), String>> {
    let rules = cluster.list(&["intention", "list"], "intentions").await?;
    let word = |rule: &Value, field: &str| rule[field].as_str().unwrap_or_default().to_owned();
    Ok(rules.iter().map(|rule| ((word(rule, "source"), word(rule, "action")), word(rule, "id"))).collect())
}

/// Writes a rule of west; the epoch of its record.
async fn write(west: &Cluster, verb: &str, source: &str) -> Result<u64> {
    let reply = west.json(&["intention", verb, source, "payments.billing.west"]).await?;
    let id = reply["intention"]["id"].as_str().context("an id")?;
    let place = id.rsplit('/').next().and_then(|place| place.split('.').next()).context("a place")?;
    place.parse().with_context(|| format!("the epoch in {id}"))
}

/// Waits until all have the same rules, `wanted` of west's among them.
async fn until_agreed(clusters: &[&Cluster], wanted: &[(&str, &str)]) -> Result<()> {
    until("all have the same rules", CONVERGE, async || {
        let first = rules(clusters[0]).await?;
        for cluster in &clusters[1..] {
            let found = rules(cluster).await?;
            ensure!(found == first, "{} has {found:?}, {} has {first:?}", cluster.name, clusters[0].name);
        }
        for (source, action) in wanted {
            let key = (format!("{source}.west"), (*action).to_owned());
            let key_any = (format!("{source}.*"), (*action).to_owned());
            ensure!(first.contains_key(&key) || first.contains_key(&key_any), "{source} {action} is not in {first:?}");
        }
        Ok(())
    })
    .await
}

async fn until_up(cluster: &Cluster, others: &[&str]) -> Result<()> {
    until(&format!("{}'s links are up", cluster.name), CONVERGE * 2, async || {
        for other in others {
            let state = cluster.link_state(other).await?;
            ensure!(state == "up", "that with {other} is {state}");
        }
        Ok(())
    })
    .await
}

fn no_alarm(clusters: &[&Cluster]) -> Result<()> {
    for cluster in clusters {
        ensure!(!cluster.output().contains("two records at one place"), "{} saw an equivocation", cluster.name);
    }
    Ok(())
}

#[tokio::test]
async fn a_restored_cluster_gets_back_what_it_said_since_and_writes_on_without_equivocation() -> Result<(), Failure> {
    World::tell(Duration::from_secs(150), async |world| {
        let (east, mut west, north) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("west").inbound()),
            Cluster::start(world, Plan::new("north").inbound()),
        )?;
        link(&[&east, &west, &north], &[]).await?;
        west.run(&["service", "register", "payments.billing", "--port", "8080"]).await?;
        west.run(&["service", "export", "payments.billing"]).await?;
        for number in 0..5 {
            write(&west, "allow", &format!("w{number}.shop")).await?;
        }
        east.until_check("w0.shop.west", "payments.billing.west", true).await?;
        let (used, open) = (west.token("south", &[]).await?, west.token("late", &[]).await?);
        let enrol = west.run(&["workload", "token", "web.shop"]).await?;
        ensure!(!enrol.is_empty(), "no workload token");
        let backup = back_up(&west, "west.hansebak").await?;

        // What happens after the backup: a rule, a deny in an allow's place, a token that is used.
        write(&west, "allow", "after.shop").await?;
        write(&west, "deny", "w0.shop").await?;
        let south = Cluster::start(world, Plan::new("south").inbound()).await?;
        south.join(&used, &[]).await?.done()?;
        east.until_check("w0.shop.west", "payments.billing.west", false).await?;
        until("all know south", CONVERGE, async || {
            ensure!(east.list(&["cluster", "list"], "clusters").await?.len() == 4, "not yet");
            Ok(())
        })
        .await?;

        // Not while it runs, not over what is there, not with another's configuration.
        try_restore(&west, &backup).await?.refused(5, &["a gateway runs on data_dir", "stop it first"])?;
        west.crash().await?;
        try_restore(&west, &backup).await?.refused(5, &["holds something already", "move it aside"])?;
        let mut foreign = Cluster::start(world, Plan::new("foreign")).await?;
        foreign.crash().await?;
        std::fs::remove_dir_all(foreign.folder().join("data"))?;
        try_restore(&foreign, &backup).await?.refused(5, &["another key", "key file"])?;
        std::fs::remove_file(foreign.folder().join("kek"))?;
        std::fs::copy(west.folder().join("kek"), foreign.folder().join("kek"))?;
        try_restore(&foreign, &backup).await?.refused(5, &["it is of cluster west", "nothing was restored"])?;
        ensure!(!foreign.folder().join("data/store").exists(), "something was restored");

        // The first time: it writes before it hears of anybody.
        let words = restore(&west, &backup).await?;
        for wanted in ["Restored west", "in epoch", "2 of `hanse link token`", "1 of `hanse workload token`"] {
            ensure!(words.contains(wanted), "the words do not hold {wanted:?}: {words}");
        }
        west.restart().await?;
        let first = write(&west, "allow", "first.shop").await?;
        ensure!(first > 1, "it writes on in epoch {first}");
        west.until_check("w0.shop.west", "payments.billing.west", false).await?;
        let everything = [("after.shop", "allow"), ("w0.shop", "deny"), ("first.shop", "allow")];
        until_agreed(&[&west, &east, &north], &everything).await?;

        // Tokens from before the backup admit nobody any more, used ones and open ones alike.
        west.token("other", &[]).await?;
        let late = Cluster::start(world, Plan::new("late").inbound()).await?;
        late.join(&open, &[]).await?.refused(5, &["invalid_token"])?;
        let again = Cluster::start(world, Plan::new("south").under("again").inbound()).await?;
        let refused = again.join(&used, &[]).await?;
        ensure!(refused.code == 5, "a used token admitted somebody: {}", refused.data);

        // The second time, from the same file, again without waiting for anybody.
        west.crash().await?;
        restore(&west, &backup).await?;
        west.restart().await?;
        let second = write(&west, "allow", "second.shop").await?;
        ensure!(second > first, "it wrote in epoch {first} and then in epoch {second}");
        let everything = [&everything[..], &[("second.shop", "allow")]].concat();
        until_agreed(&[&west, &east, &north], &everything).await?;

        // The third time without the ledger, as on another host: what members say is enough.
        west.crash().await?;
        std::fs::remove_file(west.folder().join("kek.ledger"))?;
        restore(&west, &backup).await?;
        west.restart().await?;
        until_up(&west, &["east", "north"]).await?;
        until_agreed(&[&west, &east, &north], &everything).await?;
        let third = write(&west, "allow", "third.shop").await?;
        ensure!(third > second, "it wrote in epoch {second} and then in epoch {third}");
        let everything = [&everything[..], &[("third.shop", "allow")]].concat();
        until_agreed(&[&west, &east, &north], &everything).await?;
        no_alarm(&[&east, &west, &north, &south])
    })
    .await
}

/// Sequence and roots of west's bundle, as a cluster has it in force.
async fn bundle(cluster: &Cluster) -> Result<(u64, Vec<Value>)> {
    let bundles = cluster.list(&["cert", "status"], "bundles").await?;
    let west = bundles.iter().find(|bundle| bundle["cluster"] == "west").context("no bundle of west")?;
    Ok((west["sequence"].as_u64().context("sequence")?, west["sha256"].as_array().context("roots")?.clone()))
}

#[tokio::test]
async fn a_backup_from_before_a_rotation_of_the_root_is_refused_and_lowers_no_bundle() -> Result<(), Failure> {
    World::tell(Duration::from_secs(120), async |world| {
        let (east, mut west) = tokio::try_join!(
            Cluster::start(world, Plan::new("east").inbound()),
            Cluster::start(world, Plan::new("west").inbound().svid_ttl(TTL)),
        )?;
        link(&[&east, &west], &[]).await?;
        let before = back_up(&west, "before.hansebak").await?;
        west.run(&["cert", "rotate-root", "--wait"]).await?;
        let after = back_up(&west, "after.hansebak").await?;
        let rotated = bundle(&west).await?;
        until("east has the new root alone", CONVERGE, async || {
            ensure!(bundle(&east).await? == rotated, "not yet");
            Ok(())
        })
        .await?;
        west.crash().await?;
        std::fs::remove_dir_all(west.folder().join("data"))?;
        let wanted = ["was rotated after the backup was made", "from after the rotation", "nothing was restored"];
        try_restore(&west, &before).await?.refused(5, &wanted)?;
        ensure!(!store_of(&west).exists(), "something was restored");

        // As on a host that knows nothing of it: nobody believes the old root, and no bundle changes.
        let ledger = west.folder().join("kek.ledger");
        let kept = std::fs::read(&ledger)?;
        std::fs::remove_file(&ledger)?;
        restore(&west, &before).await?;
        west.restart().await?;
        let east_refuses = until("west is told why", CONVERGE, async || {
            let links = west.list(&["link", "list"], "links").await?;
            let link = links.iter().find(|link| link["cluster"] == "east").context("no link")?;
            ensure!(link["state"] != "up", "the link is up");
            let error = link["error"].as_str().filter(|error| !error.is_empty()).context("no reason yet")?;
            Ok(error.to_owned())
        })
        .await?;
        ensure!(!east_refuses.is_empty(), "no reason");
        let status = west.json(&["status"]).await?;
        ensure!(status["problems"].to_string().contains("link with east"), "nothing is said of it: {status}");
        ensure!(bundle(&east).await? == rotated, "east took another bundle");

        // The one from after it is as good as new.
        west.crash().await?;
        std::fs::write(&ledger, kept)?;
        restore(&west, &after).await?;
        west.restart().await?;
        until_up(&west, &["east"]).await?;
        ensure!(bundle(&west).await? == rotated, "west publishes another bundle");
        west.run(&["cert", "rotate-root", "--wait"]).await?;
        let (sequence, _) = bundle(&west).await?;
        ensure!(sequence > rotated.0 + 1000, "after a restore sequences are left out, and it is {sequence}");
        until("east has it", CONVERGE, async || {
            ensure!(bundle(&east).await?.0 == sequence, "not yet");
            Ok(())
        })
        .await?;
        no_alarm(&[&east, &west])
    })
    .await
}

/// The store of a gateway that does not run.
async fn opened(cluster: &Cluster, path: &Path) -> Result<Arc<dyn Store>> {
    let kek = Kek::load(&cluster.folder().join("kek"))?;
    // A process that another test is just starting has this one's files until it becomes another program.
    until("the store is free", CONVERGE, async || Ok(open_sled(path, *kek.derive("hanse-store-mac-v1")).await?)).await
}

type Rows = BTreeMap<Key, Vec<u8>>;

/// What a restore brings back of a store: all but tokens, and the row that it adds.
async fn rows(cluster: &Cluster, path: &Path) -> Result<Rows> {
    let store = opened(cluster, path).await?;
    ensure!(store.damaged().is_empty(), "the store is damaged: {:?}", store.damaged());
    let (_, rows) = store.all().await?;
    let restored = Key::new(Kind::Local, "restored");
    // The clock of a gateway goes on after the backup.
    let clock = Key::new(Kind::Local, "link.clock");
    let kept =
        |key: &Key| !matches!(key.kind, Kind::JoinToken | Kind::WorkloadToken) && *key != restored && *key != clock;
    Ok(rows.into_iter().filter(|row| kept(&row.key)).map(|row| (row.key, row.value)).collect())
}

/// Rows of no meaning, of every length.
fn noise(random: &mut StdRng, count: u32) -> Vec<Change> {
    let mut names = BTreeSet::new();
    while names.len() < count as usize {
        names.insert(random.random::<[u8; 12]>());
    }
    let row = |name: [u8; 12]| {
        let mut value = vec![0; random.random_range(0..600)];
        random.fill(value.as_mut_slice());
        Change::put(Key::new(Kind::Local, [b"noise", name.as_slice()].concat()), value)
    };
    names.into_iter().map(row).collect()
}

#[tokio::test]
async fn random_states_come_back_row_for_row() -> Result<(), Failure> {
    let (states, seed) = (number("HANSE_BACKUP_STATES", 10), number("HANSE_SEED", rand::random()));
    World::tell(Duration::from_secs(30 + 10 * states), async |world| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut west = Cluster::start(world, Plan::new("west").inbound()).await?;
        for state in 0..states {
            let context = || format!("state {state}, seed {seed}");
            for rule in 0..random.random_range(0..6) {
                let verb = if random.random() { "allow" } else { "deny" };
                write(&west, verb, &format!("r{rule}.shop")).await?;
            }
            west.crash().await?;
            let path = store_of(&west);
            let count = random.random_range(0..3000);
            let store = opened(&west, &path).await?;
            store.apply(noise(&mut random, count)).await?;
            drop(store);
            west.restart().await.with_context(context)?;
            let file = back_up(&west, &format!("state{state}.hansebak")).await.with_context(context)?;
            west.crash().await?;
            let wanted = rows(&west, &path).await?;
            restore(&west, &file).await.with_context(context)?;
            let found = rows(&west, &path).await?;
            ensure!(found == wanted, "{}: {} rows came back of {}", context(), found.len(), wanted.len());
            west.restart().await.with_context(context)?;
            std::fs::remove_file(file)?;
        }
        println!("{{\"states\":{states},\"seed\":{seed},\"equal\":{states}}}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_large_store_is_back_in_time_and_a_killed_restore_leaves_all_or_nothing() -> Result<(), Failure> {
    World::tell(Duration::from_secs(900), async |world| {
        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut west = Cluster::start(world, Plan::new("west").inbound()).await?;
        write(&west, "allow", "web.shop").await?;
        west.crash().await?;
        let path = store_of(&west);
        let store = opened(&west, &path).await?;
        let noise = noise(&mut random, ROWS);
        for batch in noise.chunks(4096) {
            store.apply(batch.to_vec()).await?;
        }
        drop((store, noise));
        west.restart().await?;
        let start = Instant::now();
        let file = back_up(&west, "west.hansebak").await?;
        let backed_up = start.elapsed();
        west.crash().await?;
        let wanted = rows(&west, &path).await?;
        let start = Instant::now();
        restore(&west, &file).await?;
        let restored = start.elapsed();
        ensure!(rows(&west, &path).await? == wanted, "other rows came back");
        ensure!(restored <= RESTORE_LIMIT, "the restore took {restored:?}, {RESTORE_LIMIT:?} are allowed");
        let bytes = file.metadata()?.len();
        println!(
            "{{\"rows\":{},\"bytes\":{bytes},\"backup_s\":{backed_up:?},\"restore_s\":{restored:?}}}",
            wanted.len()
        );

        let (mut whole, kills) = (0, KILLS * number("HANSE_BACKUP_STATES", 10) / 10);
        for kill in 0..kills {
            std::fs::remove_dir_all(west.folder().join("data"))?;
            let mut restoring = tokio::process::Command::new(hanse())
                .args(["backup", "restore", text(&file)?, "--config", text(west.config())?])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            // The last one near the end, where the store is put in its place.
            let share = if kill + 1 == kills { 0.98 } else { random.random_range(0.02..1.0) };
            sleep(restored.mul_f64(share)).await;
            restoring.kill().await?;
            until("its signer is gone with it", CONVERGE, async || {
                let locked = std::fs::File::open(west.folder().join("data"))?;
                locked.try_lock().context("data_dir is held")?;
                Ok(())
            })
            .await?;
            if path.exists() {
                whole += 1;
                ensure!(rows(&west, &path).await? == wanted, "kill {kill}, seed {seed}: a part was restored");
            } else if west.folder().join("data/store.restoring").exists() {
                // Nothing is founded in its place.
                let config = text(west.config())?;
                let log = west.folder().join("refused.log");
                let mut refused =
                    Process::start(west.executable(), "a gateway", &["gateway", "--config", config], &log)?;
                ensure!(!refused.ended().await?.success(), "a gateway started where a restore was under way");
                ensure!(refused.output().contains("was interrupted"), "it does not say why: {}", refused.output());
                ensure!(!path.exists(), "a store was made");
            }
        }
        println!("{{\"kills\":{kills},\"whole\":{whole},\"seed\":{seed}}}");
        // And then it works all the same.
        restore(&west, &file).await?;
        ensure!(rows(&west, &path).await? == wanted, "other rows came back");
        west.restart().await?;
        until_agreed(&[&west], &[("web.shop", "allow")]).await
    })
    .await
}

#[tokio::test]
async fn a_damaged_backup_is_refused_with_the_place_and_shown_for_what_it_is() -> Result<(), Failure> {
    World::tell(Duration::from_secs(60), async |world| {
        let mut west = Cluster::start(world, Plan::new("west").inbound()).await?;
        write(&west, "allow", "web.shop").await?;
        let file = back_up(&west, "west.hansebak").await?;
        let config = text(west.config())?.to_owned();
        let shown = west.json(&["backup", "show", text(&file)?]).await?;
        let status = west.json(&["status"]).await?;
        ensure!(shown["cluster_id"] == status["cluster_id"] && shown["content"].is_null(), "{shown}");
        let shown = west.json(&["backup", "show", text(&file)?, "--config", &config]).await?;
        ensure!(shown["content"]["cluster"] == "west" && shown["content"]["rows"]["own"] == 1, "{shown}");
        let records = shown["content"]["rows"]["record"].as_u64().context("records")?;
        ensure!(records == 4, "founding, terms, bundle and a rule, not {records}");

        west.crash().await?;
        std::fs::remove_dir_all(west.folder().join("data"))?;
        let whole = std::fs::read(&file)?;
        // Nobody's names are legible in it.
        for word in ["west", "shop", "payments", "mesh.internal"] {
            ensure!(!whole.windows(word.len()).any(|found| found == word.as_bytes()), "{word} is legible");
        }
        let spoilt = west.folder().join("spoilt.hansebak");
        let flipped = |place: usize| {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x10;
            bytes
        };
        let mut future = whole.clone();
        future[11] = 2;
        for (bytes, wanted) in [
            (flipped(40), "its head was changed (bytes 0 to "),
            (flipped(whole.len() / 2), "chunk 0 at byte "),
            (flipped(whole.len() - 1), "the signature at byte "),
            (whole[..whole.len() / 2].to_vec(), "in the middle: the copy is not whole"),
            ([whole.as_slice(), b"x"].concat(), "there is more behind its end at byte "),
            (future, "it has format 2, this version reads format 1"),
            (b"PK\x03\x04 something else".to_vec(), "it is no backup"),
        ] {
            std::fs::write(&spoilt, bytes)?;
            for verb in ["restore", "show"] {
                let answer = west.ask(&["backup", verb, text(&spoilt)?, "--config", &config]).await?;
                answer.refused(5, &[wanted, "spoilt.hansebak"]).with_context(|| verb.to_owned())?;
            }
            ensure!(!store_of(&west).exists(), "something was restored: {wanted}");
            ensure!(!west.folder().join("data/store.restoring").exists(), "something is left over: {wanted}");
        }
        // Without the key file there is no way, and none is made in its place.
        std::fs::rename(west.folder().join("kek"), west.folder().join("kek.away"))?;
        try_restore(&west, &file).await?.refused(5, &["kek_file", "put it back"])?;
        ensure!(!west.folder().join("kek").exists(), "a key file was made");
        std::fs::rename(west.folder().join("kek.away"), west.folder().join("kek"))?;
        restore(&west, &file).await?;
        west.restart().await?;
        until_agreed(&[&west], &[("web.shop", "allow")]).await
    })
    .await
}

#[tokio::test]
async fn copies_by_the_clock_are_whole_and_only_the_newest_stay() -> Result<(), Failure> {
    World::tell(Duration::from_secs(60), async |world| {
        let folder = world.folder("copies")?;
        let backup = format!("[backup]\ndirectory = {folder:?}\nevery = \"1s\"\nkeep = 3");
        std::fs::write(folder.join("west-notes.hansebak"), "somebody's own")?;
        let mut west = Cluster::start(world, Plan::new("west").with(&backup)).await?;
        write(&west, "allow", "web.shop").await?;
        let listed = || -> Result<BTreeSet<PathBuf>> {
            Ok(std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
        };
        let mut seen = BTreeSet::new();
        until("five copies were made", CONVERGE, async || {
            seen.extend(listed()?.into_iter().filter(|path| {
                !path.ends_with("west-notes.hansebak") && path.extension().is_some_and(|end| end == "hansebak")
            }));
            ensure!(seen.len() >= 5, "{} so far", seen.len());
            Ok(())
        })
        .await?;
        west.crash().await?;
        let left: Vec<_> =
            listed()?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "hansebak")).collect();
        ensure!(left.len() <= 5 && left.contains(&folder.join("west-notes.hansebak")), "{left:?}");
        let newest = left.iter().rfind(|path| !path.ends_with("west-notes.hansebak")).context("a copy")?;
        restore(&west, newest).await?;
        west.restart().await?;
        until_agreed(&[&west], &[("web.shop", "allow")]).await
    })
    .await
}
