//! Revoking: which certificates this cluster issued, and the word that one of their keys is believed no more.

use federation_identity::now;
use federation_model::{Audience, Body, REVOCATIONS_MAX, Revocation, SERIAL_BYTES_MAX, Snapshot, Timestamp};
use proto::manage as wire;

use crate::{IssuedSvid, Kind, Refusal, server::Shared};

impl Shared {
    pub(super) fn list_certificates(&self) -> Result<wire::IssuedList, Refusal> {
        let (snapshot, now) = (self.ready()?, now());
        let issued = self.issued.list(now).iter().map(|svid| shown(svid, &snapshot)).collect();
        Ok(wire::IssuedList { issued, revoked: revoked(&snapshot, now) })
    }

    pub(super) async fn revoke(
        &self,
        request: wire::RevokeCertificateRequest,
        author: String,
    ) -> Result<wire::RevokeReply, Refusal> {
        let serial = serial(&request.serial)?;
        let (snapshot, now) = (self.ready()?, now());
        let svid = self.revocable(&serial, &snapshot, now)?;
        let domain = &snapshot.own_trust_domain;
        let held = snapshot.bundles.revocations().get(domain);
        let live = held.map_or(0, |held| held.values().filter(|one| now < one.not_after).count());
        if live >= REVOCATIONS_MAX {
            let message = format!(
                "{live} revoked keys of this cluster have certificates that have not ended, and members mind no more \
                 than {REVOCATIONS_MAX}: replace the root with `hanse cert rotate-root`, or wait until some have ended"
            );
            return Err(Refusal::new(Kind::Exhausted, "too_many_revocations", message));
        }
        // What shows this key now gets another one first, so that it is not cut off from its own members.
        if self.system.certificates().iter().any(|one| one.kind == "edge" && one.key_sha256 == svid.key) {
            self.system.renew_edge().await?;
        }
        let not_after = self.issued.last_end(&svid.key).map_or(svid.not_after, |last| last.max(svid.not_after));
        let revocation = Revocation { key: svid.key, serial, not_after };
        let record = self.links.write(Audience::Law, Body::Revocation(revocation), author.clone()).await?;
        tracing::info!(%author, spiffe_id = %svid.spiffe_id, serial = %hex(&svid.serial), %record, "key revoked");
        let shows = |snapshot: &Snapshot| snapshot.bundles.is_revoked(domain, &svid.key);
        let snapshot = self.published(record, shows).await.unwrap_or(snapshot);
        let certificate = wire::IssuedCertificate { revoked: true, ..shown(&svid, &snapshot) };
        Ok(wire::RevokeReply { certificate: Some(certificate), record: record.to_string() })
    }

    /// The SVID that a serial number names, if revoking it has a sense.
    fn revocable(&self, serial: &[u8], snapshot: &Snapshot, now: Timestamp) -> Result<IssuedSvid, Refusal> {
        let text = hex(serial);
        let refuse = |kind, reason, message| Err(Refusal::new(kind, reason, message));
        let authority = self.system.certificates();
        if let Some(one) = authority.iter().find(|one| one.kind != "edge" && one.serial == serial) {
            let message = format!(
                "{text} is the certificate of this cluster's {kind}, which signs others: replace it first, with `hanse \
                 cert rotate-{kind}`",
                kind = one.kind
            );
            return refuse(Kind::State, "signs_others", message);
        }
        let Some(svid) = self.issued.find(serial) else {
            let held = snapshot.bundles.revocations();
            let elsewhere = held.iter().find(|(_, keys)| keys.values().any(|one| one.serial == serial));
            if let Some((domain, _)) = elsewhere {
                return refuse(Kind::Exists, "already_revoked", format!("{text} of {domain} is revoked already"));
            }
            let message = format!(
                "no certificate with serial {text} was issued here, or it ended long ago: `hanse cert list` shows \
                 those that live; only the cluster that issued a certificate revokes it"
            );
            return refuse(Kind::NotFound, "not_issued_here", message);
        };
        if snapshot.bundles.is_revoked(&snapshot.own_trust_domain, &svid.key) {
            let message = format!("{text} of {} is revoked already: nobody accepts its key any more", svid.spiffe_id);
            return refuse(Kind::Exists, "already_revoked", message);
        }
        if svid.not_after <= now {
            let ago = now.since(svid.not_after).as_secs();
            let message = format!("{text} of {} ended {ago} s ago: nobody accepts it any more", svid.spiffe_id);
            return refuse(Kind::State, "already_ended", message);
        }
        Ok(svid)
    }
}

/// Revoked keys of every cluster whose certificates have not ended, the one that ends first first.
pub(super) fn revoked(snapshot: &Snapshot, now: Timestamp) -> Vec<wire::RevokedKey> {
    let all =
        snapshot.bundles.revocations().iter().flat_map(|(domain, keys)| keys.values().map(move |one| (domain, one)));
    let mut live: Vec<_> = all.filter(|(_, one)| now < one.not_after).collect();
    live.sort_by_key(|(_, one)| (one.not_after, one.key));
    let shown = |(domain, one): (&federation_model::TrustDomain, &Revocation)| wire::RevokedKey {
        cluster: snapshot.members.by_trust_domain(domain).map_or_else(String::new, |member| member.name.to_string()),
        serial: hex(&one.serial),
        key: one.key.to_string(),
        not_after_ms: one.not_after.as_millis(),
    };
    live.into_iter().map(shown).collect()
}

fn shown(svid: &IssuedSvid, snapshot: &Snapshot) -> wire::IssuedCertificate {
    wire::IssuedCertificate {
        spiffe_id: svid.spiffe_id.to_string(),
        serial: hex(&svid.serial),
        key: svid.key.to_string(),
        not_before_ms: svid.not_before.as_millis(),
        not_after_ms: svid.not_after.as_millis(),
        revoked: snapshot.bundles.is_revoked(&snapshot.own_trust_domain, &svid.key),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A serial number as lists show it, or as other tools do: in capitals, with colons, after `0x`.
fn serial(text: &str) -> Result<Vec<u8>, Refusal> {
    let digits: String = text.trim().trim_start_matches("0x").chars().filter(|c| *c != ':').collect();
    let bad = |detail: &str| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
        let message = format!(
            "{shown:?} is no serial number: {detail}; give what `hanse cert list` shows, up to {} hexadecimal digits",
            2 * SERIAL_BYTES_MAX
        );
        Refusal::invalid("bad_serial", message)
    };
    if digits.is_empty() {
        return Err(bad("it is empty"));
    }
    if let Some(other) = digits.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(bad(&format!("{other:?} is no hexadecimal digit")));
    }
    if digits.len() > 2 * SERIAL_BYTES_MAX {
        return Err(bad(&format!("it has {} digits", digits.len())));
    }
    let even = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let pairs = even.as_bytes().chunks_exact(2);
    let bytes = pairs.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    bytes.collect::<Option<_>>().ok_or_else(|| bad("it cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_read_as_other_tools_write_it() {
        for text in ["0aff10", "0AFF10", "0A:FF:10", "0x0aff10", " 0aff10\n", "aff10"] {
            assert_eq!(serial(text).expect(text), [0x0a, 0xff, 0x10], "{text:?}");
        }
        assert_eq!(serial(&hex(&[0x00, 0x80, 0x7f])).expect("as shown"), [0x00, 0x80, 0x7f]);
    }

    #[test]
    fn what_is_no_serial_number_is_refused_with_what_is_wrong() {
        for (text, why) in [
            ("", "it is empty"),
            ("0x", "it is empty"),
            ("12g4", "'g' is no hexadecimal digit"),
            ("12 34", "' ' is no hexadecimal digit"),
            ("-1", "'-' is no hexadecimal digit"),
            ("é", "'é' is no hexadecimal digit"),
            (&"ab".repeat(SERIAL_BYTES_MAX + 1), "it has 42 digits"),
        ] {
            let refused = serial(text).expect_err(text);
            assert_eq!(refused.reason, "bad_serial");
            assert!(refused.message.contains(why) && refused.message.contains("hanse cert list"), "{refused}");
        }
    }
}
