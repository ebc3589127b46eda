use lowroad_wire::control::{DerpNode, DerpRegion, EndpointType};

use super::*;

mod bounds;

const PORT: u16 = 41641;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn map(regions: u16) -> DerpMap {
    let region = |id: u16| {
        let nodes = (1..=2).map(|node| DerpNode {
            ipv4: format!("198.51.100.{}", 10 * id + node),
            ipv6: format!("2001:db8:{id}::{node}"),
            host_name: format!("relay{id}.example"),
            ..DerpNode::default()
        });
        let region = DerpRegion {
            region_id: RegionId(id),
            nodes: nodes.collect(),
            ..DerpRegion::default()
        };
        (RegionId(id), region)
    };
    DerpMap {
        regions: (1..=regions).map(region).collect(),
        ..DerpMap::default()
    }
}

fn region_of(server: &SocketAddr) -> u16 {
    match server {
        SocketAddr::V4(server) => u16::from(server.ip().octets()[3] / 10),
        SocketAddr::V6(server) => server.ip().segments()[2],
    }
}

/// Servers that answer after `latency(region)`, with the source that `mapping(server)` says.
struct Internet<'a> {
    latency: &'a dyn Fn(u16) -> Option<Duration>,
    mapping: &'a dyn Fn(SocketAddr) -> Option<SocketAddr>,
}

fn check() -> Netcheck {
    Netcheck::new(Config {
        port: PORT,
        seed: [1; 32],
        stable: 5,
    })
}

/// Runs until a report; the report, when it came, and how many probes were sent.
fn run(
    netcheck: &mut Netcheck,
    start: Instant,
    internet: &Internet<'_>,
) -> (Report, Instant, usize) {
    let mut now = start;
    let mut answers: BTreeMap<(Instant, usize), (SocketAddr, Vec<u8>)> = BTreeMap::new();
    let mut sent = 0;
    for _ in 0..1000 {
        while let Some(command) = netcheck.poll_command() {
            match command {
                Command::Send { to, bytes } => {
                    sent += 1;
                    let tx = stun::parse_request(&bytes).unwrap();
                    let latency = (internet.latency)(region_of(&to));
                    if let (Some(latency), Some(source)) = (latency, (internet.mapping)(to)) {
                        answers.insert((now + latency, sent), (to, stun::response(tx, source)));
                    }
                }
                Command::Done(report) => return (report, now, sent),
                Command::Resolve { .. } => {}
            }
        }
        let answer = answers.first_key_value().map(|((at, _), _)| *at);
        let timer = netcheck.next_deadline();
        now = [answer, timer].into_iter().flatten().min().unwrap();
        if answer == Some(now) {
            let (_, (from, bytes)) = answers.pop_first().unwrap();
            netcheck.on_datagram(now, from, &bytes);
        } else {
            netcheck.on_timer(now);
        }
    }
    panic!("no report");
}

fn easy(server: SocketAddr) -> Option<SocketAddr> {
    server.is_ipv4().then(|| ([203, 0, 113, 5], 40000).into())
}

fn hard(server: SocketAddr) -> Option<SocketAddr> {
    let SocketAddr::V4(server) = server else {
        return None;
    };
    Some(([203, 0, 113, 5], 40000 + u16::from(server.ip().octets()[3])).into())
}

/// One region near by: its check, the report, and from when to when that took.
fn behind_an_easy_nat() -> (Netcheck, Report, Instant, Instant) {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(1));
    let internet = Internet {
        latency: &|_| Some(millis(2)),
        mapping: &easy,
    };
    let (report, end, _) = run(&mut netcheck, start, &internet);
    (netcheck, report, start, end)
}

#[test]
fn one_region_without_ipv6_is_reported_soon_after_its_answer() {
    let (_, report, start, end) = behind_an_easy_nat();
    assert!(end - start <= millis(60), "{:?}", end - start);
    assert_eq!(report.global_v4, Some(([203, 0, 113, 5], 40000).into()));
    assert_eq!(report.preferred, Some(RegionId(1)));
}

#[test]
fn a_hard_nat_is_recognised_by_two_servers_and_announced_with_the_local_port() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(4));
    let internet = Internet {
        latency: &|id| Some(millis(20 * u64::from(id))),
        mapping: &hard,
    };
    let (report, end, _) = run(&mut netcheck, start, &internet);
    assert_eq!(report.mapping_varies, Some(true));
    let endpoints = netcheck.endpoints(end, &[]);
    let guess = Endpoint {
        address: ([203, 0, 113, 5], PORT).into(),
        kind: EndpointType::STUN_LOCAL_PORT,
    };
    assert!(endpoints.contains(&guess), "{endpoints:?}");
    netcheck.set_map(end, &map(3));
    let internet = Internet {
        mapping: &easy,
        ..internet
    };
    assert_eq!(
        run(&mut netcheck, end, &internet).0.mapping_varies,
        Some(false)
    );
}

#[test]
fn later_rounds_ask_only_the_nearest_and_home_until_five_minutes_have_passed() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(9));
    let internet = Internet {
        latency: &|id| Some(millis(10 * u64::from(id))),
        mapping: &easy,
    };
    let (report, end, full) = run(&mut netcheck, start, &internet);
    assert!(report.latencies.len() >= 3 && full >= 18, "{full}");
    netcheck.start(end + millis(20_000));
    let (_, later, few) = run(&mut netcheck, end + millis(20_000), &internet);
    assert!(few <= 14, "{few}");
    netcheck.start(later + FULL_EVERY);
    let (_, _, again) = run(&mut netcheck, later + FULL_EVERY, &internet);
    assert!(again >= 18, "{again}");
}

#[test]
fn home_stays_unless_another_is_much_better() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(2));
    let first = Internet {
        latency: &|id| Some(millis(if id == 1 { 30 } else { 60 })),
        mapping: &easy,
    };
    let (report, end, _) = run(&mut netcheck, start, &first);
    assert_eq!(report.preferred, Some(RegionId(1)));
    let second = Internet {
        latency: &|id| Some(millis(if id == 1 { 30 } else { 25 })),
        mapping: &easy,
    };
    netcheck.start(end);
    let (report, end, _) = run(&mut netcheck, end, &second);
    assert_eq!(report.preferred, Some(RegionId(1)));
    let third = Internet {
        latency: &|id| Some(millis(if id == 1 { 30 } else { 5 })),
        mapping: &easy,
    };
    netcheck.start(end);
    assert_eq!(
        run(&mut netcheck, end, &third).0.preferred,
        Some(RegionId(2))
    );
}

#[test]
fn a_silent_home_that_its_relay_was_just_heard_from_is_kept() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(2));
    let both = Internet {
        latency: &|id| Some(millis(if id == 1 { 30 } else { 40 })),
        mapping: &easy,
    };
    let (_, end, _) = run(&mut netcheck, start, &both);
    let silent = Internet {
        latency: &|id| (id == 2).then(|| millis(40)),
        mapping: &easy,
    };
    netcheck.start(end);
    netcheck.on_frame(end + millis(4000), RegionId(1));
    let (report, end, _) = run(&mut netcheck, end, &silent);
    assert_eq!(report.preferred, Some(RegionId(1)));
    netcheck.start(end + millis(20_000));
    assert_eq!(
        run(&mut netcheck, end + millis(20_000), &silent)
            .0
            .preferred,
        Some(RegionId(2))
    );
}

/// Nobody answers for the first of two regions, whose addresses are known; the second has a name only.
fn one_deaf_and_one_by_name(start: Instant) -> (Netcheck, String) {
    let mut map = map(2);
    let named = map.regions.get_mut(&RegionId(2)).unwrap();
    named.nodes.truncate(1);
    let node = &mut named.nodes[0];
    (node.ipv4, node.ipv6) = (String::new(), String::new());
    let host = node.host_name.clone();
    // The blind pick among two is the first.
    let mut netcheck = Netcheck::new(Config {
        port: PORT,
        seed: [1; 32],
        stable: 4,
    });
    netcheck.set_map(start, &map);
    (netcheck, host)
}

const SECOND_ONLY: Internet<'_> = Internet {
    latency: &|id| (id == 2).then(|| millis(40)),
    mapping: &easy,
};

#[test]
fn a_relay_whose_name_is_found_during_a_round_takes_part_in_it() {
    let start = Instant::now();
    let (mut netcheck, host) = one_deaf_and_one_by_name(start);
    let found = start + millis(20);
    netcheck.on_resolved(found, &host, vec![[198, 51, 100, 21].into()]);
    let (report, end, sent) = run(&mut netcheck, found, &SECOND_ONLY);
    assert_eq!(report.preferred, Some(RegionId(2)));
    assert!(end <= start + REPORT_TIMEOUT, "{:?}", end - start);
    // Two families of the deaf one, three tries each; the other answers the first.
    assert_eq!(sent, 7);
}

#[test]
fn a_home_that_was_picked_blindly_yields_to_a_measured_one() {
    let start = Instant::now();
    let (mut netcheck, host) = one_deaf_and_one_by_name(start);
    let (report, end, _) = run(&mut netcheck, start, &SECOND_ONLY);
    assert_eq!(report.preferred, Some(RegionId(1)));
    netcheck.on_frame(end, RegionId(1));
    netcheck.start(end);
    let (report, end, _) = run(&mut netcheck, end, &SECOND_ONLY);
    assert_eq!(
        report.preferred,
        Some(RegionId(1)),
        "nothing better is known"
    );
    netcheck.on_frame(end, RegionId(1));
    netcheck.on_resolved(end, &host, vec![[198, 51, 100, 21].into()]);
    let (report, ..) = run(&mut netcheck, end, &SECOND_ONLY);
    assert_eq!(report.preferred, Some(RegionId(2)));
}

#[test]
fn where_nothing_answers_the_pick_is_stable_and_the_report_comes_in_time() {
    let nothing = Internet {
        latency: &|_| None,
        mapping: &easy,
    };
    let start = Instant::now();
    let picks: BTreeSet<_> = (0..3)
        .map(|_| {
            let mut netcheck = check();
            netcheck.set_map(start, &map(7));
            let (report, end, _) = run(&mut netcheck, start, &nothing);
            assert!(end - start <= REPORT_TIMEOUT && !report.udp_works());
            report.preferred
        })
        .collect();
    assert_eq!(picks.len(), 1);
    assert!(picks.first().unwrap().is_some());
}

#[test]
fn a_region_without_a_relay_is_no_home() {
    let nothing = Internet {
        latency: &|_| None,
        mapping: &easy,
    };
    let start = Instant::now();
    let mut only_one = map(7);
    for (id, region) in &mut only_one.regions {
        match id.0 {
            3 => {}
            1 | 2 => region
                .nodes
                .iter_mut()
                .for_each(|node| node.stun_only = true),
            _ => region.nodes.clear(),
        }
    }
    let mut netcheck = check();
    netcheck.set_map(start, &only_one);
    let (report, ..) = run(&mut netcheck, start, &nothing);
    assert_eq!(report.preferred, Some(RegionId(3)));
}

#[test]
fn without_a_map_there_is_a_report_at_once() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.start(start);
    let nothing = Internet {
        latency: &|_| None,
        mapping: &easy,
    };
    let (report, end, sent) = run(&mut netcheck, start, &nothing);
    assert_eq!((report, end, sent), (Report::default(), start, 0));
}

#[test]
fn answers_that_were_not_asked_for_are_ignored() {
    let mut netcheck = check();
    let start = Instant::now();
    netcheck.set_map(start, &map(1));
    let forged = stun::response(TxId([0; 12]), ([6, 6, 6, 6], 6).into());
    assert!(!netcheck.on_datagram(start, ([198, 51, 100, 11], 3478).into(), &forged));
    let sent = std::iter::from_fn(|| netcheck.poll_command());
    let sent: Vec<_> = sent.collect();
    let Some(Command::Send { bytes, .. }) = sent.first() else {
        panic!("nothing was asked")
    };
    let tx = stun::parse_request(bytes).unwrap();
    let answer = stun::response(tx, ([6, 6, 6, 6], 6).into());
    assert!(
        !netcheck.on_datagram(start, ([198, 51, 100, 99], 3478).into(), &answer),
        "another server"
    );
}

#[test]
fn names_without_addresses_are_looked_up_and_then_asked() {
    let mut netcheck = check();
    let start = Instant::now();
    let mut map = map(1);
    for node in &mut map.regions.get_mut(&RegionId(1)).unwrap().nodes {
        (node.ipv4, node.ipv6) = (String::new(), String::new());
    }
    netcheck.set_map(start, &map);
    let host = "relay1.example".to_owned();
    assert_eq!(
        netcheck.poll_command(),
        Some(Command::Resolve { host: host.clone() })
    );
    while netcheck.poll_command().is_some() {}
    netcheck.on_resolved(start, &host, vec![[198, 51, 100, 11].into()]);
    let internet = Internet {
        latency: &|_| Some(millis(2)),
        mapping: &easy,
    };
    assert!(run(&mut netcheck, start, &internet).0.udp_works());
}

#[test]
fn endpoints_are_announced_in_order_without_tunnel_and_link_local_addresses() {
    let (mut netcheck, _, _, end) = behind_an_easy_nat();
    let local = |text: &str, prefix| LocalAddress {
        address: text.parse().unwrap(),
        prefix,
    };
    let list = [
        local("127.0.0.1", 8),
        local("100.64.0.7", 32),
        local("fd7a:115c:a1e0::7", 128),
        local("fe80::1", 64),
        local("169.254.3.4", 16),
        local("192.168.1.2", 24),
        local("fd00::5", 64),
        local("2001:db8:1::1", 64),
        local("2001:db8:1::2", 64),
        local("2001:db8:1::3", 64),
    ];
    let endpoints = netcheck.endpoints(end, &list);
    let texts: Vec<_> = endpoints
        .iter()
        .map(|endpoint| endpoint.address.to_string())
        .collect();
    let wanted = [
        "203.0.113.5:40000",
        "192.168.1.2:41641",
        "[2001:db8:1::1]:41641",
        "[2001:db8:1::2]:41641",
    ];
    assert_eq!(texts, wanted);
    assert_eq!(
        (endpoints[0].kind, endpoints[1].kind),
        (EndpointType::STUN, EndpointType::LOCAL)
    );
    let alone = netcheck.endpoints(end + millis(400_000), &list[..1]);
    assert_eq!(alone.last().unwrap().address.to_string(), "127.0.0.1:41641");
}

#[test]
fn what_stun_saw_of_an_address_that_the_host_has_lost_is_not_announced() {
    let (mut netcheck, _, _, end) = behind_an_easy_nat();
    let mut announced = |after: u64, local: &str| -> Vec<String> {
        let local = LocalAddress {
            address: local.parse().unwrap(),
            prefix: 24,
        };
        let endpoints = netcheck.endpoints(end + millis(after), &[local]);
        endpoints.iter().map(|e| e.address.to_string()).collect()
    };
    let seen = "203.0.113.5:40000";
    assert_eq!(announced(0, "192.168.1.2"), [seen, "192.168.1.2:41641"]);
    assert_eq!(
        announced(1, "192.168.2.2"),
        [seen, "192.168.2.2:41641"],
        "a router's mapping may live on"
    );
    assert_eq!(announced(2, "203.0.113.5"), [seen, "203.0.113.5:41641"]);
    assert_eq!(announced(3, "203.0.113.6"), ["203.0.113.6:41641"]);
    assert_eq!(announced(4, "203.0.113.6"), ["203.0.113.6:41641"]);
    assert_eq!(announced(5, "203.0.113.5"), [seen, "203.0.113.5:41641"]);
}
