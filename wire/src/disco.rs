//! Disco: the messages that find paths (protocol.md 3), sealed between two disco keys.

mod message;

use std::{fmt, sync::Arc};

use crypto_box::{
    SalsaBox,
    aead::{AeadInPlace, generic_array::GenericArray},
};
pub use message::{AllocateRelay, Bind, MAX_ENDPOINTS, Message, Ping, RelayEndpoint};

use crate::{
    Error,
    bytes::Reader,
    key::{DiscoPrivate, DiscoPublic},
};

/// "TS" and a speech bubble.
pub const MAGIC: [u8; 6] = *b"TS\xf0\x9f\x92\xac";
const HEADER_LEN: usize = MAGIC.len() + 32 + 24;
const TAG_LEN: usize = 16;

/// Matches an answer to its question; random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

/// Whether the bytes claim to be a disco message; also what a DERP server judges by.
pub fn looks_like(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN && datagram.starts_with(&MAGIC)
}

/// What two disco keys have in common: computed once per peer, used for every message in both directions.
#[derive(Clone)]
pub struct SharedKey(Arc<SalsaBox>);

impl SharedKey {
    pub fn new(own: &DiscoPrivate, peer: &DiscoPublic) -> Self {
        Self(Arc::new(salsa_box(own.to_bytes(), *peer.as_bytes())))
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(redacted)")
    }
}

/// NaCl's crypto_box: X25519, XSalsa20, Poly1305.
pub(crate) fn salsa_box(own: [u8; 32], peer: [u8; 32]) -> SalsaBox {
    SalsaBox::new(
        &crypto_box::PublicKey::from(peer),
        &crypto_box::SecretKey::from(own),
    )
}

/// Tag, then ciphertext.
pub(crate) fn seal_into(key: &SalsaBox, nonce: &[u8; 24], plain: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; TAG_LEN]);
    out.extend_from_slice(plain);
    let tag = key
        .encrypt_in_place_detached(
            GenericArray::from_slice(nonce),
            &[],
            &mut out[start + TAG_LEN..],
        )
        .expect("XSalsa20 takes messages of any length that fits memory");
    out[start..start + TAG_LEN].copy_from_slice(&tag);
}

/// What [`seal_into`] sealed.
pub(crate) fn open_box(
    key: &SalsaBox,
    what: &'static str,
    nonce: &[u8; 24],
    sealed: &[u8],
) -> Result<Vec<u8>, Error> {
    let Some((tag, ciphertext)) = sealed.split_first_chunk::<TAG_LEN>() else {
        return Err(Error::Short {
            what,
            need: TAG_LEN,
            got: sealed.len(),
        });
    };
    let mut plain = ciphertext.to_vec();
    key.decrypt_in_place_detached(
        GenericArray::from_slice(nonce),
        &[],
        &mut plain,
        GenericArray::from_slice(tag),
    )
    .map_err(|_| Error::Seal { what })?;
    Ok(plain)
}

/// A message on the wire: who sent it can be read, what it says can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Unproven until [`open`] has opened it.
    pub sender: DiscoPublic,
    pub nonce: [u8; 24],
    pub sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new("disco packet", datagram);
        if reader.array()? != MAGIC {
            return Err(Error::Malformed {
                what: "disco packet",
                why: "no disco magic",
            });
        }
        let sender = DiscoPublic::from_bytes(reader.array()?);
        let nonce = reader.array()?;
        Ok(Self {
            sender,
            nonce,
            sealed: reader.rest(),
        })
    }
}

/// A packet to send. `nonce` has to be random, and never the same twice.
pub fn seal(sender: DiscoPublic, key: &SharedKey, nonce: [u8; 24], message: &Message) -> Vec<u8> {
    let plain = message.encode();
    let mut out = Vec::with_capacity(HEADER_LEN + TAG_LEN + plain.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(sender.as_bytes());
    out.extend_from_slice(&nonce);
    seal_into(&key.0, &nonce, &plain, &mut out);
    out
}

/// The message in an envelope; `key` is the one shared with its sender.
pub fn open(envelope: &Envelope<'_>, key: &SharedKey) -> Result<Message, Error> {
    let plain = open_box(&key.0, "disco packet", &envelope.nonce, envelope.sealed)?;
    Message::parse(&plain)
}
