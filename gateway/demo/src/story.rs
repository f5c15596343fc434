//! The story: what happens in the demo, in order, and the claim that each part proves.

mod federation;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use federation_link::probe::{self, Answer};
use gateway_cli::StaleArgs;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use crate::{
    browse::{self, Live, Refused},
    child::until,
    claims::{Claim, Teller},
    sockets::{Bound, bound_by_all},
    world::{SVID_TTL, Workload, World},
};

/// Every claim, in the order in which the story proves them.
pub(crate) const CLAIMS: [&str; 16] = [
    "join",
    "join-replay-refused",
    "default-deny-with-reason",
    "dial-by-name",
    "identity-seen",
    "outbound-only-member",
    "rule-from-onprem-everywhere",
    "deny-cuts-live",
    "receipts-arrive",
    "eviction",
    "renewal-keeps",
    "expiry-cuts",
    "edge-restart-keeps",
    "frozen-member-stale",
    "rotation-acknowledged",
    "clean-exit",
];

const PAYMENTS: &str = "payments.billing.west.mesh.internal";
const LEDGER: &str = "ledger.books.onprem.mesh.internal";
/// The port of the demo's services.
const PORT: u16 = 8080;
/// How long a change may take to be in force.
const CONVERGE: Duration = Duration::from_secs(10);
/// How long a probe waits for an answer on loopback.
const PROBE: Duration = Duration::from_millis(1500);
/// Lives of an SVID that a connection must outlast.
const LIFETIMES: u32 = 5;

/// Runs the whole story. Without `once` it then waits for Ctrl-C before it ends what it started.
pub(crate) async fn tell(once: bool, quiet: bool, clusters: u8, sabotage: Option<&str>) -> Result<Vec<Claim>> {
    let further = (4..=clusters).map(|number| format!("cluster{number}")).collect();
    let sabotage = sabotage.map(str::to_owned);
    let mut story = Story { world: World::new()?, teller: Teller::new(quiet), further, sabotage };
    let outcome = tokio::select! {
        outcome = story.run(once) => outcome,
        signal = interrupted() => {
            story.teller.say("interrupted: ending every process");
            signal
        }
    };
    if let Err(error) = outcome {
        story.teller.say(&format!("the story cannot go on: {error:#}"));
    }
    story.exit().await;
    if story.teller.failed() {
        story.world.keep();
        story.teller.say(&format!("logs of every process are kept in {}", story.world.path().display()));
    }
    Ok(story.teller.into_claims())
}

/// Ctrl-C, or SIGTERM from whoever started us.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

struct Story {
    world: World,
    teller: Teller,
    /// Clusters beyond the three of the story.
    further: Vec<String>,
    sabotage: Option<String>,
}

impl Story {
    fn broken(&self, claim: &str) -> bool {
        self.sabotage.as_deref() == Some(claim)
    }

    async fn run(&mut self, once: bool) -> Result<()> {
        self.teller.say(&format!("files of this demo: {}", self.world.path().display()));
        self.teller.say("starting three clusters: east, west, and onprem, which accepts nothing inbound");
        let sabotaged_inbound = self.broken("outbound-only-member");
        self.world.gateway("east", "east", true).await?;
        self.world.gateway("west", "west", true).await?;
        self.world.gateway("onprem", "onprem", sabotaged_inbound).await?;

        let start = Instant::now();
        let token = self.link().await;
        let outcome = token.as_ref().map(|(_, detail)| detail.clone()).map_err(|error| anyhow::anyhow!("{error:#}"));
        self.teller.note("join", start.elapsed(), outcome);
        let (token, _) = token?;

        let start = Instant::now();
        let outcome = self.replay(token).await;
        self.teller.note("join-replay-refused", start.elapsed(), outcome);

        self.teller.say("starting workloads behind sidecars: web (east), payments (west), ledger and clerk (onprem)");
        self.workloads().await?;

        let start = Instant::now();
        let outcome = self.default_deny().await;
        self.teller.note("default-deny-with-reason", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.dial_by_name().await;
        self.teller.note("dial-by-name", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.identity_seen().await;
        self.teller.note("identity-seen", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.outbound_only().await;
        self.teller.note("outbound-only-member", start.elapsed(), outcome);

        // Opened now, so that it is old by the time it is looked at.
        let lasting = self.open_lasting().await;
        let local = self.open_local().await;

        let (everywhere, cut) = self.rule_from_onprem().await;
        self.teller.note("rule-from-onprem-everywhere", everywhere.1, everywhere.0);
        self.teller.note("deny-cuts-live", cut.1, cut.0);

        let start = Instant::now();
        let outcome = self.receipts().await;
        self.teller.note("receipts-arrive", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.eviction().await;
        self.teller.note("eviction", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.renewal_keeps(lasting).await;
        self.teller.note("renewal-keeps", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.expiry_cuts(local).await;
        self.teller.note("expiry-cuts", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.edge_restart().await;
        self.teller.note("edge-restart-keeps", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.frozen().await;
        self.teller.note("frozen-member-stale", start.elapsed(), outcome);

        let start = Instant::now();
        let outcome = self.rotation().await;
        self.teller.note("rotation-acknowledged", start.elapsed(), outcome);

        if !once {
            let web = self.world.workload("web")?;
            self.teller.say("everything runs. Try, while it does:");
            eprintln!("          curl --proxy socks5h://{} http://{PAYMENTS}:{PORT}/", web_socks(web));
            eprintln!("          Ctrl-C ends it and leaves nothing behind");
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Two tokens from east make a federation of three: west and onprem learn of each other by admission.
    async fn link(&mut self) -> Result<(String, String)> {
        let start = Instant::now();
        let east = self.world.cluster("east")?.client().await?;
        let mut first = None;
        for (joiner, lawmaker) in [("west", false), ("onprem", true)] {
            let mut token = east.link_token(joiner, None, lawmaker).await?.token;
            if self.broken("join") {
                token.truncate(token.len() / 2);
            }
            self.teller.say(&format!("east issued a one-time token for {joiner}; {joiner} joins with it"));
            self.world.cluster(joiner)?.client().await?.link_join(&token).await?;
            first.get_or_insert(token);
        }
        for name in self.further.clone() {
            self.world.gateway(&name, &name, true).await?;
            self.teller.say(&format!("west, a member like any other, issues a token for {name}"));
            let token = self.world.cluster("west")?.client().await?.link_token(&name, None, false).await?.token;
            self.world.cluster(&name)?.client().await?.link_join(&token).await?;
        }
        let joined = start.elapsed();
        let names: Vec<String> =
            ["east", "west", "onprem"].map(str::to_owned).into_iter().chain(self.further.clone()).collect();
        let others = names.len() - 1;
        for name in &names {
            let client = self.world.cluster(name)?.client().await?;
            until(&format!("{name} has a live link to all others"), CONVERGE, || async {
                let links = client.link_list(None).await?.links;
                let up = links.iter().filter(|link| link.state == "up").count();
                ensure!(up == others, "{up} of {others} links are up: {links:?}");
                Ok(())
            })
            .await?;
        }
        let token = first.context("no token was issued")?;
        let detail = format!(
            "{} clusters, {others} tokens: the joins took {} ms, every link up after {} ms",
            names.len(),
            joined.as_millis(),
            start.elapsed().as_millis()
        );
        Ok((token, detail))
    }

    /// Another cluster that also calls itself west finds west's token and tries it.
    async fn replay(&mut self, used: String) -> Result<String> {
        self.world.gateway("west", "thief", false).await?;
        let token = if self.broken("join-replay-refused") {
            // A fresh token in the hands of an honest fourth cluster: accepted, so the claim must fail.
            self.world.end_gateway("thief").await?;
            self.world.gateway("fourth", "thief-again", false).await?;
            self.world.cluster("east")?.client().await?.link_token("fourth", None, false).await?.token
        } else {
            used
        };
        let key = if self.broken("join-replay-refused") { "thief-again" } else { "thief" };
        let outcome = self.world.cluster(key)?.client().await?.link_join(&token).await;
        self.world.end_gateway(key).await?;
        match outcome {
            Ok(_) => bail!("the token was accepted a second time"),
            Err(error) => Ok(format!("the token of west, tried by another cluster: {error:#}")),
        }
    }

    async fn workloads(&mut self) -> Result<()> {
        let account = if self.broken("identity-seen") { "batch.shop" } else { "web.shop" };
        let web = Workload { account, serves: None, by_uid: false };
        self.world.start_workload("web", "east", web).await?;
        let payments =
            Workload { account: "payments.billing", serves: Some(("payments.billing", PORT)), by_uid: false };
        self.world.start_workload("payments", "west", payments).await?;
        let ledger = Workload { account: "ledger.books", serves: Some(("ledger.books", PORT)), by_uid: true };
        self.world.start_workload("ledger", "onprem", ledger).await?;
        let clerk = Workload { account: "clerk.books", serves: None, by_uid: false };
        self.world.start_workload("clerk", "onprem", clerk).await?;
        self.teller.say("exporting payments.billing and ledger.books to all members");
        for (cluster, service) in [("west", "payments.billing"), ("onprem", "ledger.books")] {
            let client = self.world.cluster(cluster)?.client().await?;
            until(&format!("{service} is registered"), CONVERGE, || async {
                client.service_export(service, Some(&[]), StaleArgs::default()).await?;
                Ok(())
            })
            .await?;
        }
        for name in ["payments.billing.west", "ledger.books.onprem"] {
            let client = self.world.cluster("east")?.client().await?;
            until(&format!("east sees {name}"), CONVERGE, || async {
                let services = client.service_list().await?.services;
                ensure!(services.iter().any(|service| service.name == name), "east sees {services:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Nothing is allowed yet: the call is refused at once, and the sidecar says why.
    async fn default_deny(&mut self) -> Result<String> {
        if self.broken("default-deny-with-reason") {
            self.allow("west", "*.*.*", "payments.billing").await?;
        }
        let socks = self.world.workload("web")?.socks;
        // Until the service's record has come to the sidecar, the refusal has another reason.
        let reason = until("the refusal names its reason", CONVERGE, || {
            let sidecar = self.world.workload("web").map(|running| running.sidecar.output());
            async move {
                match browse::get(socks, PAYMENTS, PORT, "/").await {
                    Ok(_) => bail!("the call went through, though nothing allows it"),
                    Err(error) => match error.downcast_ref::<Refused>() {
                        Some(Refused(2)) => {}
                        _ => return Err(error),
                    },
                }
                let log = sidecar?;
                let line = log.lines().rev().find(|line| line.contains("connection denied"));
                let line = line.context("the sidecar's log says nothing of a denial")?;
                ensure!(line.contains("default_deny"), "the last denial is {line}");
                Ok("default_deny")
            }
        })
        .await?;
        let east = self.world.cluster("east")?.client().await?;
        let check = east.intention_check("web.shop", "payments.billing.west").await?;
        ensure!(!check.allowed && check.reason == reason, "intention check says {check:?}");
        Ok(check.detail)
    }

    async fn allow(&mut self, cluster: &str, source: &str, destination: &str) -> Result<()> {
        let client = self.world.cluster(cluster)?.client().await?;
        client.intention_write(source, destination, "allow", false, false, Duration::ZERO).await?;
        Ok(())
    }

    /// One rule by the service's own cluster, and the name works from another cluster: by SOCKS5, and by mesh DNS.
    async fn dial_by_name(&mut self) -> Result<String> {
        if !self.broken("dial-by-name") {
            self.teller.say("west allows web.shop.east -> payments.billing");
            self.allow("west", "web.shop.east", "payments.billing").await?;
            if self.broken("identity-seen") {
                self.allow("west", "batch.shop.east", "payments.billing").await?;
            }
        }
        let web = self.world.workload("web")?;
        let (socks, dns) = (web.socks, web.dns);
        let start = Instant::now();
        let body = until("web reaches payments by name", CONVERGE, || browse::get(socks, PAYMENTS, PORT, "/")).await?;
        ensure!(body == "hello from payments\n", "the answer was {body:?}");
        let took = start.elapsed();
        let address = browse::resolve(dns, PAYMENTS).await.context("mesh DNS")?;
        let stream = tokio::net::TcpStream::connect((address, PORT)).await.context("the service's loopback address")?;
        let body = browse::fetch(stream, PAYMENTS, "/").await.context("through the loopback address")?;
        ensure!(body == "hello from payments\n", "the answer through {address} was {body:?}");
        Ok(format!(
            "http://{PAYMENTS}:{PORT}/ answered {} ms after the rule; mesh DNS says {address}",
            took.as_millis()
        ))
    }

    /// The destination's sidecar saw who called, end to end.
    async fn identity_seen(&mut self) -> Result<String> {
        let wanted = "spiffe://east.mesh.internal/ns/shop/sa/web";
        let output = self.world.workload("payments")?.sidecar.output();
        let line = output.lines().find(|line| line.contains("connection permitted") && line.contains(wanted));
        line.with_context(|| format!("payments' sidecar never saw {wanted}"))?;
        Ok(format!("payments' sidecar saw {wanted}"))
    }

    /// Nothing answers at any socket of onprem's edge, and yet its service is reached from east.
    async fn outbound_only(&mut self) -> Result<String> {
        let pid = self.world.cluster("onprem")?.pid()?;
        let mut dialled = 0;
        for socket in bound_by_all(pid)? {
            // TCP listeners of the edge may answer their own protocols; a federation handshake must complete on none,
            // and on UDP nothing may even answer.
            let answer = match socket {
                Bound::Udp(address) => probe::quic(address, PROBE).await?,
                Bound::Tcp(address) => match probe::tls(address, PROBE).await? {
                    Answer::Answered(_) => Answer::Silent,
                    answer => answer,
                },
            };
            ensure!(answer == Answer::Silent, "{socket:?} of onprem's edge says {answer:?} to hanse-fed/1");
            dialled += 1;
        }
        ensure!(dialled > 0, "no socket of onprem's edge was found");
        // The same probe must find a federation listener where there is one.
        let west = self.world.cluster("west")?.pid()?;
        let mut found = false;
        for socket in bound_by_all(west)? {
            if let Bound::Udp(address) = socket {
                found |= probe::quic(address, PROBE).await? != Answer::Silent;
            }
        }
        ensure!(found, "the probe finds no federation listener at west, where there is one");
        self.allow("onprem", "web.shop.east", "ledger.books").await?;
        self.allow("onprem", "clerk.books", "ledger.books").await?;
        let socks = self.world.workload("web")?.socks;
        let body = until("web reaches onprem's ledger", CONVERGE, || browse::get(socks, LEDGER, PORT, "/")).await?;
        ensure!(body == "hello from ledger\n", "the answer was {body:?}");
        Ok(format!("{dialled} sockets of onprem's edge dialled, none speaks hanse-fed/1; {LEDGER} answered"))
    }

    /// A connection across clusters that is to outlast the SVIDs it began with.
    async fn open_lasting(&mut self) -> Result<Live> {
        Live::open(self.world.workload("web")?.socks, LEDGER, PORT).await
    }

    /// A connection within onprem: no edge is on its path.
    async fn open_local(&mut self) -> Result<Live> {
        let socks = self.world.workload("clerk")?.socks;
        until("clerk reaches ledger", CONVERGE, || Live::open(socks, LEDGER, PORT)).await
    }

    /// Onprem is a lawmaker: a rule that it writes about others counts everywhere, and cuts what lives.
    async fn rule_from_onprem(&mut self) -> (Timed, Timed) {
        let start = Instant::now();
        match self.rule_from_onprem_steps().await {
            Ok(timed) => timed,
            Err(error) => {
                let text = format!("{error:#}");
                ((Err(anyhow::anyhow!("{text}")), start.elapsed()), (Err(anyhow::anyhow!("{text}")), start.elapsed()))
            }
        }
    }

    async fn rule_from_onprem_steps(&mut self) -> Result<(Timed, Timed)> {
        let socks = self.world.workload("web")?.socks;
        let mut live = Live::open(socks, PAYMENTS, PORT).await.context("a live connection to payments")?;
        let mut clients = Vec::new();
        for name in ["east", "west", "onprem"] {
            clients.push((name, self.world.cluster(name)?.client().await?));
        }
        self.teller.say("onprem, a lawmaker, denies web.shop.east -> payments.billing.west");
        let writer = if self.broken("rule-from-onprem-everywhere") { "east" } else { "onprem" };
        let destination = if self.broken("deny-cuts-live") { "another.billing.west" } else { "payments.billing.west" };
        let onprem = self.world.cluster(writer)?.client().await?;
        let start = Instant::now();
        onprem.intention_write("web.shop.east", destination, "deny", false, false, Duration::ZERO).await?;
        let mut everywhere = Ok(String::new());
        for (name, client) in &clients {
            let seen = until(&format!("the rule is in force at {name}"), CONVERGE, || async {
                let check = client.intention_check("web.shop.east", destination).await?;
                ensure!(!check.allowed && check.reason == "rule", "{name} says {check:?}");
                let listed = client.intention_list().await?.intentions;
                let written = listed.iter().any(|rule| rule.action == "deny" && rule.writer == "onprem" && rule.counts);
                ensure!(written, "{name} does not list onprem's rule");
                Ok(())
            })
            .await;
            if let Err(error) = seen {
                everywhere = Err(error);
                break;
            }
        }
        let took = start.elapsed();
        let everywhere = everywhere
            .map(|_| format!("in force at east, west and onprem {} ms after it was written", took.as_millis()));
        let cut = live.cut(CONVERGE).await;
        let cut_took = cut.as_ref().map_or_else(|_| start.elapsed(), |at| at.duration_since(start));
        let mut cut =
            cut.map(|_| format!("the live connection ended {} ms after the rule was written", cut_took.as_millis()));
        if cut.is_ok() && browse::get(socks, PAYMENTS, PORT, "/").await.is_ok() {
            cut = Err(anyhow::anyhow!("a new connection is still let through"));
        }
        self.teller.say("onprem deletes its rule");
        onprem.intention_delete("web.shop.east", destination, "rule", "deny", Duration::ZERO).await?;
        Ok(((everywhere, took), (cut, cut_took)))
    }

    /// A connection that is five lifetimes of an SVID old still carries bytes.
    async fn renewal_keeps(&mut self, lasting: Result<Live>) -> Result<String> {
        let lasting = lasting?;
        let wanted = SVID_TTL * LIFETIMES;
        self.teller.say(&format!("SVIDs live {SVID_TTL:?} here; waiting until a connection is {wanted:?} old"));
        if self.broken("renewal-keeps") {
            self.world.cluster("east")?.crash().await?;
        }
        tokio::time::sleep_until(lasting.opened + wanted).await;
        ensure!(lasting.is_open(), "the connection was cut before it was {wanted:?} old");
        lasting.carries().await?;
        let age = lasting.opened.elapsed();
        Ok(format!("a connection {:.1} s old ({LIFETIMES} lifetimes) still carries bytes", age.as_secs_f64()))
    }

    /// Without its edge nothing renews: the connection outlives the edge, and ends with its credential.
    async fn expiry_cuts(&mut self, local: Result<Live>) -> Result<String> {
        let mut local = local?;
        ensure!(local.is_open(), "the connection within onprem ended too early");
        self.teller.say("killing onprem's edge: its sidecars go on, but their SVIDs are no longer renewed");
        let start = Instant::now();
        if !self.broken("expiry-cuts") {
            self.world.cluster("onprem")?.crash().await?;
            local.carries().await.context("after its edge was killed")?;
        }
        let cut = local.cut(2 * SVID_TTL).await?;
        let took = cut.duration_since(start);
        if !self.broken("expiry-cuts") {
            self.world.cluster("onprem")?.restart().await?;
        }
        Ok(format!("it outlived its edge and was cut {:.1} s later, when its SVID ended", took.as_secs_f64()))
    }

    /// Kill -9 of an edge: membership, rules, services and workloads are all there again.
    async fn edge_restart(&mut self) -> Result<String> {
        let before = self.picture("west").await?;
        self.teller.say("kill -9 of west's edge, and a start from its disk");
        self.world.cluster("west")?.crash().await?;
        let start = Instant::now();
        if !self.broken("edge-restart-keeps") {
            self.world.cluster("west")?.restart().await?;
        }
        let after = self.picture("west").await?;
        ensure!(before == after, "before: {before:?}, after: {after:?}");
        let socks = self.world.workload("web")?.socks;
        let body =
            until("web reaches payments again", CONVERGE * 2, || browse::get(socks, PAYMENTS, PORT, "/")).await?;
        ensure!(body == "hello from payments\n", "the answer was {body:?}");
        Ok(format!("{} facts kept; calls work again {} ms after the kill", before.len(), start.elapsed().as_millis()))
    }

    /// What a cluster knows, in words that can be compared.
    async fn picture(&mut self, cluster: &str) -> Result<BTreeSet<String>> {
        let client = self.world.cluster(cluster)?.client().await?;
        let mut facts = BTreeSet::new();
        for member in client.cluster_list().await?.clusters {
            facts.insert(format!("member {} {} lawmaker={}", member.name, member.id, member.lawmaker));
        }
        for rule in client.intention_list().await?.intentions {
            facts.insert(format!("rule {} {} -> {} by {}", rule.action, rule.source, rule.destination, rule.writer));
        }
        for service in client.service_list().await?.services {
            facts.insert(format!("service {} {}", service.name, service.port));
        }
        Ok(facts)
    }

    /// Ends everything and looks whether anything is left.
    async fn exit(&mut self) {
        let start = Instant::now();
        let pids = self.world.pids();
        // One that nobody ends, so that the look below has something to find.
        let stray = if self.broken("clean-exit") { self.world.stray().ok() } else { None };
        let outcome = self.world.end().await;
        let outcome = outcome.and(pids).and_then(|mut pids| {
            pids.extend(stray.as_ref().and_then(|process| process.pid()));
            let runs = |pid: &&u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
            let left: Vec<_> = pids.iter().filter(runs).collect();
            ensure!(left.is_empty(), "processes are left: {left:?}");
            Ok(format!("{} processes ended on SIGTERM, none is left", pids.len()))
        });
        self.teller.note("clean-exit", start.elapsed(), outcome);
    }
}

type Timed = (Result<String>, Duration);

fn web_socks(web: &crate::world::Running) -> std::net::SocketAddr {
    web.socks
}
