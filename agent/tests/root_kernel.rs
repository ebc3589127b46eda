//! The kernel seam against real kernels, in network namespaces of its own; each test once per data plane.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "root_kernel/netns.rs"]
mod netns;
#[path = "root_kernel/node.rs"]
mod node;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lowroad_agent::kernel::{DataplaneChoice, KernelChange, KernelError, cleanup, start};
use lowroad_core::desired::{PeerStats, RouteKind};
use lowroad_core::plan::{AllowedIps, Step, plan};
use lowroad_wire::key::NodePublic;
use tokio::net::UdpSocket;

use crate::netns::Netns;
use crate::node::{
    PORT, assert_settled, desired, eventually, options, own_addresses, peer, private, reconcile,
    route, up,
};

/// Makes a test of each function for each data plane.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod userspace {
            $(#[test] fn $name() { super::$name(super::DataplaneChoice::Userspace) })*
        }
        mod kernel {
            $(#[test] fn $name() {
                match super::why_no_kernel_wireguard() {
                    Some(why) => println!("SKIPPED: {why}\nskipped 1"),
                    None => super::$name(super::DataplaneChoice::Kernel),
                }
            })*
        }
    };
}

on_both! {
    the_device_comes_up_as_desired_and_the_next_plan_is_empty
    one_of_a_thousand_peers_changes_alone
    a_prefix_moves_from_one_peer_to_another
    a_peer_may_have_five_hundred_prefixes
    foreign_rules_routes_and_addresses_stay
    teardown_leaves_the_namespace_as_it_was
    a_foreign_device_of_that_name_is_refused_and_left_alone
    a_taken_port_is_refused_by_name
    a_device_does_not_come_up_without_its_filter
    a_device_that_was_deleted_comes_back_with_the_next_plan
    two_nodes_talk_over_both_families_and_a_new_endpoint_keeps_the_session
    disco_and_stun_come_out_before_and_while_wireguard_runs
    a_peer_behind_a_loopback_address_is_reached_from_the_wireguard_port
    a_second_agent_on_the_device_adopts_it_or_is_told_why_not
}

fn the_device_comes_up_as_desired_and_the_next_plan_is_empty(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut desired = desired(1);
        desired.routes.extend([
            route("0.0.0.0/0", RouteKind::Device),
            route("::/0", RouteKind::Blackhole),
            route("192.168.7.0/24", RouteKind::Throw),
            route("fd00:7::/64", RouteKind::Throw),
        ]);
        desired.wireguard.peers.extend([
            peer(2, Some("192.0.2.2:41641".parse().unwrap())),
            peer(3, None),
        ]);
        let mut started = up(options(dataplane, "up"), &desired).await;

        let observed = started.kernel.observe().await.unwrap();
        assert_eq!(
            (&observed.routes, &observed.rules),
            (&desired.routes, &desired.rules)
        );
        assert_eq!(observed.device.unwrap().addresses, desired.addresses);

        let one_less = route("192.168.7.0/24", RouteKind::Throw);
        desired.routes.remove(&one_less);
        desired
            .routes
            .insert(route("192.168.7.0/24", RouteKind::Blackhole));
        desired.mtu = 1300;
        desired.addresses = [IpNet::from(own_addresses(9)[0])].into();
        reconcile(&mut started, &desired).await.unwrap();
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
    let rules = netns.ip("rule");
    assert!(!rules.contains("7052"), "{rules}");
}

fn one_of_a_thousand_peers_changes_alone(dataplane: DataplaneChoice) {
    Netns::new().block_on(async {
        let mut desired = desired(1);
        for n in 0..1000u16 {
            let [high, low] = n.to_be_bytes();
            let key = NodePublic::from_bytes([high + 1, low, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
            let (_, mut peer) = peer(2, Some(SocketAddr::from(([192, 0, 2, 1], 1000 + n))));
            peer.allowed_ips = [IpNet::from(IpAddr::from([100, 65, high, low]))].into();
            desired.wireguard.peers.insert(key, peer);
        }
        let began = std::time::Instant::now();
        let mut started = up(options(dataplane, "thousand"), &desired).await;
        println!("1000 peers up in {:?}", began.elapsed());

        let (changed, peer) = desired.wireguard.peers.iter_mut().nth(500).unwrap();
        peer.endpoint = Some("198.51.100.1:9".parse().unwrap());
        let changed = *changed;
        let steps = reconcile(&mut started, &desired).await.unwrap();
        assert!(matches!(&steps[..], [Step::UpdatePeer { key, allowed_ips: AllowedIps::Keep, .. }] if *key == changed), "{steps:?}");
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
}

fn a_prefix_moves_from_one_peer_to_another(dataplane: DataplaneChoice) {
    Netns::new().block_on(async {
        let shared: IpNet = "10.9.0.0/16".parse().unwrap();
        let mut desired = desired(1);
        desired
            .wireguard
            .peers
            .extend([peer(2, None), peer(3, None)]);
        let [two, three] = [2, 3].map(|n| private(n).public());
        desired
            .wireguard
            .peers
            .get_mut(&two)
            .unwrap()
            .allowed_ips
            .insert(shared);
        let mut started = up(options(dataplane, "moves"), &desired).await;

        desired
            .wireguard
            .peers
            .get_mut(&two)
            .unwrap()
            .allowed_ips
            .remove(&shared);
        desired
            .wireguard
            .peers
            .get_mut(&three)
            .unwrap()
            .allowed_ips
            .insert(shared);
        let steps = reconcile(&mut started, &desired).await.unwrap();
        assert_eq!(steps.len(), 1, "{steps:?}");
        assert_settled(&mut started, &desired).await;

        desired.wireguard.peers.remove(&three);
        desired
            .wireguard
            .peers
            .get_mut(&two)
            .unwrap()
            .allowed_ips
            .insert(shared);
        reconcile(&mut started, &desired).await.unwrap();
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
}

fn a_peer_may_have_five_hundred_prefixes(dataplane: DataplaneChoice) {
    Netns::new().block_on(async {
        let mut desired = desired(1);
        let (key, mut router) = peer(2, None);
        router.allowed_ips.extend((0..500u16).map(|n| {
            let [high, low] = n.to_be_bytes();
            IpNet::new([10, high, low, 0].into(), 24).unwrap()
        }));
        desired.wireguard.peers.insert(key, router);
        let mut started = up(options(dataplane, "prefixes"), &desired).await;
        desired
            .wireguard
            .peers
            .get_mut(&key)
            .unwrap()
            .allowed_ips
            .pop_last();
        reconcile(&mut started, &desired).await.unwrap();
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
}

fn foreign_rules_routes_and_addresses_stay(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.ip("link add foreign0 type veth peer name foreign1");
    netns.ip("addr add 198.51.100.7/24 dev foreign0");
    for device in ["foreign0", "foreign1"] {
        netns.ip(&format!("link set {device} addrgenmode none"));
        netns.ip(&format!("link set {device} up"));
    }
    // At our numbers, even: only the protocol number tells.
    netns.ip("rule add pref 5310 fwmark 0x1 lookup 99");
    netns.ip("-6 rule add pref 5370 lookup 98");
    netns.ip("route add 203.0.113.0/24 dev foreign0 table 7052");
    netns.ip("route add throw 203.0.114.0/24 table 7052");
    netns.ip("route add 203.0.113.0/24 dev foreign0 table 52");
    let before = netns.dump();
    netns.block_on(async {
        let desired = desired(1);
        let mut started = up(options(dataplane, "foreign"), &desired).await;
        started.kernel.teardown().await.unwrap();
    });
    assert_eq!(netns.dump(), before);
}

fn teardown_leaves_the_namespace_as_it_was(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    let before = netns.dump();
    netns.block_on(async {
        let mut desired = desired(1);
        desired.routes.insert(route("::/0", RouteKind::Blackhole));
        let mut started = up(options(dataplane, "teardown"), &desired).await;
        started.kernel.teardown().await.unwrap();
        started
            .kernel
            .teardown()
            .await
            .expect("there is nothing, which is fine");
        // And `--cleanup`, after an agent that left everything.
        reconcile(&mut started, &desired).await.unwrap();
        drop(started);
        cleanup(&options(dataplane, "teardown")).await.unwrap();
    });
    assert_eq!(netns.dump(), before);
}

fn a_foreign_device_of_that_name_is_refused_and_left_alone(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.ip("link add lowroad0 type veth peer name other0");
    let before = netns.dump();
    netns.block_on(async {
        let error = start(options(dataplane, "name")).await.unwrap_err();
        assert!(matches!(&error, KernelError::NameTaken { .. }), "{error}");
        println!("{error}");
        cleanup(&options(dataplane, "name")).await.unwrap();
    });
    assert_eq!(netns.dump(), before);
}

fn a_taken_port_is_refused_by_name(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    let before = netns.dump();
    netns.block_on(async {
        let _other = UdpSocket::bind(("0.0.0.0", PORT)).await.unwrap();
        let error = start(options(dataplane, "port")).await.unwrap_err();
        assert!(
            matches!(&error, KernelError::PortTaken { port: PORT }),
            "{error}"
        );
        println!("{error}");
    });
    assert_eq!(netns.dump(), before);
}

fn a_device_does_not_come_up_without_its_filter(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut started = start(options(dataplane, "filterless")).await.unwrap();
        started
            .kernel
            .apply(&Step::CreateDevice { mtu: 1280 })
            .await
            .unwrap();
        let error = started.kernel.apply(&Step::LinkUp).await.unwrap_err();
        assert!(matches!(error, KernelError::NoFilter { .. }), "{error}");
        assert!(!started.kernel.observe().await.unwrap().device.unwrap().up);
        started.kernel.teardown().await.unwrap();
    });
}

fn a_device_that_was_deleted_comes_back_with_the_next_plan(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut desired = desired(1);
        desired.wireguard.peers.extend([peer(2, None)]);
        let mut started = up(options(dataplane, "deleted"), &desired).await;
        while started.changes.try_recv().is_ok() {}
        netns.ip("link del lowroad0");
        netns.ip("rule del pref 5370");
        let deadline = Duration::from_secs(5);
        tokio::time::timeout(deadline, async {
            while started.changes.recv().await != Some(KernelChange::Device) {}
        })
        .await
        .expect("the monitor says that our device changed");
        reconcile(&mut started, &desired).await.unwrap();
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
}

fn two_nodes_talk_over_both_families_and_a_new_endpoint_keeps_the_session(
    dataplane: DataplaneChoice,
) {
    let (left, right) = (Netns::new(), Netns::new());
    left.connect(
        &right,
        ("left0", &["192.0.2.1/24", "2001:db8::1/64"]),
        ("right0", &["192.0.2.2/24", "2001:db8::2/64"]),
    );
    let (left_runtime, right_runtime) = (left.runtime(), right.runtime());
    let [mut left_wants, mut right_wants] = [1, 2].map(desired);
    left_wants
        .wireguard
        .peers
        .extend([peer(2, Some(SocketAddr::from(([192, 0, 2, 2], PORT))))]);
    right_wants
        .wireguard
        .peers
        .extend([peer(1, Some(SocketAddr::from(([192, 0, 2, 1], PORT))))]);
    let mut a =
        left.run(|| left_runtime.block_on(up(options(dataplane, "talk-left"), &left_wants)));
    let mut b =
        right.run(|| right_runtime.block_on(up(options(dataplane, "talk-right"), &right_wants)));
    let echo = right_runtime.spawn(echo_on(
        own_addresses(2).map(|address| SocketAddr::new(address, 7)),
    ));

    let began = std::time::Instant::now();
    for to in own_addresses(2) {
        left.run(|| left_runtime.block_on(expect_echo(SocketAddr::new(to, 7))));
    }
    println!("first answers after {:?}", began.elapsed());
    let before = left.run(|| left_runtime.block_on(stats_of(&mut a, 2)));
    assert!(
        before.rx_bytes > 0 && before.tx_bytes > 0 && before.last_handshake.is_some(),
        "{before:?}"
    );

    let over_v6: SocketAddr = "[2001:db8::2]:41641".parse().unwrap();
    left_wants
        .wireguard
        .peers
        .get_mut(&private(2).public())
        .unwrap()
        .endpoint = Some(over_v6);
    let after = left.run(|| {
        left_runtime.block_on(async {
            reconcile(&mut a, &left_wants).await.unwrap();
            expect_echo(SocketAddr::new(own_addresses(2)[0], 7)).await;
            stats_of(&mut a, 2).await
        })
    });
    assert_eq!(after.endpoint, Some(over_v6));
    assert!(
        after.rx_bytes > before.rx_bytes,
        "the counters go on: {after:?}"
    );
    let drift = after
        .last_handshake
        .unwrap()
        .abs_diff(before.last_handshake.unwrap());
    assert!(
        drift < Duration::from_millis(100),
        "no new handshake: {drift:?}"
    );

    let roamed = right.run(|| right_runtime.block_on(stats_of(&mut b, 1)));
    assert_eq!(
        roamed.endpoint,
        Some("[2001:db8::1]:41641".parse().unwrap()),
        "the other side follows"
    );
    echo.abort();
    left.run(|| left_runtime.block_on(a.kernel.teardown()))
        .unwrap();
    right
        .run(|| right_runtime.block_on(b.kernel.teardown()))
        .unwrap();
}

fn disco_and_stun_come_out_before_and_while_wireguard_runs(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut started = start(options(dataplane, "disco")).await.unwrap();
        let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[5; 12]].concat();
        let disco = ["TS💬".as_bytes(), &[7; 80]].concat();
        let garbage = vec![9; 40];
        let mut wants = desired(1);
        for round in 0..2 {
            for to in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(to.parse().unwrap(), PORT);
                let socket = UdpSocket::bind((to.ip(), 0)).await.unwrap();
                for bytes in [&garbage, &disco, &stun] {
                    // The kernel has no socket on the port before its device is up; raw sockets see it all the same, and the ICMP
                    // error is the sender's to ignore.
                    let _ = socket.send_to(bytes, to).await;
                }
                for expected in [&disco, &stun] {
                    let got =
                        tokio::time::timeout(Duration::from_secs(5), started.datagrams.recv())
                            .await;
                    let got = got
                        .unwrap_or_else(|_| panic!("round {round}: a datagram by {to} comes out"))
                        .unwrap();
                    assert_eq!(
                        (&got.bytes[..], got.from),
                        (&expected[..], socket.local_addr().unwrap())
                    );
                }
            }
            wants.wireguard.peers.extend([peer(2, None)]);
            reconcile(&mut started, &wants).await.unwrap();
        }
        started.kernel.teardown().await.unwrap();
    });
}

/// How relays are reached: the peer's endpoint is a loopback address of its own.
fn a_peer_behind_a_loopback_address_is_reached_from_the_wireguard_port(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let door = UdpSocket::bind("127.128.0.5:41642").await.unwrap();
        let mut wants = desired(1);
        wants
            .wireguard
            .peers
            .extend([peer(2, Some(door.local_addr().unwrap()))]);
        let mut started = up(options(dataplane, "loopback"), &wants).await;
        let socket = UdpSocket::bind((own_addresses(1)[0], 0)).await.unwrap();
        socket
            .send_to(b"hello", (own_addresses(2)[0], 7))
            .await
            .unwrap();
        let mut packet = [0; 2000];
        let (length, from) =
            tokio::time::timeout(Duration::from_secs(5), door.recv_from(&mut packet))
                .await
                .expect("a handshake initiation")
                .unwrap();
        assert_eq!((length, packet[0], from.port()), (148, 1, PORT));
        assert!(from.ip().is_loopback(), "{from}");
        started.kernel.teardown().await.unwrap();
    });
}

fn a_second_agent_on_the_device_adopts_it_or_is_told_why_not(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut wants = desired(1);
        wants
            .wireguard
            .peers
            .extend([peer(2, Some("192.0.2.2:1".parse().unwrap()))]);
        let mut first = up(options(dataplane, "adopt"), &wants).await;
        if dataplane == DataplaneChoice::Userspace {
            let error = start(options(dataplane, "adopt")).await.unwrap_err();
            assert!(matches!(error, KernelError::NameTaken { .. }), "{error}");
            first.kernel.teardown().await.unwrap();
            return;
        }
        drop(first);
        let mut second = start(options(DataplaneChoice::Auto, "adopt"))
            .await
            .unwrap();
        assert!(second.adopted);
        let observed = second.kernel.observe().await.unwrap();
        let steps = plan(&wants, &observed);
        assert!(
            matches!(&steps[..], [Step::AttachFilter]),
            "only the filter is taken over: {steps:?}"
        );
        reconcile(&mut second, &wants).await.unwrap();
        assert_settled(&mut second, &wants).await;
        second.kernel.teardown().await.unwrap();
    });
}

fn why_no_kernel_wireguard() -> Option<String> {
    let netns = Netns::new();
    (!netns.can_ip("link add wgprobe type wireguard"))
        .then(|| "this kernel has no WireGuard; the VM suite runs these tests".into())
}

async fn stats_of(started: &mut lowroad_agent::kernel::Started, n: u8) -> PeerStats {
    let stats = started.kernel.peer_stats().await.unwrap();
    stats
        .into_iter()
        .find(|stats| stats.key == private(n).public())
        .unwrap()
}

async fn echo_on(addresses: [SocketAddr; 2]) {
    let [a, b] = addresses;
    let (a, b) = (
        UdpSocket::bind(a).await.unwrap(),
        UdpSocket::bind(b).await.unwrap(),
    );
    let echo = async |socket: UdpSocket| {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    };
    tokio::join!(echo(a), echo(b));
}

async fn expect_echo(to: SocketAddr) {
    let local: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0u8; 16].into()
    };
    let socket = UdpSocket::bind((local, 0)).await.unwrap();
    let mut buffer = [0; 2000];
    eventually("an echo through the tunnel", async || {
        socket.send_to(b"hello", to).await.ok()?;
        let answer =
            tokio::time::timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await;
        answer.ok()?.ok()
    })
    .await;
}
