//! `lowroad-bench` as `cargo xtask bench` starts it, with real namespaces, nodes and traffic.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// The agent scenario wants only programs, this one a whole tailnet from inside this process, too.
#[test]
fn tunnels_are_measured() {
    let program = Path::new(env!("CARGO_BIN_EXE_lowroad-bench"));
    let out = tempfile::tempdir().expect("make a folder");
    let status = Command::new(program)
        .args(["run", "userspace", "--quick", "--rounds=1", "--out"])
        .arg(out.path())
        .env(
            "LOWROAD_BIN_DIR",
            program.parent().expect("it has a folder"),
        )
        .status()
        .expect("start lowroad-bench");
    assert!(status.success(), "{status}");
    let text = fs::read_to_string(out.path().join("native.json")).expect("read the results");
    let results: Value = serde_json::from_str(&text).expect("results are JSON");
    let scenario = &results["scenarios"][0];
    assert_eq!(scenario["name"], "userspace");
    assert_eq!(scenario["failed"], Value::Null, "{text}");
    let figures = scenario["figures"].as_array().expect("figures");
    for name in ["throughput", "CPU of the processes"] {
        let sample = figures.iter().find_map(|figure| {
            let is_it = figure["name"].as_str()?.starts_with(name);
            let rows = figure["rows"].as_array().filter(|_| is_it)?;
            let ours = rows
                .iter()
                .find(|row| row["label"] == "lowroad-userspace")?;
            ours["samples"][0].as_f64()
        });
        assert!(sample.is_some_and(|sample| sample > 0.0), "{name}: {text}");
    }
    for page in ["native.md", "native-userspace.svg"] {
        assert!(out.path().join(page).exists(), "{page}");
    }
}
