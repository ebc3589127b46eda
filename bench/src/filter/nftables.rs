//! What nftables adds to a packet with the same rules as a set.
//!
//! nftables rules cannot be test-run, so UDP packets are sent over the loopback of a network namespace of our own, with
//! the table in force and with it dormant, in turn; the figure is the difference. Packets that no element of the set
//! matches pass too, so that in both cases the rest of their way is the same.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{
    Samples,
    workload::{CLOSED, OWN, OWN_6, PORT, RuleSet, peer, peer_6},
};

/// Packets of one sample.
const PACKETS: u32 = 20_000;

/// What is sent.
pub struct PathKind {
    pub name: &'static str,
    /// The filter's case with the same packets.
    pub case: &'static str,
    v6: bool,
    port: u16,
}

#[rustfmt::skip]
pub const PATHS: [PathKind; 4] = [
    PathKind { name: "UDP in, v4, hit", case: "in, v4: UDP, hit", v6: false, port: PORT },
    PathKind { name: "UDP in, v4, miss", case: "in, v4: UDP, miss", v6: false, port: CLOSED },
    PathKind { name: "UDP in, v6, hit", case: "in, v6: UDP, hit", v6: true, port: PORT },
    PathKind { name: "UDP in, v6, miss", case: "in, v6: UDP, miss", v6: true, port: CLOSED },
];

/// By path, then by rule set. In a thread, which has the namespace to itself and takes it along.
pub fn measure(sets: &[RuleSet], rounds: usize) -> Result<Vec<Samples>> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| in_namespace(sets, rounds));
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

fn in_namespace(sets: &[RuleSet], rounds: usize) -> Result<Vec<Samples>> {
    // SAFETY: changes only the calling thread, and takes no pointers.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    ensure!(
        result == 0,
        "a network namespace of our own (root is needed)"
    );
    for address in [OWN.to_string(), peer(0).to_string()] {
        feed(
            "ip",
            &["address", "add", &format!("{address}/32"), "dev", "lo"],
            "",
        )?;
    }
    for address in [OWN_6.to_string(), peer_6(0).to_string()] {
        let address = format!("{address}/128");
        feed(
            "ip",
            &["address", "add", &address, "dev", "lo", "nodad"],
            "",
        )?;
    }
    feed("ip", &["link", "set", "lo", "up"], "")?;
    for (n, set) in sets.iter().enumerate() {
        feed("nft", &["-f", "-"], &table(n, *set))?;
    }
    let paths: Vec<Path> = PATHS.iter().map(Path::new).collect::<Result<_>>()?;
    let mut samples: Vec<Samples> = vec![vec![Vec::new(); sets.len()]; paths.len()];
    for _ in 0..rounds {
        xtask::signals::check()?;
        for set in 0..sets.len() {
            for (path, samples) in paths.iter().zip(&mut samples) {
                let without = path.nanoseconds()?;
                feed("nft", &["-f", "-"], &format!("add table inet bench{set}"))?;
                let with = path.nanoseconds()?;
                feed("nft", &["-f", "-"], &dormant(set))?;
                samples[set].push(with - without);
            }
        }
    }
    Ok(samples)
}

fn dormant(n: usize) -> String {
    format!("add table inet bench{n} {{ flags dormant; }}")
}

/// The rule set as nftables has it: an accepting rule per family, by a set of source, protocol and port.
fn table(n: usize, set: RuleSet) -> String {
    let mut elements = [String::new(), String::new()];
    for (peer_number, port) in set.ports() {
        let addresses = [
            peer(peer_number).to_string(),
            peer_6(peer_number).to_string(),
        ];
        for (elements, address) in elements.iter_mut().zip(addresses) {
            for protocol in ["tcp", "udp"] {
                write!(elements, "{address} . {protocol} . {port},").expect("writing to a string");
            }
        }
    }
    let [v4, v6] = elements;
    format!(
        "table inet bench{n} {{
            flags dormant;
            set v4 {{ type ipv4_addr . inet_proto . inet_service; elements = {{ {v4} }} }}
            set v6 {{ type ipv6_addr . inet_proto . inet_service; elements = {{ {v6} }} }}
            chain input {{
                type filter hook input priority 0; policy accept;
                ip daddr {OWN} ip saddr . meta l4proto . th dport @v4 counter accept
                ip6 daddr {OWN_6} ip6 saddr . meta l4proto . th dport @v6 counter accept
            }}
        }}"
    )
}

fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let status = child.wait()?;
    ensure!(
        status.success(),
        "{program} {}: {status}",
        arguments.join(" ")
    );
    Ok(())
}

/// A sender and who receives, whose queue fills up at once: what comes later is dropped behind the filter.
struct Path {
    sender: UdpSocket,
    _receiver: UdpSocket,
}

impl Path {
    fn new(kind: &PathKind) -> Result<Self> {
        let (source, destination): (SocketAddr, SocketAddr) = if kind.v6 {
            ((peer_6(0), 0).into(), (OWN_6, kind.port).into())
        } else {
            ((peer(0), 0).into(), (OWN, kind.port).into())
        };
        let receiver = UdpSocket::bind(destination).context("bind the receiver")?;
        let sender = UdpSocket::bind(source).context("bind the sender")?;
        sender.connect(destination)?;
        Ok(Self {
            sender,
            _receiver: receiver,
        })
    }

    fn nanoseconds(&self) -> Result<f64> {
        let begun = thread_time()?;
        for _ in 0..PACKETS {
            self.sender.send(&[0; 8])?;
        }
        Ok((thread_time()? - begun) / f64::from(PACKETS))
    }
}

/// Nanoseconds that this thread has run: what the machine does meanwhile is left out, and over loopback a packet is received by the thread that sends it.
fn thread_time() -> Result<f64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a struct of ours, alive during the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    ensure!(result == 0, "the thread's CPU time");
    Ok(time.tv_sec as f64 * 1e9 + time.tv_nsec as f64)
}
