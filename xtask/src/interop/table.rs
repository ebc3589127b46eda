//! What was tried, and how it went.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

#[derive(Debug)]
struct Row {
    area: String,
    case: String,
    result: Result<String, String>,
}

/// The matrix, a row for everything that was tried.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    /// Parts that could not be tried, and why.
    skipped: Vec<(String, String)>,
    area: String,
}

impl Table {
    /// What the rows from now on are about.
    pub fn area(&mut self, area: &str) {
        area.clone_into(&mut self.area);
        eprintln!("   {area}");
    }

    /// Tries one thing, which says what it measured. Returns whether it worked.
    pub fn try_it(&mut self, case: &str, what: impl FnOnce() -> Result<String>) -> bool {
        let result = what().map_err(|error| format!("{error:#}"));
        match &result {
            Ok(note) => eprintln!("      ok      {case}: {note}"),
            Err(why) => eprintln!("      FAILED  {case}: {why}"),
        }
        self.rows.push(Row {
            area: self.area.clone(),
            case: case.to_owned(),
            result,
        });
        self.rows.last().is_some_and(|row| row.result.is_ok())
    }

    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.result.is_err()).count()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// A part that cannot be tried here.
    pub fn skip(&mut self, part: &str, why: &str) {
        eprintln!("   {part}: skipped, it {why}");
        self.skipped.push((part.to_owned(), why.to_owned()));
    }

    pub fn skipped(&self) -> usize {
        self.skipped.len()
    }

    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let mut area = None;
        for row in &self.rows {
            if area != Some(&row.area) {
                area = Some(&row.area);
                let _ = write!(
                    text,
                    "\n### {}\n\n| case | result | note |\n|---|---|---|\n",
                    row.area
                );
            }
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
            let (result, note) = match &row.result {
                Ok(note) => ("works", note),
                Err(why) => ("**fails**", why),
            };
            let _ = writeln!(
                text,
                "| {} | {result} | {} |",
                cell(&row.case),
                cell(note.trim())
            );
        }
        for (part, why) in &self.skipped {
            let _ = writeln!(text, "\nSkipped: {part}, which {why}");
        }
        text
    }

    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "area": row.area, "case": row.case, "works": row.result.is_ok(),
                "note": row.result.as_ref().unwrap_or_else(|why| why),
            })
        };
        self.rows.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failure_is_a_row_and_is_counted() {
        let mut table = Table::default();
        table.area("here");
        assert!(table.try_it("one", || Ok("1 | 2".to_owned())));
        assert!(!table.try_it("two", || bail!("no\nway")));
        assert_eq!((table.len(), table.failed()), (2, 1));
        let text = table.markdown();
        assert!(text.contains("### here"), "{text}");
        assert!(text.contains("| one | works | 1 \\| 2 |"), "{text}");
        assert!(text.contains("| two | **fails** | no way |"), "{text}");
        assert_eq!(table.json()[1]["works"], false);
        table.skip("three", "wants more");
        assert_eq!((table.len(), table.skipped()), (2, 1));
        let text = table.markdown();
        assert!(
            text.ends_with("\nSkipped: three, which wants more\n"),
            "{text}"
        );
    }
}
