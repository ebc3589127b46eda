//! Which counter is whose, and what they have counted, summed over CPUs.

use std::collections::{HashMap, HashSet};

use aya::maps::MapError;
use lowroad_abi::{COUNTERS_PER_BLOCK, Count, CounterNumber, Numbered, counter_slot};
use lowroad_core::filter::{CompiledRule, Direction, DropReason, FilterCounters, Pass, RuleCount};

use super::{FilterError, object::Maps};

/// Counters of rules, by the rules' keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    of: HashMap<u64, Numbered>,
    /// Rules that have none in the kernel's list yet.
    new: Vec<u64>,
}

impl Numbers {
    /// Gives each rule the number that it has, or a free one. Programs look at none of them before [`Self::keep`].
    pub fn choose(maps: &Maps, rules: &[CompiledRule]) -> Result<Self, FilterError> {
        let known: Result<HashMap<u64, Numbered>, MapError> = maps.numbers.iter().collect();
        let known =
            known.map_err(|e| FilterError::kernel("reading whose counters are whose", e))?;
        let taken: HashSet<u64> = known.values().map(|n| n.number).collect();
        let limit = u64::from(maps.rules.len()) * COUNTERS_PER_BLOCK as u64;
        let mut free = (1..limit).filter(|number| !taken.contains(number));
        let (mut out, mut without) = (Self::default(), 0);
        for rule in rules {
            if let Some(numbered) = known.get(&rule.key) {
                out.of.insert(rule.key, *numbered);
            } else if let Some(number) = free.next() {
                let before = Count::default();
                out.of.insert(rule.key, Numbered { number, before });
                out.new.push(rule.key);
            } else {
                without += 1;
            }
        }
        if without > 0 {
            // Full, perhaps of the counters of the rule set before: those are free at the next installation.
            tracing::warn!(rules = without, "no room for the counters of some rules");
        }
        Ok(out)
    }

    /// The number for the kernel's tables.
    pub fn of(&self, rule: u64) -> CounterNumber {
        self.of.get(&rule).map_or(0, |n| n.number as CounterNumber)
    }

    /// Makes new numbers outlive this agent. Call it when no program looks at what had them before.
    pub fn keep(&mut self, maps: &mut Maps) -> Result<(), FilterError> {
        let counts = Counts::read(maps, self.new.iter().map(|rule| self.of(*rule)))?;
        for rule in std::mem::take(&mut self.new) {
            let Some(numbered) = self.of.get_mut(&rule) else {
                continue;
            };
            numbered.before = counts.of(numbered.number);
            maps.numbers
                .insert(rule, *numbered, 0)
                .map_err(|e| FilterError::kernel("numbering a rule's counter", e))?;
        }
        Ok(())
    }

    /// Frees the numbers of rules that are not in force any more.
    pub fn prune(&self, maps: &mut Maps) -> Result<(), FilterError> {
        let failed = |e: MapError| FilterError::kernel("removing a rule's counter", e);
        let keys: Result<Vec<u64>, MapError> = maps.numbers.keys().collect();
        for key in keys.map_err(failed)? {
            if !self.of.contains_key(&key) {
                maps.numbers.remove(&key).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Sums of blocks of counters.
struct Counts(HashMap<u32, Vec<Count>>);

impl Counts {
    /// Reads the blocks that these counters are in.
    fn read(
        maps: &Maps,
        numbers: impl Iterator<Item = CounterNumber>,
    ) -> Result<Self, FilterError> {
        let mut out = HashMap::new();
        for block in numbers.map(|n| n / COUNTERS_PER_BLOCK as u32) {
            if out.contains_key(&block) {
                continue;
            }
            let values = maps
                .rules
                .get(&block, 0)
                .map_err(|e| FilterError::kernel("reading rules' counters", e))?;
            let sums = (0..COUNTERS_PER_BLOCK).map(|n| sum(values.iter().map(|cpu| cpu[n])));
            out.insert(block, sums.collect());
        }
        Ok(Self(out))
    }

    fn of(&self, number: u64) -> Count {
        let (block, at) = (
            number as u32 / COUNTERS_PER_BLOCK as u32,
            number as usize % COUNTERS_PER_BLOCK,
        );
        self.0.get(&block).map_or(Count::default(), |sums| sums[at])
    }
}

pub(super) fn read(
    maps: &Maps,
    rules: &[CompiledRule],
    numbers: &Numbers,
) -> Result<FilterCounters, FilterError> {
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
    let counts = Counts::read(maps, rules.iter().map(|rule| numbers.of(rule.key)))?;
    out.rules = rules
        .iter()
        .map(|rule| rule_count(rule, numbers, &counts))
        .collect();
    Ok(out)
}

fn rule_count(rule: &CompiledRule, numbers: &Numbers, counts: &Counts) -> RuleCount {
    let numbered = numbers.of.get(&rule.key);
    let count = |of: &Numbered| difference(counts.of(of.number), of.before);
    RuleCount {
        rule: rule.id,
        text: rule.text.clone(),
        count: numbered.map(count).unwrap_or_default(),
        counted: numbered.is_some(),
    }
}

fn outcome(maps: &Maps, direction: Direction, outcome: u8) -> Result<Count, FilterError> {
    let values = maps
        .counters
        .get(&counter_slot(direction, outcome), 0)
        .map_err(|e| FilterError::kernel("reading the filter's counters", e))?;
    Ok(sum(values.iter().copied()))
}

fn sum(values: impl Iterator<Item = Count>) -> Count {
    values.fold(Count::default(), |sum, one| Count {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}

fn difference(now: Count, before: Count) -> Count {
    Count {
        packets: now.packets.wrapping_sub(before.packets),
        bytes: now.bytes.wrapping_sub(before.bytes),
    }
}

#[cfg(test)]
mod tests {
    use lowroad_core::filter::RuleId;

    use super::*;

    #[test]
    fn a_rule_without_a_counter_is_told_from_one_that_has_counted_nothing() {
        let of = |key| CompiledRule {
            id: RuleId(7),
            key,
            text: "accept".to_owned(),
        };
        let count = |packets| Count { packets, bytes: 0 };
        let numbered = |number, before| Numbered {
            number,
            before: count(before),
        };
        let numbers = Numbers {
            of: [(1, numbered(1, 5)), (2, numbered(0, 0))].into(),
            new: Vec::new(),
        };
        let counts = Counts([(0, vec![count(0), count(8)])].into());
        let counted = [1, 2, 3].map(|key| {
            let rule = rule_count(&of(key), &numbers, &counts);
            (rule.count.packets, rule.counted)
        });
        assert_eq!(counted, [(3, true), (0, true), (0, false)]);
    }
}
