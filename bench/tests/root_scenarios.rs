//! `lowroad-bench` as `cargo xtask bench` starts it, with real namespaces, nodes, traffic and eBPF programs: scenarios of which a quick round takes seconds.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// The agent scenario wants only programs, this one a whole tailnet from inside this process, too.
#[test]
fn tunnels_are_measured() {
    let figures = measured("userspace");
    for name in ["throughput", "CPU of the processes"] {
        assert_measured(&figures, name, "lowroad-userspace");
    }
}

#[test]
fn relayed_tunnels_are_measured_and_the_relay_by_itself() {
    let figures = measured("relay");
    for name in [
        "throughput",
        "CPU of the machine",
        "CPU of the processes",
        "of it the relay's",
        "of it the nodes'",
        "what a core of the relay carries",
    ] {
        assert_measured(&figures, name, "lowroad-userspace");
    }
}

#[test]
fn netmaps_are_measured() {
    let figures = measured("netmap");
    for name in [
        "cold, to programmed",
        "cold: decompress and parse",
        "cold: apply to the netmap",
        "cold: desired state and plan",
        "cold: compile the filter",
        "change of one peer",
    ] {
        for peers in ["10 peers", "1000 peers"] {
            assert_measured(&figures, name, peers);
        }
    }
}

#[test]
fn verdicts_are_measured_beside_an_empty_program_and_nftables() {
    let figures = measured("filter");
    for (protocol, family, outcome) in [
        ("TCP SYN", "v4", "hit"),
        ("TCP SYN", "v6", "miss"),
        ("UDP", "v4", "miss"),
        ("UDP", "v6", "hit"),
    ] {
        let verdict = format!("verdict in, {family}: {protocol}, {outcome}");
        for row in ["10 rules", "10000 nodes", "an empty program"] {
            assert_measured(&figures, &verdict, row);
        }
        let added = format!("added to {protocol} in, {family}, {outcome}");
        assert_measured(&figures, &added, "nftables, 10 rules");
    }
    for figure in figures.as_array().expect("figures") {
        for row in figure["rows"].as_array().expect("rows") {
            let samples = row["samples"].as_array().expect("samples");
            assert!(!samples.is_empty(), "{}: {row}", figure["name"]);
        }
    }
}

/// The figures of a quick round of this scenario.
fn measured(name: &str) -> Value {
    let program = Path::new(env!("CARGO_BIN_EXE_lowroad-bench"));
    let out = tempfile::tempdir().expect("make a folder");
    let status = Command::new(program)
        .args(["run", name, "--quick", "--rounds=1", "--out"])
        .arg(out.path())
        .env(
            "LOWROAD_BIN_DIR",
            program.parent().expect("it has a folder"),
        )
        .status()
        .expect("start lowroad-bench");
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(out.path().join("native.json")).expect("read the results");
    let mut results: Value = serde_json::from_str(&text).expect("results are JSON");
    let scenario = &mut results["scenarios"][0];
    assert_eq!(scenario["name"], name);
    assert_eq!(scenario["failed"], Value::Null, "{text}");
    for page in ["native.md".to_owned(), format!("native-{name}.svg")] {
        assert!(out.path().join(&page).exists(), "{page}");
    }
    scenario["figures"].take()
}

/// The first figure whose name begins so has a sample above zero in this row.
fn assert_measured(figures: &Value, name: &str, row: &str) {
    let sample = figures
        .as_array()
        .expect("figures")
        .iter()
        .find_map(|figure| {
            let is_it = figure["name"].as_str()?.starts_with(name);
            let rows = figure["rows"].as_array().filter(|_| is_it)?;
            let ours = rows.iter().find(|one| one["label"] == row)?;
            ours["samples"][0].as_f64()
        });
    assert!(
        sample.is_some_and(|sample| sample > 0.0),
        "{name}, {row}: {figures}"
    );
}
