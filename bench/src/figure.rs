//! Figures: what a run yields, and what reports are made of.

use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    scenario::{Aim, Place},
    stats::Summary,
};

/// All of one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    pub quick: bool,
    pub scenarios: Vec<ScenarioResults>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ScenarioResults {
    pub name: String,
    pub title: String,
    pub about: String,
    pub figures: Vec<Figure>,
    /// Why there are none.
    pub failed: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    pub better: Better,
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    More,
    Less,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub label: String,
    pub samples: Vec<f64>,
    pub summary: Option<Summary>,
    /// Why there are no samples.
    pub not_measured: Option<String>,
    pub aim: Option<Reached>,
}

/// How a row compares with what it should reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reached {
    pub text: String,
    pub reached: bool,
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &str, better: Better) -> Self {
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            better,
            rows: Vec::new(),
        }
    }

    pub fn push(&mut self, label: impl Into<String>, samples: Vec<f64>) {
        self.rows.push(Row {
            label: label.into(),
            summary: Summary::of(&samples),
            not_measured: samples.is_empty().then(|| "no samples".to_owned()),
            samples,
            aim: None,
        });
    }

    pub fn push_missing(&mut self, label: &str, why: &str) {
        self.push(label, Vec::new());
        if let Some(row) = self.rows.last_mut() {
            row.not_measured = Some(why.to_owned());
        }
    }

    fn median(&self, label: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.label == label)?;
        Some(row.summary.as_ref()?.median)
    }

    /// Compares the rows with their aims.
    pub fn judge(&mut self, aims: &[Aim], place: Place) {
        for aim in aims {
            let here = aim.place.is_none_or(|wanted| wanted == place);
            if !here || !self.name.contains(&aim.figure) {
                continue;
            }
            let Some(reached) = self.reached(aim) else {
                continue;
            };
            if let Some(row) = self.rows.iter_mut().find(|row| row.label == aim.row) {
                row.aim = Some(reached);
            }
        }
    }

    fn reached(&self, aim: &Aim) -> Option<Reached> {
        let median = self.median(&aim.row)?;
        let (bound_word, is_within): (_, fn(f64, f64) -> bool) = match self.better {
            Better::More => ("at least", |value, bound| value >= bound),
            Better::Less => ("at most", |value, bound| value <= bound),
        };
        if let (Some(other), Some(bound)) = (&aim.relative_to, aim.ratio) {
            let ratio = median / self.median(other)?;
            return Some(Reached {
                text: format!("{ratio:.2} of {other} ({bound_word} {bound})"),
                reached: is_within(ratio, bound),
            });
        }
        let bound = aim.value?;
        Some(Reached {
            text: format!("{bound_word} {bound} {}", self.unit),
            reached: is_within(median, bound),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(better: Better) -> Figure {
        let mut figure = Figure::new("throughput, 1 flow", "Mbit/s", better);
        figure.push("wg", vec![100.0]);
        figure.push("lowroad-kernel", vec![96.0]);
        figure.push_missing("boringtun", "not installed");
        figure
    }

    fn aim(ratio: f64) -> Aim {
        Aim {
            figure: "throughput".to_owned(),
            row: "lowroad-kernel".to_owned(),
            place: None,
            value: None,
            relative_to: Some("wg".to_owned()),
            ratio: Some(ratio),
        }
    }

    #[test]
    fn an_aim_is_judged_in_the_figures_direction() {
        for (better, ratio, expected) in [
            (Better::More, 0.95, true),
            (Better::More, 0.97, false),
            (Better::Less, 0.97, true),
            (Better::Less, 0.95, false),
        ] {
            let mut figure = figure(better);
            figure.judge(&[aim(ratio)], Place::Vm);
            let reached = figure.rows[1].aim.clone().unwrap();
            assert_eq!(reached.reached, expected, "{}", reached.text);
            assert!(figure.rows[0].aim.is_none());
        }
    }

    #[test]
    fn an_aim_of_another_place_figure_or_of_a_missing_row_says_nothing() {
        let mut figure = figure(Better::More);
        let elsewhere = Aim {
            place: Some(Place::Native),
            ..aim(0.5)
        };
        let other = Aim {
            figure: "CPU".to_owned(),
            ..aim(0.5)
        };
        let missing = Aim {
            relative_to: Some("boringtun".to_owned()),
            ..aim(0.5)
        };
        figure.judge(&[elsewhere, other, missing], Place::Vm);
        assert!(figure.rows.iter().all(|row| row.aim.is_none()));
    }
}
