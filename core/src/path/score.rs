//! Which of two direct paths is better (protocol reference 3.4).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Whether `challenger` should replace `best`; both have answered.
pub(super) fn better(
    challenger: (SocketAddr, Duration),
    best: (SocketAddr, Option<Duration>),
) -> bool {
    let (address, latency) = challenger;
    // A path that has never answered itself (adopted, roamed to) yields to one that has.
    let Some(best_latency) = best.1 else {
        return true;
    };
    let mut ours = place_points(&address);
    let mut theirs = place_points(&best.0);
    let saved = saved_percent(latency, best_latency);
    if latency < best_latency {
        ours += saved;
    } else {
        theirs += saved;
    }
    // A single point is measurement noise.
    if ours <= 1 && theirs == 0 {
        return false;
    }
    ours > theirs
}

fn saved_percent(a: Duration, b: Duration) -> u128 {
    let (fast, slow) = (a.min(b).as_nanos(), a.max(b).as_nanos());
    (100 * fast)
        .checked_div(slow)
        .map_or(0, |percent| 100 - percent)
}

fn place_points(address: &SocketAddr) -> u128 {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => 50,
        IpAddr::V4(ip) if ip.is_link_local() => 30,
        IpAddr::V4(ip) if ip.is_private() => 20,
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if ip.is_unique_local() => 30,
        IpAddr::V6(_) => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, millis: u64) -> (SocketAddr, Duration) {
        let address = address.parse().expect("a socket address");
        (address, Duration::from_millis(millis))
    }

    fn wins(challenger: (SocketAddr, Duration), best: (SocketAddr, Duration)) -> bool {
        better(challenger, (best.0, Some(best.1)))
    }

    #[test]
    fn a_private_address_wins_within_twenty_percent() {
        assert!(wins(at("192.168.1.2:1", 11), at("203.0.113.2:1", 10)));
        assert!(!wins(at("192.168.1.2:1", 30), at("203.0.113.2:1", 10)));
    }

    #[test]
    fn ipv6_wins_within_ten_percent() {
        assert!(wins(at("[2001:db8::1]:1", 105), at("203.0.113.2:1", 100)));
        assert!(!wins(at("[2001:db8::1]:1", 120), at("203.0.113.2:1", 100)));
    }

    #[test]
    fn noise_of_one_percent_changes_nothing() {
        assert!(!wins(at("203.0.113.1:1", 99), at("203.0.113.2:1", 100)));
        assert!(!wins(at("203.0.113.1:1", 100), at("203.0.113.2:1", 100)));
        assert!(wins(at("203.0.113.1:1", 80), at("203.0.113.2:1", 100)));
    }

    #[test]
    fn a_path_that_never_answered_yields() {
        let (address, latency) = at("203.0.113.1:1", 900);
        assert!(better((address, latency), (at("192.168.1.1:1", 0).0, None)));
    }
}
