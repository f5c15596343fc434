# The verbs of this repository. `just` alone lists them; each is one line that can be typed without just.

_default:
    @just --list --unsorted

# Formatting and lints, as CI runs them.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Every test: no root, no other programs needed.
test *ARGS:
    cargo test --workspace --locked {{ ARGS }}

# Everything that has to pass before a change lands.
check:
    .ci/run

# Replays one seed of the replication simulation: `just sim 4711`.
sim SEED:
    cargo run --release --locked -p testbed --bin sim -- --seeds 1 --from {{ SEED }}

# Three clusters as real processes on loopback; checks every claim and exits.
demo *ARGS:
    cargo run --release --locked -- demo --once {{ ARGS }}

# Dependencies: advisories, licences, and who may use what.
deny:
    cargo deny --locked check
