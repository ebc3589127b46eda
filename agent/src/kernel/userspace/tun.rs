//! The TUN device: opened by us, not persistent, so that it vanishes with the agent.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use lowroad_core::offload::{self, Coalescer, Frame, Vnet};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::super::KernelError;

const PATH: &str = "/dev/net/tun";

/// Packets taken from the device, and written to it, at once.
const BATCH: usize = 64;

/// Pause after an error that isn't the device's end, so that a lasting one can't spin.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Packets that may wait to be written.
const WAITING: usize = 256;

/// Creates the device. Fails if one of that name exists, even a persistent TUN that nobody holds.
pub(super) fn open(device: &str) -> Result<File, KernelError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(PATH)
        .map_err(|source| KernelError::NoTun { source })?;
    let what = || format!("creating the TUN device {device}");
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(device.bytes())
        .take(libc::IFNAMSIZ - 1)
    {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and `request` is what TUNSETIFF takes; it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        offload(&file);
        return Ok(file);
    }
    let source = io::Error::last_os_error();
    Err(match source.raw_os_error() {
        Some(libc::EPERM) => KernelError::NotPermitted { what: what() },
        Some(libc::EBUSY) => KernelError::NameTaken {
            device: device.into(),
            what: "a TUN or TAP device of another program".into(),
        },
        _ => KernelError::Netlink {
            what: what(),
            source,
        },
    })
}

/// Lets the kernel hand over TCP segments by the dozen. One that can't goes on with one by one.
fn offload(file: &File) {
    let flags = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the descriptor is open; TUNSETOFFLOAD takes a number, not a pointer.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the device gives packets one by one");
    }
}

/// Our end of the device, for gotatun.
///
/// gotatun gives the device up for good on an error such as EINVAL, which a peer could provoke with a malformed packet:
/// only the errors that mean that the device is gone get through to it.
pub(super) struct Tun {
    file: Arc<AsyncFd<File>>,
    mtu: MtuWatcher,
    /// To the task that writes. It ends with the last of these.
    write: mpsc::Sender<Packet<Ip>>,
    read: Vec<u8>,
    taken: Vec<Packet<Ip>>,
}

impl Tun {
    pub fn new(file: File, mtu: MtuWatcher) -> io::Result<Self> {
        // SAFETY: a `File` stays open, and is the same descriptor, until the `AsyncFd` drops it.
        let file = Arc::new(unsafe { AsyncFd::register(file) }?);
        let (write, waiting) = mpsc::channel(WAITING);
        tokio::spawn(write_all(file.clone(), waiting));
        Ok(Self {
            file,
            mtu,
            write,
            read: Vec::new(),
            taken: Vec::new(),
        })
    }
}

impl Clone for Tun {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            mtu: self.mtu.clone(),
            write: self.write.clone(),
            read: Vec::new(),
            taken: Vec::new(),
        }
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let gone = |_| io::Error::from_raw_os_error(libc::ENODEV);
        self.write.send(packet).await.map_err(gone)
    }
}

/// Writes what waits, all of it at once: what came while a write went on is what can go in together.
async fn write_all(file: Arc<AsyncFd<File>>, mut waiting: mpsc::Receiver<Packet<Ip>>) {
    let mut coalescer = Coalescer::default();
    let mut packets = Vec::with_capacity(BATCH);
    let mut batch: Vec<Whole> = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut packets, BATCH).await > 0 {
        batch.clear();
        batch.extend(packets.drain(..).map(|packet| Whole(packet.into_bytes())));
        coalescer.coalesce(&mut batch);
        for frame in coalescer.frames() {
            if write(&file, frame, coalescer.members(frame), &batch).await == Err(Gone) {
                return;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Gone;

/// A packet as the coalescer wants it.
struct Whole(Packet);

impl AsMut<[u8]> for Whole {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

async fn write(
    file: &AsyncFd<File>,
    frame: &Frame,
    members: &[usize],
    batch: &[Whole],
) -> Result<(), Gone> {
    let vnet = frame.vnet.to_bytes();
    let mut slices = Vec::with_capacity(members.len() + 2);
    slices.push(IoSlice::new(&vnet));
    slices.push(IoSlice::new(&batch[frame.first].0));
    for &member in members {
        slices.push(IoSlice::new(&batch[member].0[frame.head..]));
    }
    loop {
        let mut ready = file.writable().await.map_err(|_| Gone)?;
        match ready.try_io(|file| file.get_ref().write_vectored(&slices)) {
            Ok(Err(error)) if is_gone(&error) => return Err(Gone),
            Ok(result) => {
                if let Err(error) = result {
                    tracing::trace!(%error, "the device took no packet");
                }
                return Ok(());
            }
            Err(_would_block) => {}
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        self.read.resize(Vnet::LEN + offload::MAX_PACKET, 0);
        self.taken.clear();
        while self.taken.is_empty() {
            let mut ready = self.file.readable().await?;
            let mut failed = false;
            while self.taken.len() < BATCH && !failed {
                match ready.try_io(|file| file.get_ref().read(&mut self.read)) {
                    Ok(Ok(length)) => take(&mut self.read[..length], pool, &mut self.taken),
                    Ok(Err(error)) if is_gone(&error) => return Err(error),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the device gave no packet");
                        failed = true;
                    }
                    Err(_would_block) => break,
                }
            }
            drop(ready);
            if failed {
                sleep(ERROR_PAUSE).await;
            }
        }
        Ok(self.taken.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone()
    }
}

/// What one read brought.
fn take(bytes: &mut [u8], pool: &PacketBufPool, taken: &mut Vec<Packet<Ip>>) {
    let Some((vnet, packet)) = bytes.split_first_chunk_mut() else {
        return;
    };
    let result = offload::split(Vnet::from_bytes(*vnet), packet, |head, payload| {
        let mut packet = pool.get();
        let whole = head.len() + payload.len();
        if whole <= packet.len() {
            packet[..head.len()].copy_from_slice(head);
            packet[head.len()..whole].copy_from_slice(payload);
            packet.truncate(whole);
            taken.extend(packet.try_into_ip().ok());
        }
    });
    if let Err(what) = result {
        tracing::debug!(what, "the device gave something else than packets");
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::EBADFD | libc::ENODEV)
    )
}
