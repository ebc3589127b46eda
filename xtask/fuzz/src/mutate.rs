//! Small deterministic changes of inputs, for the short run in the tests; the long runs leave that to libFuzzer.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Numbers at the edges of types, and lengths that lie.
const NUMBERS: [&[u8]; 10] = [
    &[0],
    &[0xff],
    &[0x7f],
    &[0xff, 0xff],
    &[0x7f, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff; 8],
    &[0, 0, 0, 0],
    &[0x10, 0, 0, 0],
];

/// Pieces that JSON and its readers may stumble over.
const WORDS: [&str; 30] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "-9223372036854775808",
    "0.1",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "]",
    "}",
    ",",
    "\"*\"",
    "\\u0000",
    "\\ud800",
    "0.0.0.0/0",
    "::/0",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "65535",
    "65536",
    "*:*",
    "\n",
    "/*",
    "//",
    "cap:",
];

/// Makes inputs from inputs.
#[derive(Debug)]
pub struct Mutator {
    random: StdRng,
}

impl Mutator {
    /// The same seed gives the same inputs.
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// One of `inputs`, changed in one to six places, never longer than `longest`.
    pub fn next(&mut self, inputs: &[Vec<u8>], longest: usize) -> Vec<u8> {
        let mut bytes = inputs.choose(&mut self.random).cloned().unwrap_or_default();
        for _ in 0..self.random.random_range(1..=6) {
            self.change(&mut bytes, inputs);
        }
        bytes.truncate(longest);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.random.random_range(0..=bytes.len());
        let end = self.random.random_range(at..=bytes.len().min(at + 64));
        match self.random.random_range(0..10) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = self.random.random(),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let copy = bytes[at..end].repeat(self.random.random_range(1..4));
                bytes.splice(at..at, copy);
            }
            5 => {
                let number = NUMBERS[self.random.random_range(0..NUMBERS.len())];
                self.put(bytes, at, number);
            }
            6 | 7 => {
                let word = WORDS[self.random.random_range(0..WORDS.len())];
                bytes.splice(at..end, word.bytes());
            }
            8 => {
                let other = inputs.choose(&mut self.random).cloned().unwrap_or_default();
                let from = self.random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let noise: Vec<u8> = (0..self.random.random_range(1..16))
                    .map(|_| self.random.random())
                    .collect();
                bytes.splice(at..at, noise);
            }
        }
    }

    /// Over what is there, or before it.
    fn put(&mut self, bytes: &mut Vec<u8>, at: usize, number: &[u8]) {
        let over = if self.random.random() {
            number.len()
        } else {
            0
        };
        let end = (at + over).min(bytes.len());
        bytes.splice(at..end, number.iter().copied());
    }
}
