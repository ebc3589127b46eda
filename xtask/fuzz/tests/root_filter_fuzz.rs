//! The targets that load programs into the kernel. Needs root.

#[path = "support/run.rs"]
mod support;

#[test]
fn the_programs_and_the_reference_agree_on_every_packet() {
    support::run(
        "the_programs_and_the_reference_agree_on_every_packet",
        "ebpf",
    );
}
