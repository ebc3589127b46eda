use std::time::Duration;

use super::*;
use crate::traffic::Unanswered;

const FAST: u64 = 20;
const SLOW: u64 = 900;
const PINGS: usize = 1000;

#[test]
fn without_a_loss_nothing_is_to_be_excused() {
    let world = World::new();
    let ping = world.pings(&[]);
    for emulated in [false, true] {
        for standstills in [world.never(), world.stood(3..5)] {
            let verdict = judge(&[world.case(&ping)], &standstills, emulated);
            assert_eq!(verdict, Verdict::Kept);
        }
    }
}

#[test]
fn what_another_case_met_excuses_nothing() {
    let world = World::new();
    let (queued, none) = (world.pings(&[(4, SLOW)]), world.pings(&[]));
    let loses = [
        world.case(&none).without_segments(3),
        world.case(&none).with_uncounted(1),
        world.case(&none).without_segments(3).with_uncounted(1),
    ];
    for case in loses {
        let cases = [world.case(&queued), case];
        let verdict = judge(&cases, &world.never(), true);
        assert!(is_lost(&verdict, "none"), "{verdict:?}");
    }
}

#[test]
fn segments_are_excused_by_what_their_own_case_met() {
    let world = World::new();
    let (queued, none) = (world.pings(&[(4, SLOW)]), world.pings(&[]));
    let case = || [world.case(&queued).without_segments(3)];
    assert!(is_excused(&judge(&case(), &world.never(), true)));
    assert!(is_lost(&judge(&case(), &world.never(), false), "queued"));
    let case = || [world.case(&none).without_segments(3)];
    for meanwhile in [3..5, -9..-1, 9..12] {
        assert!(is_excused(&judge(&case(), &world.stood(meanwhile), true)));
    }
    // Before it ran, and its queues empty again; and after it had run.
    for other in [-9..-3, 11..13] {
        let verdict = judge(&case(), &world.stood(other), true);
        assert!(is_lost(&verdict, "none"), "{verdict:?}");
    }
}

#[test]
fn no_more_segments_are_excused_than_queues_and_standstills_explain() {
    let world = World::new();
    let (queued, none) = (world.pings(&[(4, SLOW), (5, SLOW)]), world.pings(&[]));
    // 2 of 1000 pings, so four times as many of 1000 segments, and a window.
    for (segments, excused) in [(18, true), (19, false)] {
        let case = [world.case(&queued).without_segments(segments)];
        let verdict = judge(&case, &world.never(), true);
        assert_eq!(is_excused(&verdict), excused, "{verdict:?}");
        assert_eq!(is_lost(&verdict, "queued"), !excused, "{verdict:?}");
    }
    // One of ten seconds, with two before and after it.
    for (segments, excused) in [(510, true), (511, false)] {
        let case = [world.case(&none).without_segments(segments)];
        let verdict = judge(&case, &world.stood(4..5), true);
        assert_eq!(is_excused(&verdict), excused, "{verdict:?}");
    }
    // It ended when the case began.
    for (segments, excused) in [(210, true), (211, false)] {
        let case = [world.case(&none).without_segments(segments)];
        let verdict = judge(&case, &world.stood(-5..0), true);
        assert_eq!(is_excused(&verdict), excused, "{verdict:?}");
    }
}

#[test]
fn what_a_standstill_explains_is_not_explained_again() {
    let world = World::new();
    // The same five of ten seconds, in one piece or two, whatever pings were lost in them; and one ping lost apart from them.
    let excused = |lost: &[(u64, u64)], stood: &[(i32, i32)]| {
        let ping = world.pings(lost);
        let mut standstills = world.never();
        for (from, to) in stood {
            standstills.stood.extend(world.stood(*from..*to).stood);
        }
        let verdict = |count| {
            judge(
                &[world.case(&ping).without_segments(count)],
                &standstills,
                true,
            )
        };
        (0..=1000)
            .take_while(|count| !matches!(verdict(*count), Verdict::Lost(_)))
            .count()
            - 1
    };
    assert_eq!(excused(&[], &[(4, 5)]), 510);
    assert_eq!(excused(&[(3, SLOW), (5, FAST)], &[(4, 5)]), 510);
    assert_eq!(excused(&[(8, SLOW)], &[(4, 5)]), 514);
    assert_eq!(excused(&[], &[(3, 4), (4, 5)]), 610);
    assert_eq!(excused(&[], &[(3, 4), (5, 6)]), 710);
}

#[test]
fn refused_packets_may_be_missing_as_pings_are_and_no_more() {
    let world = World::new();
    let (queued, none) = (world.pings(&[(4, SLOW), (4, SLOW)]), world.pings(&[]));
    // 2 of 1000 pings, so 1 of 500 packets.
    let case = |uncounted| [world.case(&queued).with_uncounted(uncounted)];
    assert!(is_excused(&judge(&case(1), &world.never(), true)));
    for emulated in [false, true] {
        assert!(is_lost(
            &judge(&case(2), &world.never(), emulated),
            "queued"
        ));
    }
    // A machine that stood still, and lost no ping.
    let verdict = judge(
        &[world.case(&none).with_uncounted(1)],
        &world.stood(3..5),
        true,
    );
    assert!(is_lost(&verdict, "none"), "{verdict:?}");
}

#[test]
fn an_answer_that_could_not_be_made_explains_one_loss() {
    let world = World::new();
    let judged = |lost: &[(u64, u64)], unmade| {
        let ping = world.pings(lost);
        let mut case = world.case(&ping);
        case.unmade = unmade;
        judge(&[case], &world.never(), true)
    };
    assert_eq!(judged(&[(4, FAST), (5, FAST)], 2), Verdict::Kept);
    assert!(is_lost(&judged(&[(4, FAST), (5, FAST)], 1), "case"));
    // One for the ping among fast answers; of the queued ones, one is left.
    assert_eq!(judged(&[(4, FAST), (5, SLOW)], 2), Verdict::Kept);
    assert!(is_excused(&judged(&[(4, FAST), (5, SLOW)], 1)));
    // Pings that came say nothing of the queues before them, and excuse no segment.
    let ping = world.pings(&[(5, SLOW)]);
    for (unmade, excused) in [(0, true), (1, false)] {
        let mut case = world.case(&ping).without_segments(1);
        case.unmade = unmade;
        let verdict = judge(&[case], &world.never(), true);
        assert_eq!(is_excused(&verdict), excused, "{verdict:?}");
        assert_eq!(is_lost(&verdict, "case"), !excused, "{verdict:?}");
    }
}

#[test]
fn one_case_without_an_excuse_decides() {
    let world = World::new();
    let (queued, fast) = (world.pings(&[(4, SLOW)]), world.pings(&[(4, FAST)]));
    for cases in [[&queued, &fast], [&fast, &queued]] {
        let cases = cases.map(|ping| world.case(ping));
        let verdict = judge(&cases, &world.never(), true);
        assert!(is_lost(&verdict, "case"), "{verdict:?}");
    }
}

/// Ten seconds of traffic.
struct World {
    begin: Instant,
}

impl World {
    fn new() -> Self {
        // Time before it is needed, too.
        let begin = Instant::now() + Duration::from_secs(1000);
        Self { begin }
    }

    /// Seconds from the begin of the cases.
    fn at(&self, second: i32) -> Instant {
        self.begin - Duration::from_secs(100)
            + Duration::from_secs(u64::try_from(100 + second).expect("not so early"))
    }

    fn never(&self) -> Standstills {
        Standstills::default()
    }

    fn stood(&self, seconds: std::ops::Range<i32>) -> Standstills {
        Standstills {
            longest: Duration::from_secs(2),
            stood: vec![(self.at(seconds.start), self.at(seconds.end))],
        }
    }

    /// Those lost: sent in which second, and how many milliseconds answers beside them took.
    fn pings(&self, lost: &[(u64, u64)]) -> Report {
        let unanswered = (0..)
            .zip(lost)
            .map(|(number, (second, beside))| Unanswered {
                number,
                sent: self.begin + Duration::from_secs(*second),
                beside: Duration::from_millis(*beside),
            });
        Report {
            sent: PINGS,
            answered: PINGS - lost.len(),
            first_answer: None,
            longest_silence: Duration::ZERO,
            median: None,
            p99: None,
            unanswered: unanswered.collect(),
            unsent: 0,
        }
    }

    fn case<'a>(&self, ping: &'a Report) -> Traffic<'a> {
        let what = match &ping.unanswered[..] {
            [] => "none",
            all if all.iter().all(Unanswered::queued) => "case, queued",
            _ => "case",
        };
        Traffic {
            what,
            ran: (self.begin, self.at(10)),
            ping,
            unmade: 0,
            stream: Some(Carried {
                bytes: 1_000_000,
                longest_silence: Duration::ZERO,
                segments: 1000,
                lost: 0,
                retransmitted: 0,
            }),
            refused: Some(Refused {
                sent: 500,
                counted: 500,
            }),
        }
    }
}

impl Traffic<'_> {
    fn without_segments(mut self, count: u32) -> Self {
        self.stream.as_mut().expect("a stream").lost = count;
        self
    }

    fn with_uncounted(mut self, count: u64) -> Self {
        self.refused.as_mut().expect("refused packets").counted -= count;
        self
    }
}

fn is_excused(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Excused(_))
}

/// Of the case that is called so.
fn is_lost(verdict: &Verdict, case: &str) -> bool {
    matches!(verdict, Verdict::Lost(what) if what.split(": ").next().is_some_and(|name| name.contains(case)))
}
