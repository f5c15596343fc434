//! Faults planted on purpose, so that the simulation can show that it finds them.
//!
//! In: the fault that the worlds of one thread have. Out: whether a line has to go wrong. Never: bends anything in a
//! build without the feature `mutations`, where every question is answered with no.

#[cfg(feature = "mutations")]
use std::cell::Cell;

/// One line that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutations"), expect(unreachable_pub, reason = "it is public with the feature alone"))]
pub enum Mutation {
    /// Takes a record over a gap.
    AcceptGap,
    /// Sends a record before it is durable.
    SendBeforePersist,
    /// Makes only the first of several records durable.
    PersistFirst,
    /// Overlooks a second record at one place.
    IgnoreFork,
    /// Takes records that lie behind two at one place.
    ResurrectVoid,
    /// Does not publish what a fork changed.
    SkipPublish,
    /// Goes on in the old epoch after a restore.
    ForgetFloor,
    /// Disregards a peer that names heads of this cluster which it does not have.
    IgnoreDoubt,
    /// Lets what one member alone may see travel to others.
    RelayPrivateLog,
    /// Never asks again for what a lost message left behind.
    SkipAntiEntropy,
    /// Takes a deletion for nothing when it comes from the disk.
    ForgetTombstone,
    /// Lets an older bundle take the place of a newer one.
    AcceptLowerBundle,
    /// Lets everybody replace everybody's rules.
    ReplaceAnyones,
}

#[cfg(feature = "mutations")]
thread_local! {
    static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Plants a fault in all that this thread does from now on; `None` takes it out again.
#[cfg(feature = "mutations")]
pub fn plant(mutation: Option<Mutation>) {
    PLANTED.set(mutation);
}

#[cfg(feature = "mutations")]
pub(crate) fn planted(mutation: Mutation) -> bool {
    PLANTED.get() == Some(mutation)
}

#[cfg(not(feature = "mutations"))]
pub(crate) const fn planted(_: Mutation) -> bool {
    false
}
