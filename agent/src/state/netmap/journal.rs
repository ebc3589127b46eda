//! Lines with checksums, and what is appended to a kept netmap.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::MAX_NETMAP;

/// A message that has changed the netmap: a line of its checksum and itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record<'a> {
    pub generation: u64,
    /// Seconds since the epoch, by our clock.
    pub saved: i64,
    /// The server's clock minus ours, in seconds.
    pub clock_offset: Option<i64>,
    #[serde(borrow)]
    pub message: &'a RawValue,
}

impl<'a> Record<'a> {
    /// `None` if it is not what was written.
    pub fn read(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n")?;
        let (checksum, text) = line.split_at_checked(64)?;
        let text = text.strip_prefix(b" ")?;
        let is_whole = hex::encode(Sha256::digest(text)).as_bytes() == checksum;
        serde_json::from_slice(text).ok().filter(|_| is_whole)
    }
}

/// A line to be appended. `message` is JSON on one line.
pub fn record(
    generation: u64,
    message: &[u8],
    clock_offset: Option<time::Duration>,
    clock: OffsetDateTime,
) -> Vec<u8> {
    let head = format!(
        "{{\"generation\":{generation},\"saved\":{},\"clock_offset\":{},\"message\":",
        clock.unix_timestamp(),
        clock_offset.map_or_else(
            || "null".to_owned(),
            |offset| offset.whole_seconds().to_string()
        ),
    );
    let text = [head.as_bytes(), message, b"}"].concat();
    [
        hex::encode(Sha256::digest(&text)).as_bytes(),
        b" ",
        &text,
        b"\n",
    ]
    .concat()
}

/// Counts and hashes what it passes on, and passes on no more than may be kept.
pub(super) struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            size: 0,
        }
    }

    pub fn finish(self) -> (W, [u8; 32], u64) {
        (self.to, self.hash.finalize().into(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > MAX_NETMAP as u64 {
            let why = format!("it is larger than {} MB", MAX_NETMAP >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
