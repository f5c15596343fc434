//! Worlds of real processes for the tests in `testbed/tests`. The simulation has its own executable, `src/sim`.

pub mod worlds;
