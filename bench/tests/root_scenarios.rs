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
    for family in ["v4", "v6"] {
        let profile = format!("where the time goes, {family}");
        assert_measured(&figures, &profile, "an empty program");
        // What a part adds is a difference, and may be none in one round.
        for part in PARTS {
            let added = sample(&figures, &profile, part);
            assert!(
                added.is_some_and(f64::is_finite),
                "{profile}, {part}: {figures}"
            );
        }
    }
    for figure in figures.as_array().expect("figures") {
        for row in figure["rows"].as_array().expect("rows") {
            let samples = row["samples"].as_array().expect("samples");
            assert!(!samples.is_empty(), "{}: {row}", figure["name"]);
        }
    }
}

/// Of a program, whose times are told apart.
const PARTS: [&str; 5] = [
    "IP header, rule set, counter",
    "ports, destination's class",
    "service, rule's counter",
    "source's class, pair",
    "flow (UDP)",
];

/// Scenarios and drivers that are no part of this repository, beside drivers that are.
#[test]
fn a_folder_of_somebodys_own_is_measured_by_its_drivers_and_by_ours() {
    let folder = tempfile::tempdir().expect("make a folder");
    for inside in ["drivers", "scenarios"] {
        fs::create_dir(folder.path().join(inside)).expect("make a folder");
    }
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers");
    for (from, to) in [("none", "foreign"), ("lib.sh", "lib.sh")] {
        let to = folder.path().join("drivers").join(to);
        fs::copy(ours.join(from), to).expect("copy a driver");
    }
    fs::write(folder.path().join("scenarios/own.toml"), OWN).expect("write a scenario");
    let figures = measured_with("own", &[("LOWROAD_BENCH_DIR", folder.path())]);
    for driver in ["foreign", "none"] {
        assert_measured(&figures, "throughput, 1 flow, 1 peer", driver);
    }
    let rows = figures[0]["rows"].as_array().expect("rows");
    let missing = rows.iter().find(|row| row["label"] == "absent");
    let why = missing.and_then(|row| row["not_measured"].as_str());
    let why = why.expect("a driver that is not there");
    assert!(why.starts_with("there is no driver absent in "), "{why}");
}

const OWN: &str = r#"
title = "Of somebody's own"
about = "A driver that is not in this repository, and one that is nowhere."
places = ["native"]

[tunnel]
drivers = ["foreign", "none", "absent"]
cases = [{ peers = 1, flows = 1 }]
rounds = 1
seconds = 0.5
quick_rounds = 1
quick_seconds = 0.5
"#;

/// The figures of a quick round of this scenario.
fn measured(name: &str) -> Value {
    measured_with(name, &[])
}

fn measured_with(name: &str, environment: &[(&str, &Path)]) -> Value {
    let program = Path::new(env!("CARGO_BIN_EXE_lowroad-bench"));
    let out = tempfile::tempdir().expect("make a folder");
    let status = Command::new(program)
        .args(["run", name, "--quick", "--rounds=1", "--out"])
        .arg(out.path())
        .env(
            "LOWROAD_BIN_DIR",
            program.parent().expect("it has a folder"),
        )
        .envs(environment.iter().copied())
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
    assert!(
        sample(figures, name, row).is_some_and(|sample| sample > 0.0),
        "{name}, {row}: {figures}"
    );
}

/// The first in this row of the first figure whose name begins so; JSON has no number for what isn't finite.
fn sample(figures: &Value, name: &str, row: &str) -> Option<f64> {
    figures
        .as_array()
        .expect("figures")
        .iter()
        .find_map(|figure| {
            let is_it = figure["name"].as_str()?.starts_with(name);
            let rows = figure["rows"].as_array().filter(|_| is_it)?;
            let ours = rows.iter().find(|one| one["label"] == row)?;
            ours["samples"][0].as_f64()
        })
}
