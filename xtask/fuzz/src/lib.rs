//! Everything that reads bytes of others, as plain functions of bytes: run by libFuzzer (`cargo xtask fuzz`) and, input by input, by the tests.
//!
//! A target panics if something that must hold doesn't. What it may take of memory and time is part of that: [`Limits`].

mod check;
mod corpus;
mod limits;
mod mutate;
mod script;
mod targets;

pub use check::{Failure, Spent, check};
pub use corpus::{Corpus, folder, is_seed, seeds, shared_samples};
pub use limits::{Counting, Limits};
pub use mutate::Mutator;
pub use targets::TARGETS;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A decoder, or something that acts on what a decoder lets through.
#[derive(Debug)]
pub struct Target {
    /// Also the name of its folder in the corpus.
    pub name: &'static str,
    /// What it feeds, for `--list`.
    pub about: &'static str,
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by our own encoders or by hand.
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub limits: Limits,
    /// The fuzzer makes no longer inputs.
    pub max_len: usize,
    /// How many mutated inputs the tests run, beside the corpus.
    pub mutations: usize,
    /// Loads programs into the kernel.
    pub needs_root: bool,
}

impl Target {
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}
