//! Which of a run's steps are spoilt, and whether enough of them were.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::Lab;

/// What a step does, whatever to: `bpf MAP_UPDATE_ELEM`, `RTM_NEWRULE`, `mkdir`, `write`.
pub(super) fn kind(change: &str) -> String {
    let words = if change.starts_with("bpf") { 2 } else { 1 };
    change.split(' ').take(words).collect::<Vec<_>>().join(" ")
}

/// Kinds of steps with how many there are of each: `12 bpf MAP_UPDATE_ELEM, 4 RTM_NEWRULE`.
pub fn kinds(changes: &[String]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for change in changes {
        *counts.entry(kind(change)).or_default() += 1;
    }
    let list: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    list.join(", ")
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoilt {
    Refused,
    Killed,
}

/// Kinds of steps, by how they begin, that the userspace device has as well: on the host, where each takes a tenth of the time, all of them are tried.
const ELSEWHERE: &[&str] = &[
    "bpf MAP_",
    "bpf BTF_",
    "bpf PROG_",
    "mkdir",
    "rename",
    "unlink",
];
/// Around these there is a device without something, or a setting of the host that WireGuard has changed.
pub(super) const CLOSE: &[&str] = &[
    "WG_CMD_SET_DEVICE",
    "RTM_SETLINK",
    "RTM_NEWQDISC",
    "RTM_NEWTFILTER",
    "bpf LINK_CREATE",
    "write",
];

/// Which steps are spoilt: all of them, or in the emulated machine [`some`].
pub(super) fn chosen(lab: &Lab, changes: &[String], how: Spoilt) -> Vec<usize> {
    if !lab.emulated || lab.long {
        return (1..=changes.len()).collect();
    }
    some(changes, how)
}

/// Where each step takes long, the last of each kind that only the kernel's device has. Of those that aren't [`CLOSE`] every other one is refused and the
/// rest killed; on the kernel with clsact it is the other way round.
pub(super) fn some(changes: &[String], how: Spoilt) -> Vec<usize> {
    let clsact = changes.iter().any(|change| change == "RTM_NEWTFILTER");
    let mut turn = (how == Spoilt::Refused) != clsact;
    let mut steps = Vec::new();
    for (kind, step) in last_of_kinds(changes) {
        if ELSEWHERE.iter().any(|begin| kind.starts_with(begin)) {
            continue;
        }
        if CLOSE.contains(&&*kind) {
            steps.push(step);
            continue;
        }
        if turn {
            steps.push(step);
        }
        turn = !turn;
    }
    steps.sort_unstable();
    steps
}

/// The last step of each kind, in the order of their names.
fn last_of_kinds(changes: &[String]) -> BTreeMap<String, usize> {
    changes.iter().map(|change| kind(change)).zip(1..).collect()
}

pub(super) fn last_of_each_kind(changes: &[String]) -> Vec<usize> {
    let mut steps: Vec<usize> = last_of_kinds(changes).into_values().collect();
    steps.sort_unstable();
    steps
}

/// What came of a step that was to be spoilt: of the last run for it.
pub(super) struct Outcome<T> {
    wanted: usize,
    /// The step that this run was to spoil.
    at: usize,
    /// Runs before it, in which nothing was spoilt.
    extra: usize,
    pub(super) result: T,
}

/// Spoils a step, and with `LOWROAD_LONG` does not leave it at a miss: a run that was over before has an earlier step spoilt instead, its last. For the step
/// that was wanted it counts as a miss all the same. `spoil` says which step the next run should spoil, if the fault did not happen.
pub(super) fn until_hit<T>(
    lab: &Lab,
    step: usize,
    spoil: impl FnMut(usize) -> Result<(T, Option<usize>)>,
) -> Result<Outcome<T>> {
    const ATTEMPTS: usize = 4;
    within(if lab.long { ATTEMPTS } else { 1 }, step, spoil)
}

/// Each run at an earlier step than the one before.
fn within<T>(
    attempts: usize,
    wanted: usize,
    mut spoil: impl FnMut(usize) -> Result<(T, Option<usize>)>,
) -> Result<Outcome<T>> {
    let (mut at, mut extra) = (wanted, 0);
    loop {
        let (result, instead) = spoil(at)?;
        match instead {
            Some(step) if extra + 1 < attempts && (1..at).contains(&step) => {
                (at, extra) = (step, extra + 1);
            }
            _ => {
                return Ok(Outcome {
                    wanted,
                    at,
                    extra,
                    result,
                });
            }
        }
    }
}

/// How often a fault was tried and happened: a run that has fewer steps than the one that was counted has no last ones.
#[derive(Default)]
pub(super) struct Hits {
    pub(super) tried: usize,
    /// At the step that was wanted.
    pub(super) hit: usize,
    /// Steps at which it was wanted and did not happen.
    missed: Vec<usize>,
    /// Of those misses, how often it happened at an earlier step instead.
    instead: usize,
    /// Runs that were made for that.
    extra: usize,
}

impl Hits {
    /// Background tasks make a step more or less; of few steps a third may be missed.
    const MISSED: usize = 2;

    /// `hit` says whether the fault happened.
    pub(super) fn of<'a, T: 'a>(
        all: impl IntoIterator<Item = &'a Outcome<T>>,
        hit: impl Fn(&T) -> bool,
    ) -> Self {
        let mut hits = Self::default();
        for one in all {
            let happened = hit(&one.result);
            hits.tried += 1;
            hits.extra += one.extra;
            if happened && one.at == one.wanted {
                hits.hit += 1;
            } else {
                hits.missed.push(one.wanted);
                hits.instead += usize::from(happened);
            }
        }
        hits
    }

    /// At whatever step.
    pub(super) fn happened(&self) -> usize {
        self.hit + self.instead
    }

    /// Says which of the counted steps met no fault, if any.
    pub(super) fn tell(&self, lab: &Lab, what: &str, counted: &[String]) {
        if !self.missed.is_empty() {
            lab.note(&format!("{what}: {}", self.misses(counted)));
        }
    }

    fn misses(&self, counted: &[String]) -> String {
        let name = |step: usize| step.checked_sub(1).and_then(|at| counted.get(at));
        let one = |step: &usize| format!("{step} ({})", name(*step).map_or("", String::as_str));
        let missed: Vec<String> = self.missed.iter().map(one).collect();
        let missed = format!("not at {} of {} steps", missed.join(", "), counted.len());
        match self.extra {
            0 => missed,
            extra => format!(
                "{missed}; {} times at an earlier one instead, in {extra} more runs",
                self.instead
            ),
        }
    }

    /// # Errors
    /// Next to nothing was tried, or it mostly didn't happen.
    pub(super) fn judge(&self, what: &str) -> Result<()> {
        let Self { tried, hit, .. } = *self;
        ensure!(
            hit + Self::MISSED.min(tried / 3) >= tried.max(1),
            "{what} at {hit} of {tried} steps that were to be tried"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_kind_of_step_the_last_is_tried() {
        let changes = [
            "RTM_NEWQDISC",
            "bpf PROG_LOAD",
            "mkdir /a",
            "bpf LINK_CREATE",
            "bpf PROG_LOAD",
            "mkdir /b",
            "write /proc/sys/a",
            "write /proc/sys/b",
        ];
        let changes = changes.map(str::to_owned);
        assert_eq!(last_of_each_kind(&changes), [1, 4, 5, 6, 8]);
        assert_eq!(
            kinds(&changes),
            "1 RTM_NEWQDISC, 1 bpf LINK_CREATE, 2 bpf PROG_LOAD, 2 mkdir, 2 write"
        );
    }

    #[test]
    fn between_them_the_kernels_refuse_and_kill_each_kind_that_the_host_does_not_have() {
        let shared = [
            "RTM_NEWADDR",
            "RTM_NEWRULE",
            "mkdir /a",
            "WG_CMD_SET_DEVICE",
            "RTM_SETLINK",
            "write /proc/sys/b",
            "mount /b",
        ];
        let with = |more: &[&str]| -> Vec<String> {
            shared
                .iter()
                .chain(more)
                .map(|step| (*step).to_owned())
                .collect()
        };
        let kernels = [
            with(&["bpf LINK_CREATE"]),
            with(&["RTM_NEWQDISC", "RTM_NEWTFILTER"]),
        ];
        for how in [Spoilt::Refused, Spoilt::Killed] {
            let kinds: std::collections::BTreeSet<String> = kernels
                .iter()
                .flat_map(|steps| {
                    some(steps, how)
                        .into_iter()
                        .map(|step| kind(&steps[step - 1]))
                })
                .collect();
            assert_eq!(kinds.len(), 9, "{how:?}: {kinds:?}");
            assert!(!kinds.contains("mkdir"));
        }
    }

    #[test]
    fn faults_that_mostly_did_not_happen_show_nothing() {
        let judged = |hit: usize, tried: usize| {
            let one = |step| Outcome {
                wanted: step,
                at: step,
                extra: 0,
                result: step <= hit,
            };
            let all: Vec<_> = (1..=tried).map(one).collect();
            Hits::of(&all, |hit| *hit).judge("refused").is_ok()
        };
        assert!(judged(60, 60) && judged(58, 60) && judged(1, 1));
        assert!(judged(4, 6) && judged(2, 3) && judged(2, 2));
        assert!(!judged(57, 60) && !judged(1, 60) && !judged(0, 0) && !judged(1, 2));
        assert!(!judged(1, 3) && !judged(3, 5));
    }

    #[test]
    fn after_a_miss_the_last_step_that_there_was_is_spoilt_a_few_times_at_most() {
        // A run of so many steps; those at which it was to be spoilt, and whether the last of them was.
        let spoilt = |attempts, step, steps: &[usize]| {
            let (mut runs, mut at) = (steps.iter(), Vec::new());
            let hit = within(attempts, step, |step| {
                let count = *runs.next().expect("no more runs than wanted");
                at.push(step);
                let hit = step <= count;
                Ok((hit, (!hit).then_some(count)))
            });
            (hit.expect("no error").result, at)
        };
        assert_eq!(spoilt(4, 7, &[7]), (true, vec![7]));
        assert_eq!(spoilt(4, 9, &[7, 7]), (true, vec![9, 7]));
        assert_eq!(spoilt(4, 9, &[8, 7, 7]), (true, vec![9, 8, 7]));
        assert_eq!(spoilt(1, 9, &[8]), (false, vec![9]));
        assert_eq!(spoilt(2, 9, &[8, 7]), (false, vec![9, 8]));
        // Nothing would be otherwise at the same step.
        assert_eq!(spoilt(4, 1, &[0]), (false, vec![1]));
        let mut runs = 0;
        let same = within(4, 3, |step| {
            runs += 1;
            Ok((false, Some(step)))
        });
        assert!(!same.expect("no error").result);
        assert_eq!(runs, 1);
    }

    #[test]
    fn a_step_that_was_spoilt_instead_does_not_hide_that_the_wanted_one_was_not() {
        let hits = |counted: usize, there_are: usize| {
            let run = |step: usize| {
                let hit = step <= there_are;
                Ok((hit, (!hit).then_some(there_are)))
            };
            let all: Result<Vec<_>> = (1..=counted).map(|step| within(4, step, run)).collect();
            Hits::of(&all.expect("no error"), |hit| *hit)
        };
        let counted = vec!["RTM_NEWRULE".to_owned(); 10];
        let half = hits(10, 5);
        assert_eq!((half.tried, half.hit, half.happened()), (10, 5, 10));
        assert_eq!(half.missed, [6, 7, 8, 9, 10]);
        assert!(half.judge("refused").is_err());
        let few = hits(10, 8);
        assert!(few.judge("refused").is_ok());
        assert_eq!(
            few.misses(&counted),
            "not at 9 (RTM_NEWRULE), 10 (RTM_NEWRULE) of 10 steps; 2 times at an earlier one instead, in 2 more runs"
        );
        let all = hits(10, 10);
        assert_eq!((all.hit, all.extra, all.missed.len()), (10, 0, 0));
    }
}
