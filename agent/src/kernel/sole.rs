//! One agent in a network namespace: priorities of policy rules and the routing table are the same for every agent, and one's `down` would take the other's away.
//!
//! The claim is an abstract Unix socket: it belongs to the network namespace, whatever files its processes see, and goes with its owner however that ends.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::sleep;

use super::KernelError;

const NAME: &str = "lowroad";
/// An agent that has just been killed may take this long to vanish.
const PATIENCE: Duration = Duration::from_millis(1500);
const RETRY: Duration = Duration::from_millis(20);

/// This process is the namespace's agent as long as it holds this.
#[derive(Debug)]
pub(super) struct Sole(#[expect(dead_code, reason = "held, never asked")] Option<UnixListener>);

/// Claims the namespace of the calling thread.
///
/// # Errors
/// [`KernelError::SecondAgent`] if another agent has it.
pub(super) async fn claim() -> Result<Sole, KernelError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Ok(listener) => return Ok(Sole(Some(listener))),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                tracing::warn!(%error, "cannot see whether another agent runs in this network namespace");
                return Ok(Sole(None));
            }
            Err(_) if Instant::now() < until => sleep(RETRY).await,
            Err(_) => return refuse(owner()),
        }
    }
}

fn bind() -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?)
}

/// Anybody may take a name; only who could run an agent is believed to be one, or every user could keep agents from starting.
fn refuse(owner: io::Result<(u32, i32)>) -> Result<Sole, KernelError> {
    // SAFETY: takes nothing and always succeeds.
    let own = unsafe { libc::geteuid() };
    match owner {
        Ok((user, process)) if user != 0 && user != own => {
            tracing::warn!(
                user,
                process,
                "an unprivileged process holds the name by which agents know each other"
            );
            Ok(Sole(None))
        }
        Ok((_, process)) => Err(KernelError::SecondAgent {
            pid: format!(" (process {process})"),
        }),
        Err(_) => Err(KernelError::SecondAgent { pid: String::new() }),
    }
}

/// User and process that hold the name.
fn owner() -> io::Result<(u32, i32)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(format!("\0{NAME}"))?)?;
    let stream = tokio::net::UnixStream::from_std(socket.into())?;
    let credentials = stream.peer_cred()?;
    Ok((credentials.uid(), credentials.pid().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_held_by_root_is_an_agents_and_one_held_by_another_user_is_not() {
        let refused = refuse(Ok((0, 77))).unwrap_err().to_string();
        assert!(
            refused.contains("another lowroad agent (process 77)"),
            "{refused}"
        );
        assert!(refuse(Err(io::ErrorKind::WouldBlock.into())).is_err());
        assert!(refuse(Ok((65_534, 77))).is_ok());
    }
}
