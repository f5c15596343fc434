//! What becomes of a service once what is known of its owner is older than its lease.
//!
//! In: what the owner chose, and the age of its data as the asker knows it. Out: whether a call may still be. Never:
//! reads a clock, or lets older data allow what fresher data would not.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use crate::ClusterId;

/// Lease of a service whose owner named none.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Shortest lease that can be chosen: ages move in steps of a second or two even while all is well.
pub const LEASE_MIN: Duration = Duration::from_secs(10);
/// Longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What callers do past the lease. The order is from what allows most to what allows least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenStale {
    /// The last rules known stay in force, for as long as it takes.
    #[default]
    Keep,
    /// The service of the same name in the caller's own cluster stands in, if there is one that the caller may reach.
    PreferLocal,
    /// Nobody reaches it any more, and live connections end.
    Deny,
}

impl WhenStale {
    /// The word on the command line and in lists.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::PreferLocal => "prefer-local",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for WhenStale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for WhenStale {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Keep, Self::PreferLocal, Self::Deny];
        all.into_iter().find(|when| when.as_str() == text).ok_or_else(|| {
            format!("{:?} is no policy: say keep, prefer-local or deny", text.chars().take(40).collect::<String>())
        })
    }
}

/// What the owner of a service chose for times when its callers hear nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Staleness {
    pub when: WhenStale,
    /// How old the owner's data may be before `when` begins. Writers keep to [`LEASE_MIN`] and [`LEASE_MAX`].
    pub lease: Duration,
}

impl Default for Staleness {
    fn default() -> Self {
        Self { when: WhenStale::Keep, lease: LEASE_DEFAULT }
    }
}

impl Staleness {
    /// Whether the lease is over. `None`: the owner was never heard, which is older than anything.
    pub fn is_over(&self, age: Option<Duration>) -> bool {
        age.is_none_or(|age| age >= self.lease)
    }

    /// Whether calls are refused at this age.
    pub fn denies(&self, age: Option<Duration>) -> bool {
        self.when == WhenStale::Deny && self.is_over(age)
    }

    /// What is left of the lease; zero when it is over.
    pub fn left(&self, age: Option<Duration>) -> Duration {
        age.map_or(Duration::ZERO, |age| self.lease.saturating_sub(age))
    }

    /// The narrower of two: of versions that stand side by side.
    #[must_use]
    pub fn narrower(self, other: Self) -> Self {
        Self { when: self.when.max(other.when), lease: self.lease.min(other.lease) }
    }
}

/// Says how old the data of a cluster is, by a clock that never steps; `None` for one that was never heard since this
/// process started. Given by whoever has that clock to those who decide.
#[derive(Clone)]
pub struct Ages(Arc<AgeOf>);

type AgeOf = dyn Fn(&ClusterId) -> Option<Duration> + Send + Sync;

impl Ages {
    pub fn new(of: impl Fn(&ClusterId) -> Option<Duration> + Send + Sync + 'static) -> Self {
        Self(Arc::new(of))
    }

    pub fn of(&self, cluster: &ClusterId) -> Option<Duration> {
        (self.0)(cluster)
    }
}

impl fmt::Debug for Ages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ages")
    }
}

/// How old the data was on which a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Age of the owner's data; `None` if it was never heard since this process started.
    pub age: Option<Duration>,
    pub lease: Duration,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.age {
            Some(age) => write!(f, "data {} s old", age.as_secs())?,
            None => f.write_str("no data since this process started")?,
        }
        write!(f, ", lease {} s", self.lease.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHENS: [WhenStale; 3] = [WhenStale::Keep, WhenStale::PreferLocal, WhenStale::Deny];

    #[test]
    fn words_are_read_back_and_others_name_the_three() {
        for when in WHENS {
            assert_eq!(when.to_string().parse(), Ok(when));
        }
        for bad in ["", "Keep", "preferlocal", "prefer_local", "deny ", "drop"] {
            assert!(bad.parse::<WhenStale>().expect_err(bad).contains("keep, prefer-local or deny"), "{bad:?}");
        }
    }

    #[test]
    fn a_lease_is_over_at_its_very_end_and_whoever_was_never_heard_has_none() {
        let policy = Staleness { when: WhenStale::Deny, lease: Duration::from_secs(10) };
        let millis = |millis| Some(Duration::from_millis(millis));
        for (age, over, left) in
            [(millis(0), false, 10_000), (millis(9_999), false, 1), (millis(10_000), true, 0), (None, true, 0)]
        {
            assert_eq!((policy.is_over(age), policy.denies(age)), (over, over), "{age:?}");
            assert_eq!(policy.left(age), Duration::from_millis(left), "{age:?}");
        }
        for when in [WhenStale::Keep, WhenStale::PreferLocal] {
            let policy = Staleness { when, ..policy };
            assert!(policy.is_over(None) && !policy.denies(None), "{when}");
        }
    }

    #[test]
    fn of_two_versions_the_narrower_stands() {
        let of = |when, secs| Staleness { when, lease: Duration::from_secs(secs) };
        assert_eq!(of(WhenStale::Keep, 10).narrower(of(WhenStale::Deny, 60)), of(WhenStale::Deny, 10));
        assert_eq!(of(WhenStale::PreferLocal, 60).narrower(of(WhenStale::Keep, 60)), of(WhenStale::PreferLocal, 60));
    }

    #[test]
    fn less_fresh_never_allows_more() {
        let ages: Vec<_> = [0, 1, 9, 10, 11, 60, 86_400].map(|secs| Some(Duration::from_secs(secs))).into();
        let ages: Vec<_> = ages.into_iter().chain([None]).collect();
        for when in WHENS {
            for lease in [10, 60, 900, 86_400] {
                let policy = Staleness { when, lease: Duration::from_secs(lease) };
                for pair in ages.windows(2) {
                    let [fresher, older] = pair else { unreachable!("windows of two") };
                    assert!(policy.denies(*older) || !policy.denies(*fresher), "{policy:?} {fresher:?} {older:?}");
                    assert!(policy.left(*older) <= policy.left(*fresher), "{policy:?} {fresher:?} {older:?}");
                }
            }
        }
    }
}
