//! `lowroad-bench`: what the datapath costs on this machine.
//!
//! `filter` runs packets through the kernel's own copy of the programs (`BPF_PROG_TEST_RUN`), for rule sets of several
//! sizes, interleaved, and prints the median of the rounds: the claim is that a verdict's cost does not depend on the
//! number of rules.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod filter;

#[derive(Debug, Parser)]
#[command(
    name = "lowroad-bench",
    version,
    about = "Measures lowroad's datapath on this machine (needs root)"
)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Nanoseconds per packet of the eBPF filter, by number of rules
    Filter(filter::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Filter(options) => filter::run(&options),
    }
}
