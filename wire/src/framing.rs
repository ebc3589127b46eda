//! Map messages on their stream: a little-endian length, then JSON, or one zstd frame of it (protocol.md 1.7).

use std::io::Read as _;

use bytes::{Buf, Bytes, BytesMut};

use crate::Error;

/// What a server sends to say only that it is there. Stock clients compare its compressed bytes, so send exactly this.
pub const KEEP_ALIVE: &[u8] = br#"{"KeepAlive":true}"#;

/// No message on the wire is longer; a netmap of 10,000 peers takes about 2 MiB compressed, 20 MiB plain.
pub const MAX_MESSAGE: usize = 48 << 20;
/// No message decompresses to more.
pub const MAX_JSON: usize = 64 << 20;
/// No frame may ask for a larger window than 32 MiB; stock servers use at most 8.
const MAX_WINDOW_LOG: u32 = 25;
/// Netmaps are sent often and read once: speed before size.
const LEVEL: i32 = 1;

const WHAT: &str = "map message";
const PREFIX: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Zstd,
}

impl Compression {
    /// What a MapRequest's `Compress` asks for.
    pub fn from_request(compress: &str) -> Self {
        if compress == "zstd" {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// A whole message, with its length in front.
pub fn encode(json: &[u8], compression: Compression) -> Result<Bytes, Error> {
    let compressed = match compression {
        Compression::None => None,
        Compression::Zstd => Some(zstd::bulk::compress(json, LEVEL).map_err(Error::Zstd)?),
    };
    let body = compressed.as_deref().unwrap_or(json);
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length as usize <= MAX_MESSAGE);
    let length = length.ok_or(Error::Long {
        what: WHAT,
        limit: MAX_MESSAGE,
        got: body.len(),
    })?;
    let mut out = Vec::with_capacity(PREFIX + body.len());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(body);
    Ok(out.into())
}

/// Cuts a stream into messages.
///
/// After each [`Self::push`], call [`Self::next_message`] until it returns `None`. After an error the stream is lost.
#[derive(Debug)]
pub struct MessageReader {
    compression: Compression,
    buffer: BytesMut,
}

impl MessageReader {
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            buffer: BytesMut::new(),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether [`Self::next_message`] has a message to unpack, which takes a while where it is long.
    pub fn is_complete(&self) -> bool {
        let prefix = self.buffer.first_chunk::<PREFIX>();
        prefix.is_some_and(|prefix| {
            let length = u32::from_le_bytes(*prefix) as usize;
            length <= MAX_MESSAGE && self.buffer.len() >= PREFIX + length
        })
    }

    /// The JSON of the next message, once it is complete.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(Error::Long {
                what: WHAT,
                limit: MAX_MESSAGE,
                got: length,
            });
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let body = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // What is left of it would keep the whole message's room, as long as the stream lasts.
            self.buffer = BytesMut::new();
        }
        match self.compression {
            Compression::None => Ok(Some(body)),
            Compression::Zstd => decompress(&body).map(Some),
        }
    }
}

fn decompress(body: &[u8]) -> Result<Bytes, Error> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body)
        .map_err(Error::Zstd)?
        .single_frame();
    decoder
        .window_log_max(MAX_WINDOW_LOG)
        .map_err(Error::Zstd)?;
    let mut json = Vec::new();
    decoder
        .take(MAX_JSON as u64 + 1)
        .read_to_end(&mut json)
        .map_err(Error::Zstd)?;
    if json.len() > MAX_JSON {
        return Err(Error::Long {
            what: "decompressed map message",
            limit: MAX_JSON,
            got: json.len(),
        });
    }
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(reader: &mut MessageReader) -> Vec<Bytes> {
        std::iter::from_fn(|| reader.next_message().unwrap()).collect()
    }

    #[test]
    fn messages_come_out_however_the_stream_is_cut() {
        for compression in [Compression::None, Compression::Zstd] {
            let stream = [
                encode(b"{}", compression).unwrap(),
                encode(KEEP_ALIVE, compression).unwrap(),
            ]
            .concat();
            let mut reader = MessageReader::new(compression);
            let mut got = Vec::new();
            for byte in stream {
                reader.push(&[byte]);
                got.extend(messages(&mut reader));
            }
            assert_eq!(got, [&b"{}"[..], KEEP_ALIVE]);
            assert_eq!(reader.buffer.capacity(), 0, "nothing is kept of them");
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_takes_memory() {
        let zeros = vec![0; MAX_JSON + 1];
        let bomb = encode(&zeros, Compression::Zstd).unwrap();
        assert!(bomb.len() < 100_000);
        let mut reader = MessageReader::new(Compression::Zstd);
        reader.push(&bomb);
        assert!(matches!(reader.next_message(), Err(Error::Long { .. })));

        let mut reader = MessageReader::new(Compression::None);
        reader.push(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next_message(), Err(Error::Long { .. })));
    }

    #[test]
    fn garbage_instead_of_zstd_is_an_error() {
        let mut reader = MessageReader::new(Compression::Zstd);
        reader.push(&encode(b"{\"KeepAlive\":true}", Compression::None).unwrap());
        assert!(matches!(reader.next_message(), Err(Error::Zstd(_))));
    }
}
