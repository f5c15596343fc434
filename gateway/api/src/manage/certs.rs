//! Certificates, trust bundles, and the rotation of the root.

use std::time::Duration;

use federation_identity::now;
use federation_model::{ClusterId, Timestamp};
use proto::manage as wire;

use super::{count, naming, revoking};
use crate::{IssuedSvid, Refusal, Rotation, server::Shared};

/// Most members that a rotation may leave out by name in one request.
const WITHOUT_MAX: usize = 256;

impl Shared {
    pub(super) async fn cert_status(&self) -> Result<wire::CertStatusReply, Refusal> {
        let rotation = self.system.rotation().await?;
        Ok(self.certificate_status(rotation))
    }

    fn certificate_status(&self, rotation: Option<Rotation>) -> wire::CertStatusReply {
        let certificates = self.system.certificates().into_iter().map(|certificate| wire::Certificate {
            kind: certificate.kind.to_owned(),
            spiffe_id: certificate.spiffe_id.to_string(),
            serial: revoking::hex(&certificate.serial),
            not_before_ms: certificate.not_before.as_millis(),
            not_after_ms: certificate.not_after.as_millis(),
            key: certificate.key_sha256.to_string(),
        });
        let snapshot = self.ready().ok();
        let bundles = snapshot.iter().flat_map(|snapshot| {
            snapshot.bundles.iter().map(|bundle| wire::BundleStatus {
                cluster: snapshot
                    .members
                    .by_trust_domain(&bundle.trust_domain)
                    .map_or_else(String::new, |member| member.name.to_string()),
                trust_domain: bundle.trust_domain.to_string(),
                sequence: bundle.sequence,
                roots: count(bundle.roots.len()),
                sha256: bundle.roots.iter().map(|root| federation_identity::sha256(root).to_string()).collect(),
            })
        });
        let rotation = rotation.map(|rotation| self.told(rotation));
        let revoked = snapshot.iter().flat_map(|snapshot| revoking::revoked(snapshot, now()));
        wire::CertStatusReply {
            certificates: certificates.collect(),
            bundles: bundles.collect(),
            rotation,
            revoked: revoked.collect(),
        }
    }

    pub(super) async fn rotate_root(
        &self,
        request: wire::RotateRootRequest,
        author: String,
    ) -> Result<wire::RotationReply, Refusal> {
        let snapshot = self.ready()?;
        if request.without.len() > WITHOUT_MAX {
            let message = format!("{} members are left out, at most {WITHOUT_MAX} are taken", request.without.len());
            return Err(Refusal::invalid("without", message));
        }
        let without = request.without.iter().map(|text| naming::other(text, &snapshot).map(|member| member.id));
        let without: Vec<ClusterId> = without.collect::<Result<_, _>>()?;
        tracing::info!(%author, without = without.len(), "the root shall be rotated");
        let rotation = self.system.rotate_root(without, author).await?;
        Ok(wire::RotationReply { rotation: Some(self.told(rotation)) })
    }

    pub(super) async fn rotate_intermediate(&self, author: String) -> Result<wire::RotateIntermediateReply, Refusal> {
        let held = || self.system.certificates().into_iter().find(|one| one.kind == "intermediate");
        let before = held().ok_or_else(Refusal::not_ready)?;
        // Noted first, so that it can be revoked once nothing stands on it.
        let noted = IssuedSvid {
            spiffe_id: before.spiffe_id,
            serial: before.serial.clone(),
            key: before.key_sha256,
            not_before: before.not_before,
            not_after: before.not_after,
        };
        self.issued.note(noted).await;
        self.system.rotate_intermediate().await?;
        let signs = held().ok_or_else(Refusal::not_ready)?;
        let last = self
            .issued
            .list(now())
            .iter()
            .filter(|svid| !svid.spiffe_id.path().is_empty())
            .map(|svid| svid.not_after)
            .max();
        let reply = wire::RotateIntermediateReply {
            signs: revoking::hex(&signs.serial),
            before: revoking::hex(&before.serial),
            last_ends_ms: last.map_or(0, Timestamp::as_millis),
        };
        tracing::info!(%author, signs = %reply.signs, before = %reply.before, "another intermediate signs");
        Ok(reply)
    }

    pub(super) async fn abort_rotation(&self, author: String) -> Result<wire::RotationReply, Refusal> {
        tracing::info!(%author, "the rotation of the root shall be given up");
        let rotation = self.system.abort_rotation(author).await?;
        Ok(wire::RotationReply { rotation: Some(self.told(rotation)) })
    }

    fn told(&self, rotation: Rotation) -> wire::Rotation {
        let snapshot = self.ready().ok();
        let members = snapshot.as_ref().map(|snapshot| &snapshot.members);
        let name =
            |id: &ClusterId| members.map_or_else(|| format!("@{}", id.short()), |members| naming::shown(id, members));
        let laggard = |(member, age): &(ClusterId, Option<Duration>)| wire::Laggard {
            cluster: name(member),
            // Zero means "nothing known", so the freshest is a millisecond old.
            data_age_ms: naming::age_ms(*age),
        };
        let millis = |at: Option<Timestamp>| at.map_or(0, Timestamp::as_millis);
        let federation_model::Enforcement { by, behind } = &rotation.enforcement;
        wire::Rotation {
            phase: rotation.phase.as_str().to_owned(),
            started_at_ms: rotation.started_at.as_millis(),
            author: rotation.author,
            acknowledged: count(by.len()),
            members: count(by.len() + behind.len()),
            behind: behind.iter().map(laggard).collect(),
            without: rotation.without.iter().map(name).collect(),
            old_until_ms: millis(rotation.old_until),
            ended_at_ms: millis(rotation.ended_at),
        }
    }
}
