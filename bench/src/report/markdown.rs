//! The page.

use std::fmt::Write as _;

use super::number;
use crate::figure::{Better, Figure, Results, Row, ScenarioResults};

pub fn page(results: &Results, place: &str) -> String {
    let machine = &results.machine;
    let mut page = String::new();
    let title = if machine.emulated {
        "In the VM, with kernel WireGuard"
    } else {
        "On the machine itself"
    };
    let _ = writeln!(page, "# {title}\n");
    let _ = writeln!(
        page,
        "{}, {} cores, {} MB, Linux {}, load {:.1} at the start; commit `{}`.",
        machine.cpu, machine.cores, machine.memory_mb, machine.kernel, machine.load, machine.commit
    );
    if machine.emulated {
        page.push_str("The CPU is emulated (QEMU's TCG), which distorts: read ratios within one table, never the absolute figures.\n");
    }
    if results.quick {
        page.push_str("**A quick run: few and short rounds.**\n");
    }
    page.push_str(
        "\nRows of a table were measured taking turns. Spread: median absolute deviation.\n",
    );
    for scenario in &results.scenarios {
        put_scenario(&mut page, scenario, place);
    }
    page
}

fn put_scenario(page: &mut String, scenario: &ScenarioResults, place: &str) {
    let _ = writeln!(page, "\n## {}\n\n{}", scenario.title, scenario.about);
    if let Some(why) = &scenario.failed {
        let _ = writeln!(page, "\nNot measured: {}", one_line(why));
        return;
    }
    let _ = writeln!(
        page,
        "\n![{}]({place}-{}.svg)",
        scenario.title, scenario.name
    );
    for figure in &scenario.figures {
        put_figure(page, figure);
    }
}

fn put_figure(page: &mut String, figure: &Figure) {
    let better = match figure.better {
        Better::More => "more is better",
        Better::Less => "less is better",
    };
    let _ = writeln!(
        page,
        "\n**{}** ({}, {better})\n\n| | median | spread | min | max | samples | aim |\n|---|---:|---:|---:|---:|---:|---|",
        figure.name, figure.unit
    );
    for row in &figure.rows {
        put_row(page, row);
    }
}

fn put_row(page: &mut String, row: &Row) {
    let Some(summary) = &row.summary else {
        let why = row.not_measured.as_deref().unwrap_or_default();
        let _ = writeln!(
            page,
            "| {} | not measured: {} | | | | | |",
            row.label,
            one_line(why)
        );
        return;
    };
    let aim = row.aim.as_ref().map_or_else(String::new, |aim| {
        let reached = if aim.reached { "reached" } else { "missed" };
        format!("{reached}: {}", aim.text)
    });
    // Of one sample nothing is known about the next.
    let spread = match row.samples.len() {
        1 => "-".to_owned(),
        _ => number(summary.mad),
    };
    let _ = writeln!(
        page,
        "| {} | {} | {spread} | {} | {} | {} | {aim} |",
        row.label,
        number(summary.median),
        number(summary.min),
        number(summary.max),
        row.samples.len()
    );
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "/")
}
