//! A ping that counts: one thread sends at a fixed pace, another notes which came back and when.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::Standstills;
use crate::{topology::Namespace, wait};

static IDENTIFIERS: AtomicU16 = AtomicU16::new(1);

/// How long an answer may be under way when the ping is stopped, or after the last one that came.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// All of them together: where a machine had no time, they come in a row.
const ALL_STRAGGLERS: Duration = Duration::from_secs(10);

/// Elsewhere an answer takes some ms, on an emulated CPU some tens.
const QUEUED: Duration = Duration::from_millis(250);

const PAYLOAD: usize = 48;
/// Bytes of the socket's buffer. It gets every ICMP packet of its host, also while its reader has no time for a second or two:
/// what is lost here would count as lost on the way.
const BUFFER: i32 = 8 << 20;
/// Of the numbers of lost packets.
const SHOWN: usize = 20;

/// Whether a ping with this payload gets through in one piece; false if the own host says that it is too large.
pub fn fits(namespace: &Namespace, to: IpAddr, payload: usize, limit: Duration) -> Result<bool> {
    let identifier = identifier();
    let socket = namespace
        .enter(|| Socket::open(to))?
        .with_context(|| format!("open a ping socket in {}", namespace.name()))?;
    socket.forbid_fragments()?;
    let what = format!("an answer to a ping of {payload} bytes from {to}");
    let mut number = 0;
    let answer = wait::wait_for(&what, limit, || {
        number += 1;
        match socket.send(identifier, number, payload) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(Some(false)),
            other => other?,
        }
        for _ in 0..20 {
            if let Ok(Some(_)) = socket.receive(identifier) {
                return Ok(Some(true));
            }
        }
        Ok(None)
    });
    answer.map(|(fits, _)| fits)
}

fn identifier() -> u16 {
    (std::process::id() as u16).wrapping_add(IDENTIFIERS.fetch_add(1, Ordering::Relaxed))
}

/// Answers to pings that the kernel of this host could not make: its socket for them, one for each CPU and for all namespaces, holds 256 KiB of answers that
/// wait for their turn in WireGuard, some 340 (`net/ipv4/icmp.c`). Where a CPU stands still for half a second more come, and are answered by nobody.
pub fn unmade_answers(namespace: &Namespace) -> Result<usize> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp");
    let text = namespace.enter(read)??;
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no ICMP counters")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(name, _)| *name == "OutErrors");
    Ok(found.context("no counter of ICMP's errors")?.1.parse()?)
}

/// Runs until stopped or dropped.
#[derive(Debug)]
pub struct Pinger {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop_sending: AtomicBool,
    stop: AtomicBool,
    packets: Mutex<Packets>,
    answered: AtomicUsize,
}

#[derive(Debug, Default)]
struct Packets {
    /// When each packet left, and when its answer came. A packet carries the lower half of its number.
    seen: BTreeMap<u32, (Instant, Option<Instant>)>,
    send_errors: usize,
}

/// What a ping saw.
#[derive(Debug, Clone)]
pub struct Report {
    pub sent: usize,
    pub answered: usize,
    /// From the first packet sent to the first answer received, to any of them.
    pub first_answer: Option<Duration>,
    /// The longest time between two answers.
    pub longest_silence: Duration,
    pub median: Option<Duration>,
    /// Of a hundred answers, one took longer.
    pub p99: Option<Duration>,
    pub unanswered: Vec<Unanswered>,
    /// Of those, how many the sender's own kernel refused: no route, no room.
    pub unsent: usize,
}

/// A packet without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Unanswered {
    /// From 0.
    pub number: u32,
    pub sent: Instant,
    /// How long the answered packets before and after it took, the slower of them.
    pub beside: Duration,
}

impl Unanswered {
    /// What was sent beside it waited in a queue: where an emulated CPU has no time for WireGuard's workers, its queues of 1024 packets
    /// (`MAX_QUEUED_PACKETS`) run over, and nobody counts what is dropped there (`drivers/net/wireguard/{send,receive}.c`).
    pub fn queued(&self) -> bool {
        self.beside >= QUEUED
    }
}

impl Report {
    pub fn lost(&self) -> usize {
        self.sent - self.answered
    }

    /// How many of those are not excused by a machine that stood still, or had no time for what was queued.
    pub fn lost_by_us(&self, standstills: &Standstills) -> usize {
        let excused = |one: &&Unanswered| standstills.excuse(one.sent) || one.queued();
        self.unanswered.iter().filter(|one| !excused(one)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} pings, {} lost", self.sent, self.lost())?;
        if self.lost() > 0 {
            let mut numbers = self.unanswered.iter().map(|one| one.number);
            let shown: Vec<u32> = numbers.clone().take(SHOWN).collect();
            write!(out, " (numbers {shown:?}")?;
            if let Some(last) = numbers.next_back().filter(|_| self.lost() > SHOWN) {
                write!(out, " to {last}")?;
            }
            write!(
                out,
                "; {} of them refused by the sender's kernel)",
                self.unsent
            )?;
        }
        write!(
            out,
            ", longest silence {} ms",
            self.longest_silence.as_millis()
        )
    }
}

impl Pinger {
    pub fn start(namespace: &Namespace, to: IpAddr, interval: Duration) -> Result<Self> {
        let identifier = identifier();
        let socket = namespace
            .enter(|| Socket::open(to))?
            .with_context(|| format!("open a ping socket in {}", namespace.name()))?;
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared {
            stop_sending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            packets: Mutex::default(),
            answered: AtomicUsize::new(0),
        });
        let (to_send, sending) = (Arc::clone(&socket), Arc::clone(&shared));
        let receiving = Arc::clone(&shared);
        Ok(Self {
            shared,
            threads: vec![
                thread::spawn(move || send_loop(&to_send, &sending, identifier, interval)),
                thread::spawn(move || receive_loop(&socket, &receiving, identifier)),
            ],
        })
    }

    /// What it has seen so far; packets under way count as lost.
    pub fn report(&self) -> Report {
        self.shared.lock().report()
    }

    /// How many answers have come so far.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits for the first answer.
    pub fn first_answer(&self, limit: Duration) -> Result<Duration> {
        wait::wait_for("an answer to the ping", limit, || {
            Ok(self.report().first_answer)
        })
        .map(|(time, _)| time)
    }

    /// Stops sending, waits for stragglers as long as some come, and reports.
    pub fn stop(self) -> Report {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        let mut stragglers = Stragglers::new(Instant::now(), self.answered());
        // Its limit is only reached with a poll that took long.
        let _ = wait::wait_for("stragglers", ALL_STRAGGLERS, || {
            let report = self.report();
            let over = report.lost() == 0 || stragglers.are_over(Instant::now(), report.answered);
            Ok(over.then_some(()))
        });
        self.report()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The answers after a ping's end.
struct Stragglers {
    end: Instant,
    /// So many had come then, the last of them.
    last: (Instant, usize),
}

impl Stragglers {
    fn new(end: Instant, answered: usize) -> Self {
        Self {
            end,
            last: (end, answered),
        }
    }

    /// Whether no more are waited for.
    fn are_over(&mut self, now: Instant, answered: usize) -> bool {
        if answered > self.last.1 {
            self.last = (now, answered);
        }
        now - self.last.0 >= STRAGGLERS || now - self.end >= ALL_STRAGGLERS
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Packets> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packets {
    fn report(&self) -> Report {
        let first = self.seen.values().next().map(|(sent, _)| *sent);
        let mut times: Vec<Duration> = Vec::new();
        let mut arrivals: Vec<Instant> = Vec::new();
        for (sent, answered) in self.seen.values() {
            if let Some(answered) = answered {
                times.push(*answered - *sent);
                arrivals.push(*answered);
            }
        }
        times.sort();
        arrivals.sort();
        Report {
            sent: self.seen.len(),
            answered: arrivals.len(),
            first_answer: arrivals
                .first()
                .zip(first)
                .map(|(answered, sent)| answered.saturating_duration_since(sent)),
            longest_silence: arrivals
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .max()
                .unwrap_or_default(),
            median: times.get(times.len() / 2).copied(),
            p99: times.get(times.len() * 99 / 100).copied(),
            unanswered: self.unanswered(),
            unsent: self.send_errors,
        }
    }

    fn unanswered(&self) -> Vec<Unanswered> {
        let mut found: Vec<Unanswered> = Vec::new();
        // From here on, no answered packet has come since.
        let mut open = 0;
        let mut before = Duration::ZERO;
        for (number, (sent, answered)) in &self.seen {
            if let Some(answered) = answered {
                before = *answered - *sent;
                for one in &mut found[open..] {
                    one.beside = one.beside.max(before);
                }
                open = found.len();
            } else {
                found.push(Unanswered {
                    number: *number,
                    sent: *sent,
                    beside: before,
                });
            }
        }
        found
    }

    /// The newest packet that carries this sequence number.
    fn newest(&self, sequence: u16) -> Option<u32> {
        let (last, _) = self.seen.last_key_value()?;
        let since = (*last as u16).wrapping_sub(sequence);
        last.checked_sub(since.into())
    }
}

fn send_loop(socket: &Socket, shared: &Shared, identifier: u16, interval: Duration) {
    let mut due = Instant::now();
    for number in 0.. {
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            if shared.stop_sending.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
        if shared.stop_sending.load(Ordering::Relaxed) {
            return;
        }
        // Noted first: the answer may be faster than the next line.
        let now = Instant::now();
        shared.lock().seen.insert(number, (now, None));
        if socket.send(identifier, number as u16, PAYLOAD).is_err() {
            // The packet never left (no route, for instance): to the user it is lost all the same.
            shared.lock().send_errors += 1;
        }
        // What was missed while this thread had no time is not made up for by a burst, which no host's ping sends.
        due = (due + interval).max(now);
    }
}

fn receive_loop(socket: &Socket, shared: &Shared, identifier: u16) {
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(Some(sequence)) = socket.receive(identifier) else {
            continue;
        };
        let now = Instant::now();
        let mut packets = shared.lock();
        let number = packets.newest(sequence);
        if let Some((_, answered @ None)) = number.and_then(|n| packets.seen.get_mut(&n)) {
            *answered = Some(now);
            shared.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A raw ICMP socket of either family. The standard library's UDP type serves as its handle: sending, receiving and
/// timeouts are the same calls.
#[derive(Debug)]
struct Socket {
    handle: UdpSocket,
    to: SocketAddr,
}

impl Socket {
    fn open(to: IpAddr) -> io::Result<Self> {
        let (family, protocol) = if to.is_ipv6() {
            (libc::AF_INET6, libc::IPPROTO_ICMPV6)
        } else {
            (libc::AF_INET, libc::IPPROTO_ICMP)
        };
        // SAFETY: no pointers.
        let descriptor =
            unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let handle = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        handle.set_read_timeout(Some(Duration::from_millis(50)))?;
        let to = SocketAddr::new(to, 0);
        let socket = Self { handle, to };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        Ok(socket)
    }

    fn send(&self, identifier: u16, number: u16, payload: usize) -> io::Result<()> {
        let kind = if self.to.is_ipv6() { 128 } else { 8 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend_from_slice(&identifier.to_be_bytes());
        packet.extend_from_slice(&number.to_be_bytes());
        packet.resize(packet.len() + payload, 0x5a);
        // For ICMPv6 the kernel overwrites this with the right one.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        self.handle.send_to(&packet, self.to).map(drop)
    }

    /// What does not fit through is an error from now on, instead of being cut into pieces.
    fn forbid_fragments(&self) -> io::Result<()> {
        let options: &[(i32, i32, i32)] = if self.to.is_ipv6() {
            &[
                (
                    libc::IPPROTO_IPV6,
                    libc::IPV6_MTU_DISCOVER,
                    libc::IPV6_PMTUDISC_DO,
                ),
                (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
            ]
        } else {
            &[(
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DO,
            )]
        };
        for (level, name, value) in options {
            self.set(*level, *name, *value)?;
        }
        Ok(())
    }

    fn set(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value outlives the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.handle.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The sequence number of an answer to us, if the next packet is one.
    fn receive(&self, identifier: u16) -> io::Result<Option<u16>> {
        let mut buffer = [0; 2048];
        let length = self.handle.recv(&mut buffer)?;
        let mut packet = &buffer[..length];
        let mut answer = 129;
        if self.to.is_ipv4() {
            answer = 0;
            let header = usize::from(packet.first().copied().unwrap_or_default() & 0xf) * 4;
            packet = packet.get(header..).unwrap_or_default();
        }
        let [kind, _, _, _, id @ .., n1, n0] = packet.first_chunk::<8>().unwrap_or(&[255; 8]);
        let ours = *kind == answer && *id == identifier.to_be_bytes();
        Ok(ours.then_some(u16::from_be_bytes([*n1, *n0])))
    }
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests;
