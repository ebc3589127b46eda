//! Every target on its corpus and on changed inputs, within its limits of memory and time.

use std::collections::{BTreeMap, BTreeSet};

use lowroad_fuzz::{Corpus, TARGETS, is_seed, seeds};

#[path = "support/run.rs"]
mod support;

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            support::run(stringify!($name), stringify!($name));
        })*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets![
    control_json,
    control_words,
    netmap,
    netmap_cache,
    map_stream,
    noise_server,
    noise_client,
    noise_records,
    noise_early,
    control_client,
    derp_frames,
    derp_relay,
    derp_client,
    raw_datagrams,
    userspace_datagrams,
    disco_message,
    disco_box,
    stun,
    geneve_tsmp,
    netcheck,
    paths,
    first_contact,
    policy,
    policy_edit,
    coordinator_config,
    coordinator_state,
    coordinator_requests,
    coordinator_http,
    coordinator_channel,
    admin_socket,
    local_api,
    prefs,
    state_file,
    filter_rules,
    packets,
    segments,
];

#[test]
fn every_target_is_run_by_a_test() {
    let mut listed: Vec<&str> = TARGETS
        .iter()
        .filter(|target| !target.needs_root)
        .map(|target| target.name)
        .collect();
    let mut tested = TESTED.to_vec();
    listed.sort_unstable();
    tested.sort_unstable();
    assert_eq!(listed, tested);
}

/// The runs in the tests begin with files only.
#[test]
fn every_seed_is_a_file_of_its_corpus() {
    let mut drifted = Vec::new();
    for target in TARGETS {
        let corpus = Corpus::read(target).expect("its corpus is committed");
        let files = corpus.inputs.into_iter().filter(|(name, _)| is_seed(name));
        let files: BTreeMap<String, Vec<u8>> = files.collect();
        let seeds: BTreeMap<String, Vec<u8>> = seeds(target).collect();
        let names: BTreeSet<&String> = files.keys().chain(seeds.keys()).collect();
        let differing = names
            .into_iter()
            .filter(|name| files.get(*name) != seeds.get(*name));
        drifted.extend(differing.map(|name| format!("{}/{name}", target.name)));
    }
    assert!(
        drifted.is_empty(),
        "{drifted:#?}\ndiffer from the seeds; write these: cargo xtask fuzz --seeds"
    );
}

#[test]
fn the_security_document_names_every_target() {
    const DOCUMENT: &str = include_str!("../../../docs/security.md");
    let (_, section) = DOCUMENT
        .split_once("\n## Bytes of others\n")
        .expect("there");
    let (section, _) = section.split_once("\n## ").expect("another follows");
    // Who, what, and in the last cell the targets.
    let cells = section.lines().filter_map(|line| {
        line.strip_prefix('|')?
            .strip_suffix('|')?
            .rsplit('|')
            .next()
    });
    let named: BTreeSet<&str> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let listed: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(named, listed);
}

#[test]
fn the_corpus_stays_small() {
    const MOST: u64 = 3 << 20;
    let folders = std::fs::read_dir(lowroad_fuzz::folder()).expect("the corpus is committed");
    let files = folders
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .flat_map(|entry| std::fs::read_dir(entry.path()).expect("it is a folder"));
    let bytes: u64 = files
        .flatten()
        .map(|file| file.metadata().expect("it is there").len())
        .sum();
    assert!(bytes < MOST, "{bytes} bytes");
}
