//! The tables: one function for each reply of the manage API.

use std::time::{Duration, SystemTime};

use proto::manage;

use crate::format::{ago, bytes, facts, moment, rtt, span, table, yes_no};

/// Digits of an id that are shown: enough for a person to tell members apart.
const ID_DIGITS: usize = 12;

fn short(id: &str) -> String {
    id.chars().take(ID_DIGITS).collect()
}

pub(crate) fn status(reply: &manage::StatusReply) -> String {
    let problems = match reply.problems.as_slice() {
        [] => "none".to_owned(),
        problems => problems.join("; "),
    };
    facts([
        ("Cluster", format!("{} ({})", reply.cluster, short(&reply.cluster_id))),
        ("Trust domain", reply.trust_domain.clone()),
        ("Federation", short(&reply.federation)),
        ("Lawmaker", yes_no(reply.lawmaker)),
        ("Version", reply.version.clone()),
        ("Up for", span(Duration::from_secs(reply.uptime_seconds))),
        ("Snapshot", reply.revision.to_string()),
        ("Members", format!("{}, {} sessions up", reply.members, reply.sessions)),
        ("Services", reply.services.to_string()),
        ("Intentions", format!("{}, {} in conflict", reply.intentions, reply.conflicts)),
        ("Workloads", reply.workloads.to_string()),
        ("Connections", reply.connections.to_string()),
        ("Problems", problems),
    ])
}

pub(crate) fn joined(reply: &manage::JoinReply) -> String {
    facts([
        ("Cluster", reply.cluster.clone()),
        ("Federation", short(&reply.federation)),
        ("Admitted by", reply.issuer.clone()),
        ("Members", reply.members.join(", ")),
    ])
}

pub(crate) fn tokens(reply: &manage::TokenList, now: SystemTime) -> String {
    table(
        ["ID", "FOR", "STATE", "EXPIRES", "REFUSALS"],
        reply.tokens.iter().map(|token| {
            [
                short(&token.id),
                token.cluster.clone(),
                token.state.clone(),
                moment(token.expires_at_ms, now),
                token.refusals.to_string(),
            ]
        }),
    )
}

pub(crate) fn links(reply: &manage::LinkList) -> String {
    table(
        ["CLUSTER", "STATE", "DIRECTION", "ADDRESS", "RTT", "DATA AGE", "TUNNELS", "ERROR"],
        reply.links.iter().map(|link| {
            [
                link.cluster.clone(),
                link.state.clone(),
                link.direction.clone(),
                link.address.clone(),
                rtt(link.rtt_us),
                age(link.data_age_ms),
                link.tunnels.to_string(),
                link.error.clone(),
            ]
        }),
    )
}

/// Zero is "no data yet", so that fresh data never looks like none.
fn age(millis: u64) -> String {
    if millis == 0 { String::new() } else { span(Duration::from_millis(millis)) }
}

pub(crate) fn link_status(reply: &manage::LinkList, now: SystemTime) -> String {
    let one = |link: &manage::Link| {
        facts([
            ("Cluster", format!("{} ({})", link.cluster, short(&link.cluster_id))),
            ("State", link.state.clone()),
            ("Direction", link.direction.clone()),
            ("Address", link.address.clone()),
            ("Build", link.build.clone()),
            ("Round trip", rtt(link.rtt_us)),
            (
                "Relayed by",
                match link.relay.as_str() {
                    "" => String::new(),
                    relay => format!("{relay}, {} there and back", rtt(link.relay_rtt_us)),
                },
            ),
            ("Clock offset", format!("{}ms", link.clock_offset_ms)),
            ("Data age", age(link.data_age_ms)),
            ("Tunnels", link.tunnels.to_string()),
            ("Renews by", moment(link.deadline_ms, now)),
            ("Sent", bytes(link.bytes_sent)),
            ("Received", bytes(link.bytes_received)),
            ("Error", link.error.clone()),
        ])
    };
    reply.links.iter().map(one).collect::<Vec<_>>().join("\n")
}

pub(crate) fn clusters(reply: &manage::ClusterList, now: SystemTime) -> String {
    table(
        [
            "NAME",
            "ID",
            "STATE",
            "EVICTED BY",
            "LAWMAKER",
            "ACCEPTS",
            "APPROVAL",
            "SPONSOR",
            "AGE",
            "DATA AGE",
            "ENDPOINTS",
        ],
        reply.clusters.iter().map(|cluster| {
            [
                cluster.name.clone(),
                short(&cluster.id),
                cluster.state.clone(),
                cluster.evicted_by.join(","),
                yes_no(cluster.lawmaker),
                cluster.accept.clone(),
                cluster.approval.clone(),
                cluster.sponsor.clone(),
                ago(cluster.admitted_at_ms, now),
                age(cluster.data_age_ms),
                cluster.endpoints.join(","),
            ]
        }),
    )
}

pub(crate) fn membership(reply: &manage::MembershipReply) -> String {
    table(
        ["NAME", "ID", "STATE", "EVICTED BY", "LAWMAKER", "STILL NEEDED"],
        [[
            reply.cluster.clone(),
            short(&reply.cluster_id),
            reply.state.clone(),
            reply.evicted_by.join(","),
            yes_no(reply.lawmaker),
            reply.needs.join(" or "),
        ]],
    )
}

pub(crate) fn left(reply: &manage::LeaveFederationReply) -> String {
    facts([
        ("Left", short(&reply.left)),
        ("Federation", short(&reply.federation)),
        ("Not told", reply.untold.join(", ")),
    ])
}

pub(crate) fn workloads(reply: &manage::WorkloadList, now: SystemTime) -> String {
    table(
        ["ACCOUNT", "CONNECTED", "SERVES", "INBOUND", "BY", "SVID ENDS", "INSTANCE"],
        reply.workloads.iter().map(|workload| {
            [
                workload.account.clone(),
                yes_no(workload.connected),
                workload.serves.join(","),
                workload.inbound.clone(),
                workload.enrolled_by.clone(),
                moment(workload.not_after_ms, now),
                short(&workload.instance),
            ]
        }),
    )
}

pub(crate) fn services<'a>(services: impl IntoIterator<Item = &'a manage::Service>) -> String {
    table(
        ["NAME", "PORT", "ACCOUNTS", "EXPORTED TO", "INSTANCES", "WHEN STALE", "LEASE", "DATA AGE", "STATE", "DNS"],
        services.into_iter().map(|service| {
            // Instances live in the service's own cluster, and only it knows them.
            let instances = if service.own { service.instances.to_string() } else { String::new() };
            [
                service.name.clone(),
                service.port.to_string(),
                service.accounts.join(","),
                service.exported_to.join(","),
                instances,
                service.when_stale.clone(),
                age(service.lease_ms),
                age(service.data_age_ms),
                service.freshness.clone(),
                service.dns.clone(),
            ]
        }),
    )
}

pub(crate) fn intentions<'a>(intentions: impl IntoIterator<Item = &'a manage::Intention>, now: SystemTime) -> String {
    table(
        ["PREC", "ACTION", "SOURCE", "DESTINATION", "LAYER", "WRITER", "AUTHOR", "AGE", "COUNTS", "ENFORCED", "NOTE"],
        intentions.into_iter().map(|intention| {
            let note = match (intention.conflict, intention.note.as_str()) {
                (true, "") => "conflict".to_owned(),
                (true, note) => format!("conflict; {note}"),
                (false, note) => note.to_owned(),
            };
            [
                intention.precedence.to_string(),
                intention.action.clone(),
                intention.source.clone(),
                intention.destination.clone(),
                intention.layer.clone(),
                intention.writer.clone(),
                intention.author.clone(),
                ago(intention.written_at_ms, now),
                yes_no(intention.counts),
                enforced(intention),
                note,
            ]
        }),
    )
}

/// Where an intention is in force already: `4/5, onprem 40s behind`.
pub(crate) fn enforced(intention: &manage::Intention) -> String {
    let behind = intention.behind.iter().map(|laggard| match laggard.data_age_ms {
        0 => format!(", {} never heard of", laggard.cluster),
        millis => format!(", {} {} behind", laggard.cluster, span(Duration::from_millis(millis))),
    });
    std::iter::once(format!("{}/{}", intention.enforced, intention.members)).chain(behind).collect()
}

pub(crate) fn dns(reply: &manage::LookupDnsReply) -> String {
    let head = format!("{} {}: {}", reply.name, reply.r#type, reply.rcode);
    std::iter::once(&head).chain(&reply.answers).map(|line| crate::format::clean(line) + "\n").collect()
}

pub(crate) fn certificates(reply: &manage::CertStatusReply, now: SystemTime) -> String {
    let certificates = table(
        ["KIND", "SPIFFE ID", "SERIAL", "ENDS", "KEY"],
        reply.certificates.iter().map(|certificate| {
            [
                certificate.kind.clone(),
                certificate.spiffe_id.clone(),
                certificate.serial.clone(),
                moment(certificate.not_after_ms, now),
                short(&certificate.key),
            ]
        }),
    );
    let bundles = table(
        ["CLUSTER", "TRUST DOMAIN", "SEQUENCE", "ROOTS", "SHA-256"],
        reply.bundles.iter().map(|bundle| {
            [
                bundle.cluster.clone(),
                bundle.trust_domain.clone(),
                bundle.sequence.to_string(),
                bundle.roots.to_string(),
                bundle.sha256.iter().map(|digest| short(digest)).collect::<Vec<_>>().join(","),
            ]
        }),
    );
    let rotation = reply.rotation.as_ref().map_or_else(String::new, |one| format!("\n{}", rotation(one, now)));
    format!("{certificates}\n{bundles}{}{rotation}", revoked(&reply.revoked, now))
}

pub(crate) fn issued(list: &manage::IssuedList, now: SystemTime) -> String {
    let issued = table(
        ["SPIFFE ID", "SERIAL", "ENDS", "KEY", "STATE"],
        list.issued.iter().map(|certificate| {
            [
                certificate.spiffe_id.clone(),
                certificate.serial.clone(),
                moment(certificate.not_after_ms, now),
                short(&certificate.key),
                if certificate.revoked { "revoked" } else { "live" }.to_owned(),
            ]
        }),
    );
    format!("{issued}{}", revoked(&list.revoked, now))
}

/// A table of revoked keys after an empty line; nothing if there are none.
fn revoked(keys: &[manage::RevokedKey], now: SystemTime) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let rows = keys
        .iter()
        .map(|key| [key.cluster.clone(), key.serial.clone(), short(&key.key), moment(key.not_after_ms, now)]);
    format!("\n{}", table(["REVOKED BY", "SERIAL", "KEY", "ENDS"], rows))
}

pub(crate) fn intermediate(reply: &manage::RotateIntermediateReply, now: SystemTime) -> String {
    let line = format!(
        "intermediate {} signs from now on; the last certificate by {} ends {}: revoke that one if its key was stolen",
        reply.signs,
        reply.before,
        moment(reply.last_ends_ms, now)
    );
    crate::format::clean(&line) + "\n"
}

pub(crate) fn revocation(reply: &manage::RevokeReply, now: SystemTime) -> String {
    let certificate = reply.certificate.clone().unwrap_or_default();
    let line = format!(
        "revoked {} of {}: no member that hears of it accepts its key any more; the certificate would have ended {}",
        certificate.serial,
        certificate.spiffe_id,
        moment(certificate.not_after_ms, now)
    );
    crate::format::clean(&line) + "\n"
}

/// One line on where the rotation is, and one for each member that has not acknowledged it.
pub(crate) fn rotation(rotation: &manage::Rotation, now: SystemTime) -> String {
    let started = format!("started by {} {}", rotation.author, moment(rotation.started_at_ms, now));
    let acknowledged =
        format!("{} of {} members have acknowledged the new root", rotation.acknowledged, rotation.members);
    let line = match rotation.phase.as_str() {
        "published" => format!("{acknowledged}; it signs once all have"),
        "signing" => {
            format!("the new root signs; the old one's last SVID ends {}", moment(rotation.old_until_ms, now))
        }
        "retired" => format!("the old root is gone, {}", moment(rotation.ended_at_ms, now)),
        "aborted" => format!("given up {}; the old root signs on", moment(rotation.ended_at_ms, now)),
        _ => "the new root is made and not published yet".to_owned(),
    };
    let mut shown = format!("rotation of the root: {} ({started}): {line}\n", rotation.phase);
    for laggard in &rotation.behind {
        let age = match laggard.data_age_ms {
            0 => "nothing is known of it".to_owned(),
            age => format!("{} s behind", age.div_ceil(1000)),
        };
        let out = if rotation.without.contains(&laggard.cluster) { ", left out" } else { "" };
        shown += &format!("  {}: {age}{out}\n", laggard.cluster);
    }
    shown.lines().map(|line| crate::format::clean(line) + "\n").collect()
}

/// One line per check, and under a bad one what to do. `paint` gives a colour to a mark.
pub(crate) fn checks(reply: &manage::CheckReply, paint: impl Fn(&str, &str) -> String) -> String {
    let mut shown = String::new();
    for result in &reply.results {
        let mark = match result.state.as_str() {
            "ok" => paint("32", "ok  "),
            "warning" => paint("33", "warn"),
            _ => paint("31", "FAIL"),
        };
        let subject = if result.subject.is_empty() { String::new() } else { format!(" {}", result.subject) };
        let line = format!("{}{subject}: {}", result.id, result.detail);
        shown += &format!("{mark} {}\n", crate::format::clean(&line));
        if result.state != "ok" && !result.fix.is_empty() {
            shown += &format!("       {}\n", crate::format::clean(&result.fix));
        }
    }
    shown
}

#[cfg(test)]
mod tests;
