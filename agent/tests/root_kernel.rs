//! The kernel seam against real kernels, in network namespaces of its own; each test once per data plane.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "root_kernel/leaving.rs"]
mod leaving;
#[path = "root_kernel/netns.rs"]
mod netns;
#[path = "root_kernel/node.rs"]
mod node;
#[path = "root_kernel/traffic.rs"]
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lowroad_agent::kernel::{
    DataplaneChoice, KernelChange, KernelError, KernelOptions, cleanup, start,
};
use lowroad_core::desired::RouteKind;
use lowroad_core::plan::{AllowedIps, Step, plan};
use lowroad_wire::key::NodePublic;
use tokio::net::UdpSocket;

use crate::leaving::{
    a_device_of_another_namespace_keeps_its_filter,
    a_device_under_another_name_is_adopted_with_another_port,
    a_device_whose_pins_are_out_of_reach_is_made_anew,
    a_renamed_device_gets_its_name_back_and_keeps_its_peers,
    cleaning_up_finds_the_device_by_no_name,
};
use crate::netns::Netns;
use crate::node::{
    PORT, assert_settled, desired, options, own_addresses, peer, private, reconcile, route, up,
};
use crate::traffic::{
    a_peer_behind_a_loopback_address_is_reached_through_the_relay_door,
    disco_and_stun_come_out_before_and_while_wireguard_runs,
    two_nodes_talk_over_both_families_and_a_new_endpoint_keeps_the_session,
};

/// Makes a test of each function for each data plane that can have what it is about.
macro_rules! tests {
    (both { $($name:ident)* } kernel { $($outlives:ident)* }) => {
        mod userspace {
            $(#[test] fn $name() { super::$name(super::DataplaneChoice::Userspace) })*
        }
        mod kernel {
            tests!(@kernel $($name)* $($outlives)*);
        }
    };
    (@kernel $($name:ident)*) => {
        $(#[test] fn $name() {
            match super::why_no_kernel_wireguard() {
                Some(why) => println!("SKIPPED: {why}\nskipped 1"),
                None => super::$name(super::DataplaneChoice::Kernel),
            }
        })*
    };
}

tests! {
    both {
        the_device_comes_up_as_desired_and_the_next_plan_is_empty
        one_of_many_peers_changes_alone
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
        a_peer_behind_a_loopback_address_is_reached_through_the_relay_door
        a_second_agent_on_the_device_adopts_it_or_is_told_why_not
        a_machine_without_ipv6_settles_without_it
        ipv6_that_is_switched_on_later_is_used
        a_renamed_device_gets_its_name_back_and_keeps_its_peers
    }
    // The device outlives its agent.
    kernel {
        a_device_under_another_name_is_adopted_with_another_port
        cleaning_up_finds_the_device_by_no_name
        a_device_of_another_namespace_keeps_its_filter
        a_device_whose_pins_are_out_of_reach_is_made_anew
    }
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

/// As many as a large tailnet has only with `LOWROAD_LONG`: an emulated kernel takes three minutes to let go of 10,000 peers (and 9 s to get them).
fn one_of_many_peers_changes_alone(dataplane: DataplaneChoice) {
    let long = std::env::var_os("LOWROAD_LONG").is_some();
    let count: u16 = if long && dataplane == DataplaneChoice::Kernel {
        10_000
    } else {
        1_000
    };
    Netns::new().block_on(async {
        let mut desired = desired(1);
        for n in 0..count {
            let [high, low] = n.to_be_bytes();
            let key = NodePublic::from_bytes([high + 1, low, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
            let (_, mut peer) = peer(2, Some(SocketAddr::from(([192, 0, 2, 1], 1000 + n))));
            peer.allowed_ips = [IpNet::from(IpAddr::from([100, 65, high, low]))].into();
            desired.wireguard.peers.insert(key, peer);
        }
        let began = std::time::Instant::now();
        let mut started = up(options(dataplane, "many"), &desired).await;
        println!("{count} peers up in {:?}", began.elapsed());

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

fn a_second_agent_on_the_device_adopts_it_or_is_told_why_not(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns.block_on(async {
        let mut wants = desired(1);
        wants
            .wireguard
            .peers
            .extend([peer(2, Some("192.0.2.2:1".parse().unwrap()))]);
        let mut first = up(options(dataplane, "adopt"), &wants).await;
        let other = KernelOptions {
            device: "lowroad1".into(),
            port: PORT + 10,
            ..options(dataplane, "adopt-other")
        };
        for second in [&other, &options(dataplane, "adopt")] {
            let error = start(second.clone()).await.unwrap_err();
            assert!(matches!(error, KernelError::SecondAgent { .. }), "{error}");
        }
        cleanup(&other).await.unwrap();
        // The first one's rules and routes are all there.
        assert_settled(&mut first, &wants).await;
        if dataplane == DataplaneChoice::Userspace {
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

/// As in a Docker container: the kernel has IPv6, new devices have it switched off.
fn a_machine_without_ipv6_settles_without_it(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    netns
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
        .unwrap();
    let before = netns.dump();
    netns.block_on(async {
        let mut desired = desired(1);
        desired
            .routes
            .insert(route("fd00:7::/64", RouteKind::Throw));
        let mut started = up(options(dataplane, "without-v6"), &desired).await;
        desired.routes.retain(|route| route.prefix.addr().is_ipv4());
        desired.addresses.retain(|address| address.addr().is_ipv4());
        reconcile(&mut started, &desired).await.unwrap();
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
    assert_eq!(netns.dump(), before);
}

fn ipv6_that_is_switched_on_later_is_used(dataplane: DataplaneChoice) {
    let netns = Netns::new();
    let switch = |device: &str, off: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
        netns.run(|| std::fs::write(path, off)).unwrap();
    };
    switch("default", "1");
    netns.block_on(async {
        let desired = desired(1);
        let mut started = up(options(dataplane, "late-v6"), &desired).await;
        let addresses = || netns.ip("-6 addr show dev lowroad0");
        assert!(!addresses().contains("fd7a"), "{}", addresses());
        switch("lowroad0", "0");
        let steps = reconcile(&mut started, &desired).await.unwrap();
        assert!(addresses().contains("fd7a"), "{steps:?}");
        assert!(
            netns.ip("-6 route show table 7052").contains("fd7a"),
            "{steps:?}"
        );
        assert_settled(&mut started, &desired).await;
        started.kernel.teardown().await.unwrap();
    });
}

/// A mistyped directory is not an agent that left nothing.
#[test]
fn cleaning_up_without_a_state_says_so_and_makes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("mistyped");
    let clean_up = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lowroad"));
        command
            .args(["agent", "--cleanup", "--state-dir"])
            .arg(&path);
        command.output().unwrap()
    };
    let output = clean_up();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("mistyped: nothing to clean up"), "{said}");
    assert!(!path.exists());
}

fn why_no_kernel_wireguard() -> Option<String> {
    let netns = Netns::new();
    (!netns.can_ip("link add wgprobe type wireguard"))
        .then(|| "this kernel has no WireGuard; the VM suite runs these tests".into())
}
