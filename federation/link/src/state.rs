//! The one row in which this room remembers which federation it is in.
//!
//! Value: version byte ‖ own cluster id ‖ federation id ‖ ids of blocked members, 32 bytes each. Blocks are records now;
//! those of a store that an older version wrote are read, said as records at the next start, and then forgotten here.

use std::collections::BTreeSet;

use federation_model::{ClusterId, FederationId};
use federation_store::{Key, Kind};

use crate::limits::BLOCKED_MAX;

const VERSION: u8 = 1;
const NAME: &[u8] = b"link";

/// Which federation, and whom an older version shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) own: ClusterId,
    pub(crate) federation: FederationId,
    pub(crate) blocked: BTreeSet<ClusterId>,
}

/// Where the row is.
pub(crate) fn key() -> Key {
    Key { kind: Kind::Local, name: NAME.to_vec() }
}

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend_from_slice(self.own.as_bytes());
        value.extend_from_slice(self.federation.as_bytes());
        self.blocked.iter().for_each(|member| value.extend_from_slice(member.as_bytes()));
        value
    }

    /// `None` if the value is not of this version or does not have whole ids.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let (&version, rest) = value.split_first()?;
        let (ids, left) = rest.as_chunks::<32>();
        if version != VERSION || !left.is_empty() || ids.len() > BLOCKED_MAX + 2 {
            return None;
        }
        let mut ids = ids.iter();
        let own = ClusterId::try_from(ids.next()?.as_slice()).ok()?;
        let federation = FederationId::try_from(ids.next()?.as_slice()).ok()?;
        let blocked = ids.filter_map(|id| ClusterId::try_from(id.as_slice()).ok()).collect();
        Some(Self { own, federation, blocked })
    }
}

#[cfg(test)]
mod tests {
    use federation_model::Digest;

    use super::*;

    fn id(byte: u8) -> ClusterId {
        ClusterId::from_digest(Digest([byte; 32]))
    }

    #[test]
    fn state_comes_back_as_it_was_written() {
        let state = State {
            own: id(1),
            federation: FederationId::from_digest(Digest([2; 32])),
            blocked: [id(3), id(4)].into(),
        };
        assert_eq!(State::decode(&state.encode()), Some(state));
    }

    #[test]
    fn a_row_that_is_cut_or_of_another_version_is_not_guessed_at() {
        let state =
            State { own: id(1), federation: FederationId::from_digest(Digest([2; 32])), blocked: [id(3)].into() };
        let whole = state.encode();
        for cut in (0..whole.len()).filter(|cut| cut % 32 != 1 || *cut < 65) {
            assert_eq!(State::decode(whole.get(..cut).expect("within")), None, "cut at {cut}");
        }
        let mut other = whole;
        other.insert(0, 2);
        assert_eq!(State::decode(&other), None);
    }
}
