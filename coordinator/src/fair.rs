//! Who has to go when a crowd of strangers fills all places.
//!
//! Addresses are cheap by the network: a host has a /64 of IPv6 at least, often a /48. So whoever takes most places loses the
//! oldest of them, looked at by ever smaller networks. A flood pushes out itself, and a proxy in front of everybody makes
//! them one network, in which the oldest goes.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Networks whose places are counted together, one after another: of IPv4 and of IPv6.
const LEVELS: [(u32, u32); 3] = [(16, 32), (24, 48), (32, 64)];

/// Whether it is one of IPv6, and its prefix.
type Network = (bool, u128);

fn network(address: IpAddr, (v4, v6): (u32, u32)) -> Network {
    match address.to_canonical() {
        IpAddr::V4(address) => (
            false,
            u128::from(address.to_bits().checked_shr(32 - v4).unwrap_or_default()),
        ),
        IpAddr::V6(address) => (
            true,
            address.to_bits().checked_shr(128 - v6).unwrap_or_default(),
        ),
    }
}

/// The oldest of those who take most places, `at_most` so many, and no more than bring them down to where others are; one at least.
/// `T` says since when, as times and serial numbers do.
pub fn who_goes<T: Ord + Clone>(
    crowd: impl Iterator<Item = (IpAddr, T)>,
    mut at_most: usize,
) -> Vec<T> {
    let mut crowd: Vec<(IpAddr, T)> = crowd.collect();
    for level in LEVELS {
        let mut networks: BTreeMap<Network, (usize, Reverse<T>)> = BTreeMap::new();
        for (address, since) in &crowd {
            let since = Reverse(since.clone());
            let (count, oldest) = networks
                .entry(network(*address, level))
                .or_insert_with(|| (0, since.clone()));
            *count += 1;
            if since > *oldest {
                *oldest = since;
            }
        }
        let mut by_size: Vec<_> = networks
            .into_iter()
            .map(|(network, size)| (size, network))
            .collect();
        by_size.sort();
        let Some(((count, _), largest)) = by_size.pop() else {
            return Vec::new();
        };
        let next = by_size.last().map_or(0, |((count, _), _)| *count);
        at_most = at_most.min(count - next).max(1);
        crowd.retain(|(address, _)| network(*address, level) == largest);
    }
    let mut since: Vec<T> = crowd.into_iter().map(|(_, since)| since).collect();
    since.sort();
    since.truncate(at_most);
    since
}

/// Places for strangers, of which there are never too few for one more: somebody has to go.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    by_serial: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    serial: u64,
    /// Fires when the place is lost to somebody else.
    pub lost: CancellationToken,
}

impl Places {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: Mutex::default(),
        })
    }

    pub fn take(self: &Arc<Self>, who: IpAddr) -> Place {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.by_serial.len() >= self.limit {
            // More than one if it can be, or each of a flood would have to look at all.
            let crowd = taken.by_serial.iter();
            let crowd = crowd.map(|(serial, (address, _))| (*address, *serial));
            for serial in who_goes(crowd, self.limit.div_ceil(128)) {
                if let Some((_, lost)) = taken.by_serial.remove(&serial) {
                    lost.cancel();
                }
            }
        }
        taken.last += 1;
        let (serial, lost) = (taken.last, CancellationToken::new());
        taken.by_serial.insert(serial, (who, lost.clone()));
        Place {
            places: self.clone(),
            serial,
            lost,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.places.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.by_serial.remove(&self.serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(crowd: &[&str], at_most: usize) -> Vec<usize> {
        let crowd = crowd.iter().enumerate();
        let crowd = crowd.map(|(age, address)| (address.parse().unwrap(), age));
        who_goes(crowd, at_most)
    }

    fn goes(crowd: &[&str]) -> Option<usize> {
        go(crowd, 1).first().copied()
    }

    #[test]
    fn several_go_at_once_until_all_have_as_many() {
        let crowd = [
            "192.0.2.1",
            "198.51.100.1",
            "192.0.2.1",
            "192.0.2.1",
            "192.0.2.1",
        ];
        assert_eq!(go(&crowd, 100), [0, 2, 3]);
        assert_eq!(go(&crowd, 2), [0, 2]);
        assert_eq!(go(&crowd[..2], 100), [0], "somebody has to");
        assert_eq!(go(&[], 100), [0; 0]);
    }

    #[test]
    fn whoever_takes_most_places_loses_the_oldest() {
        assert_eq!(goes(&[]), None);
        assert_eq!(goes(&["192.0.2.1", "198.51.100.1", "192.0.2.1"]), Some(0));
        assert_eq!(goes(&["198.51.100.1", "192.0.2.1", "192.0.2.1"]), Some(1));
        assert_eq!(
            goes(&["198.51.100.1", "192.0.2.1", "203.0.113.1"]),
            Some(0),
            "nobody has more than others: the oldest"
        );
        assert_eq!(
            goes(&["198.51.100.1", "192.0.2.1", "::ffff:192.0.2.1"]),
            Some(1),
            "both ways to write an address are one host"
        );
    }

    #[test]
    fn a_host_with_many_addresses_is_one_network() {
        let mut crowd = vec!["2001:db8:1::1".to_owned(), "192.0.2.1".to_owned()];
        for number in 0..50 {
            crowd.push(format!("2001:db8:2:{number:x}::{number:x}"));
        }
        let crowd: Vec<_> = crowd.iter().map(String::as_str).collect();
        assert_eq!(goes(&crowd), Some(2));
    }

    #[test]
    fn a_full_house_takes_newcomers_in_place_of_the_crowd() {
        let places = Places::new(3);
        let [guest, host]: [IpAddr; 2] = ["192.0.2.1", "198.51.100.1"].map(|a| a.parse().unwrap());
        let first = places.take(guest);
        let others: Vec<_> = (0..3).map(|_| places.take(host)).collect();
        let lost: Vec<_> = others
            .iter()
            .map(|place| place.lost.is_cancelled())
            .collect();
        assert_eq!(lost, [true, false, false]);
        assert!(!first.lost.is_cancelled());
        drop(first);
        drop(others);
        assert!(places.taken.lock().unwrap().by_serial.is_empty());
    }
}
