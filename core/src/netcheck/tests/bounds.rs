//! However the map and its names change, few are asked.

use super::*;

/// What is asked until nothing happens any more, with nobody to answer; `at`: what happens from outside.
fn asked(
    netcheck: &mut Netcheck,
    start: Instant,
    mut at: BTreeMap<Duration, DerpMap>,
    until: Duration,
) -> Vec<(Duration, SocketAddr)> {
    let mut now = start;
    let mut sent = Vec::new();
    while now < start + until {
        while let Some((_, map)) = at.first_key_value().filter(|(at, _)| start + **at <= now) {
            netcheck.set_map(now, map);
            at.pop_first();
        }
        netcheck.on_timer(now);
        while let Some(command) = netcheck.poll_command() {
            if let Command::Send { to, .. } = command {
                sent.push((now - start, to));
            }
        }
        let next = at.first_key_value().map(|(at, _)| start + *at);
        let Some(next) = [next, netcheck.next_deadline()].into_iter().flatten().min() else {
            break;
        };
        now = next.max(now);
    }
    sent
}

/// Every region a port of one address.
fn all_at_a_victim(regions: u16, ports: u16) -> DerpMap {
    let region = |id| {
        let node = DerpNode {
            ipv4: "192.0.2.66".to_owned(),
            ipv6: "2001:db8::66".to_owned(),
            stun_port: i32::from(ports) + i32::from(id),
            ..DerpNode::default()
        };
        let region = DerpRegion {
            nodes: vec![node; 50],
            ..DerpRegion::default()
        };
        (RegionId(id), region)
    };
    DerpMap {
        regions: (1..=regions).map(region).collect(),
        ..DerpMap::default()
    }
}

#[test]
fn a_map_of_very_many_relays_has_a_bounded_number_of_them_asked() {
    let start = Instant::now();
    let map = BTreeMap::from([(Duration::ZERO, all_at_a_victim(u16::MAX, 0))]);
    let sent = asked(&mut check(), start, map, REPORT_TIMEOUT);
    let first = sent.iter().filter(|(at, _)| at.is_zero()).count();
    assert_eq!((first, sent.len()), (2 * 64, 3 * 2 * 64));
}

#[test]
fn a_server_that_changes_its_map_all_the_time_has_no_more_rounds_started_than_one_in_five_seconds()
{
    let start = Instant::now();
    let maps = (0..600_u16).map(|number| {
        let map = all_at_a_victim(100, number);
        (millis(100 * u64::from(number)), map)
    });
    let sent = asked(&mut check(), start, maps.collect(), millis(60_000));
    let a_round = 3 * 2 * 64;
    assert!(sent.len() <= (60 / 5 + 3) * a_round, "{} sent", sent.len());
    assert!(sent.len() >= (60 / 5) * 2 * 64, "{} sent", sent.len());
    let ports: Vec<_> = sent.iter().map(|(_, to)| to.port()).collect();
    assert!(*ports.last().unwrap() > 400, "the latest map is asked by");
}

#[test]
fn a_map_with_the_same_servers_starts_no_round_and_the_first_others_start_one_at_once() {
    let start = Instant::now();
    let mut renamed = map(2);
    renamed.regions.get_mut(&RegionId(1)).unwrap().region_name = "another".to_owned();
    let maps = [
        (0, map(2)),
        (6_000, renamed),
        (7_000, map(3)),
        (8_000, map(2)),
    ];
    let maps = maps.map(|(at, map)| (millis(at), map));
    let sent = asked(&mut check(), start, maps.into(), millis(14_000));
    let begun = |from: u64| {
        let within = sent.iter().filter(|(at, _)| *at >= millis(from));
        within.map(|(at, _)| *at).min()
    };
    assert_eq!(begun(0), Some(millis(0)));
    assert_eq!(begun(1_000), Some(millis(7_000)), "the same servers");
    assert_eq!(begun(7_900), Some(millis(8_000)));
}

#[test]
fn names_that_are_found_one_by_one_start_no_more_rounds_than_maps_do() {
    let mut map = all_at_a_victim(60, 1);
    for (id, region) in &mut map.regions {
        region.nodes.truncate(1);
        let node = &mut region.nodes[0];
        (node.ipv4, node.ipv6) = (String::new(), String::new());
        node.host_name = format!("{id}.example");
    }
    let mut netcheck = check();
    let mut now = Instant::now();
    netcheck.set_map(now, &map);
    let mut open = VecDeque::new();
    let (mut rounds, mut most) = (0, 0);
    for _ in 0..60 {
        let end = now + millis(100);
        loop {
            while let Some(command) = netcheck.poll_command() {
                match command {
                    Command::Resolve { host } => open.push_back(host),
                    // Who answers at once has the round over at once.
                    Command::Send { to, bytes } => {
                        let tx = stun::parse_request(&bytes).unwrap();
                        let answer = stun::response(tx, ([203, 0, 113, 5], 40000).into());
                        netcheck.on_datagram(now, to, &answer);
                    }
                    Command::Done(_) => rounds += 1,
                }
            }
            let Some(next) = netcheck.next_deadline().filter(|at| *at <= end) else {
                break;
            };
            now = next;
            netcheck.on_timer(now);
        }
        now = end;
        most = most.max(open.len());
        let host = open.pop_front().expect("all names are looked up");
        netcheck.on_resolved(now, &host, vec![[192, 0, 2, 66].into()]);
    }
    assert_eq!((most, open.len()), (LOOKUPS, 0));
    assert!((1..=ROUNDS).contains(&rounds), "{rounds} rounds");
}
