//! The control channel: Noise IK with Tailscale's records around it (protocol.md 1.4, 1.5).
//!
//! Handshake by snow; records by hand, because their nonces are big-endian where the Noise specification says little.

mod early;
mod handshake;
#[cfg(feature = "io")]
mod io;

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, KeyInit, Nonce, Tag};
pub use early::{EARLY_HEADER_LEN, Early, early_payload, read_early};
pub use handshake::{INITIATION_LEN, Initiator, Peer, RESPONSE_LEN, error_frame, respond};
#[cfg(feature = "io")]
pub use io::NoiseStream;

use crate::Error;

const RECORD: u8 = 4;
const HEADER_LEN: usize = 3;
const TAG_LEN: usize = 16;
const MAX_FRAME: usize = 4096;
/// What fits one record.
pub const MAX_PLAINTEXT: usize = MAX_FRAME - HEADER_LEN - TAG_LEN;
const WHAT: &str = "control channel record";

/// The two directions of an established channel. After an error it is unusable.
pub struct Channel {
    send: Direction,
    receive: Direction,
}

struct Direction {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl Direction {
    fn new(key: [u8; 32]) -> Self {
        Self {
            cipher: ChaCha20Poly1305::new(&key.into()),
            counter: 0,
        }
    }

    /// The last counter value is reserved: it marks the end.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        if self.counter == u64::MAX {
            return Err(Error::Malformed {
                what: WHAT,
                why: "the channel has run out of nonces, reconnect",
            });
        }
        let mut nonce = Nonce::default();
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        self.counter += 1;
        Ok(nonce)
    }
}

impl Channel {
    fn new(send: [u8; 32], receive: [u8; 32]) -> Self {
        Self {
            send: Direction::new(send),
            receive: Direction::new(receive),
        }
    }

    /// Appends records with all of `plain` to `out`.
    pub fn seal(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        for chunk in plain.chunks(MAX_PLAINTEXT) {
            let nonce = self.send.nonce()?;
            out.reserve(HEADER_LEN + chunk.len() + TAG_LEN);
            out.extend_from_slice(&[RECORD]);
            out.extend_from_slice(&((chunk.len() + TAG_LEN) as u16).to_be_bytes());
            let start = out.len();
            out.extend_from_slice(chunk);
            let tag = self
                .send
                .cipher
                .encrypt_in_place_detached(&nonce, &[], &mut out[start..])
                .map_err(|_| Error::Seal { what: WHAT })?;
            out.extend_from_slice(&tag);
        }
        Ok(())
    }

    /// Takes the next record off the front of `input`; `None` until one is complete. Never returns an empty plaintext.
    pub fn open(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(&[kind, high, low]) = input.first_chunk::<HEADER_LEN>() else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if kind != RECORD {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "not a record",
                });
            }
            if length > MAX_FRAME - HEADER_LEN {
                return Err(Error::Long {
                    what: WHAT,
                    limit: MAX_FRAME - HEADER_LEN,
                    got: length,
                });
            }
            if length < TAG_LEN {
                return Err(Error::Short {
                    what: WHAT,
                    need: TAG_LEN,
                    got: length,
                });
            }
            if input.len() < HEADER_LEN + length {
                return Ok(None);
            }
            input.advance(HEADER_LEN);
            let mut plain = input.split_to(length);
            let tag = plain.split_off(length - TAG_LEN);
            let nonce = self.receive.nonce()?;
            self.receive
                .cipher
                .decrypt_in_place_detached(&nonce, &[], &mut plain, Tag::from_slice(&tag))
                .map_err(|_| Error::Seal { what: WHAT })?;
            if !plain.is_empty() {
                return Ok(Some(plain.freeze()));
            }
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("sent", &self.send.counter)
            .field("received", &self.receive.counter)
            .finish()
    }
}
