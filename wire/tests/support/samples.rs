//! Files of facts that stand beside the checkout.

use std::{env, fs, path::PathBuf};

/// The text of a sample, or `None` after saying that the test is skipped.
pub fn read(path: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples");
    let directory = env::var_os("LOWROAD_SAMPLES").map_or_else(|| beside.into(), PathBuf::from);
    let file = directory.join(path);
    fs::read_to_string(&file)
        .inspect_err(|error| {
            println!(
                "SKIPPED: {}: {error}; set LOWROAD_SAMPLES to where the samples are",
                file.display()
            );
            println!("skipped 1");
        })
        .ok()
}
