//! What went out lets answers in: the table of flows, which the programs keep themselves.

use std::net::IpAddr;

use lowroad_agent::kernel::bpf::Filter;
use lowroad_core::filter::{Direction, Input, compile};

use crate::{
    device::{attach, end, options},
    packets::{Ip, udp},
    tun::{Tun, fresh_namespace},
};

const OWN: [&str; 2] = ["100.64.0.1", "fd7a:115c:a1e0::1"];
const REMOTE: [&str; 2] = ["100.64.0.2", "fd7a:115c:a1e0::2"];

/// No rule: only answers get in.
fn no_rules() -> Input {
    Input {
        local: OWN
            .map(|own| own.parse::<IpAddr>().expect("address").into())
            .to_vec(),
        ..Input::default()
    }
}

fn ask(filter: &mut Filter, family: usize, local: u16, remote: u16) {
    let packet = Ip::new(OWN[family], REMOTE[family], 17, &udp(local, remote, b"?")).bytes();
    let run = filter.run(Direction::Out, &packet, 0, 1).expect("run");
    assert!(run.passed);
}

fn is_answered(filter: &mut Filter, family: usize, local: u16, remote: u16) -> bool {
    let packet = Ip::new(REMOTE[family], OWN[family], 17, &udp(remote, local, b"!")).bytes();
    filter
        .run(Direction::In, &packet, 0, 1)
        .expect("run")
        .passed
}

#[test]
fn every_one_of_many_flows_is_answered_and_no_other_port_is() {
    let mut filter = Filter::detached(&options("flows")).expect("load");
    filter.install(&compile(&no_rules())).expect("install");
    for family in [0, 1] {
        for n in 0..1_000 {
            ask(&mut filter, family, 10_000 + n, 53);
        }
        for n in 0..1_000 {
            let local = 10_000 + n;
            assert!(is_answered(&mut filter, family, local, 53), "{local}");
            assert!(!is_answered(&mut filter, family, local, 54));
            assert!(!is_answered(&mut filter, family, 53, local), "turned round");
            assert!(!is_answered(&mut filter, family, 11_000 + n, 53));
        }
    }
}

/// More than there is room for, and many that are not asked again. One flow is used after each of them: an entry used since is never the next to go,
/// whatever falls into its set. Others are used less often: two of the flood may fall into one set in between, once in some dozen runs.
#[test]
fn flows_in_use_outlive_a_flood_of_others() {
    const IN_USE: (u16, u16) = (1, 7);
    const SELDOM_USED: std::ops::Range<u16> = 2..9;
    const SELDOM: usize = 25;
    let mut filter = Filter::detached(&options("flows-flood")).expect("load");
    filter.install(&compile(&no_rules())).expect("install");
    for family in [0, 1] {
        ask(&mut filter, family, IN_USE.0, IN_USE.1);
        for local in SELDOM_USED {
            ask(&mut filter, family, local, IN_USE.1);
        }
        let mut lost = 0;
        for n in 0..lowroad_abi::FLOW_ENTRIES + 20_000 {
            let (local, remote) = (100 + (n % 50_000) as u16, 100 + (n / 50_000) as u16);
            ask(&mut filter, family, local, remote);
            assert!(
                is_answered(&mut filter, family, IN_USE.0, IN_USE.1),
                "after {n}"
            );
            for local in SELDOM_USED.filter(|_| n % SELDOM == 0) {
                if !is_answered(&mut filter, family, local, IN_USE.1) {
                    lost += 1;
                    ask(&mut filter, family, local, IN_USE.1);
                }
            }
        }
        assert!(lost <= 2, "{lost} times a flow was lost that is used");
        let forgotten = (100..1_100)
            .filter(|local| !is_answered(&mut filter, family, *local, 100))
            .count();
        assert!(
            forgotten > 100,
            "the first of the flood made room: {forgotten}"
        );
    }
}

#[test]
fn flows_outlive_their_agent_and_a_closed_filter() {
    fresh_namespace();
    let options = options("flows-outlive");
    let tun = Tun::new("lr0");
    let mut before = attach(&tun, &options);
    before.install(&compile(&no_rules())).expect("install");
    for family in [0, 1] {
        ask(&mut before, family, 1000, 53);
    }
    drop(before);
    let mut filter = attach(&tun, &options);
    let all_answered = |filter: &mut Filter, when: &str| {
        for family in [0, 1] {
            assert!(is_answered(filter, family, 1000, 53), "{when}");
        }
    };
    all_answered(&mut filter, "under the next agent");
    filter.install(&compile(&no_rules())).expect("install");
    all_answered(&mut filter, "under its rules");
    filter.close().expect("close");
    assert!(!is_answered(&mut filter, 0, 1000, 53), "closed");
    filter.install(&compile(&no_rules())).expect("install");
    all_answered(&mut filter, "after it was closed");
    end(filter, tun);
}
