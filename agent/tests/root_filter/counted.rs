//! What a run changed in the counters.

use lowroad_core::filter::{Action, Direction, FilterCounters, Verdict};

/// Names of the outcomes counted between two readings, once per packet.
pub fn between(before: &FilterCounters, after: &FilterCounters) -> Vec<(Direction, &'static str)> {
    let outcomes = |c: &FilterCounters| {
        let passed = c.passed.iter().map(|(d, p, n)| (*d, p.name(), n.packets));
        let dropped = c.dropped.iter().map(|(d, r, n)| (*d, r.name(), n.packets));
        passed.chain(dropped).collect::<Vec<_>>()
    };
    let pairs = outcomes(before).into_iter().zip(outcomes(after));
    pairs
        .flat_map(|((d, name, old), (_, _, new))| (old..new).map(move |_| (d, name)))
        .collect()
}

/// The outcome's name in the counters.
pub fn name(verdict: &Verdict) -> &'static str {
    match verdict.action {
        Action::Accept(pass) => pass.name(),
        Action::Drop(reason) => reason.name(),
        Action::Consume => "consumed",
    }
}
