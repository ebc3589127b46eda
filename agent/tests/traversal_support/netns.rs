//! Network namespaces of the test's own threads; the only `unsafe` of these tests.

use std::{
    future::Future,
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
};

/// Runs a future in a thread with a fresh network namespace whose loopback is up. The namespace ends with the
/// thread.
pub fn in_fresh_netns<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        enter_fresh();
        block_on(test());
    });
    join(thread);
}

/// Two fresh namespaces joined by a veth pair, 10.9.0.1 and fd09::1 on one side, .2 and ::2 on the other. The
/// second half starts when both are set up, and the threads end together.
pub fn in_two_netns<A, B>(
    first: impl FnOnce() -> A + Send + 'static,
    second: impl FnOnce() -> B + Send + 'static,
) where
    A: Future<Output = ()> + 'static,
    B: Future<Output = ()> + 'static,
{
    let (tell_id, id) = mpsc::channel::<i32>();
    let (tell_ready, ready) = mpsc::channel::<()>();
    let (tell_up, up) = mpsc::channel::<()>();
    let other = thread::spawn(move || {
        enter_fresh();
        tell_id.send(thread_id()).unwrap();
        ready.recv().unwrap();
        configure(2);
        tell_up.send(()).unwrap();
        block_on(second());
    });
    let one = thread::spawn(move || {
        enter_fresh();
        let id = id.recv().unwrap();
        ip(&format!("link add lr0 type veth peer name lr0 netns {id}"));
        configure(1);
        tell_ready.send(()).unwrap();
        up.recv().unwrap();
        block_on(first());
    });
    join(one);
    join(other);
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(
        status.expect("iproute2 is installed").success(),
        "ip {arguments}"
    );
}

fn configure(number: u8) {
    ip(&format!("address add 10.9.0.{number}/24 dev lr0"));
    ip(&format!("address add fd09::{number}/64 dev lr0 nodad"));
    ip("link set lr0 up");
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(test);
}

fn enter_fresh() {
    // SAFETY: moves this thread alone into a new network namespace; touches no memory.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        result,
        0,
        "these tests need root: {}",
        std::io::Error::last_os_error()
    );
    ip("link set lo up");
}

fn thread_id() -> i32 {
    // SAFETY: has no arguments and touches no memory.
    unsafe { libc::gettid() }
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
