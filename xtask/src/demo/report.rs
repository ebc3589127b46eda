//! What the demo prints: steps as they happen, a table at the end.

use std::time::Instant;

use anyhow::Result;

#[derive(Debug, Default)]
pub struct Show {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    title: String,
    result: String,
    ok: bool,
}

impl Show {
    /// Runs one step; what it returns is its result in the table. A failure ends the demo.
    pub fn step(&mut self, title: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        println!("── {title}");
        let start = Instant::now();
        let result = work();
        let (ok, text) = match &result {
            Ok(text) => (true, text.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        let mark = if ok { "✔" } else { "✘" };
        println!("{mark}  {text}  ({:.1} s)\n", start.elapsed().as_secs_f32());
        self.rows.push(Row {
            title: title.to_owned(),
            result: text.lines().next().unwrap_or_default().to_owned(),
            ok,
        });
        result.map(drop)
    }

    /// Prints the table; whether every step did what it claims.
    pub fn summary(&self) -> bool {
        let width = self.rows.iter().map(|row| row.title.chars().count()).max();
        let width = width.unwrap_or(0);
        println!("Summary\n");
        for row in &self.rows {
            let mark = if row.ok { "✔" } else { "✘" };
            println!("  {mark} {:width$}  {}", row.title, row.result);
        }
        println!();
        self.rows.iter().all(|row| row.ok) && !self.rows.is_empty()
    }
}

/// A command and what it printed, as a person would see it.
pub fn shown(host: &str, command: &str, output: &str) {
    println!("   {host}$ {command}");
    for line in output.trim_end().lines() {
        println!("   {line}");
    }
}
