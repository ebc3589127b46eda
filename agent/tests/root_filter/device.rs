//! What tests with a device share: its addresses, policies, traffic and counters.

use std::{
    net::UdpSocket,
    ops::Range,
    sync::{
        Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lowroad_agent::kernel::bpf::{Filter, FilterOptions};
use lowroad_core::filter::{Direction, DropReason, FilterCounters, Input, Pass};
use lowroad_wire::control::{FilterRule, NetPortRange, PortRange};

use crate::{
    packets::{Ip, udp},
    tun::{SOON, Tun, eventually},
};

pub const OWN: &str = "10.7.0.1";
pub const FRIEND: &str = "10.7.0.2";
pub const FOE: &str = "10.7.0.3";

/// One rule per (source, port).
pub fn rules(list: &[(&str, u16)]) -> Input {
    let rule = |(source, port): &(&str, u16)| FilterRule {
        src_ips: vec![(*source).to_owned()],
        dst_ports: vec![NetPortRange {
            ip: OWN.to_owned(),
            ports: PortRange {
                first: *port,
                last: *port,
            },
        }],
        ..FilterRule::default()
    };
    Input {
        rules: list.iter().map(rule).collect(),
        local: vec!["10.7.0.1/32".parse().expect("prefix")],
        ..Input::default()
    }
}

/// Options of a test: a pin directory of its own, which is gone when the tests end, whatever fails.
pub fn options(name: &str) -> FilterOptions {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: the function takes nothing, and outlives the process, whose code it is.
        let registered = unsafe { libc::atexit(remove_pins) };
        assert_eq!(registered, 0);
    });
    FilterOptions::new(format!("{}{name}", prefix()), 0x0200_0000)
}

fn prefix() -> String {
    format!("test-{}-", std::process::id())
}

extern "C" fn remove_pins() {
    let entries = std::fs::read_dir("/sys/fs/bpf/lowroad")
        .into_iter()
        .flatten();
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if name.starts_with(&prefix()) {
            let _ = Filter::cleanup(&FilterOptions::new(name, 0));
        }
    }
}

pub fn to(source: &str, port: u16) -> Vec<u8> {
    Ip::new(source, OWN, 17, &udp(4000, port, b"hello")).bytes()
}

pub fn attach(tun: &Tun, options: &FilterOptions) -> Filter {
    Filter::attach_or_adopt(&tun.name, tun.index, options).expect("attach")
}

/// The device goes, and then the pins.
pub fn end(filter: Filter, tun: Tun) {
    drop(tun);
    filter.detach().expect("detach");
}

/// Inbound packets with this outcome.
pub fn passed(counters: &FilterCounters, pass: Pass) -> u64 {
    let found = counters
        .passed
        .iter()
        .find(|(d, p, _)| (*d, *p) == (Direction::In, pass));
    found.map_or(0, |(_, _, count)| count.packets)
}

pub fn dropped(counters: &FilterCounters, reason: DropReason) -> u64 {
    let found = counters
        .dropped
        .iter()
        .find(|(d, r, _)| (*d, *r) == (Direction::In, reason));
    found.map_or(0, |(_, _, count)| count.packets)
}

/// The port that rules of these tests admit the friend to.
pub struct Door<'a> {
    tun: &'a Tun,
    socket: UdpSocket,
}

impl<'a> Door<'a> {
    /// The device must be up.
    pub fn new(tun: &'a Tun) -> Self {
        let socket = UdpSocket::bind((OWN, 1000)).expect("bind");
        socket.set_read_timeout(Some(SOON)).expect("timeout");
        Self { tun, socket }
    }

    pub fn only_the_friend_gets_in(&self) {
        let from = |source, text| Ip::new(source, OWN, 17, &udp(1, 1000, text)).bytes();
        self.tun.send(&from(FOE, b"foe"));
        self.tun.send(&from(FRIEND, b"friend"));
        let mut buffer = [0; 64];
        let length = self.socket.recv(&mut buffer).expect("the friend's packet");
        assert_eq!(
            &buffer[..length],
            b"friend",
            "the foe's came first and was dropped"
        );
    }
}

/// What became of the packets that the friend and the foe sent to a [`Door`], of each as many.
#[derive(Debug)]
pub struct Arrived {
    pub sent: u64,
    pub foes: u64,
    /// Numbers of the friend's packets that did not arrive.
    pub gaps: Vec<Range<u64>>,
}

impl Door<'_> {
    /// Does something while the friend and the foe send. It is given what waits until they have sent more. The last packet must get in.
    pub fn under_load(&self, something: impl FnOnce(&dyn Fn())) -> Arrived {
        const MORE: u64 = 100;
        let sent = AtomicU64::new(0);
        let more = || {
            let before = sent.load(Ordering::Relaxed);
            eventually("more packets are sent", || {
                sent.load(Ordering::Relaxed) >= before + MORE
            });
        };
        let mut arrived = Arrived {
            sent: 0,
            foes: 0,
            gaps: Vec::new(),
        };
        let mut next = 0;
        self.socket.set_nonblocking(true).expect("nonblocking");
        while_doing(
            || something(&more),
            || {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                self.send_numbered(number);
                // At once, or the socket would run over.
                self.take(&mut next, &mut arrived);
            },
        );
        let last = sent.into_inner();
        arrived.sent = last + 1;
        self.send_numbered(last);
        eventually("the last packet gets in", || {
            self.take(&mut next, &mut arrived);
            next > last
        });
        self.socket.set_nonblocking(false).expect("blocking");
        arrived
    }

    /// The foe's comes first, so it has got in or not when the friend's has.
    fn send_numbered(&self, number: u64) {
        for source in [FOE, FRIEND] {
            let udp = udp(4000, 1000, &number.to_ne_bytes());
            self.tun.send(&Ip::new(source, OWN, 17, &udp).bytes());
        }
    }

    /// Takes what there is out of the socket, of the friend's from number `next` on.
    fn take(&self, next: &mut u64, arrived: &mut Arrived) {
        let mut number = [0; 8];
        while let Ok((length, source)) = self.socket.recv_from(&mut number) {
            if source.ip().to_string() == FOE {
                arrived.foes += 1;
                continue;
            }
            assert_eq!(length, number.len());
            let number = u64::from_ne_bytes(number);
            if number != *next {
                arrived.gaps.push(*next..number);
            }
            *next = number + 1;
        }
    }
}

/// Does something while another thread does something else, over and over.
fn while_doing(something: impl FnOnce(), mut each: impl FnMut() + Send) {
    /// Else a test that fails would wait for the other thread for ever.
    struct AtEnd<'a>(&'a AtomicBool);
    impl Drop for AtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                each();
            }
        });
        let _at_end = AtEnd(&done);
        something();
    });
}

/// Does something while the friend and the foe send; says how many packets each.
pub fn under_load(tun: &Tun, something: impl FnOnce()) -> u64 {
    let mut sent = 0;
    let (friend, foe) = (to(FRIEND, 1000), to(FOE, 1000));
    while_doing(something, || {
        tun.send(&friend);
        tun.send(&foe);
        sent += 1;
    });
    sent
}

pub fn all_of_the_friend_and_none_of_the_foe(filter: &Filter, sent: u64) {
    eventually("all packets are judged", || {
        let counters = filter.counters().expect("counters");
        passed(&counters, Pass::Rule) + dropped(&counters, DropReason::Acl) >= 2 * sent
    });
    let counters = filter.counters().expect("counters");
    assert_eq!(passed(&counters, Pass::Rule), sent);
    assert_eq!(dropped(&counters, DropReason::Acl), sent);
}

/// The first packet of the friend that a filter without a policy sees.
pub fn nobody_gets_in(tun: &Tun, filter: &Filter) {
    tun.send(&to(FRIEND, 1000));
    eventually("the packet is dropped for want of a policy", || {
        dropped(&filter.counters().expect("counters"), DropReason::NoPolicy) == 1
    });
}
