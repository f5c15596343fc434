//! Durations in figures.

use std::time::Duration;

use serde_json::{Value, json};

/// Where a set of durations lies.
pub(crate) struct Spread {
    p50: Duration,
    pub(crate) p99: Duration,
    max: Duration,
}

impl Spread {
    pub(crate) fn json(&self) -> Value {
        json!({ "p50": milliseconds(self.p50), "p99": milliseconds(self.p99), "max": milliseconds(self.max) })
    }
}

/// Sorts durations; the p-th of a hundred is the smallest that at least p in a hundred do not exceed.
pub(crate) fn spread(durations: &mut [Duration]) -> Spread {
    durations.sort();
    let at = |percent: usize| {
        let rank = (durations.len() * percent).div_ceil(100).max(1);
        durations.get(rank - 1).copied().unwrap_or_default()
    };
    Spread { p50: at(50), p99: at(99), max: at(100) }
}

/// Milliseconds with one decimal.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_durations_that_occurred() {
        let mut durations: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let spread = spread(&mut durations);
        assert_eq!([spread.p50, spread.p99, spread.max].map(|one| one.as_millis()), [100, 198, 200]);
    }

    #[test]
    fn of_few_the_largest_is_the_99th() {
        let mut durations = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(spread(&mut durations).p99, Duration::from_millis(3));
        assert_eq!(spread(&mut []).max, Duration::ZERO);
    }
}
