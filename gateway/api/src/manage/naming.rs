//! Names as operators give them, understood.

use federation_model::{
    AccountRef, ClusterId, ClusterName, Member, Members, ReferenceError, ServiceRef, Snapshot, SourceRef,
};

use crate::{Kind, Refusal};

/// Fewest digits of an id that tell a member beyond doubt.
const ID_DIGITS_MIN: usize = 6;

/// `account[.namespace]`.
pub(super) fn account(text: &str) -> Result<AccountRef, Refusal> {
    // The cluster is filled in and thrown away: an account has none of its own.
    let Ok(filler) = "x".parse::<ClusterName>() else { return Err(Refusal::internal("naming", &"filler")) };
    if text.split('.').count() > 2 {
        let message = format!("account {:?} has too many labels: write account[.namespace]", cut(text));
        return Err(Refusal::invalid("bad_reference", message));
    }
    Ok(SourceRef::parse(text, &filler)?.account)
}

/// `service[.namespace[.cluster]]` of this very cluster.
pub(super) fn own_service(text: &str, own: &ClusterName) -> Result<ServiceRef, Refusal> {
    let name = ServiceRef::parse(text, own)?;
    if name.cluster != *own {
        let message = format!("{name} is {}'s: run this on a gateway of that cluster", name.cluster);
        return Err(Refusal::new(Kind::NotPermitted, "anothers_service", message));
    }
    Ok(name)
}

/// `name`, or `name@id` with the first digits of the id.
pub(super) fn member<'a>(text: &str, members: &'a Members) -> Result<&'a Member, Refusal> {
    let (name, id) = match text.split_once('@') {
        Some((name, id)) => (name, Some(id)),
        None => (text, None),
    };
    let name: ClusterName = name.parse()?;
    let unknown =
        || Refusal::new(Kind::NotFound, "unknown_cluster", ReferenceError::UnknownCluster(name.clone()).to_string());
    let member = members.by_name(&name).ok_or_else(unknown)?;
    match id {
        Some(id) if id.len() < ID_DIGITS_MIN => {
            let message = format!("{:?}: give at least {ID_DIGITS_MIN} digits of the id", cut(text));
            Err(Refusal::invalid("short_id", message))
        }
        Some(id) if !member.id.to_string().starts_with(id) => {
            let message = format!("{name} has the id {}, not {:?}", member.id.short(), cut(id));
            Err(Refusal::new(Kind::NotFound, "unknown_cluster", message))
        }
        _ => Ok(member),
    }
}

/// A member other than this cluster.
pub(super) fn other<'a>(text: &str, snapshot: &'a Snapshot) -> Result<&'a Member, Refusal> {
    let member = member(text, &snapshot.members)?;
    if member.id == snapshot.own {
        let message = format!("{} is this very cluster: name another member", member.name);
        return Err(Refusal::invalid("own_cluster", message));
    }
    Ok(member)
}

/// A member's name, or the start of its id where no member has it.
pub(super) fn shown(id: &ClusterId, members: &Members) -> String {
    members.get(id).map_or_else(|| format!("@{}", id.short()), |member| member.name.to_string())
}

/// A text for a message, of bounded length.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(120).collect()
}
