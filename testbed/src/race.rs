//! The race for a join token: many clusters that all know it, one real gateway that issued it, and kill -9 in between.
//!
//! In: how many tokens, how many that redeem each, whether the issuer's edge is killed meanwhile, a seed. Out: how often
//! a kill fell between a token's use and the answer. Never: a round in which not exactly one cluster got in.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use federation_identity::{LiveSvid, LocalSigner, SVID_TTL_DEFAULT, Signer, Svid, SvidKey, Verifier, now, seal::Kek};
use federation_link::{Incoming, Limits, Link, Options};
use federation_model::{ClusterName, MemberTerms, TrustDomain};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::worlds::{CONVERGE, Cluster, until};

/// Longest time until everybody knows whether it got in, a restart of the issuer's edge included.
const ROUND_LIMIT: Duration = Duration::from_secs(60);
/// Pause before the same is asked again.
const AGAIN: Duration = Duration::from_millis(30);
/// Latest instant of a kill after the race began: most answers are given by then.
const KILL_WITHIN: Duration = Duration::from_millis(400);

/// What a race shall be.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    /// Tokens, one after another.
    pub tokens: usize,
    /// Clusters that redeem each, all of the name that the token is for.
    pub redeemers: usize,
    /// Whether the issuer's edge is killed once in each round.
    pub kill: bool,
    /// What decides when.
    pub seed: u64,
}

/// What a race gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Rounds with one winner.
    pub rounds: usize,
    /// Refusals because somebody else had used the token.
    pub too_late: usize,
    /// Rounds in which the winner was admitted before the kill and heard of it only after.
    pub killed_before_the_answer: usize,
}

/// A cluster of this process that wants in. It lives as long as this value.
struct Redeemer {
    link: Link,
    _incoming: Incoming,
}

impl Redeemer {
    /// The trust domain is its own: of a member's, the handshake would refuse all but the member.
    async fn open(name: &str, number: usize) -> Result<Self> {
        let (name, domain): (ClusterName, TrustDomain) = (name.parse()?, format!("{name}.d{number}.test").parse()?);
        let (signer, _) = LocalSigner::generate(&domain, &name, now())?;
        let key = SvidKey::generate();
        let issued = signer.sign_svid(&domain.edge(&name), &key.csr(), SVID_TTL_DEFAULT, now())?;
        let live_svid = LiveSvid::new();
        live_svid.set(Svid::assemble(key, issued.full_chain())?);
        let options = Options {
            store: federation_store::memory(),
            candidate: signer.candidate(),
            signer: Arc::new(signer),
            live_svid,
            verifier: Verifier::new(),
            listen: None,
            advertise: Vec::new(),
            terms: MemberTerms::default(),
            limits: Limits::default(),
            seal: Arc::new(Kek::generate()),
            epoch_floor: 1,
        };
        let (link, incoming) = Link::open(options).await?;
        Ok(Self { link, _incoming: incoming })
    }

    /// Asks until it is in, or until it hears that another one is. What is lost on the way is asked again, as an
    /// operator would.
    async fn redeem(&self, token: &str, deadline: Instant) -> Result<bool> {
        loop {
            let Err(error) = self.link.join(token).await else { return Ok(true) };
            match error.reason() {
                "token_used" => return Ok(false),
                // Of one who knows the secret these would say that the token was lost or voided.
                "invalid_token" | "token_expired" | "token_burned" | "other_joiner" | "name_taken" => {
                    bail!("a good token was refused: {error}")
                }
                _ if Instant::now() > deadline => return Err(error).context("it never heard whether it is in"),
                _ => sleep(AGAIN).await,
            }
        }
    }
}

/// Runs the race against `issuer`, which accepts sessions.
///
/// # Errors
/// A round with no winner or with two, a winner whom the issuer does not know, or a world that does not work.
pub async fn run(issuer: &mut Cluster, race: Race) -> Result<Report> {
    let mut random = StdRng::seed_from_u64(race.seed);
    let mut report = Report::default();
    for number in 0..race.tokens {
        let name = format!("w{number}");
        let kill_after = race.kill.then(|| random.random_range(Duration::ZERO..KILL_WITHIN));
        let round = round(issuer, &name, race.redeemers, kill_after, &mut report);
        round.await.with_context(|| format!("token {number} of seed {}", race.seed))?;
        report.rounds += 1;
    }
    Ok(report)
}

async fn round(
    issuer: &mut Cluster,
    name: &str,
    redeemers: usize,
    kill_after: Option<Duration>,
    report: &mut Report,
) -> Result<()> {
    let token: Arc<str> = issuer.token(name, &[]).await?.into();
    let mut ready = Vec::new();
    for number in 0..redeemers {
        ready.push(Redeemer::open(name, number).await?);
    }
    let deadline = Instant::now() + ROUND_LIMIT;
    let mut racing = JoinSet::new();
    for redeemer in ready {
        let token = token.clone();
        racing.spawn(async move {
            let won = redeemer.redeem(&token, deadline).await?;
            anyhow::Ok((won, millis(), redeemer))
        });
    }
    let mut killed_at = None;
    if let Some(after) = kill_after {
        sleep(after).await;
        let edge = issuer.gateway().part("edge")?;
        kill(Pid::from_raw(edge.try_into()?), Signal::SIGKILL)?;
        killed_at = Some(millis());
        until("another edge runs", CONVERGE, async || {
            let pid = issuer.gateway().part("edge")?;
            ensure!(pid != edge, "it is still process {pid}");
            Ok(())
        })
        .await?;
        issuer.ready().await?;
    }
    let mut winners = Vec::new();
    while let Some(outcome) = racing.join_next().await {
        let (won, at, redeemer) = outcome??;
        if won {
            winners.push((redeemer.link.own(), at))
        } else {
            report.too_late += 1
        }
        redeemer.link.shutdown().await;
    }
    ensure!(winners.len() == 1, "{} of {redeemers} got in", winners.len());
    let (winner, heard_at) = winners[0];
    let members = issuer.list(&["cluster", "list"], "clusters").await?;
    let named: Vec<_> = members.iter().filter(|member| member["name"] == name).collect();
    ensure!(named.len() == 1 && named[0]["id"] == winner.to_string(), "{winner} got in, the issuer has {named:?}");
    let admitted_at = named[0]["admitted_at_ms"].as_u64().context("admitted_at_ms")?;
    report.killed_before_the_answer +=
        usize::from(killed_at.is_some_and(|killed_at| admitted_at <= killed_at && killed_at < heard_at));
    Ok(())
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
