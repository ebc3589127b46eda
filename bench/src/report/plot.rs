//! One picture per scenario: a block of bars for each figure, with the range of its samples.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::number;
use crate::figure::{Figure, Row, ScenarioResults};

const WIDTH: u32 = 860;
const TITLE: i32 = 30;
const BAR: i32 = 18;
const GAP: i32 = 6;
const LABELS: i32 = 230;
/// Right of the bars, for the number.
const NUMBERS: i32 = 130;
const FONT: (&str, i32) = ("sans-serif", 13);
const BARS: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const OURS: RGBColor = RGBColor(0xe4, 0x57, 0x56);

/// `None` if nothing was measured.
pub fn scenario(scenario: &ScenarioResults) -> Result<Option<String>> {
    let figures: Vec<&Figure> = scenario
        .figures
        .iter()
        .filter(|figure| figure.rows.iter().any(|row| row.summary.is_some()))
        .collect();
    if figures.is_empty() {
        return Ok(None);
    }
    let height: i32 = figures.iter().map(|figure| block(figure)).sum();
    let mut svg = String::new();
    {
        let size = (WIDTH, u32::try_from(height + GAP)?);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut top = 0;
        for figure in figures {
            draw(&area, figure, top)?;
            top += block(figure);
        }
        area.present().map_err(drawing)?;
    }
    Ok(Some(svg))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw a plot: {error}")
}

fn block(figure: &Figure) -> i32 {
    TITLE + figure.rows.len() as i32 * (BAR + GAP) + GAP
}

fn draw(area: &Area<'_>, figure: &Figure, top: i32) -> Result<()> {
    let title = format!("{} ({})", figure.name, figure.unit);
    let bold = ("sans-serif", 14).into_font().style(FontStyle::Bold);
    area.draw(&Text::new(title, (GAP, top + GAP), bold))
        .map_err(drawing)?;
    let longest = figure
        .rows
        .iter()
        .filter_map(|row| row.summary.as_ref())
        .map(|summary| summary.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(WIDTH as i32 - LABELS - NUMBERS) / longest;
    for (at, row) in figure.rows.iter().enumerate() {
        let y = top + TITLE + at as i32 * (BAR + GAP);
        draw_row(area, row, y, scale)?;
    }
    Ok(())
}

fn draw_row(area: &Area<'_>, row: &Row, y: i32, scale: f64) -> Result<()> {
    let text = |text: String, x: i32| Text::new(text, (x, y + 3), FONT.into_font());
    area.draw(&text(row.label.clone(), GAP)).map_err(drawing)?;
    let Some(summary) = &row.summary else {
        return area
            .draw(&text("not measured".to_owned(), LABELS))
            .map_err(drawing);
    };
    let x = |value: f64| LABELS + (value * scale).round() as i32;
    let colour = if row.label.starts_with("lowroad") {
        OURS
    } else {
        BARS
    };
    let bar = [(LABELS, y), (x(summary.median), y + BAR)];
    area.draw(&Rectangle::new(bar, colour.filled()))
        .map_err(drawing)?;
    let middle = y + BAR / 2;
    let range = [(x(summary.min), middle), (x(summary.max), middle)];
    area.draw(&PathElement::new(range, BLACK.stroke_width(1)))
        .map_err(drawing)?;
    let right = x(summary.max.max(summary.median)) + GAP;
    area.draw(&text(number(summary.median), right))
        .map_err(drawing)
}
