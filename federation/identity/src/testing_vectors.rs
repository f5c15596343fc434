//! Reads the published test vectors: lines of `name = hexadecimal`, `#` for words to the reader.

use std::{collections::BTreeMap, path::PathBuf};

pub(crate) struct Vector(BTreeMap<String, Vec<u8>>);

pub(crate) fn read(file: &str) -> Vector {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Vector(
        lines
            .map(|line| {
                let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{file}: {line}"));
                (name.trim().to_owned(), hex(value.trim()))
            })
            .collect(),
    )
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd number of digits: {text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

impl Vector {
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.get(name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    pub(crate) fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().unwrap_or_else(|_| panic!("{name} has not {N} bytes"))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).expect("text")
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        u64::from_be_bytes(self.array(name))
    }
}
