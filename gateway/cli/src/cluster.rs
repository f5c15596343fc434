//! `hanse cluster …`: who is in and who is out. What cannot be undone is told first, and asked.

use crate::{
    Client, Globals, Terminal, exit, format,
    run::{Failure, print},
    show,
    verbs::{ClusterVerb, Member, Switch},
};

pub(crate) async fn run(verb: ClusterVerb, globals: &Globals, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(&globals.socket).await?;
    let (reply, output) = match verb {
        ClusterVerb::List(output) => {
            let reply = client.cluster_list().await?;
            print(terminal, output, &reply, |terminal| show::clusters(&reply, terminal.now))?;
            return Ok(exit::DONE);
        }
        ClusterVerb::Approve { member, output } => (client.cluster_approve(&member.cluster).await?, output),
        ClusterVerb::Block { member, output } => (client.cluster_block(&member.cluster).await?, output),
        ClusterVerb::Evict { member: Member { cluster }, yes, output } => {
            if !yes && !asked(terminal, &eviction(&cluster))? {
                return Ok(exit::NO);
            }
            (client.cluster_evict(&cluster).await?, output)
        }
        ClusterVerb::Lawmaker { member, switch, output } => {
            (client.cluster_lawmaker(&member.cluster, switch == Switch::On).await?, output)
        }
        ClusterVerb::Leave { yes, output } => {
            if !yes && !asked(terminal, LEAVING)? {
                return Ok(exit::NO);
            }
            let reply = client.cluster_leave().await?;
            print(terminal, output, &reply, |_| show::left(&reply))?;
            terminal.say("This cluster is alone now; a token of any member brings it back: `hanse link join`.");
            if !reply.untold.is_empty() {
                let untold = format::clean(&reply.untold.join(", "));
                terminal.say(&format!("hanse: {untold} did not confirm it and may hear of it from the others"));
            }
            return Ok(exit::DONE);
        }
    };
    print(terminal, output, &reply, |_| show::membership(&reply))?;
    terminal.say(&format!("{}.", format::clean(&reply.detail)));
    Ok(exit::DONE)
}

const LEAVING: &str = "\
This takes this cluster out of its federation:
  its sessions end, and connections with other members are cut;
  its services vanish from the others, and theirs from here; its name there is free;
  what it allowed there is void, what it denied there stays.
Its own services, rules and workloads go on here.";

fn eviction(cluster: &str) -> String {
    let cluster = format::clean(cluster);
    format!(
        "\
This signs that {cluster} is out of the federation, for every member:
  its sessions end, and live connections from it and to it are cut at once;
  its services vanish, what it allowed is void, what it denied stays until a lawmaker deletes it;
  what it signs from now on counts nowhere.
It is final once a second lawmaker signs it too, or at once if this cluster is the only other one: then {cluster} \
         comes back only as a new cluster, with a new token."
    )
}

/// Tells and asks; whether to go on.
fn asked(terminal: &mut Terminal<'_>, what: &str) -> Result<bool, Failure> {
    let agreed = terminal.confirm(what).map_err(Failure::Usage)?;
    if !agreed {
        terminal.say("hanse: nothing was done");
    }
    Ok(agreed)
}
