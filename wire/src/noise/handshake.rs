use std::fmt;

use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

use super::Channel;
use crate::{
    Error,
    key::{MachinePrivate, MachinePublic},
};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
/// The whole initiation, as it stands in `X-Tailscale-Handshake` (in base64).
pub const INITIATION_LEN: usize = INITIATION_HEADER + INITIATION_BODY;
/// The whole response, the first bytes that a server sends.
pub const RESPONSE_LEN: usize = RESPONSE_HEADER + RESPONSE_BODY;
const INITIATION_HEADER: usize = 5;
const INITIATION_BODY: usize = 96;
const RESPONSE_HEADER: usize = 3;
const RESPONSE_BODY: usize = 48;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const ERROR: u8 = 3;
const WHAT: &str = "control channel handshake";
/// So much of a server's own words is kept.
const MAX_ERROR_TEXT: usize = 512;

/// snow's default primitives, with randomness from the caller.
struct Seeded(Zeroizing<[u8; 32]>);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.0.clone()))))
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

/// Gives its bytes away one time: IK draws one ephemeral key per side.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        let seed = self
            .0
            .take()
            .filter(|seed| seed.len() == out.len())
            .ok_or(snow::Error::Rng)?;
        out.copy_from_slice(&*seed);
        Ok(())
    }
}

fn builder<'a>(random: [u8; 32], prologue: &'a str) -> Result<Builder<'a>, snow::Error> {
    let params = PATTERN.parse().expect("snow knows the pattern");
    Builder::with_resolver(params, Box::new(Seeded(random.into()))).prologue(prologue.as_bytes())
}

fn prologue(version: u16) -> String {
    format!("Tailscale Control Protocol v{version}")
}

fn failed(_: snow::Error) -> Error {
    Error::Seal { what: WHAT }
}

/// The client's half of a handshake, between its two messages.
pub struct Initiator(HandshakeState);

impl Initiator {
    /// Begins a handshake; the bytes go to the server in the upgrade request.
    ///
    /// `version` is the capability version, `ephemeral_random` 32 bytes from a secure source.
    pub fn new(
        version: u16,
        machine: &MachinePrivate,
        control: &MachinePublic,
        ephemeral_random: [u8; 32],
    ) -> Result<(Self, Vec<u8>), Error> {
        let (prologue, private) = (prologue(version), Zeroizing::new(machine.to_bytes()));
        let mut state = builder(ephemeral_random, &prologue)
            .and_then(|builder| {
                builder
                    .local_private_key(&*private)?
                    .remote_public_key(control.as_bytes())?
                    .build_initiator()
            })
            .map_err(failed)?;
        let mut message = vec![0; INITIATION_LEN];
        message[..2].copy_from_slice(&version.to_be_bytes());
        message[2] = INITIATION;
        message[3..5].copy_from_slice(&(INITIATION_BODY as u16).to_be_bytes());
        state
            .write_message(&[], &mut message[INITIATION_HEADER..])
            .map_err(failed)?;
        Ok((Self(state), message))
    }

    /// How many bytes of the server's answer [`Self::finish`] needs, judged by as many as have arrived: ask again when
    /// there are more.
    pub fn needs(received: &[u8]) -> usize {
        match received {
            [ERROR, high, low, ..] => {
                RESPONSE_HEADER + usize::from(u16::from_be_bytes([*high, *low])).min(MAX_ERROR_TEXT)
            }
            [_, _, _, ..] => RESPONSE_LEN,
            _ => RESPONSE_HEADER,
        }
    }

    /// Ends the handshake with the server's answer: its response, or an error frame.
    pub fn finish(mut self, answer: &[u8]) -> Result<Channel, Error> {
        if let [ERROR, _, _, text @ ..] = answer {
            let text = String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_TEXT)]);
            return Err(Error::Refused(
                text.chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect(),
            ));
        }
        let body = match answer {
            [RESPONSE, 0, 48, body @ ..] if body.len() == RESPONSE_BODY => body,
            _ => {
                return Err(Error::Malformed {
                    what: WHAT,
                    why: "the server's answer is no response",
                });
            }
        };
        self.0.read_message(body, &mut []).map_err(failed)?;
        let (mut send, mut receive) = self.0.dangerously_get_raw_split();
        let channel = Channel::new(send, receive);
        send.zeroize();
        receive.zeroize();
        Ok(channel)
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator(redacted)")
    }
}

/// Who is at the other end, proven by the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub machine: MachinePublic,
    /// The capability version that it claims.
    pub version: u16,
}

/// The server's whole half. The response goes to the client before anything that the channel seals.
///
/// # Errors
/// When the initiation is no such thing; [`error_frame`] tells the client.
pub fn respond(
    initiation: &[u8],
    control: &MachinePrivate,
    ephemeral_random: [u8; 32],
) -> Result<(Peer, Vec<u8>, Channel), Error> {
    let &[high, low, INITIATION, 0, 96, ref body @ ..] = initiation else {
        return Err(Error::Malformed {
            what: WHAT,
            why: "not an initiation",
        });
    };
    if body.len() != INITIATION_BODY {
        return Err(Error::Malformed {
            what: WHAT,
            why: "an initiation has 101 bytes",
        });
    }
    let version = u16::from_be_bytes([high, low]);
    let (prologue, private) = (prologue(version), Zeroizing::new(control.to_bytes()));
    let mut state = builder(ephemeral_random, &prologue)
        .and_then(|builder| builder.local_private_key(&*private)?.build_responder())
        .map_err(failed)?;
    state.read_message(body, &mut []).map_err(failed)?;
    let machine = state
        .get_remote_static()
        .and_then(|key| key.try_into().ok());
    let machine = MachinePublic::from_bytes(
        machine.expect("IK's first message carries the initiator's static key"),
    );
    let mut response = vec![0; RESPONSE_LEN];
    response[0] = RESPONSE;
    response[1..3].copy_from_slice(&(RESPONSE_BODY as u16).to_be_bytes());
    state
        .write_message(&[], &mut response[RESPONSE_HEADER..])
        .map_err(failed)?;
    let (mut receive, mut send) = state.dangerously_get_raw_split();
    let channel = Channel::new(send, receive);
    send.zeroize();
    receive.zeroize();
    Ok((Peer { machine, version }, response, channel))
}

/// What a server answers to a bad initiation: cleartext, so a hint and no more.
pub fn error_frame(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(MAX_ERROR_TEXT)];
    let mut frame = vec![ERROR];
    frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    frame.extend_from_slice(text);
    frame
}
