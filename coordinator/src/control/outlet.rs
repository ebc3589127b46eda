//! The answer to a poll: one message after another, each held by us until its reader takes it.
//!
//! What HTTP/2 is given it keeps until the client opens its window, and a client need not. So it is given small pieces, and
//! the rest of a message is let go of when the poll ends, whoever has not read it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{sync::Notify, time::timeout};

/// So much is beyond recall when it has been given to HTTP/2: its frames are of this size by default.
const PIECE: usize = 16 << 10;

/// Who has more than this to read yet gets no last message: a machine may have hundreds of polls end at once, each with a netmap that it hasn't read.
const MAX_BEFORE_LAST: usize = 4 * PIECE;
/// How long all that is left may take to be read when a poll ends.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Shared {
    slot: Mutex<Slot>,
    /// A piece has been taken, or the reader is gone.
    stir: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    waiting: Bytes,
    reader: Option<Waker>,
    writer_gone: bool,
    reader_gone: bool,
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The poll's end. When it is dropped, what has not been taken goes, too.
#[derive(Debug)]
pub struct Outlet(Arc<Shared>);

/// The end of the response's body.
#[derive(Debug)]
pub struct Pieces(Arc<Shared>);

/// Why a message could not be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The reader is gone.
    Gone,
    /// The message before it is still there, and no piece of it was taken for too long.
    Slow,
}

pub fn outlet() -> (Outlet, Pieces) {
    let shared = Arc::new(Shared::default());
    (Outlet(shared.clone()), Pieces(shared))
}

impl Outlet {
    /// Waits until the message before has been taken, as long as each piece of it goes within `patience`.
    pub async fn send(&self, message: Bytes, patience: Duration) -> Result<(), Unsent> {
        self.taken(patience).await?;
        let mut slot = self.0.slot();
        slot.waiting = message;
        if let Some(reader) = slot.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Waits until all that was sent has been taken, as long as each piece of it goes within `patience`.
    pub async fn taken(&self, patience: Duration) -> Result<(), Unsent> {
        loop {
            {
                let slot = self.0.slot();
                if slot.reader_gone {
                    return Err(Unsent::Gone);
                }
                if slot.waiting.is_empty() {
                    return Ok(());
                }
            }
            let stir = timeout(patience, self.0.stir.notified());
            stir.await.map_err(|_| Unsent::Slow)?;
        }
    }

    /// The last message, for a reader that keeps up; any other does without.
    pub async fn end(self, last: Bytes) {
        if self.0.slot().waiting.len() > MAX_BEFORE_LAST {
            return;
        }
        let told = async {
            self.send(last, LAST_PATIENCE).await?;
            // What has not been taken goes with the poll.
            self.taken(LAST_PATIENCE).await
        };
        let _ = timeout(LAST_PATIENCE, told).await;
    }

    /// Waits until the reader is gone.
    pub async fn closed(&self) {
        while !self.0.slot().reader_gone {
            self.0.stir.notified().await;
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut slot = self.0.slot();
        slot.waiting = Bytes::new();
        slot.writer_gone = true;
        if let Some(reader) = slot.reader.take() {
            reader.wake();
        }
    }
}

impl Pieces {
    pub fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut slot = self.0.slot();
        if let Some(piece) = take_piece(&mut slot.waiting) {
            self.0.stir.notify_one();
            return Poll::Ready(Some(piece));
        }
        if slot.writer_gone {
            return Poll::Ready(None);
        }
        slot.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.0.slot().reader_gone = true;
        self.0.stir.notify_one();
    }
}

/// The next piece of `bytes`, which does not keep the rest in memory.
pub fn take_piece(bytes: &mut Bytes) -> Option<Bytes> {
    if bytes.len() <= PIECE {
        return Some(std::mem::take(bytes)).filter(|last| !last.is_empty());
    }
    let piece = Bytes::copy_from_slice(&bytes[..PIECE]);
    bytes.advance(PIECE);
    Some(piece)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        sync::atomic::{AtomicBool, Ordering},
    };

    use tokio::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn next(pieces: &mut Pieces) -> Option<Bytes> {
        poll_fn(|context| Pin::new(&mut *pieces).poll_next(context)).await
    }

    /// Bytes that say when nobody holds them any more.
    fn watched(length: usize) -> (Bytes, Arc<AtomicBool>) {
        struct Watched(Vec<u8>, Arc<AtomicBool>);
        impl AsRef<[u8]> for Watched {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Watched {
            fn drop(&mut self) {
                self.1.store(true, Ordering::Relaxed);
            }
        }
        let freed = Arc::new(AtomicBool::new(false));
        let bytes = Bytes::from_owner(Watched(vec![7; length], freed.clone()));
        (bytes, freed)
    }

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order() {
        let (outlet, mut pieces) = outlet();
        let messages = [vec![1; 3 * PIECE + 5], vec![2; 1], vec![3; PIECE]];
        let wanted = messages.concat();
        let writing = tokio::spawn(async move {
            for message in messages {
                outlet.send(message.into(), PATIENCE).await.unwrap();
            }
            outlet.closed().await;
        });
        let mut got = Vec::new();
        while got.len() < wanted.len() {
            got.extend_from_slice(&next(&mut pieces).await.unwrap());
        }
        assert_eq!(got, wanted);
        drop(pieces);
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_piece_after_piece_is_waited_for_and_who_does_not_is_slow() {
        let (outlet, mut pieces) = outlet();
        outlet
            .send(vec![0; 4 * PIECE].into(), PATIENCE)
            .await
            .unwrap();
        {
            let mut second = pin!(outlet.send(vec![1; 1].into(), PATIENCE));
            for _ in 0..4 {
                let wait = timeout(PATIENCE * 2 / 3, second.as_mut());
                assert!(wait.await.is_err(), "still waiting for the first to go");
                next(&mut pieces).await.unwrap();
            }
            assert_eq!(second.await, Ok(()));
        }
        let third = outlet.send(vec![2; 1].into(), PATIENCE);
        assert_eq!(third.await, Err(Unsent::Slow));
    }

    #[tokio::test]
    async fn what_nobody_has_read_goes_with_the_poll() {
        let (outlet, mut pieces) = outlet();
        let (message, freed) = watched(10 * PIECE);
        outlet.send(message, PATIENCE).await.unwrap();
        let piece = next(&mut pieces).await.unwrap();
        assert!(!freed.load(Ordering::Relaxed));
        drop(outlet);
        assert!(
            freed.load(Ordering::Relaxed),
            "{} bytes pin it",
            piece.len()
        );
        assert_eq!(next(&mut pieces).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_gets_the_last_message() {
        let (outlet, mut pieces) = outlet();
        let before = vec![1; MAX_BEFORE_LAST];
        outlet.send(before.clone().into(), PATIENCE).await.unwrap();
        let ending = tokio::spawn(outlet.end(vec![2; PIECE + 1].into()));
        let mut got = Vec::new();
        while let Some(piece) = next(&mut pieces).await {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, [before, vec![2; PIECE + 1]].concat());
        ending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_kept_little_and_only_for_a_moment() {
        for (length, patience) in [
            (MAX_BEFORE_LAST + 1, Duration::ZERO),
            (MAX_BEFORE_LAST, LAST_PATIENCE),
        ] {
            let (outlet, _pieces) = outlet();
            let (message, freed) = watched(length);
            outlet.send(message, PATIENCE).await.unwrap();
            let began = Instant::now();
            outlet.end(vec![2; 1].into()).await;
            // Timers are exact to the millisecond.
            let late = began.elapsed() - patience;
            assert!(late <= Duration::from_millis(2), "{length} bytes: {late:?}");
            assert!(freed.load(Ordering::Relaxed), "{length} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_a_piece_now_and_then_is_not_waited_for_any_longer() {
        let (outlet, mut pieces) = outlet();
        let (message, freed) = watched(MAX_BEFORE_LAST);
        outlet.send(message, PATIENCE).await.unwrap();
        let began = Instant::now();
        let ending = tokio::spawn(outlet.end(vec![2; 1].into()));
        while next(&mut pieces).await.is_some() {
            tokio::time::sleep(LAST_PATIENCE * 2 / 3).await;
        }
        ending.await.unwrap();
        assert!(freed.load(Ordering::Relaxed));
        assert!(began.elapsed() < LAST_PATIENCE * 2, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_last_message_is_not_kept_for_a_reader_that_is_gone() {
        let (outlet, pieces) = outlet();
        outlet.send(vec![0; 1].into(), PATIENCE).await.unwrap();
        drop(pieces);
        let began = Instant::now();
        outlet.end(vec![2; 1].into()).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_noticed() {
        let (outlet, pieces) = outlet();
        outlet.send(vec![0; 1].into(), PATIENCE).await.unwrap();
        drop(pieces);
        outlet.closed().await;
        let sent = outlet.send(vec![0; 1].into(), PATIENCE);
        assert_eq!(sent.await, Err(Unsent::Gone));
    }
}
