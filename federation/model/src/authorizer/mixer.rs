//! How names and numbers become the numbers by which the table is searched.
//!
//! In: labels, cluster numbers, SPIFFE IDs. Out: 64 bits each. Never: the last word on whether two things are the same;
//! what is found is compared whole. Seeded at random, since peers choose the names.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Hashes names and small numbers quickly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixer(u64);

/// What a part of a rule is. The numbers differ in many bits.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(super) enum Role {
    Service = 0x2545_f491_4f6c_dd1d,
    ServiceNamespace = 0x9fb2_1c65_1e98_df25,
    ServiceCluster = 0xd6e8_feb8_6659_fd93,
    Account = 0xa076_1d64_78bd_642f,
    AccountNamespace = 0xe703_7ed1_a0b4_28db,
    AccountCluster = 0x8ebc_6af0_9c88_c6e3,
    TrustDomain = 0x5899_65cc_7537_4cc3,
    Path = 0x1d8e_4e27_c47d_124f,
}

impl Default for Mixer {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64) | 1)
    }
}

impl Mixer {
    /// The number of a text in its role: the same text elsewhere has another.
    pub(super) fn text(self, role: Role, text: &str) -> u64 {
        let mut mix = Mix(self.0 ^ role as u64);
        mix.write(text.as_bytes());
        mix.finish()
    }

    /// The number of a number in its role.
    pub(super) fn number(self, role: Role, number: u32) -> u64 {
        let mut mix = Mix(self.0 ^ role as u64);
        mix.write_u32(number);
        mix.finish()
    }
}

impl BuildHasher for Mixer {
    type Hasher = Mix;
    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(chunk.try_into().map_or(0, u64::from_le_bytes));
        }
        // The length in the last number keeps a short chunk apart from one with zeros.
        let rest = chunks.remainder().iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.write_u64(rest | (bytes.len() as u64).rotate_right(8));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // Folding the upper half of a wide product into the lower mixes all bits (as wyhash does).
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
