use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{Error, key::ChallengePublic};

/// Cannot begin an HTTP/2 frame.
const MAGIC: [u8; 5] = *b"\xff\xff\xffTS";
/// So much has to be read to know whether there is an early payload.
pub const EARLY_HEADER_LEN: usize = 9;
/// The JSON takes 90 bytes; stock clients take up to 10 MiB.
const LIMIT: usize = 64 << 10;
const WHAT: &str = "early payload";

#[derive(Serialize, Deserialize)]
struct Json {
    #[serde(rename = "nodeKeyChallenge")]
    challenge: Option<ChallengePublic>,
}

/// What the server says first on the channel.
pub fn early_payload(challenge: &ChallengePublic) -> Vec<u8> {
    let json = serde_json::to_vec(&Json {
        challenge: Some(*challenge),
    })
    .expect("a key serialises");
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(json.len() as u32).to_be_bytes());
    out.extend_from_slice(&json);
    out
}

/// What stands at the beginning of the decrypted stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// Not enough to tell: read on.
    Incomplete,
    /// HTTP/2 begins at once; nothing was taken.
    Absent,
    /// It was taken off; HTTP/2 begins after it.
    Present(Option<ChallengePublic>),
}

/// Takes the early payload off the front of the client's decrypted stream, if it is there.
pub fn read_early(stream: &mut BytesMut) -> Result<Early, Error> {
    let known = stream.len().min(MAGIC.len());
    if stream[..known] != MAGIC[..known] {
        return Ok(Early::Absent);
    }
    let Some(&[.., a, b, c, d]) = stream.first_chunk::<EARLY_HEADER_LEN>() else {
        return Ok(Early::Incomplete);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LIMIT {
        return Err(Error::Long {
            what: WHAT,
            limit: LIMIT,
            got: length,
        });
    }
    if stream.len() < EARLY_HEADER_LEN + length {
        return Ok(Early::Incomplete);
    }
    stream.advance(EARLY_HEADER_LEN);
    let json: Json = serde_json::from_slice(&stream.split_to(length))
        .map_err(|source| Error::Json { what: WHAT, source })?;
    Ok(Early::Present(json.challenge))
}
