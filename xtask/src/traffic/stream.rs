//! A TCP connection with a steady stream in both directions: every byte checked, lost segments and silences counted.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::pattern;
use crate::{topology::Namespace, wait};

/// Written at once, by each side.
const CHUNK: usize = 2048;
const INTERVAL: Duration = Duration::from_millis(20);
const CONNECT: Duration = Duration::from_secs(20);
/// For what is under way when the stream is stopped.
const REST: Duration = Duration::from_secs(30);
const STRAGGLERS: Duration = Duration::from_secs(5);

/// Runs until stopped or dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    ends: [End; 2],
}

#[derive(Debug)]
struct End {
    socket: TcpStream,
    sent: Arc<AtomicU64>,
    received: Arc<Mutex<Received>>,
    writer: JoinHandle<()>,
    _reader: JoinHandle<()>,
}

#[derive(Debug, Clone, Default)]
struct Received {
    bytes: u64,
    last: Option<Instant>,
    longest_silence: Duration,
    error: Option<String>,
}

/// What a stream carried, both directions together.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    pub bytes: u64,
    pub longest_silence: Duration,
    /// With data, as the senders count them: what was sent again too.
    pub segments: u32,
    /// Of those, how many never came.
    pub lost: u32,
    /// How many were sent again. A host that is short of time does so although the first has come.
    pub retransmitted: u32,
}

impl Stream {
    /// From `client` to `address` in `server`.
    pub fn start(client: &Namespace, server: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = server
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listen on {address}"))?;
        let near = client
            .enter(|| TcpStream::connect_timeout(&address, CONNECT))?
            .with_context(|| format!("connect to {address}"))?;
        let (far, _) = listener.accept()?;
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self {
            ends: [End::start(near, &stop)?, End::start(far, &stop)?],
            stop,
        })
    }

    /// How many bytes have come in the direction that has fewer of them.
    pub fn progress(&self) -> u64 {
        let bytes = |end: &End| end.look().bytes;
        bytes(&self.ends[0]).min(bytes(&self.ends[1]))
    }

    /// Ends both directions, and checks that all that was sent has come.
    pub fn stop(self) -> Result<Carried> {
        self.stop.store(true, Ordering::Relaxed);
        let pairs = [
            (&self.ends[0], &self.ends[1]),
            (&self.ends[1], &self.ends[0]),
        ];
        wait::wait_for("the end of the TCP streams", REST, || {
            let ended = |(from, to): (&End, &End)| {
                let look = to.look();
                let all = from.writer.is_finished() && look.bytes == from.sent();
                all || look.error.is_some()
            };
            Ok(pairs.into_iter().all(ended).then_some(()))
        })?;
        let mut carried = Carried {
            bytes: 0,
            longest_silence: Duration::ZERO,
            segments: 0,
            lost: 0,
            retransmitted: 0,
        };
        for (from, to) in pairs {
            let look = to.look();
            if let Some(error) = look.error {
                return Err(anyhow!("the TCP stream broke: {error}"));
            }
            // What was sent again may still be under way.
            let _ = wait::wait_for("the last segments", STRAGGLERS, || {
                let came = segments(&to.socket)?.tcpi_data_segs_in;
                Ok((came == segments(&from.socket)?.tcpi_data_segs_out).then_some(()))
            });
            let (sender, came) = (
                segments(&from.socket)?,
                segments(&to.socket)?.tcpi_data_segs_in,
            );
            carried.bytes += look.bytes;
            carried.longest_silence = carried.longest_silence.max(look.longest_silence);
            carried.segments += sender.tcpi_data_segs_out;
            carried.lost += sender.tcpi_data_segs_out.saturating_sub(came);
            carried.retransmitted += sender.tcpi_total_retrans;
        }
        ensure!(carried.segments > 0, "the kernel doesn't count segments");
        Ok(carried)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Which ends the threads.
        for end in &self.ends {
            let _ = end.socket.shutdown(Shutdown::Both);
        }
    }
}

impl End {
    fn start(socket: TcpStream, stop: &Arc<AtomicBool>) -> Result<Self> {
        socket.set_nodelay(true)?;
        let sent = Arc::new(AtomicU64::new(0));
        let received = Arc::new(Mutex::new(Received::default()));
        let (out, into) = (socket.try_clone()?, socket.try_clone()?);
        let (stop, written) = (Arc::clone(stop), Arc::clone(&sent));
        let (noting, failing) = (Arc::clone(&received), Arc::clone(&received));
        let writer = thread::spawn(move || {
            if let Err(error) = write(&out, &stop, &written) {
                let mut look = failing.lock().unwrap_or_else(PoisonError::into_inner);
                look.error.get_or_insert(format!("writing: {error}"));
            }
        });
        let reader = thread::spawn(move || read(&into, &noting));
        Ok(Self {
            socket,
            sent,
            received,
            writer,
            _reader: reader,
        })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn look(&self) -> Received {
        let look = self.received.lock();
        look.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn write(mut socket: &TcpStream, stop: &AtomicBool, sent: &AtomicU64) -> io::Result<()> {
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let from = sent.load(Ordering::Relaxed);
        socket.write_all(&pattern::bytes(from, CHUNK))?;
        sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
        due += INTERVAL;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn read(mut socket: &TcpStream, received: &Mutex<Received>) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let result = socket.read(&mut buffer);
        let now = Instant::now();
        let mut look = received.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match result {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) => {
                look.error.get_or_insert(format!("reading: {error}"));
                return;
            }
        };
        if let Some(place) = pattern::first_wrong(look.bytes, &buffer[..count]) {
            look.error.get_or_insert(format!("byte {place} is another"));
            return;
        }
        look.bytes += count as u64;
        if let Some(last) = look.last.replace(now) {
            look.longest_silence = look.longest_silence.max(now - last);
        }
    }
}

/// What the kernel has counted of this end.
fn segments(socket: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: zeroes are a valid `tcp_info`, which is plain integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_carries_every_byte_both_ways_and_every_segment_is_counted() {
        let here = Namespace::ours().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let stream = Stream::start(&here, &here, address).unwrap();
        wait::wait_for("bytes both ways", REST, || {
            Ok((stream.progress() > 10 * CHUNK as u64).then_some(()))
        })
        .unwrap();
        let carried = stream.stop().unwrap();
        assert!(carried.bytes > 20 * CHUNK as u64, "{carried:?}");
        assert!(carried.segments >= 20 && carried.lost == 0, "{carried:?}");
    }
}
