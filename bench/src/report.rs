//! Results as people read them: JSON beside a Markdown page with tables and plots.

mod markdown;
mod plot;

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::figure::Results;

/// Writes `<place>.json`, `<place>.md` and `<place>-*.svg` into `folder`. Plots of an earlier run of the same place go.
pub fn write(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let place = if results.machine.emulated {
        "vm"
    } else {
        "native"
    };
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{place}-")) && name.ends_with(".svg") {
            fs::remove_file(entry.path())?;
        }
    }
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    let json = serde_json::to_string_pretty(results)?;
    put(&format!("{place}.json"), &format!("{json}\n"))?;
    for scenario in &results.scenarios {
        if let Some(svg) = plot::scenario(scenario)? {
            put(&format!("{place}-{}.svg", scenario.name), &svg)?;
        }
    }
    put(&format!("{place}.md"), &markdown::page(results, place))?;
    eprintln!("   {}", folder.join(format!("{place}.md")).display());
    Ok(())
}

/// Three digits that count, as far as that makes sense.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figure::{Better, Figure, ScenarioResults},
        machine::Machine,
    };

    fn results() -> Results {
        let mut figure = Figure::new("throughput, 1 flow", "Mbit/s", Better::More);
        figure.push("wg", vec![100.0, 90.0, 110.0]);
        figure.push_missing("boringtun", "there is no boringtun-cli");
        Results {
            machine: Machine {
                emulated: true,
                ..Machine::here()
            },
            quick: true,
            scenarios: vec![ScenarioResults {
                name: "kernel".to_owned(),
                title: "Kernel WireGuard".to_owned(),
                about: "About it.".to_owned(),
                figures: vec![figure],
                failed: None,
            }],
        }
    }

    #[test]
    fn a_report_has_tables_plots_and_says_what_was_not_measured_and_a_new_one_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("vm-old.svg"), "").unwrap();
        fs::write(folder.path().join("native-other.svg"), "").unwrap();
        write(&results(), folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        let page = read("vm.md").unwrap();
        assert!(page.contains("| wg | 100 | 10.0 | 90.0 | 110 |"), "{page}");
        assert!(page.contains("there is no boringtun-cli"), "{page}");
        assert!(page.contains("vm-kernel.svg"), "{page}");
        assert!(page.contains("emulated"), "{page}");
        let svg = read("vm-kernel.svg").unwrap();
        assert!(svg.contains("<svg") && svg.contains("wg"), "{svg}");
        assert!(read("vm-old.svg").is_err(), "of an earlier run");
        assert!(read("native-other.svg").is_ok(), "of another place");
        let again: Results = serde_json::from_str(&read("vm.json").unwrap()).unwrap();
        assert_eq!(again.scenarios[0].figures[0].rows[0].samples.len(), 3);
    }
}
