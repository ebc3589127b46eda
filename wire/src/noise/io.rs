use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{Channel, Early, Initiator, read_early};
use crate::key::ChallengePublic;

const READ_CHUNK: usize = 16 << 10;
/// Sealed bytes that may wait for the transport; beyond it, writes wait too.
const WRITE_LIMIT: usize = 64 << 10;

/// The plain stream inside a [`Channel`] over any transport.
#[derive(Debug)]
pub struct NoiseStream<S> {
    transport: S,
    channel: Channel,
    sealed_in: BytesMut,
    plain: Bytes,
    sealed_out: BytesMut,
}

impl<S> NoiseStream<S> {
    /// `leftover`: what was read from the transport beyond the handshake.
    pub fn new(transport: S, channel: Channel, leftover: &[u8]) -> Self {
        Self {
            transport,
            channel,
            sealed_in: leftover.into(),
            plain: Bytes::new(),
            sealed_out: BytesMut::new(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// The client's second half: reads the server's answer and the early payload. What follows is HTTP/2.
    ///
    /// `leftover`: what was read from the transport beyond the HTTP response.
    pub async fn connect(
        mut transport: S,
        initiator: Initiator,
        leftover: &[u8],
    ) -> io::Result<(Self, Option<ChallengePublic>)> {
        let mut received = BytesMut::from(leftover);
        while received.len() < Initiator::needs(&received) {
            if transport.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = received.split_off(Initiator::needs(&received));
        let channel = initiator.finish(&received)?;
        let mut stream = Self::new(transport, channel, &rest);
        let mut early = BytesMut::new();
        let challenge = loop {
            match read_early(&mut early)? {
                Early::Incomplete if stream.read_buf(&mut early).await? == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Early::Incomplete => {}
                Early::Absent => break None,
                Early::Present(challenge) => break challenge,
            }
        };
        // What was decrypted beyond the early payload comes before what has not been read of the last record.
        early.extend_from_slice(&stream.plain);
        stream.plain = early.freeze();
        Ok((stream, challenge))
    }
}

impl<S: AsyncRead + Unpin> NoiseStream<S> {
    /// Waits for a record of the other side that opens, and leaves it to be read. A server has to: an initiation may be
    /// another client's, sent again by somebody who has no key, and who can make no record.
    ///
    /// # Errors
    /// The other side closes the stream, or sends something else first.
    pub async fn proven(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_plain(cx)).await?;
        if self.plain.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Opens the next record when all of the last has been read. None is there at the end of the stream.
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.plain.is_empty() {
            if let Some(plain) = self.channel.open(&mut self.sealed_in)? {
                self.plain = plain;
                break;
            }
            self.sealed_in.reserve(READ_CHUNK);
            if ready!(poll_read_buf(
                Pin::new(&mut self.transport),
                cx,
                &mut self.sealed_in
            ))? == 0
            {
                let clean = self.sealed_in.is_empty();
                return Poll::Ready(if clean {
                    Ok(())
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                });
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_plain(cx))?;
        let taken = this.plain.len().min(out.remaining());
        out.put_slice(&this.plain.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

fn poll_read_buf<S: AsyncRead>(
    transport: Pin<&mut S>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    tokio_util::io::poll_read_buf(transport, cx, buffer)
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed_out.is_empty() {
            let written = ready!(Pin::new(&mut self.transport).poll_write(cx, &self.sealed_out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed_out.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        plain: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.sealed_out.len() >= WRITE_LIMIT {
            ready!(this.poll_drain(cx))?;
        }
        let taken = plain.len().min(WRITE_LIMIT);
        this.channel.seal(&plain[..taken], &mut this.sealed_out)?;
        // What the transport does not take now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
