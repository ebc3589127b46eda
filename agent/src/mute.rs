//! Servers of tests that fall silent, or say a byte a second for ever, and clients that wait for them.
//!
//! All that is said on sockets is said in real time. Once nobody has anything to say any more, time is paused, and passes at once.

use std::{fmt::Debug, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, pause, resume, sleep, timeout},
};

/// Nothing that is said in real time takes longer, on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The clock of timers goes by milliseconds.
const TICKS: Duration = Duration::from_millis(5);

/// What such a server does once it has come so far.
#[derive(Clone, Copy, Debug)]
pub enum Voice {
    Silent,
    Trickle,
}

/// A server of which every connection ends up at the same stage.
pub struct Mute {
    pub address: SocketAddr,
    /// Of each connection: that it is there, and that the client has closed it.
    reached: mpsc::UnboundedReceiver<()>,
    closed: mpsc::UnboundedReceiver<()>,
}

/// Told when a connection has come to its stage.
#[derive(Clone)]
pub struct Stage {
    voice: Voice,
    reach: mpsc::UnboundedSender<()>,
    close: mpsc::UnboundedSender<()>,
}

impl Mute {
    /// Each connection is brought to its stage by `serve`.
    pub async fn start<F>(
        voice: Voice,
        serve: impl Fn(TcpStream, Stage) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reach, reached) = mpsc::unbounded_channel();
        let (close, closed) = mpsc::unbounded_channel();
        let stage = Stage {
            voice,
            reach,
            close,
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, stage.clone()));
            }
        });
        Self {
            address,
            reached,
            closed,
        }
    }

    pub async fn until_reached(&mut self) {
        let reached = timeout(PATIENCE, self.reached.recv()).await;
        reached.expect("the client comes").unwrap();
    }

    pub async fn until_closed(&mut self) {
        let closed = timeout(PATIENCE, self.closed.recv()).await;
        closed.expect("the client closes its connection").unwrap();
    }
}

impl Stage {
    /// Says nothing more, or `rest` a byte a second, until the client closes the connection.
    pub async fn reached(
        self,
        stream: impl AsyncRead + AsyncWrite,
        rest: impl Iterator<Item = u8>,
    ) {
        let _ = self.reach.send(());
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let speaks = async {
            for byte in rest {
                match self.voice {
                    Voice::Silent => std::future::pending().await,
                    Voice::Trickle => sleep(Duration::from_secs(1)).await,
                }
                if writer.write_u8(byte).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            _ = reader.read_to_end(&mut heard) => {}
            () = speaks => {}
        }
        let _ = self.close.send(());
    }
}

/// Everybody takes what has come: on loopback nothing is under way for longer than that.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Nobody says more than that from now on. What a client does at the bound, it does neither sooner nor later: it has not begun to wait before `since`, but now it
/// waits.
pub async fn at_its_bound<T: Debug>(
    since: Instant,
    bound: Duration,
    does: impl Future<Output = T>,
) -> T {
    settle().await;
    pause();
    let begun = Instant::now();
    let done = timeout(2 * bound, does).await.expect("there is a bound");
    let (waited, at_most) = (begun.elapsed(), since.elapsed());
    resume();
    assert!(waited <= bound + TICKS, "after {waited:?}: {done:?}");
    assert!(at_most >= bound, "after {at_most:?} already: {done:?}");
    done
}
