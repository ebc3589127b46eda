//! The rtnetlink connection and what its errors mean to a user.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_packet_route::AddressFamily;
use rtnetlink::Handle;
use tokio::task::AbortHandle;

use super::KernelError;

/// A request handle; its connection task ends with it.
#[derive(Debug)]
pub(super) struct Netlink {
    pub handle: Handle,
    task: AbortHandle,
    is_dead: Arc<AtomicBool>,
}

impl Netlink {
    /// Connects in the network namespace of the calling thread.
    ///
    /// Strict checking makes the kernel filter dumps by table and device, so that a full routing table of somebody else
    /// isn't read every half minute.
    pub fn connect() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(|source| {
                KernelError::Netlink {
                    what: "opening a netlink socket".into(),
                    source,
                }
            })?;
        let is_dead = Arc::new(AtomicBool::new(false));
        let dies = Arc::clone(&is_dead);
        let mut connection = Box::pin(connection);
        let task = tokio::spawn(async move {
            connection.as_mut().await;
            // Before those that wait for answers learn of it.
            dies.store(true, Ordering::Release);
            drop(connection);
        });
        Ok(Self {
            handle,
            task: task.abort_handle(),
            is_dead,
        })
    }

    /// True once a message could not be sent: the library gives the socket up then, and whatever is asked of this handle fails.
    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Acquire)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The operating system's error behind a netlink one.
pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => match message.code {
            Some(code) => io::Error::from_raw_os_error(code.get().abs()),
            None => io::Error::other("an acknowledgement where an answer was expected"),
        },
        other => io::Error::other(other.to_string()),
    }
}

/// For `map_err`: `what` was attempted.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> KernelError {
    move |error| described(what, io_error(error))
}

pub(super) fn described(what: impl Into<String>, source: io::Error) -> KernelError {
    let what = what.into();
    if source.raw_os_error() == Some(libc::EPERM) {
        return KernelError::NotPermitted { what };
    }
    KernelError::Netlink { what, source }
}

/// Turns the named errors into success: the object is there already, or gone already.
pub(super) fn unless(
    result: Result<(), rtnetlink::Error>,
    fine: &[i32],
    what: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    match result.map_err(io_error) {
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| fine.contains(&code)) =>
        {
            Ok(())
        }
        other => other.map_err(|error| described(what(), error)),
    }
}

pub(super) fn family_of(address: std::net::IpAddr) -> AddressFamily {
    match address {
        std::net::IpAddr::V4(_) => AddressFamily::Inet,
        std::net::IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
