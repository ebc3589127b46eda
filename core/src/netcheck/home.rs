//! The choice of the home region, slow to change: peers have to learn of it, and connections move.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lowroad_wire::control::{DerpMap, RegionId};

/// The best latency of a region within this time counts.
const HISTORY: Duration = Duration::from_secs(305);
/// A new home has to be better by this much.
const MARGIN: Duration = Duration::from_millis(10);
/// A relay heard this recently is reachable although no probe of it was answered.
const HEARD: Duration = Duration::from_secs(8);

#[derive(Debug, Default)]
pub(super) struct Homes {
    history: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    frames: BTreeMap<RegionId, Instant>,
    home: Option<RegionId>,
    /// It was picked while nothing could be measured.
    blind: bool,
}

impl Homes {
    pub fn on_frame(&mut self, now: Instant, region: RegionId) {
        self.frames.insert(region, now);
    }

    pub fn note(&mut self, now: Instant, latencies: &BTreeMap<RegionId, Duration>) {
        self.history.push_back((now, latencies.clone()));
        while self
            .history
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > HISTORY)
        {
            self.history.pop_front();
        }
    }

    pub fn choose(&mut self, now: Instant, map: &DerpMap, stable: u64) -> Option<RegionId> {
        // A region without a relay to connect to would leave us unreachable.
        let eligible = |id: &RegionId| {
            map.regions.get(id).is_some_and(|region| {
                !region.no_measure_no_home && region.nodes.iter().any(|node| !node.stun_only)
            })
        };
        let known = map.regions.len();
        self.frames.retain(|id, _| map.regions.contains_key(id));
        debug_assert!(self.frames.len() <= known);
        let old = self.home.filter(eligible);
        let measured = self.judge(now, map, old).filter(eligible);
        // Kept for want of anything to measure, it is as blind as it was.
        self.blind = measured.is_none() || (self.blind && measured == self.home);
        self.home = measured.or_else(|| {
            let regions: Vec<_> = map.regions.keys().filter(|id| eligible(id)).collect();
            let index = stable.checked_rem(regions.len() as u64)?;
            regions.get(index as usize).map(|id| **id)
        });
        self.home
    }

    /// `None`: nothing is known.
    fn judge(&self, now: Instant, map: &DerpMap, old: Option<RegionId>) -> Option<RegionId> {
        let heard = |id: RegionId| {
            let at = self.frames.get(&id);
            at.is_some_and(|at| now.saturating_duration_since(*at) < HEARD)
        };
        let scores = map.home_params.region_score.as_ref();
        let mut best: BTreeMap<RegionId, Duration> = BTreeMap::new();
        for (id, latency) in self.history.iter().flat_map(|(_, latencies)| latencies) {
            if map
                .regions
                .get(id)
                .is_none_or(|region| region.no_measure_no_home)
            {
                continue;
            }
            let score = scores.and_then(|scores| scores.get(id)).copied();
            let score = score
                .filter(|score| score.is_finite() && *score > 0.0)
                .unwrap_or(1.0);
            let latency = latency.mul_f64(score.clamp(0.01, 100.0));
            let best = best.entry(*id).or_insert(latency);
            *best = latency.min(*best);
        }
        let latest = self.history.back().map(|(_, latencies)| latencies)?;
        if latest.is_empty() {
            // Blocked, for the moment at least.
            return old;
        }
        // Only a region that answers today is a choice.
        let (new, latency) = best
            .iter()
            .filter(|(id, _)| latest.contains_key(id))
            .min_by_key(|(_, latency)| **latency)
            .map(|(id, latency)| (*id, *latency))?;
        let Some(old) = old.filter(|old| *old != new) else {
            return Some(new);
        };
        let reachable = latest.contains_key(&old) || heard(old);
        let keep = match best.get(&old).filter(|_| reachable) {
            Some(before) => latency + MARGIN > *before || latency * 3 > *before * 2,
            // That a relay takes our connection says nothing for it against one that was measured.
            None => reachable && !self.blind,
        };
        Some(if keep { old } else { new })
    }
}
