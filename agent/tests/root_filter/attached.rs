//! The filter on a device: closed at first, events, and switching under load.

use std::{net::UdpSocket, process::Command, time::Duration};

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Direction, DropReason, FilterEvent, Input, Pass, Punt, compile};

use crate::{
    device::{
        Door, FOE, FRIEND, OWN, all_of_the_friend_and_none_of_the_foe, attach, dropped, end,
        nobody_gets_in, options, passed, rules, to, under_load,
    },
    packets::{Ip, SYN, tcp, udp},
    tun::{SOON, Tun, eventually, fresh_mounts, fresh_namespace, sh},
};

fn closed_then_open(options: &FilterOptions) {
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, options);
    assert!(filter.is_attached().expect("asking"));
    tun.up("10.7.0.1/24");
    let socket = UdpSocket::bind((OWN, 1000)).expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    let mut buffer = [0; 64];

    nobody_gets_in(&tun, &filter);
    assert!(socket.recv(&mut buffer).is_err(), "nothing before a policy");

    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    tun.send(&to(FRIEND, 1000));
    eventually("the admitted packet arrives", || {
        socket.recv(&mut buffer).is_ok()
    });
    tun.send(&to(FOE, 1000));
    eventually("the refused one is counted", || {
        dropped(&filter.counters().expect("counters"), DropReason::Acl) == 1
    });
    assert!(socket.recv(&mut buffer).is_err(), "refused");
    let counters = filter.counters().expect("counters");
    assert!(counters.rules[0].counted);
    assert_eq!(counters.rules[0].count.packets, 1);
    assert_eq!(counters.rules[0].count.bytes, to(FRIEND, 1000).len() as u64);

    end(filter, tun);
    let tun = Tun::new("lr0");
    let mut again = attach(&tun, options);
    assert_eq!(
        again.counters().expect("counters").passed(Pass::Rule),
        0,
        "nothing was left to adopt"
    );
    assert!(again.is_attached().expect("asking"));
    again.install(&compile(&rules(&[]))).expect("install");
    end(again, tun);
    let left = options.bpffs.join("lowroad").join(&options.state_id);
    assert!(!left.exists(), "no pin is left");
}

#[test]
fn a_device_is_closed_until_a_policy_is_installed() {
    fresh_namespace();
    closed_then_open(&options("tcx"));
}

#[test]
fn a_device_is_closed_until_a_policy_is_installed_with_clsact() {
    fresh_namespace();
    closed_then_open(&FilterOptions {
        clsact_only: true,
        ..options("clsact")
    });
}

#[test]
fn without_a_lasting_bpffs_the_filter_hangs_on_the_device() {
    fresh_namespace();
    fresh_mounts();
    let dir = tempfile::tempdir().expect("a directory");
    sh(&format!("mount -t bpf bpf {}", dir.path().display()));
    let options = FilterOptions {
        bpffs: dir.path().to_owned(),
        ..options("private")
    };
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, &options);
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    assert!(
        !dir.path().join("lowroad").exists(),
        "pins there would die with us"
    );
    // As if the agent died: nothing of it is left but what the kernel holds.
    drop(filter);
    sh(&format!("umount {}", dir.path().display()));
    tun.up("10.7.0.1/24");
    Door::new(&tun).only_the_friend_gets_in();
}

/// Some programs attach to every device, and in the first place.
#[test]
fn a_strangers_clsact_filter_is_not_taken_for_ours() {
    fresh_namespace();
    let options = FilterOptions {
        clsact_only: true,
        ..options("stranger")
    };
    let tun = Tun::new("lr0");
    tc("qdisc add dev lr0 clsact", &[]);
    // A program that matches nothing.
    let stranger = |verb, way, handle| {
        let place = format!("filter {verb} dev lr0 {way} protocol all prio 1 handle {handle}");
        tc(&place, &["bpf", "bytecode", "1,6 0 0 0"]);
    };
    for way in ["ingress", "egress"] {
        stranger("add", way, 1);
    }
    let mut filter = attach(&tun, &options);
    assert!(filter.is_attached().expect("asking"));
    tun.up("10.7.0.1/24");
    nobody_gets_in(&tun, &filter);
    filter
        .install(&compile(&rules(&[(FRIEND, 1000)])))
        .expect("install");
    let door = Door::new(&tun);
    door.only_the_friend_gets_in();
    drop(filter);
    let filter = attach(&tun, &options);
    door.only_the_friend_gets_in();
    let counters = filter.counters().expect("counters");
    assert_eq!(passed(&counters, Pass::Rule), 2, "the next agent adopts it");
    assert!(filter.is_attached().expect("asking"));
    stranger("replace", "egress", 2);
    assert!(!filter.is_attached().expect("asking"), "ours is gone");
    filter.detach().expect("detach");
    let left = |way| {
        let filters = tc(&format!("filter show dev lr0 {way}"), &[]);
        filters.matches("bytecode").count()
    };
    assert_eq!((left("ingress"), left("egress")), (1, 2));
}

/// Runs `tc`, words and arguments; not by a shell, as that of busybox has one of its own.
fn tc(words: &str, arguments: &[&str]) -> String {
    let output = Command::new("tc")
        .args(words.split(' '))
        .args(arguments)
        .output()
        .expect("tc");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {words}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two rule sets that say the same of two senders, with classes and services numbered the other way round: a mixture of their tables would let the foe in, or the friend not.
#[test]
fn no_packet_sees_a_mixture_while_rule_sets_are_switched() {
    fresh_namespace();
    let options = options("switch");
    let sets = [
        compile(&rules(&[(FRIEND, 1000), (FOE, 2000)])),
        compile(&rules(&[(FOE, 2000), (FRIEND, 1000), (FRIEND, 3000)])),
        compile(&rules(&[("10.7.0.77", 7), (FOE, 3000), (FRIEND, 1000)])),
    ];
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, &options);
    filter.install(&sets[0]).expect("install");
    tun.up("10.7.0.1/24");
    let sent = under_load(&tun, || {
        for set in sets.iter().cycle().take(60) {
            filter.install(set).expect("install");
        }
    });
    println!("switched 60 times under {} packets", 2 * sent);
    all_of_the_friend_and_none_of_the_foe(&filter, sent);
    end(filter, tun);
}

#[test]
fn a_closed_filter_drops_everything_until_the_next_policy() {
    fresh_namespace();
    let options = options("closed");
    let tun = Tun::new("lr0");
    let mut filter = attach(&tun, &options);
    let open = compile(&rules(&[(FRIEND, 1000)]));
    filter.install(&open).expect("install");
    tun.up("10.7.0.1/24");
    for times in 1..=4 {
        filter.close().expect("close");
        tun.send(&to(FRIEND, 1000));
        eventually("it is dropped for want of a policy", || {
            dropped(&filter.counters().expect("counters"), DropReason::NoPolicy) == times
        });
        filter.install(&open).expect("install");
        tun.send(&to(FRIEND, 1000));
        eventually("it passes again", || {
            passed(&filter.counters().expect("counters"), Pass::Rule) == times
        });
    }
    end(filter, tun);
}

#[test]
fn what_shields_forgot_is_not_remembered_after_the_filter_was_closed() {
    let mut filter = Filter::detached(&options("closed-shields")).expect("load");
    let ours = Ip::new(OWN, FRIEND, 17, &udp(1000, 4000, b"ask")).bytes();
    let answer = to(FRIEND, 1000);
    let passes = |filter: &mut Filter| {
        filter
            .run(Direction::In, &answer, 0, 1)
            .expect("run")
            .passed
    };
    filter.install(&compile(&rules(&[]))).expect("install");
    filter.run(Direction::Out, &ours, 0, 1).expect("run");
    assert!(passes(&mut filter), "an answer");
    let shielded = compile(&Input {
        shields_up: true,
        ..rules(&[])
    });
    filter.install(&shielded).expect("install");
    assert!(!passes(&mut filter), "shields went up");
    filter.close().expect("close");
    filter.install(&shielded).expect("install");
    assert!(!passes(&mut filter), "and stay up");
    filter.run(Direction::Out, &ours, 0, 1).expect("run");
    assert!(passes(&mut filter), "an answer to what is asked since");
}

/// Shields go up, down, and up again while the filter is closed: the settings of the first time are in a place, too, with the same epoch.
#[test]
fn shields_that_go_up_while_the_filter_is_closed_forget_flows() {
    let mut filter = Filter::detached(&options("closed-lowered")).expect("load");
    let ours = Ip::new(OWN, FRIEND, 17, &udp(1000, 4000, b"ask")).bytes();
    let shields = |shields_up| {
        compile(&Input {
            shields_up,
            ..rules(&[])
        })
    };
    // So many that the last before closing is in each of the three places once.
    for before in [0, 1, 1] {
        for _ in 0..before {
            filter.install(&shields(false)).expect("install");
        }
        for up in [true, false] {
            filter.install(&shields(up)).expect("install");
        }
        filter.run(Direction::Out, &ours, 0, 1).expect("run");
        filter.close().expect("close");
        filter.install(&shields(true)).expect("install");
        let answer = filter.run(Direction::In, &to(FRIEND, 1000), 0, 1);
        assert!(!answer.expect("run").passed, "{before} more before");
    }
}

#[test]
fn drops_and_punts_arrive_as_events() {
    fresh_namespace();
    let options = options("events");
    let tun = Tun::new("lr0");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut filter = attach(&tun, &options);
        let input = Input {
            peer_api_port: Some(0x1234),
            ..rules(&[(FRIEND, 1000)])
        };
        filter.install(&compile(&input)).expect("install");
        let mut events = filter.events().expect("events");
        tun.up("10.7.0.1/24");
        tun.send(&to(FOE, 1000));
        tun.send(&Ip::new(FOE, OWN, 6, &tcp(4000, 22, SYN)).bytes());
        tun.send(&Ip::new(FRIEND, OWN, 99, b"pabcdefgh").bytes());
        tun.send(&Ip::new(FRIEND, OWN, 99, b"!\x06A\x0f\xa0\x00\x50").bytes());
        let (mut drops, mut answers, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        while drops.len() < 2 || answers.len() < 2 || rejected.is_empty() {
            let event = tokio::time::timeout(SOON, events.recv()).await;
            match event
                .expect("events within the deadline")
                .expect("an open channel")
            {
                FilterEvent::Drop {
                    direction: Direction::In,
                    reason,
                    tuple,
                    length,
                    time,
                } => {
                    assert!(time > Duration::ZERO);
                    drops.push((reason, tuple.expect("a tuple"), length));
                }
                FilterEvent::Drop { .. } => {}
                FilterEvent::Punt {
                    punt: Punt::Answer(packet),
                    ..
                } => answers.push(packet),
                FilterEvent::Punt {
                    punt: Punt::Rejected { flow, reason },
                    ..
                } => rejected.push((flow, reason)),
            }
        }
        let (reason, tuple, length) = &drops[0];
        assert_eq!(
            (*reason, *length),
            (DropReason::Acl, to(FOE, 1000).len() as u32)
        );
        assert_eq!(tuple.source.to_string(), "10.7.0.3:4000");
        assert_eq!(tuple.destination.to_string(), "10.7.0.1:1000");
        assert_eq!(tuple.protocol, 17);
        assert_eq!(
            &answers[0][20..],
            b"!\x06A\x0f\xa0\x00\x16",
            "a reject for the SYN"
        );
        assert_eq!(&answers[0][12..20], &[10, 7, 0, 1, 10, 7, 0, 3]);
        assert_eq!(
            &answers[1][20..],
            b"oabcdefgh\x12\x34",
            "a pong for the ping"
        );
        assert_eq!(rejected[0].0.source.to_string(), "10.7.0.1:4000");
        assert_eq!(rejected[0].0.destination.to_string(), "10.7.0.2:80");
        assert_eq!(rejected[0].1, 'A');
        end(filter, tun);
    });
}

#[test]
fn drop_events_are_limited_and_drop_counters_are_not() {
    let mut filter = Filter::detached(&options("rate")).expect("load");
    filter.install(&compile(&rules(&[]))).expect("install");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        filter
            .run(Direction::In, &to(FOE, 1), 0, 2_000)
            .expect("run");
        let mut events = filter.events().expect("events");
        let mut seen = 0;
        while tokio::time::timeout(Duration::from_millis(300), events.recv())
            .await
            .is_ok()
        {
            seen += 1;
        }
        assert!((1..=1_000).contains(&seen), "{seen} events of 2000 drops");
        let counters = filter.counters().expect("counters");
        assert_eq!(dropped(&counters, DropReason::Acl), 2_000);
    });
}
