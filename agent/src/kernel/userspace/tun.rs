//! The TUN device: opened by us, not persistent, so that it vanishes with the agent.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tokio::io::unix::AsyncFd;

use super::super::KernelError;

const PATH: &str = "/dev/net/tun";

/// Packets taken from the device at once.
const BATCH: usize = 64;

/// Creates the device. Fails if one of that name exists, even a persistent TUN that nobody holds.
pub(super) fn open(device: &str) -> Result<OwnedFd, KernelError> {
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
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and `request` is what TUNSETIFF takes; it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        return Ok(file.into());
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

/// Our end of the device, for gotatun.
///
/// gotatun gives the device up for good on an error such as EINVAL, which a peer could provoke with a malformed packet:
/// only the errors that mean that the device is gone get through to it.
pub(super) struct Tun {
    file: Arc<AsyncFd<OwnedFd>>,
    mtu: MtuWatcher,
    spare: Option<Packet>,
    taken: Vec<Packet<Ip>>,
}

impl Tun {
    pub fn new(file: OwnedFd, mtu: MtuWatcher) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays open, and is the same descriptor, until the `AsyncFd` drops it.
        let file = Arc::new(unsafe { AsyncFd::register(file) }?);
        Ok(Self {
            file,
            mtu,
            spare: None,
            taken: Vec::with_capacity(BATCH),
        })
    }
}

impl Clone for Tun {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            mtu: self.mtu.clone(),
            spare: None,
            taken: Vec::with_capacity(BATCH),
        }
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let packet = packet.into_bytes();
        loop {
            let mut ready = self.file.writable().await?;
            match ready.try_io(|file| write(file.get_ref(), &packet)) {
                Ok(Err(error)) if is_gone(&error) => return Err(error),
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
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        self.taken.clear();
        while self.taken.is_empty() {
            let mut ready = self.file.readable().await?;
            while self.taken.len() < BATCH {
                let mut packet = self.spare.take().unwrap_or_else(|| pool.get());
                match ready.try_io(|file| read(file.get_ref(), &mut packet)) {
                    Ok(Ok(length)) => {
                        packet.truncate(length);
                        self.taken.extend(packet.try_into_ip().ok());
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(_would_block) => {
                        self.spare = Some(packet);
                        break;
                    }
                }
            }
        }
        Ok(self.taken.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone()
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::EBADFD | libc::ENODEV)
    )
}

fn read(file: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open; pointer and length are those of `buffer`.
    let result = unsafe { libc::read(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the descriptor is open; pointer and length are those of `bytes`, which the kernel only reads.
    let result = unsafe { libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
