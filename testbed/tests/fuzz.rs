//! Every input in the fuzzers' corpora, and some thousand damaged ones, through each target: without a fuzzer, in seconds.
//!
//! The targets are the rooms' `fuzzing` modules; `.ci/campaign fuzz` looks for new inputs. `HANSE_BLESS=1` writes the
//! seeds of a target into its corpus; `HANSE_DAMAGED=20000` tries so many damaged copies of each, for want of a fuzzer.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Damaged copies of each input, unless `HANSE_DAMAGED` says otherwise.
const DAMAGED: u64 = 200;

type Target = (&'static str, fn(&[u8]));
/// Its folder, its targets, and the inputs from which each starts.
type Room = (&'static str, &'static [Target], fn(&str) -> Vec<Vec<u8>>);

const ROOMS: &[Room] = &[
    ("federation/model", federation_model::fuzzing::TARGETS, federation_model::fuzzing::seeds),
    ("proto", proto::fuzzing::TARGETS, proto::fuzzing::seeds),
    ("federation/identity", federation_identity::fuzzing::TARGETS, federation_identity::fuzzing::seeds),
    ("federation/store", federation_store::fuzzing::TARGETS, federation_store::fuzzing::seeds),
    ("federation/link", federation_link::fuzzing::TARGETS, federation_link::fuzzing::seeds),
    ("gateway/proxy", gateway_proxy::fuzzing::TARGETS, gateway_proxy::fuzzing::seeds),
    ("gateway/dns", gateway_dns::fuzzing::TARGETS, gateway_dns::fuzzing::seeds),
    ("gateway/admin", gateway_admin::fuzzing::TARGETS, gateway_admin::fuzzing::seeds),
];

fn folder(room: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join(room).join("fuzz")
}

/// The files of a target's corpus, in the order of their names.
fn corpus(room: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder(room).join("corpus").join(target);
    let found = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = found.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
}

/// A copy with one to four bytes changed, cut off, doubled or taken from another place.
fn damage(bytes: &[u8], seed: &mut u64) -> Vec<u8> {
    let mut next = |below: usize| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed as usize % below.max(1)
    };
    let mut copy = bytes.to_vec();
    for _ in 0..=next(4) {
        let at = next(copy.len());
        match next(5) {
            _ if copy.is_empty() => copy.push(next(256) as u8),
            0 => copy.truncate(at),
            1 => copy[at] ^= 1 << next(8),
            2 => copy[at] = [0, 1, 0x7f, 0x80, 0xff, b'.', b'/'][next(7)],
            3 => copy.insert(at, next(256) as u8),
            _ => {
                let from = next(copy.len());
                let piece = copy[from..(from + next(40)).min(copy.len())].to_vec();
                copy.splice(at..at, piece);
            }
        }
    }
    copy
}

fn hold(name: &str, target: fn(&[u8]), what: &str, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(outcome.is_ok(), "{name} does not hold for {what}: {}", input.escape_ascii());
}

#[test]
fn every_input_of_every_corpus_and_damaged_ones_keep_the_promises() {
    let damaged = std::env::var("HANSE_DAMAGED").map_or(DAMAGED, |text| text.parse().expect("a number"));
    for (room, targets, seeds) in ROOMS {
        for (name, target) in *targets {
            if std::env::var_os("HANSE_BLESS").is_some() {
                let folder = folder(room).join("corpus").join(name);
                std::fs::create_dir_all(&folder).expect("a folder");
                for (number, seed) in seeds(name).into_iter().enumerate() {
                    std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("written");
                }
            }
            let inputs = corpus(room, name);
            assert!(!inputs.is_empty(), "{room}: {name} has no corpus");
            let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
            for (path, input) in &inputs {
                hold(name, *target, &path.display().to_string(), input);
                for _ in 0..damaged {
                    hold(name, *target, "a damaged input", &damage(input, &mut seed));
                }
            }
            // The seeds of today's code, should its corpus be of an older one.
            seeds(name).iter().for_each(|input| hold(name, *target, "a seed", input));
        }
    }
}

#[test]
fn every_target_has_its_fuzzer_and_its_corpus_and_they_are_small() {
    let all: Vec<_> = ROOMS.iter().flat_map(|(_, targets, _)| *targets).map(|(name, _)| name).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "two of one name would be one program: {all:?}");
    let mut bytes = 0;
    for (room, targets, _) in ROOMS {
        let names: BTreeSet<String> = targets.iter().map(|(name, _)| (*name).to_owned()).collect();
        let listed = |folder: PathBuf| -> BTreeSet<String> {
            let found = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            found.map(|entry| entry.expect("an entry").path()).filter_map(|path| stem(&path)).collect()
        };
        assert_eq!(names, listed(folder(room).join("fuzz_targets")), "{room}/fuzz/fuzz_targets");
        assert_eq!(names, listed(folder(room).join("corpus")), "{room}/fuzz/corpus");
        bytes += names.iter().flat_map(|name| corpus(room, name)).map(|(_, input)| input.len()).sum::<usize>();
    }
    assert!(bytes < 200 * 1024, "the corpora have {bytes} bytes, keep the shortest inputs alone");
}

fn stem(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.to_owned())
}
