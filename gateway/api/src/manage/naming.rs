//! Names as operators give them, understood.

use std::time::Duration;

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

/// `name`, or `name@id` with the first digits of the id, at least six. Those that are out for good are found too; a name
/// alone is that of the member that is in, if there is one.
pub(super) fn known<'a>(text: &str, members: &'a Members) -> Result<&'a Member, Refusal> {
    let (name, digits) = match text.split_once('@') {
        Some((name, digits)) => (name, Some(digits)),
        None => (text, None),
    };
    let name: ClusterName = name.parse()?;
    let named = || members.iter().filter(|member| member.name == name);
    let shown = |members: &[&Member]| {
        let all: Vec<String> = members.iter().map(|member| format!("{name}@{}", member.id.short())).collect();
        all.join(", ")
    };
    let found: Vec<&Member> = match digits {
        None => match members.by_name(&name) {
            Some(member) => vec![member],
            None => named().collect(),
        },
        Some(digits) if digits.len() < ID_DIGITS_MIN || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            let message = format!("{:?}: after the @, give at least {ID_DIGITS_MIN} hexadecimal digits", cut(text));
            return Err(Refusal::invalid("short_id", message));
        }
        Some(digits) => {
            let digits = digits.to_ascii_lowercase();
            let held: Vec<&Member> = named().collect();
            let fits: Vec<&Member> =
                held.iter().copied().filter(|member| member.id.to_string().starts_with(&digits)).collect();
            if fits.is_empty() && !held.is_empty() {
                let message =
                    format!("no {name} has an id that starts with {:?}: there is {}", cut(&digits), shown(&held));
                return Err(Refusal::new(Kind::NotFound, "unknown_cluster", message));
            }
            fits
        }
    };
    match found.as_slice() {
        [] => {
            let message = ReferenceError::UnknownCluster(name.clone()).to_string();
            Err(Refusal::new(Kind::NotFound, "unknown_cluster", message))
        }
        [member] => Ok(member),
        several => {
            let message = format!("{:?} is the name of several clusters: give one of {}", cut(text), shown(several));
            Err(Refusal::invalid("ambiguous_cluster", message))
        }
    }
}

/// A member other than this cluster, those that are out for good included.
pub(super) fn other<'a>(text: &str, snapshot: &'a Snapshot) -> Result<&'a Member, Refusal> {
    let member = known(text, &snapshot.members)?;
    if member.id == snapshot.own {
        let message = format!("{} is this very cluster: name another member", member.name);
        return Err(Refusal::invalid("own_cluster", message));
    }
    Ok(member)
}

/// A member that is in: rules and exports name no other.
pub(super) fn member<'a>(text: &str, members: &'a Members) -> Result<&'a Member, Refusal> {
    let member = known(text, members)?;
    if member.state.is_gone() {
        let message = format!("{}@{} is out for good ({})", member.name, member.id.short(), member.state);
        return Err(Refusal::new(Kind::NotFound, "unknown_cluster", message));
    }
    Ok(member)
}

/// A member's name, with its id where the name is another's now, or the start of its id where no member has it.
pub(super) fn shown(id: &ClusterId, members: &Members) -> String {
    let Some(member) = members.get(id) else { return format!("@{}", id.short()) };
    let plain = !member.state.is_gone()
        || members.by_name(&member.name).is_none()
            && members.iter().filter(|other| other.name == member.name).count() == 1;
    if plain { member.name.to_string() } else { format!("{}@{}", member.name, id.short()) }
}

/// An age for a reply. Zero means "none came yet", so the freshest data is a millisecond old.
pub(super) fn age_ms(age: Option<Duration>) -> u64 {
    age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1))
}

/// A text for a message, of bounded length.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use federation_model::{
        Accept, Approval, Digest, MemberState, Relay, ReplicationKey, SealingKey, Timestamp, TrustDomain,
    };

    use super::*;

    fn member_of(number: u8, name: &str, state: MemberState) -> Member {
        let mut digest = [0xab; 32];
        digest[4] = number;
        Member {
            id: ClusterId::from_digest(Digest(digest)),
            name: name.parse().expect("a name"),
            trust_domain: format!("{name}.mesh.internal").parse::<TrustDomain>().expect("a trust domain"),
            root: Arc::from([number]),
            replication_key: ReplicationKey([number; 32]),
            sealing_key: SealingKey([number; 32]),
            sponsor: ClusterId::from_digest(Digest(digest)),
            admitted_at: Timestamp::ZERO,
            lawmaker: false,
            state,
            evicted_by: Vec::new(),
            accept: Accept::Federation,
            approval: Approval::Auto,
            relay: Relay::Nobody,
            endpoints: Vec::new(),
        }
    }

    /// West of today, two wests that are gone, a north and two souths that are gone. All ids begin with abababab.
    fn members() -> Members {
        let mut members = Members::default();
        for (number, name, state) in [
            (1, "west", MemberState::Active),
            (2, "west", MemberState::Evicted),
            (3, "west", MemberState::Left),
            (4, "north", MemberState::Evicted),
            (5, "south", MemberState::Evicted),
            (6, "south", MemberState::Left),
        ] {
            assert!(members.insert(member_of(number, name, state)));
        }
        members
    }

    #[track_caller]
    fn check(text: &str, wanted: Result<u8, (&str, &str)>) {
        let members = members();
        match (known(text, &members), wanted) {
            (Ok(found), Ok(number)) => assert_eq!(found.id.as_bytes()[4], number, "{text}"),
            (Err(refusal), Err((word, says))) => {
                assert_eq!(refusal.reason, word, "{text}: {refusal}");
                assert!(refusal.message.contains(says), "{text}: {refusal}");
            }
            (found, wanted) => panic!("{text}: {found:?}, not {wanted:?}"),
        }
    }

    #[test]
    fn a_name_alone_is_the_member_that_is_in() {
        check("west", Ok(1));
        check("north", Ok(4));
        check("east", Err(("unknown_cluster", "hanse cluster list")));
        check("south", Err(("ambiguous_cluster", "south@abababab05ab, south@abababab06ab")));
    }

    #[test]
    fn a_name_with_digits_of_the_id_finds_those_that_are_gone_too() {
        check("west@abababab02", Ok(2));
        check("west@ABABABAB03", Ok(3));
        check("west@abababab01abab", Ok(1));
        check("west@ababab", Err(("ambiguous_cluster", "west@abababab01ab, west@abababab02ab")));
        check("west@abababab09", Err(("unknown_cluster", "no west has an id that starts with \"abababab09\"")));
        check("east@abababab01", Err(("unknown_cluster", "east")));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["west@", "west@ababa", "west@abababxx", "west@ababab@1", "west@äääääää"] {
            check(text, Err(("short_id", "at least 6 hexadecimal digits")));
        }
        check("West@ababab", Err(("bad_name", "a-z")));
        check("@abababab01", Err(("bad_name", "")));
    }

    #[test]
    fn a_name_is_shown_with_its_id_where_it_alone_would_mislead() {
        let members = members();
        let all: Vec<String> = members.iter().map(|member| shown(&member.id, &members)).collect();
        let wanted =
            ["west", "west@abababab02ab", "west@abababab03ab", "north", "south@abababab05ab", "south@abababab06ab"];
        assert_eq!(all, wanted);
        for name in &all {
            assert_eq!(shown(&known(name, &members).expect(name).id, &members), *name);
        }
    }
}
