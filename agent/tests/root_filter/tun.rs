//! A TUN device in a network namespace of the calling thread.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// How long a condition may take to come true.
pub const SOON: Duration = Duration::from_secs(10);

/// Gives the calling thread a network namespace of its own, which goes with it.
pub fn fresh_namespace() {
    // SAFETY: changes only the calling thread, and takes no pointers.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        result,
        0,
        "unshare: {} (root?)",
        std::io::Error::last_os_error()
    );
    sh("ip link set lo up");
}

/// Gives the calling thread a mount namespace of its own, whose mounts nobody else sees.
pub fn fresh_mounts() {
    // SAFETY: changes only the calling thread, and takes no pointers.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
    sh("mount --make-rprivate /");
}

/// Runs a shell command in the calling thread's namespaces.
pub fn sh(command: &str) {
    let output = Command::new("sh")
        .arg("-ec")
        .arg(command)
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `struct virtio_net_hdr`, where it says how many bytes of the packet come first.
const VNET_HEADER: usize = 10;
const VNET_LINEAR: usize = 2;

/// A packet that the kernel is to keep in pieces, only so many bytes in the first. It does so with packets larger than a page.
fn split(packet: &[u8], linear: u16) -> Vec<u8> {
    let mut out = vec![0; VNET_HEADER];
    out[VNET_LINEAR..][..2].copy_from_slice(&linear.to_ne_bytes());
    out.extend(packet);
    out
}

/// A device; it goes when this is dropped.
pub struct Tun {
    file: File,
    pub name: String,
    pub index: u32,
}

impl Tun {
    /// Down, without addresses.
    pub fn new(name: &str) -> Self {
        Self::with_flags(name, 0)
    }

    /// The same for [`Self::send_split`].
    pub fn for_split_packets(name: &str) -> Self {
        Self::with_flags(name, libc::IFF_VNET_HDR)
    }

    fn with_flags(name: &str, flags: libc::c_int) -> Self {
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("/dev/net/tun");
        // SAFETY: zeroes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | flags) as i16;
        // SAFETY: the descriptor is open, and the request lives during the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
        assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        let c_name = CString::new(name).expect("a name");
        // SAFETY: a nul-terminated string that lives during the call.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        Self {
            file,
            name: name.to_owned(),
            index,
        }
    }

    /// Up, with an address and quiet.
    pub fn up(&self, address: &str) {
        let name = &self.name;
        let quiet = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        let _ = fs::write(quiet, "1");
        sh(&format!(
            "ip addr add {address} dev {name}; ip link set {name} up"
        ));
    }

    /// A packet from the peer.
    pub fn send(&self, packet: &[u8]) {
        self.try_send(packet).expect("write to the TUN");
    }

    /// The same; the kernel refuses what is empty or of no IP version.
    pub fn try_send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write_all(packet)
    }

    /// A packet from the peer that the kernel keeps in pieces.
    pub fn send_split(&self, packet: &[u8], linear: u16) {
        self.send(&split(packet, linear));
    }

    /// What this host sent to the peer, if anything.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        match (&self.file).read(buffer) {
            Ok(length) => Some(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("read from the TUN: {error}"),
        }
    }

    /// A packet of this host's, past its IP layer: any bytes at all.
    pub fn try_send_out(&self, packet: &[u8]) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        self.send_by(&socket, packet, packet)
    }

    /// The same with a packet that the kernel keeps in pieces.
    pub fn try_send_out_split(&self, packet: &[u8], linear: u16) -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        let on: libc::c_int = 1;
        // SAFETY: the option's value is `on`, which lives through the call, with its own length.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        self.send_by(&socket, packet, &split(packet, linear))
    }

    fn send_by(&self, socket: &Socket, packet: &[u8], bytes: &[u8]) -> io::Result<()> {
        let protocol = match packet.first().map(|byte| byte >> 4) {
            Some(6) => libc::ETH_P_IPV6,
            _ => libc::ETH_P_IP,
        };
        // SAFETY: `sockaddr_ll` is plain data; all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = self.index as i32;
        // SAFETY: the pointers are to `bytes` and `address`, which live through the call, with their own lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match sent {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
