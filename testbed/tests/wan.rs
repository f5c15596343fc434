//! The emulated WAN with real namespaces. Needs root and TUN, so `cargo test` leaves it out; `cargo test -p testbed --features
//! root --test wan` runs it, and `.ci/run` does.

use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::netns::{Change, Schedule, Site, Wan, round_trips};

const LIMIT: Duration = Duration::from_millis(200);

fn wan(clusters: [&str; 2], links: &[Change]) -> Result<(Wan, Site, Site)> {
    let wan = Wan::start(Schedule::new(clusters.map(str::to_owned).to_vec(), links, Vec::new())?, 7)?;
    let [a, b] = [0, 1].map(|number| wan.sites()[number].clone());
    Ok((wan, a, b))
}

fn delay(ms: u64) -> Change {
    Change { delay: Some(Duration::from_millis(ms)), ..Change::default() }
}

#[test]
fn round_trips_take_twice_the_delay_over_ipv4_and_ipv6() -> Result<()> {
    let (wan, a, b) = wan(["delay-a", "delay-b"], &[delay(20)])?;
    for six in [false, true] {
        for trip in round_trips((&a, &b), six, 20, 1_500, LIMIT)? {
            let trip = trip.ok_or_else(|| anyhow::anyhow!("a packet was lost: {:?}", wan.figures()))?;
            ensure!(trip >= Duration::from_millis(40), "{trip:?} is too fast");
        }
    }
    Ok(())
}

#[test]
fn a_cut_of_one_way_a_hole_and_loss_swallow_packets_and_a_reset_heals() -> Result<()> {
    let (wan, a, b) = wan(["holes-a", "holes-b"], &[delay(1)])?;
    let came = |bytes| -> Result<usize> {
        Ok(round_trips((&a, &b), false, 10, bytes, Duration::from_millis(50))?.iter().flatten().count())
    };
    let only_back = Change { cut: Some(true), one_way: true, ..Change::default() };
    wan.change(&only_back.between(std::slice::from_ref(&b.cluster), std::slice::from_ref(&a.cluster)))?;
    ensure!(came(100)? == 0, "an echo came through a cut");
    ensure!(wan.figures().counts.delivered >= 10, "the way there was not cut");
    wan.change(&Change { reset: true, mtu: Some(1_280), ..Change::default() })?;
    ensure!((came(1_281)?, came(1_280)?) == (0, 10), "the hole swallows what is larger, and only that");
    wan.change(&Change { reset: true, loss: Some(1.0), ..Change::default() })?;
    ensure!(came(100)? == 0, "an echo came although all is lost");
    wan.change(&Change { reset: true, ..Change::default() })?;
    ensure!(came(1_500)? == 10, "it healed");
    Ok(())
}

#[test]
fn leaves_no_namespace_behind_and_takes_none_that_exists() -> Result<()> {
    let (wan, a, _) = wan(["once-a", "once-b"], &[])?;
    let again = Schedule::new(vec!["once-b".into()], &[], Vec::new())?;
    let refused = Wan::start(again, 1).err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("ip netns del hanse-once-b"), "{refused:?}");
    let path = std::path::Path::new("/run/netns").join(&a.namespace);
    ensure!(path.exists());
    wan.stop()?;
    ensure!(!path.exists(), "{} is still there", path.display());
    Ok(())
}
