//! Packets that the kernel keeps in pieces: the programs read what is not in the first.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use lowroad_agent::kernel::bpf::Filter;
use lowroad_core::filter::{Direction, Evaluator, Input, Pass, compile};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    counted,
    device::{FRIEND, OWN, attach, end, options, passed, rules},
    generate, named,
    packets::Ip,
    tun::{SOON, Tun, eventually, fresh_namespace, sh},
};

/// The kernel keeps smaller packets in one piece.
const LARGE: usize = 5_000;
/// Bytes in the first piece: less than any header, in the middle of each, and between them.
const FIRST: [u16; 11] = [1, 4, 19, 20, 23, 27, 39, 40, 43, 53, 60];
const RANDOM_INPUTS: u64 = 3;
const RANDOM_PACKETS: usize = 110;

struct Path {
    tun: Tun,
    filter: Filter,
    evaluator: Evaluator,
    outcomes: BTreeMap<&'static str, u32>,
}

impl Path {
    /// A device in this thread's namespace.
    fn new(name: &str, input: &Input) -> Self {
        let tun = Tun::for_split_packets("lr0");
        let mut filter = attach(&tun, &options(name));
        filter.install(&compile(input)).expect("install");
        sh("ip link set lr0 mtu 9000");
        tun.up("10.7.0.1/24");
        Self {
            tun,
            filter,
            evaluator: Evaluator::new(input),
            outcomes: BTreeMap::new(),
        }
    }

    /// The packet, with bytes behind it, has the outcome that the reference says.
    fn carry(&mut self, what: &str, direction: Direction, mut packet: Vec<u8>, first: u16) {
        packet.resize(LARGE, 0xee);
        let wanted = counted::name(&self.evaluator.judge(direction, &packet));
        let before = self.filter.counters().expect("counters");
        let sent = match direction {
            Direction::In => {
                self.tun.send_split(&packet, first);
                Ok(())
            }
            Direction::Out => self.tun.try_send_out_split(&packet, first),
        };
        let outcome = || {
            let after = self.filter.counters().expect("counters");
            let mut seen = counted::between(&before, &after);
            // The host may answer.
            seen.retain(|(seen, _)| *seen == direction);
            seen
        };
        eventually(&format!("{what} is counted ({sent:?})"), || {
            !outcome().is_empty()
        });
        assert_eq!(
            outcome(),
            [(direction, wanted)],
            "{what}, {first} bytes first: {:02x?}",
            &packet[..80]
        );
        *self.outcomes.entry(wanted).or_default() += 1;
    }
}

#[test]
fn named_packets_in_pieces_have_the_outcome_of_whole_ones() {
    fresh_namespace();
    let input = named::input();
    let mut path = Path::new("frags-named", &input);
    for first in FIRST {
        for (name, direction, ip, ..) in named::rows() {
            path.carry(name, direction, ip.bytes(), first);
        }
    }
    println!("named packets in pieces, by outcome: {:?}", path.outcomes);
    end(path.filter, path.tun);
}

#[test]
fn random_packets_in_pieces_have_the_outcome_of_whole_ones() {
    fresh_namespace();
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..RANDOM_INPUTS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut path = Path::new("frags-random", &generate::input(&mut rng));
        let mut sent: Vec<Ip> = Vec::new();
        for first in FIRST.into_iter().cycle().take(RANDOM_PACKETS) {
            let (direction, packet) = generate::packet(&mut rng, &mut sent);
            // The device takes no other.
            if matches!(packet[0] >> 4, 4 | 6) {
                path.carry(&format!("seed {seed}"), direction, packet, first);
            }
        }
        for (outcome, count) in path.outcomes {
            *outcomes.entry(outcome).or_default() += count;
        }
        end(path.filter, path.tun);
    }
    println!("random packets in pieces, by outcome: {outcomes:?}");
}

/// TCP has the data of a file in pieces of their own, and keeps every packet for sending it again.
#[test]
fn a_file_passes_both_programs_by_tcp() {
    const PORT: u16 = 1000;
    fresh_namespace();
    let sends = Input {
        local: vec!["10.7.0.2/32".parse().expect("prefix")],
        ..Input::default()
    };
    let sender = Side::new("frags-sender", FRIEND, &sends);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            fresh_namespace();
            let input = rules(&[(FRIEND, PORT)]);
            let side = Side::new("frags-receiver", OWN, &input);
            let listener = TcpListener::bind((OWN, PORT)).expect("bind");
            tell.send(side.tun).expect("the sender waits");
            let mut got = Vec::new();
            listener.set_nonblocking(true).expect("nonblocking");
            let mut stream = None;
            eventually("the sender connects", || {
                stream = listener.accept().ok();
                stream.is_some()
            });
            let (mut stream, _) = stream.expect("it did");
            stream.set_nonblocking(false).expect("blocking");
            stream.set_read_timeout(Some(SOON)).expect("timeout");
            stream.read_to_end(&mut got).expect("the file");
            let counters = side.filter.counters().expect("counters");
            assert_eq!(passed(&counters, Pass::Rule), 1, "the first SYN");
            assert!(passed(&counters, Pass::TcpEstablished) > 50);
            got
        });
        let theirs = told.recv_timeout(SOON).expect("the receiver's device");
        let done = AtomicBool::new(false);
        let got = std::thread::scope(|scope| {
            scope.spawn(|| carry_between(&sender.tun, &theirs, &done));
            let file = file();
            let own: Ipv4Addr = OWN.parse().expect("address");
            let to = (own, PORT).into();
            let mut stream = TcpStream::connect_timeout(&to, SOON).expect("connect");
            stream.set_write_timeout(Some(SOON)).expect("timeout");
            // By `sendfile`.
            let sent = io::copy(&mut &file, &mut stream).expect("send");
            assert_eq!(sent, SIZE as u64);
            drop(stream);
            let got = receiver.join();
            done.store(true, Ordering::Relaxed);
            got.expect("the receiver")
        });
        assert!(got == pattern(), "another file arrived");
    });
    let counters = sender.filter.counters().expect("counters");
    let mut out = counters.passed.iter();
    let out = out.find(|(d, p, _)| (*d, *p) == (Direction::Out, Pass::Outbound));
    let (_, _, count) = out.expect("a counter");
    assert!(count.bytes > SIZE as u64, "{count:?}");
    end(sender.filter, sender.tun);
}

const SIZE: usize = 1 << 18;

fn pattern() -> Vec<u8> {
    (0..SIZE as u32).map(|n| (n / 7) as u8).collect()
}

fn file() -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&pattern()).expect("write");
    io::Seek::rewind(&mut file).expect("rewind");
    file
}

/// A node: a device with the filter.
struct Side {
    tun: Tun,
    filter: Filter,
}

impl Side {
    fn new(name: &str, address: &str, input: &Input) -> Self {
        let tun = Tun::new("lr0");
        let mut filter = attach(&tun, &options(name));
        filter.install(&compile(input)).expect("install");
        tun.up(&format!("{address}/24"));
        Self { tun, filter }
    }
}

/// What one device sends reaches the other.
fn carry_between(one: &Tun, other: &Tun, done: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !done.load(Ordering::Relaxed) {
        let mut idle = true;
        for (from, to) in [(one, other), (other, one)] {
            while let Some(length) = from.receive(&mut buffer) {
                to.send(&buffer[..length]);
                idle = false;
            }
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
