//! The packet filters: all that the server has told are in force, or none is.

use std::collections::{BTreeMap, BTreeSet};

use super::{ALL, BASE, MAX_NAMED, NetMap, Room, replace};
use crate::control::FilterRule;

/// By name.
type Filters = BTreeMap<String, Vec<FilterRule>>;

/// Filters that there was no room for. While there are any, no filter is in force: a part of a policy is another policy.
///
/// It makes no difference between two netmaps, of which the same is in force.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    /// Those that the server has to tell anew, or to remove. With [`ALL`] among them it has to begin anew: it is not known any more which ones there are.
    missing: BTreeSet<String>,
    /// Those that it has told since. They are in force once none is missing.
    told: Filters,
}

impl PartialEq for Refused {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Refused {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Takes in what a message tells.
    fn tell(
        &mut self,
        base: Option<Vec<FilterRule>>,
        named: BTreeMap<String, Option<Vec<FilterRule>>>,
    ) {
        if let Some(rules) = base {
            self.missing.remove(BASE);
            self.told.insert(BASE.to_owned(), rules);
        }
        if named.get(ALL).is_some_and(Option::is_none) {
            *self = Self::default();
        }
        for (name, rules) in named {
            if name != ALL {
                self.missing.remove(&name);
            }
            match rules {
                Some(rules) => drop(self.told.insert(name, rules)),
                None => drop(self.told.remove(&name)),
            }
        }
    }

    /// What was told is missing from now on. Also their names take room.
    fn refuse(&mut self, taken: Room) {
        let names = std::mem::take(&mut self.told).into_keys();
        self.missing.extend(names);
        if self.missing.len() > MAX_NAMED || !taken.has_room_for(self.room()) {
            self.missing = BTreeSet::from([ALL.to_owned()]);
        }
    }

    fn room(&self) -> Room {
        Room::of(&(&self.told, &self.missing))
    }
}

impl NetMap {
    /// The filters as a message tells of them; of refused ones more than are taken, so that whoever reads it has none in force either.
    pub(super) fn filters_to_tell(&self) -> BTreeMap<String, Option<Vec<FilterRule>>> {
        if self.refused_filters.any() {
            let too_many = (0..=MAX_NAMED).map(|n| (n.to_string(), Some(Vec::new())));
            return too_many.collect();
        }
        let named = self.filters.iter();
        named
            .map(|(name, rules)| (name.clone(), Some(rules.clone())))
            .collect()
    }

    /// All of them or none: which ones there is room for would be chance.
    pub(super) fn apply_filters(
        &mut self,
        base: Option<Vec<FilterRule>>,
        named: BTreeMap<String, Option<Vec<FilterRule>>>,
        left_out: &mut usize,
    ) -> bool {
        if base.is_none() && named.is_empty() {
            return false;
        }
        let mut state = std::mem::take(&mut self.refused_filters);
        if !state.any() {
            state.told = self.filters.clone();
        }
        self.room.give(state.room());
        state.tell(base, named);
        let too_many = state.told.len() > MAX_NAMED;
        if !state.told.is_empty() && (too_many || !self.room.has_room_for(state.room())) {
            *left_out += state.told.len();
            state.refuse(self.room);
        }
        self.room.take(state.room());
        let in_force = match state.any() {
            true => {
                self.refused_filters = state;
                Filters::new()
            }
            false => state.told,
        };
        replace(&mut self.filters, in_force)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};
    use time::OffsetDateTime;

    use crate::{
        control::MapResponse,
        netmap::{Changes, MAX_NAMED, NetMap},
    };

    fn apply(map: &mut NetMap, message: &Value) -> Changes {
        let (response, malformed) = MapResponse::parse(message.to_string().as_bytes()).unwrap();
        assert_eq!(malformed, []);
        map.apply(response, OffsetDateTime::UNIX_EPOCH)
    }

    /// Sources of a rule that there is no room for.
    const TOO_MANY: usize = 50_000;

    /// One rule.
    fn rules(sources: usize) -> Value {
        json!([{"SrcIPs": vec!["100.64.0.1"; sources], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 2}}]}])
    }

    /// How many rules are in force, and whether any were refused.
    fn state(map: &NetMap) -> (usize, bool) {
        (map.filter_rules().count(), map.refused_filters.any())
    }

    #[test]
    fn a_filter_that_there_is_no_room_for_closes_all_until_each_of_them_is_told_anew() {
        let mut map = NetMap::default();
        // Again and again: no room is lost by it.
        for round in 0..20 {
            let first = json!({"PacketFilters": {"*": null, "a": rules(5_000), "b": rules(5_000)}});
            assert_eq!(apply(&mut map, &first).left_out, 0, "round {round}");
            assert_eq!(state(&map), (2, false));
            let large = json!({"PacketFilters": {"a": rules(TOO_MANY)}});
            let changes = apply(&mut map, &large);
            assert_eq!((changes.left_out, changes.filter), (2, true));
            assert_eq!(state(&map), (0, true), "nor is the other one in force");
            let others = json!({"PacketFilters": {"b": rules(1), "c": rules(1)}});
            let changes = apply(&mut map, &others);
            assert_eq!((changes.left_out, changes.filter), (0, false));
            assert_eq!(state(&map), (0, true), "one is missing");
            let small = json!({"PacketFilters": {"a": rules(1)}});
            assert!(apply(&mut map, &small).filter);
            assert_eq!(state(&map), (3, false));
        }
    }

    #[test]
    fn what_is_told_of_a_refused_policy_may_be_too_large_as_well() {
        let mut map = NetMap::default();
        apply(&mut map, &json!({"PacketFilter": rules(TOO_MANY)}));
        let changes = apply(&mut map, &json!({"PacketFilters": {"a": rules(TOO_MANY)}}));
        assert_eq!((changes.left_out, changes.filter), (1, false));
        apply(&mut map, &json!({"PacketFilter": rules(1)}));
        assert_eq!(state(&map), (0, true));
        apply(&mut map, &json!({"PacketFilters": {"a": null}}));
        assert_eq!(state(&map), (1, false), "what is removed is not missing");
    }

    #[test]
    fn a_server_that_knows_one_filter_is_heard_again_with_its_next() {
        let mut map = NetMap::default();
        for filters in [
            json!({"PacketFilter": rules(1)}),
            json!({"PacketFilters": {"base": rules(1)}}),
        ] {
            apply(&mut map, &json!({"PacketFilter": rules(TOO_MANY)}));
            assert_eq!(state(&map), (0, true));
            apply(&mut map, &filters);
            assert_eq!(state(&map), (1, false), "{filters}");
        }
    }

    #[test]
    fn one_filter_more_than_there_may_be_closes_all_until_the_server_begins_anew() {
        let many = |first: usize, count: usize| {
            let named = (first..first + count).map(|n| (n.to_string(), rules(1)));
            let named: Map<String, Value> = named.collect();
            json!({"PacketFilters": named})
        };
        let mut map = NetMap::default();
        apply(&mut map, &many(0, MAX_NAMED));
        assert_eq!(state(&map), (MAX_NAMED, false));
        assert_eq!(apply(&mut map, &many(MAX_NAMED, 1)).left_out, MAX_NAMED + 1);
        assert_eq!(state(&map), (0, true));
        // As many as may be, but nobody knows any more which others there are.
        apply(&mut map, &json!({"PacketFilters": {"0": null, "*": []}}));
        apply(&mut map, &many(1, MAX_NAMED - 1));
        assert_eq!(state(&map), (0, true));
        apply(
            &mut map,
            &json!({"PacketFilters": {"*": null, "0": rules(1)}}),
        );
        assert_eq!(state(&map), (1, false));
        // Nor does a netmap begin with half of them.
        let mut map = NetMap::default();
        apply(&mut map, &many(0, MAX_NAMED + 1));
        assert_eq!(state(&map), (0, true));
    }

    #[test]
    fn a_refused_policy_that_is_written_and_read_is_refused_still() {
        let mut map = NetMap::default();
        apply(&mut map, &json!({"PacketFilters": {"a": rules(1)}}));
        apply(&mut map, &json!({"PacketFilters": {"b": rules(TOO_MANY)}}));
        apply(&mut map, &json!({"PacketFilters": {"b": rules(1)}}));
        assert_eq!(state(&map), (0, true));
        let text = serde_json::to_value(map.to_response()).unwrap();
        let mut again = NetMap::default();
        apply(&mut again, &text);
        assert_eq!(again, map);
        assert_eq!(state(&again), (0, true));
        // What comes after it is a part of what the server has told.
        apply(&mut again, &json!({"PacketFilters": {"c": rules(1)}}));
        assert_eq!(state(&again), (0, true));
    }
}
