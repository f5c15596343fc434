//! How long members take to agree again after the WAN between two halves of them was broken.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use testbed::netns::Change;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    federation::Federation,
    figures::{milliseconds, spread},
    member::Operator,
};

/// Pause between two looks at one member.
const LOOK: Duration = Duration::from_millis(20);
/// Intentions that each half writes, evenly over the time of the partition.
const WRITES: u32 = 4;
/// How long agreeing again may take at all.
const LIMIT: Duration = Duration::from_secs(180);
/// How long it may take.
const BAR: Duration = Duration::from_secs(5);
/// IP packets larger than this many bytes vanish in a hole: less than the internet's usual 1,500, enough for any QUIC
/// packet before it has probed for more (RFC 9000, 14).
const HOLE_BYTES: usize = 1_280;

/// How the WAN between the halves is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Nothing passes.
    Full,
    /// Nothing passes from the first half to the second.
    OneWay,
    /// Large packets vanish.
    Hole,
}

impl Kind {
    fn change(self) -> Change {
        let nothing = Change::default();
        match self {
            Self::Full => Change { cut: Some(true), ..nothing },
            Self::OneWay => Change { cut: Some(true), one_way: true, ..nothing },
            Self::Hole => Change { mtu: Some(HOLE_BYTES), ..nothing },
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::OneWay => "one-way",
            Self::Hole => "hole",
        }
    }
}

/// Breaks the WAN for `length` while both halves write, heals it, and says how long it took until all list the same law.
pub(crate) async fn tell(
    federation: &Federation,
    kind: Kind,
    rtt: Duration,
    length: Duration,
    series: usize,
) -> Result<(bool, Value)> {
    federation.until_linked(LIMIT).await?;
    let members: Vec<&Operator> = federation.operators().collect();
    let (one, other) = members.split_at(members.len() / 2);
    let (writers, names) = ([one, other].map(|half| half.first()), [one, other].map(names));
    let [Some(first), Some(second)] = writers else { anyhow::bail!("a half has no member") };

    let started = Instant::now();
    let [of_one, of_other] = &names;
    federation.wan.change(&kind.change().between(of_one, of_other))?;
    let mut written: [BTreeSet<String>; 2] = Default::default();
    for write in 0..WRITES {
        for (writer, of_half) in [first, second].into_iter().zip(&mut written) {
            let source = format!("cut{series}-{write}.shop.{}", writer.cluster);
            of_half.insert(writer.write(&source, &federation.service, "allow").await?);
        }
        sleep_until(started + length * (write + 1) / WRITES).await;
    }
    let [by_one, by_other] = &written;
    // A cut that lets records pass is none. Against a cut of one way they may pass until the session dies of it.
    if kind != Kind::Hole {
        none_knows(other, by_one).await?;
    }
    if kind == Kind::Full {
        none_knows(one, by_other).await?;
    }
    let written: BTreeSet<String> = by_one | by_other;
    let mut knowing = 0;
    for member in &members {
        knowing += usize::from(written.is_subset(&member.law().await?));
    }

    federation.wan.change(&Change { reset: true, delay: Some(rtt / 2), ..Change::default() })?;
    let healed = Instant::now();
    let mut looking = JoinSet::new();
    for member in &members {
        let look = knows((*member).clone(), written.clone(), healed);
        looking.spawn(async move { timeout(LIMIT, look).await });
    }
    let mut took = Vec::new();
    while let Some(known) = looking.join_next().await {
        took.push(known?.with_context(|| format!("not everybody knows every intention within {LIMIT:?}"))??);
    }
    let agreed = agree(&members, healed).await?;
    federation.until_linked(LIMIT).await?;
    let linked = healed.elapsed();
    let held = agreed <= BAR;
    let told = json!({
        "story": "partition",
        "kind": kind.word(),
        "members": members.len(),
        "rtt_ms": milliseconds(rtt),
        "seconds": length.as_secs(),
        "written": written.len(),
        "knew_before_heal": knowing,
        "agreed_ms": milliseconds(agreed),
        "per_member_ms": spread(&mut took).json(),
        "linked_ms": milliseconds(linked),
        "bar_ms": milliseconds(BAR),
        "held": held,
        "wan": federation.wan.figures(),
    });
    Ok((held, told))
}

fn names(half: &[&Operator]) -> Vec<String> {
    half.iter().map(|member| member.cluster.clone()).collect()
}

async fn none_knows(half: &[&Operator], written: &BTreeSet<String>) -> Result<()> {
    for member in half {
        let known = member.law().await?.intersection(written).count();
        ensure!(known == 0, "{} knows {known} intentions that were written behind the cut", member.cluster);
    }
    Ok(())
}

/// Looks at one member until it lists all that was written, and says how long after `healed` that was.
async fn knows(member: Operator, written: BTreeSet<String>, healed: Instant) -> Result<Duration> {
    while !written.is_subset(&member.law().await?) {
        sleep(LOOK).await;
    }
    Ok(healed.elapsed())
}

/// Looks until all list the very same law, and says how long after `healed` that was.
async fn agree(members: &[&Operator], healed: Instant) -> Result<Duration> {
    while healed.elapsed() < LIMIT {
        let looked = healed.elapsed();
        let mut laws = BTreeSet::new();
        for member in members {
            laws.insert(member.law().await?);
        }
        if laws.len() == 1 {
            return Ok(looked);
        }
        sleep(LOOK).await;
    }
    anyhow::bail!("the members' laws differ {LIMIT:?} after the heal")
}
