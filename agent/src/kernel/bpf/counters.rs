//! Reads the counters, summed over CPUs.

use aya::maps::MapError;
use lowroad_abi::{Count, counter_slot};
use lowroad_core::filter::{CompiledRule, Direction, DropReason, FilterCounters, Pass, RuleCount};

use super::{FilterError, object::Maps};

pub(super) fn read(maps: &Maps, rules: &[CompiledRule]) -> Result<FilterCounters, FilterError> {
    let mut out = FilterCounters::default();
    for direction in [Direction::In, Direction::Out] {
        for pass in Pass::ALL {
            out.passed
                .push((direction, pass, outcome(maps, direction, pass as u8)?));
        }
        for reason in DropReason::ALL {
            out.dropped
                .push((direction, reason, outcome(maps, direction, reason as u8)?));
        }
    }
    for rule in rules {
        let count = match maps.rules.get(&rule.key, 0) {
            Ok(values) => sum(&values),
            Err(MapError::KeyNotFound) => Count::default(),
            Err(error) => return Err(FilterError::kernel("reading a rule's counter", error)),
        };
        out.rules.push(RuleCount {
            rule: rule.id,
            text: rule.text.clone(),
            count,
        });
    }
    Ok(out)
}

fn outcome(maps: &Maps, direction: Direction, outcome: u8) -> Result<Count, FilterError> {
    let values = maps
        .counters
        .get(&counter_slot(direction, outcome), 0)
        .map_err(|e| FilterError::kernel("reading the filter's counters", e))?;
    Ok(sum(&values))
}

fn sum(values: &[Count]) -> Count {
    values.iter().fold(Count::default(), |sum, one| Count {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}
