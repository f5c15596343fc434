//! Worlds of real processes for the tests in `testbed/tests`, and a WAN between network namespaces for them and for
//! `src/wan`. The simulation has its own executable, `src/sim`.

pub mod netns;
pub mod race;
pub mod upgrade;
pub mod worlds;
