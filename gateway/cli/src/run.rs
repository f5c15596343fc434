//! Runs one verb: asks the gateway, prints the answer, and says with its exit code how it went.

mod backup;
mod cert;

use std::{fmt, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep};

pub use backup::{CreateBackup, create_backup, create_backup_on};

use crate::{
    Client, ClientError, Format, Globals, Operator, Terminal, exit, format, show,
    verbs::{
        ActionArg, ClusterVerb, DnsQuestion, IntentionVerb, LayerArg, LinkVerb, Member, Output, Pair, ServiceVerb,
        WorkloadVerb, command,
    },
};

/// How long `--wait` waits.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// How long `--wait` of an intention waits.
const ENFORCED_LIMIT: Duration = Duration::from_secs(20);
/// Time between two looks while waiting.
const WAIT_STEP: Duration = Duration::from_millis(200);

/// Runs a verb on the process's own streams. Returns its exit code (see [`exit`]).
pub async fn run(operator: Operator, globals: Globals) -> u8 {
    run_as(operator, globals, command()).await
}

/// [`run`] for an executable that has more verbs than these: `whole` is its command, for `completions`.
pub async fn run_as(operator: Operator, globals: Globals, whole: clap::Command) -> u8 {
    Terminal::real(async |terminal| run_on(operator, globals, whole, terminal).await).await
}

/// [`run_as`] on any streams.
pub async fn run_on(operator: Operator, globals: Globals, whole: clap::Command, terminal: &mut Terminal<'_>) -> u8 {
    let outcome = perform(operator, &globals, whole, terminal).await;
    told(outcome, terminal)
}

/// The exit code of an outcome; a failure is said.
fn told(outcome: Result<u8, Failure>, terminal: &mut Terminal<'_>) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            let (code, message) = match failure {
                Failure::Client(error) => (error.exit_code(), error.to_string()),
                Failure::Usage(message) => (exit::USAGE, message),
                Failure::Other(message) => (exit::FAILED, message),
            };
            terminal.say(&format!("hanse: {message}"));
            code
        }
    }
}

/// Prints what another program of this executable found out, in the words of every verb. Returns the exit code.
pub async fn answer<T: Serialize + fmt::Display>(format: Format, value: &T) -> u8 {
    Terminal::real(async |terminal| {
        let printed = print(terminal, Output { format }, value, |_| value.to_string());
        told(printed.map(|()| exit::DONE), terminal)
    })
    .await
}

pub(crate) enum Failure {
    Client(ClientError),
    Usage(String),
    Other(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

async fn perform(
    operator: Operator,
    globals: &Globals,
    whole: clap::Command,
    terminal: &mut Terminal<'_>,
) -> Result<u8, Failure> {
    let connect = || Client::connect(&globals.socket);
    match operator {
        Operator::Status(output) => {
            let reply = connect().await?.status().await?;
            print(terminal, output, &reply, |_| show::status(&reply))?;
            Ok(exit::DONE)
        }
        Operator::Link(verb) => link(verb, globals, terminal).await,
        Operator::Cluster(verb) => crate::cluster::run(verb, globals, terminal).await,
        Operator::Workload(verb) => workload(verb, globals, terminal).await,
        Operator::Service(verb) => service(verb, globals, terminal).await,
        Operator::Intention(verb) => intention(verb, globals, terminal).await,
        Operator::Dns(question) => dns(question, globals, terminal).await,
        Operator::Cert(verb) => cert::run(verb, &globals.socket, terminal).await,
        Operator::Check(output) => {
            let reply = connect().await?.check().await?;
            print(terminal, output, &reply, |terminal| show::checks(&reply, |code, text| terminal.paint(code, text)))?;
            let failed = reply.results.iter().filter(|result| result.state == "failed").count();
            if failed > 0 {
                terminal.say(&format!("hanse: {failed} of {} checks failed", reply.results.len()));
                return Ok(exit::NO);
            }
            Ok(exit::DONE)
        }
        Operator::Reload(output) => {
            let reply = connect().await?.reload().await?;
            print(terminal, output, &reply, |_| match reply.changed.as_slice() {
                [] => "nothing changed\n".to_owned(),
                changed => changed.iter().map(|key| format::clean(key) + "\n").collect(),
            })?;
            Ok(exit::DONE)
        }
        Operator::Log { level, output } => {
            let reply = connect().await?.log(&level).await?;
            print(terminal, output, &reply, |_| format!("{}\n", format::clean(&reply.level)))?;
            Ok(exit::DONE)
        }
        Operator::Version(output) => {
            #[derive(Serialize)]
            struct Version {
                version: &'static str,
            }
            let version = Version { version: env!("CARGO_PKG_VERSION") };
            print(terminal, output, &version, |_| format!("hanse {}\n", version.version))?;
            Ok(exit::DONE)
        }
        Operator::Completions { shell } => {
            let mut whole = whole;
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut whole, "hanse", &mut script);
            terminal.data(&String::from_utf8_lossy(&script));
            Ok(exit::DONE)
        }
    }
}

async fn link(verb: LinkVerb, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let connect = || Client::connect(&globals.socket);
    match verb {
        LinkVerb::Token { cluster, ttl, lawmaker, output } => {
            let reply = connect().await?.link_token(&cluster, ttl, lawmaker).await?;
            print(terminal, output, &reply, |_| format!("{}\n", reply.token))?;
            let expires = format::moment(reply.expires_at_ms, terminal.now);
            let name = format::clean(&reply.cluster);
            terminal.say(&format!("This token lets {name} join, once, until {expires}."));
            terminal.say(&format!("On {name}: hanse link join   (paste the token there, or give its file with -f)"));
        }
        LinkVerb::Join { file, wait, output } => {
            let token = terminal.token(file.as_deref()).map_err(Failure::Usage)?;
            let client = connect().await?;
            let reply = client.link_join(&token).await?;
            let up = if wait { up(&client, None).await? } else { true };
            print(terminal, output, &reply, |_| show::joined(&reply))?;
            if !up {
                terminal.say("hanse: joined, but not every link is up after 60 s; `hanse check` says more");
                return Ok(exit::NO);
            }
            terminal.say("Joined. `hanse link list` shows the links, `hanse check` tries them.");
        }
        LinkVerb::List(output) => {
            let reply = connect().await?.link_list(None).await?;
            print(terminal, output, &reply, |_| show::links(&reply))?;
            if reply.links.is_empty() {
                terminal.say("No links yet: `hanse link token CLUSTER` here, then `hanse link join` there.");
            }
        }
        LinkVerb::Status { cluster, wait, output } => {
            let client = connect().await?;
            let up = if wait { up(&client, cluster.as_deref()).await? } else { true };
            let reply = client.link_list(cluster.as_deref()).await?;
            print(terminal, output, &reply, |terminal| show::link_status(&reply, terminal.now))?;
            if !up {
                terminal.say("hanse: not every link is up after 60 s");
                return Ok(exit::NO);
            }
        }
        LinkVerb::Tokens(output) => {
            let reply = connect().await?.link_tokens().await?;
            print(terminal, output, &reply, |terminal| show::tokens(&reply, terminal.now))?;
        }
        LinkVerb::Remove { cluster, output } => {
            let verb = ClusterVerb::Block { member: Member { cluster }, output };
            return crate::cluster::run(verb, globals, terminal).await;
        }
    }
    Ok(exit::DONE)
}

/// Waits until every link of a member that is let in, or that with `cluster`, is up; false when time is up first.
async fn up(client: &Client, cluster: Option<&str>) -> Result<bool, ClientError> {
    let end = Instant::now() + WAIT_LIMIT;
    loop {
        let links = client.link_list(cluster).await?.links;
        if links.iter().all(|link| matches!(link.state.as_str(), "up" | "blocked" | "held" | "suspended")) {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        sleep(WAIT_STEP).await;
    }
}

async fn workload(verb: WorkloadVerb, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(&globals.socket).await?;
    match verb {
        WorkloadVerb::Token { account, ttl, output } => {
            let reply = client.workload_token_for(&account, ttl).await?;
            print(terminal, output, &reply, |_| format!("{}\n", reply.token))?;
            let expires = format::moment(reply.expires_at_ms, terminal.now);
            let name = format::clean(&reply.account);
            terminal.say(&format!("This token lets one sidecar enrol as {name} until {expires}."));
            terminal.say("Put it in a file, name that in the sidecar's config as token_file, and run: hanse sidecar --config FILE");
        }
        WorkloadVerb::List(output) => {
            let reply = client.workload_list().await?;
            print(terminal, output, &reply, |terminal| show::workloads(&reply, terminal.now))?;
        }
    }
    Ok(exit::DONE)
}

async fn service(verb: ServiceVerb, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(&globals.socket).await?;
    let (reply, output, exported) = match verb {
        ServiceVerb::List(output) => {
            let reply = client.service_list().await?;
            print(terminal, output, &reply, |_| show::services(&reply.services))?;
            return Ok(exit::DONE);
        }
        ServiceVerb::Register { service, port, accounts, stale, output } => {
            (client.service_register(&service, port, &accounts, stale).await?, output, false)
        }
        ServiceVerb::Export { service, to, nobody, stale, output } => {
            let to = if nobody { None } else { Some(to.as_slice()) };
            (client.service_export(&service, to, stale).await?, output, true)
        }
    };
    print(terminal, output, &reply, |_| show::services(&reply.service))?;
    if let Some(service) = reply.service.as_ref().filter(|service| !exported && service.exported_to.is_empty()) {
        let name = format::clean(&service.name);
        terminal.say(&format!("No other cluster sees {name} yet: `hanse service export` shows it to them."));
    }
    Ok(exit::DONE)
}

async fn intention(verb: IntentionVerb, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(&globals.socket).await?;
    let limit = |wait: bool| if wait { ENFORCED_LIMIT } else { Duration::ZERO };
    let (reply, wait, output) = match verb {
        IntentionVerb::Allow { pair: Pair { source, destination }, shadow, wait, output } => {
            (client.intention_write(&source, &destination, "allow", false, shadow, limit(wait)).await?, wait, output)
        }
        IntentionVerb::Deny { pair: Pair { source, destination }, guardrail, shadow, wait, output } => {
            (client.intention_write(&source, &destination, "deny", guardrail, shadow, limit(wait)).await?, wait, output)
        }
        IntentionVerb::Delete { pair: Pair { source, destination }, layer, action, wait, output } => {
            let (layer, action) = (LayerArg::as_str(layer), action.map_or("", ActionArg::as_str));
            (client.intention_delete(&source, &destination, layer, action, limit(wait)).await?, wait, output)
        }
        IntentionVerb::List(output) => {
            let reply = client.intention_list().await?;
            print(terminal, output, &reply, |terminal| show::intentions(&reply.intentions, terminal.now))?;
            let conflicts = reply.intentions.iter().filter(|intention| intention.conflict).count();
            if conflicts > 0 {
                terminal.say(&format!(
                    "{conflicts} concurrent versions stand side by side; a call passes only if each of them lets it. \
                     Whoever may replace them resolves that by writing the intention again."
                ));
            }
            return Ok(exit::DONE);
        }
        IntentionVerb::Check { pair: Pair { source, destination }, output } => {
            let reply = client.intention_check(&source, &destination).await?;
            print(terminal, output, &reply, |terminal| {
                let verdict =
                    if reply.allowed { terminal.paint("32", "allowed") } else { terminal.paint("31", "denied") };
                format!("{verdict}: {}\n", format::clean(&reply.detail))
            })?;
            return Ok(if reply.allowed { exit::DONE } else { exit::NO });
        }
    };
    print(terminal, output, &reply, |terminal| show::intentions(&reply.intention, terminal.now))?;
    if let Some(intention) = &reply.intention {
        let note = format::clean(&intention.note);
        if !intention.counts && intention.action != "deleted" && intention.layer != "shadow" {
            terminal.say(&format!("hanse: written, but it does not count here: {note}"));
        } else if !note.is_empty() {
            terminal.say(&format!("hanse: {note}"));
        }
        if wait && !intention.behind.is_empty() {
            let limit = ENFORCED_LIMIT.as_secs();
            let enforced = format::clean(&show::enforced(intention));
            terminal.say(&format!("hanse: written, but not in force everywhere after {limit} s: {enforced}"));
            return Ok(exit::NO);
        }
    }
    Ok(exit::DONE)
}

async fn dns(question: DnsQuestion, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(&globals.socket).await?;
    let reply = client.dns(&question.name, &question.kind, question.account.as_deref()).await?;
    print(terminal, question.output, &reply, |_| show::dns(&reply))?;
    if question.output.format == Format::Table {
        terminal.say(&format::clean(&reply.why));
    }
    Ok(if reply.rcode == "NOERROR" { exit::DONE } else { exit::NO })
}

/// Prints `value` as the operator wants it.
pub(crate) fn print(
    terminal: &mut Terminal<'_>,
    output: Output,
    value: &impl Serialize,
    table: impl FnOnce(&Terminal<'_>) -> String,
) -> Result<(), Failure> {
    let text = match format::machine(output.format, value) {
        None => table(terminal),
        Some(text) => text.map_err(Failure::Other)?,
    };
    terminal.data(&text);
    Ok(())
}
