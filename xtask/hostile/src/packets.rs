//! Datagrams by hand: with any source address, and WireGuard's first message.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use blake2::{
    Blake2s256, Blake2sMac, Digest as _,
    digest::{Mac as _, consts::U16},
};
use lowroad_wire::key::{NodePrivate, NodePublic};
use snow::{
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};
use socket2::{Domain, Protocol, Socket, Type};

const INITIATION: usize = 148;

/// Sends UDP over IPv4 from addresses that are not ours.
pub struct Spoofer(Socket);

impl Spoofer {
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.set_header_included_v4(true)?;
        Ok(Self(socket))
    }

    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let length = (28 + payload.len()) as u16;
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&length.to_be_bytes());
        // Identification, no fragments, TTL, UDP; the kernel fills in the checksum.
        packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend_from_slice(&from.ip().octets());
        packet.extend_from_slice(&to.ip().octets());
        packet.extend_from_slice(&from.port().to_be_bytes());
        packet.extend_from_slice(&to.port().to_be_bytes());
        packet.extend_from_slice(&(length - 20).to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(payload);
        self.0.send_to(&packet, &to.into()).map(drop)
    }
}

/// Any address of the lab's public segment that nobody has: 203.0.113.100 to .249.
pub fn anybody() -> SocketAddrV4 {
    let address = Ipv4Addr::new(203, 0, 113, rand::random_range(100..250));
    SocketAddrV4::new(address, rand::random_range(1024..60_000))
}

/// An initiation that passes the first check, which anybody can compute, and is random otherwise: it costs a curve multiplication.
pub fn random_initiation(to: &NodePublic) -> Vec<u8> {
    let mut message = vec![1, 0, 0, 0];
    message.extend((4..INITIATION - 32).map(|_| rand::random::<u8>()));
    finish(message, to)
}

/// A true initiation: the victim answers it.
pub fn own_initiation(own: &NodePrivate, to: &NodePublic) -> Result<Vec<u8>> {
    let private = own.to_bytes();
    let pattern = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse()?;
    let mut state = snow::Builder::with_resolver(pattern, Box::new(Seeded))
        .prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com")?
        .local_private_key(&private)?
        .remote_public_key(to.as_bytes())?
        .psk(2, &[0; 32])?
        .build_initiator()?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("before 1970")?;
    let mut timestamp = (0x4000_0000_0000_000a + now.as_secs())
        .to_be_bytes()
        .to_vec();
    timestamp.extend_from_slice(&now.subsec_nanos().to_be_bytes());
    let mut message = vec![0; INITIATION];
    let length = state.write_message(&timestamp, &mut message[8..])?;
    message.truncate(8 + length);
    message[0] = 1;
    message[4..8].copy_from_slice(&rand::random::<[u8; 4]>());
    Ok(finish(message, to))
}

/// snow's primitives; the workspace builds it without a source of randomness.
struct Seeded;

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Fill))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Fill;

impl Random for Fill {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        out.fill_with(rand::random);
        Ok(())
    }
}

/// The first of the two checksums; the second is asked for under load only.
fn finish(mut message: Vec<u8>, to: &NodePublic) -> Vec<u8> {
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(to.as_bytes())
        .finalize();
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.update(&message);
    message.extend_from_slice(&mac.finalize().into_bytes());
    message.resize(INITIATION, 0);
    message
}
