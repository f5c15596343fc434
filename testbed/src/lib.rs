//! Worlds of real processes for the tests in `testbed/tests`, and a WAN between namespaces for `src/bin`. The simulation has its own executable, `src/sim`.

pub mod netns;
pub mod worlds;
