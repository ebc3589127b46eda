//! libFuzzer around one target, which `LOWROAD_FUZZ_TARGET` names; arguments are libFuzzer's own.
#![no_main]

use std::{process, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use lowroad_fuzz::{Target, check};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("LOWROAD_FUZZ_TARGET").unwrap_or_default();
    Target::find(&name).unwrap_or_else(|| {
        eprintln!("LOWROAD_FUZZ_TARGET names no target: {name:?}");
        process::exit(2);
    })
});

fuzz_target!(|input: &[u8]| {
    if let Err(failure) = check(&TARGET, input) {
        eprintln!("{}: {failure}", TARGET.name);
        // libFuzzer saves the input then.
        process::abort();
    }
});
