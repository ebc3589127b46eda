//! Streams between namespaces, as fast as they go, and a count of what arrived.
//!
//! Our own, not iperf3: the count and the CPU time have to be taken over the same window, after the streams have come up to speed, and
//! the VM's image holds no other programs.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use xtask::topology::Namespace;

use crate::scenario::Protocol;

/// Large enough that the system calls don't count.
const CHUNK: usize = 128 << 10;
/// What fits into every tunnel's packets.
const DATAGRAM: usize = 1200;
/// How often a blocked stream looks whether it shall end.
const LOOK: Duration = Duration::from_millis(200);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// After the sender's end the rest is still on its way; it must not run into the next measurement.
const DRAIN_LOOKS: u32 = 25;

/// From where to where. The address is the receiver's.
#[derive(Debug)]
pub struct Route<'a> {
    pub sender: &'a Namespace,
    pub receiver: &'a Namespace,
    pub address: SocketAddr,
}

/// Running streams. They end when dropped.
#[derive(Debug)]
pub struct Streams {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
}

impl Streams {
    pub fn start(protocol: Protocol, routes: &[Route<'_>]) -> Result<Self> {
        let mut streams = Self {
            shared: Arc::default(),
            threads: Vec::new(),
        };
        for route in routes {
            match protocol {
                Protocol::Tcp => streams.tcp(route)?,
                Protocol::Udp => streams.udp(route)?,
            }
        }
        Ok(streams)
    }

    /// Payload bytes so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn tcp(&mut self, route: &Route<'_>) -> Result<()> {
        let what = || format!("a stream to {}", route.address);
        let listener = route
            .receiver
            .enter(|| TcpListener::bind(route.address))?
            .with_context(what)?;
        let sender = route
            .sender
            .enter(|| TcpStream::connect_timeout(&route.address, CONNECT_LIMIT))?
            .with_context(what)?;
        let (receiver, _) = listener.accept().with_context(what)?;
        sender.set_write_timeout(Some(LOOK))?;
        receiver.set_read_timeout(Some(LOOK))?;
        self.spawn(move |shared| send_tcp(&sender, shared));
        self.spawn(move |shared| receive_tcp(&receiver, shared));
        Ok(())
    }

    fn udp(&mut self, route: &Route<'_>) -> Result<()> {
        let what = || format!("datagrams to {}", route.address);
        let receiver = route
            .receiver
            .enter(|| UdpSocket::bind(route.address))?
            .with_context(what)?;
        let any = SocketAddr::new(
            match route.address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            },
            0,
        );
        let sender = route
            .sender
            .enter(|| {
                let socket = UdpSocket::bind(any)?;
                socket.connect(route.address)?;
                Ok::<_, io::Error>(socket)
            })?
            .with_context(what)?;
        receiver.set_read_timeout(Some(LOOK))?;
        self.spawn(move |shared| {
            let datagram = [0x5a; DATAGRAM];
            // A full queue is what this is about.
            while !shared.stop.load(Ordering::Relaxed) {
                let _ = sender.send(&datagram);
            }
        });
        self.spawn(move |shared| {
            let mut buffer = [0; 2 * DATAGRAM];
            while !shared.stop.load(Ordering::Relaxed) {
                if let Ok(length) = receiver.recv(&mut buffer) {
                    shared.received.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        });
        Ok(())
    }

    fn spawn(&mut self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.threads.push(thread::spawn(move || work(&shared)));
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn send_tcp(mut stream: &TcpStream, shared: &Shared) {
    let chunk = vec![0x5a; CHUNK];
    while !shared.stop.load(Ordering::Relaxed) {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if is_pause(&error) => {}
            Err(_) => return,
        }
    }
}

fn receive_tcp(mut stream: &TcpStream, shared: &Shared) {
    let mut buffer = vec![0; CHUNK];
    let mut looks = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                looks = 0;
                shared.received.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_pause(&error) => {
                looks += 1;
                if shared.stop.load(Ordering::Relaxed) && looks >= DRAIN_LOOKS {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
