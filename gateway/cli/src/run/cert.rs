//! `hanse cert …`: certificates, bundles, and the rotation of the root with its progress.

use std::{path::Path, time::Duration};

use proto::manage;
use tokio::time::{Instant, sleep};

use super::{Failure, print};
use crate::{Client, Terminal, exit, show, verbs::CertVerb};

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
        CertVerb::RotateRoot { without, abort, wait, output } => {
            let mut reply = match abort {
                true => client.abort_rotation().await?,
                false => client.rotate_root(&without).await?,
            };
            if wait {
                reply.rotation = Some(ended(socket, reply.rotation.unwrap_or_default(), terminal).await?);
            }
            print(terminal, output, &reply, |terminal| {
                reply.rotation.as_ref().map_or_else(String::new, |rotation| show::rotation(rotation, terminal.now))
            })?;
        }
    }
    Ok(exit::DONE)
}

/// Says each change until the rotation has ended.
async fn ended(
    socket: &Path,
    mut rotation: manage::Rotation,
    terminal: &mut Terminal<'_>,
) -> Result<manage::Rotation, Failure> {
    let mut said = String::new();
    let mut heard = Instant::now();
    while rotation.ended_at_ms == 0 {
        let progress = show::rotation(&rotation, terminal.now);
        // Ages grow with each look; what matters is who is behind.
        let steps = format!("{} {} {:?}", rotation.phase, rotation.acknowledged, rotation.without);
        if steps != said {
            terminal.say(progress.trim_end());
            said = steps;
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
    Ok(rotation)
}

async fn look(socket: &Path) -> Result<manage::CertStatusReply, Failure> {
    Ok(Client::connect(socket).await?.cert_status().await?)
}
