//! Network namespaces without names: each lives as long as its file is open, so a failed test leaves nothing behind.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;

#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new namespace with loopback up.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            // SAFETY: affects the calling thread alone, which ends after this closure.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(
                result,
                0,
                "a new network namespace needs root: {}",
                std::io::Error::last_os_error()
            );
            File::open("/proc/thread-self/ns/net").expect("a thread may open its own namespace")
        });
        let netns = Self {
            file: file.join().unwrap(),
        };
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` on a thread of its own inside, threads that it starts included.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: the descriptor is a network namespace; only the calling thread changes over.
                let result = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(
                    result,
                    0,
                    "entering the namespace: {}",
                    std::io::Error::last_os_error()
                );
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A tokio runtime of threads inside.
    pub fn runtime(&self) -> tokio::runtime::Runtime {
        let file = self
            .file
            .as_fd()
            .try_clone_to_owned()
            .expect("descriptors are not that scarce");
        self.run(move || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .on_thread_start(move || {
                    // SAFETY: as in `run`.
                    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                    assert_eq!(result, 0, "entering the namespace");
                })
                .build()
                .expect("a runtime starts")
        })
    }

    /// Runs a future inside, on a runtime that ends with it.
    pub fn block_on<F: Future + Send>(&self, future: F) -> F::Output
    where
        F::Output: Send,
    {
        let runtime = self.runtime();
        let output = self.run(|| runtime.block_on(future));
        runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        output
    }

    /// `ip` with these arguments, which must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .expect("iproute2 is installed");
            assert!(
                output.status.success(),
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).expect("ip prints text")
        })
    }

    /// Whether `ip` with these arguments succeeds.
    pub fn can_ip(&self, arguments: &str) -> bool {
        self.run(|| {
            let output = Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .expect("iproute2 is installed");
            output.status.success()
        })
    }

    /// Everything that a test may not change for others.
    pub fn dump(&self) -> String {
        [
            "-d link",
            "addr",
            "rule",
            "-6 rule",
            "route show table all",
            "-6 route show table all",
            "-s netconf",
        ]
        .map(|what| format!("# ip {what}\n{}", self.ip(what)))
        .concat()
    }

    /// A cable: `a` here and `b` in the other one, with these addresses.
    pub fn connect(&self, other: &Self, a: (&str, &[&str]), b: (&str, &[&str])) {
        self.ip(&format!("link add {} type veth peer name {}", a.0, b.0));
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.ip(&format!("link set {} netns {there}", b.0));
        for (netns, (device, addresses)) in [(self, a), (other, b)] {
            for address in addresses {
                let flags = if address.contains(':') { "nodad" } else { "" };
                netns.ip(&format!("addr add {address} dev {device} {flags}"));
            }
            netns.ip(&format!("link set {device} up"));
        }
    }
}
