//! `hanse cert …`: certificates, revoking them, bundles, and the rotation of the root with its progress.

use std::{path::Path, time::Duration};

use proto::manage;
use tokio::time::{Instant, sleep};

use super::{Failure, print};
use crate::{Client, Terminal, exit, format::clean, show, verbs::CertVerb};

/// The phase in which no member is waited for.
const SIGNING: &str = "signing";
/// How often the progress of a rotation is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a gateway may be away while a rotation is waited for: it goes on with it when it is back.
const AWAY_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(verb: CertVerb, socket: &Path, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(socket).await?;
    match verb {
        CertVerb::Status(output) => {
            let reply = client.cert_status().await?;
            print(terminal, output, &reply, |terminal| show::certificates(&reply, terminal.now))?;
        }
        CertVerb::RotateIntermediate(output) => {
            let reply = client.rotate_intermediate().await?;
            print(terminal, output, &reply, |terminal| show::intermediate(&reply, terminal.now))?;
        }
        CertVerb::List(output) => {
            let reply = client.cert_list().await?;
            print(terminal, output, &reply, |terminal| show::issued(&reply, terminal.now))?;
        }
        CertVerb::Revoke { serial, output } => {
            let reply = client.revoke(&serial).await?;
            print(terminal, output, &reply, |terminal| show::revocation(&reply, terminal.now))?;
        }
        CertVerb::RotateRoot { without, abort, wait, timeout, output } => {
            let mut reply = match abort {
                true => client.abort_rotation().await?,
                false => client.rotate_root(&without).await?,
            };
            let mut code = exit::DONE;
            if wait {
                let (rotation, in_time) = ended(socket, reply.rotation.unwrap_or_default(), timeout, terminal).await?;
                code = if in_time { exit::DONE } else { exit::NO };
                reply.rotation = Some(rotation);
            }
            print(terminal, output, &reply, |terminal| {
                reply.rotation.as_ref().map_or_else(String::new, |rotation| show::rotation(rotation, terminal.now))
            })?;
            return Ok(code);
        }
    }
    Ok(exit::DONE)
}

/// Says each change until the rotation has ended, or members let it wait for longer than `limit`; whether it ended.
///
/// The last phase is bounded by the clock alone: the longest life of an SVID.
async fn ended(
    socket: &Path,
    mut rotation: manage::Rotation,
    limit: Duration,
    terminal: &mut Terminal<'_>,
) -> Result<(manage::Rotation, bool), Failure> {
    let mut said = String::new();
    let (started, mut heard) = (Instant::now(), Instant::now());
    while rotation.ended_at_ms == 0 {
        let progress = show::rotation(&rotation, terminal.now);
        // Ages grow with each look; what matters is who is behind.
        let steps = format!("{} {} {:?}", rotation.phase, rotation.acknowledged, rotation.without);
        if steps != said {
            terminal.say(progress.trim_end());
            said = steps;
        }
        if rotation.phase != SIGNING && started.elapsed() >= limit {
            terminal.say(&waits_for(&rotation, limit));
            return Ok((rotation, false));
        }
        sleep(LOOK).await;
        match look(socket).await {
            Ok(reply) => {
                heard = Instant::now();
                rotation = reply.rotation.unwrap_or_default();
            }
            Err(_) if heard.elapsed() < AWAY_MAX => {}
            Err(error) => return Err(error),
        }
    }
    Ok((rotation, true))
}

/// Who is waited for, and what can be done about it.
fn waits_for(rotation: &manage::Rotation, limit: Duration) -> String {
    let waits = rotation.behind.iter().map(|laggard| &laggard.cluster).filter(|one| !rotation.without.contains(one));
    let names = waits.cloned().collect::<Vec<_>>().join(", ");
    let (limit, names) = (humantime::format_duration(limit), clean(&names));
    match names.is_empty() {
        true => format!("the rotation did not get on within {limit}; it goes on: see the gateway's log"),
        false => format!(
            "waiting for {names}: not acknowledged within {limit}; the rotation goes on when they do; `hanse cert \
             rotate-root --without CLUSTER` goes on without one, --abort gives up"
        ),
    }
}

async fn look(socket: &Path) -> Result<manage::CertStatusReply, Failure> {
    Ok(Client::connect(socket).await?.cert_status().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_named_and_who_was_left_out_is_not() {
        let laggard = |cluster: &str| manage::Laggard { cluster: cluster.into(), data_age_ms: 1 };
        let rotation = manage::Rotation {
            phase: "published".into(),
            behind: ["onprem", "north", "east\u{1b}[2J"].map(laggard).into(),
            without: vec!["north".into()],
            ..manage::Rotation::default()
        };
        let said = waits_for(&rotation, Duration::from_secs(600));
        assert!(said.contains("waiting for onprem, east") && said.contains("within 10m"), "{said}");
        assert!(!said.contains("north") && !said.contains('\u{1b}'), "{said}");
        assert!(said.contains("--without") && said.contains("--abort"), "{said}");
    }
}
