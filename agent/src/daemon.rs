//! The daemon: from its arguments to a running engine.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use lowroad_core::desired::Mark;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::args::{AgentArgs, DataplaneChoice as Choice},
    engine::{Engine, EngineOptions},
    kernel::{self, DataplaneChoice, KernelOptions},
    localapi::{self, Rights, Server},
    process::{keep_little_memory, keep_memory_private, own_user},
    state::StateDir,
    tls::TlsConfig,
};

/// Questions from the socket that wait for the engine.
const ASK_QUEUE: usize = 64;
/// Enough for two cores' worth of relaying beside the engine.
const WORKERS: usize = 2;

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(args: AgentArgs, socket: &Path) -> Result<()> {
    start_logging(&args);
    keep_memory_private()?;
    keep_little_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(args, socket));
    // A name lookup that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn serve(args: AgentArgs, socket: &Path) -> Result<()> {
    kernel::check_privileges("running the agent")?;
    if args.cleanup {
        return clean_up(&args).await;
    }
    let (dir, state) = StateDir::open(&args.state_dir, random)?;
    dir.stay_locked();
    let options = kernel_options(&args, &state.id);
    let listener = localapi::bind(socket)?;
    let operator = Arc::new(ArcSwapOption::empty());
    let (ask, asks) = mpsc::channel(ASK_QUEUE);
    let rights = Rights {
        own_user: own_user(),
        operator: operator.clone(),
        group: args.operator_group.clone(),
    };
    tokio::spawn(Server::new(ask, rights).run(listener));
    let (order, stop) = watch::channel(false);
    tokio::spawn(stop_on_signals(order)?);
    let engine = EngineOptions {
        kernel: options,
        start_kernel: Box::new(|options| kernel::start(options).boxed()),
        tls: TlsConfig::system().context("cannot load the trusted certificates")?,
        traversal: true,
        uptime: clock(libc::CLOCK_MONOTONIC),
        age: age(),
        operator,
    };
    info!(version = crate::status::version(), socket = %socket.display(), state = %args.state_dir.display(), "lowroad agent");
    Engine::new(engine, dir, state, asks, stop).run().await;
    if let Err(error) = fs::remove_file(socket) {
        warn!(%error, "cannot remove the socket");
    }
    Ok(())
}

async fn clean_up(args: &AgentArgs) -> Result<()> {
    let Some((dir, state)) = StateDir::open_existing(&args.state_dir, random)? else {
        bail!(
            "no state in {}: nothing to clean up (--state-dir must be the one that the agent had)",
            args.state_dir.display()
        );
    };
    dir.stay_locked();
    let removed = kernel::cleanup(&kernel_options(args, &state.id)).await?;
    if removed.is_empty() {
        info!("no agent of this state has left anything in this network namespace");
    } else {
        info!(
            removed = removed.join(", "),
            "removed what an earlier agent left in the kernel"
        );
    }
    Ok(())
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel's random numbers cannot fail after boot");
}

fn kernel_options(args: &AgentArgs, state_id: &str) -> KernelOptions {
    KernelOptions {
        device: args.tun.clone(),
        port: args.port,
        dataplane: match args.dataplane {
            Choice::Auto => DataplaneChoice::Auto,
            Choice::Kernel => DataplaneChoice::Kernel,
            Choice::Userspace => DataplaneChoice::Userspace,
        },
        mark: Mark {
            value: args.fwmark,
            mask: args.fwmark,
        },
        state_id: state_id.to_owned(),
        state_dir: args.state_dir.clone(),
        filter_traces: args.verbose > 1,
    }
}

fn stop_on_signals(order: watch::Sender<bool>) -> Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        order.send_replace(true);
        // Dropping the sender is the same order; keep it until the engine has seen this one.
        order.closed().await;
    })
}

/// Since this process began, to a hundredth of a second; none if the kernel's word cannot be read.
fn age() -> Duration {
    // The name may hold anything, parentheses too; the start is the twentieth word behind it, in ticks since boot.
    let began = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        let (_, words) = stat.rsplit_once(')')?;
        words.split_whitespace().nth(19)?.parse::<u64>().ok()
    });
    // SAFETY: takes a number and returns one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    match (began, u64::try_from(ticks)) {
        (Some(began), Ok(ticks @ 1..)) => {
            let began = Duration::from_millis(began.saturating_mul(1000) / ticks);
            clock(libc::CLOCK_BOOTTIME).saturating_sub(began)
        }
        _ => Duration::ZERO,
    }
}

/// A clock of the kernel's. Events are stamped by the monotonic one; /proc/uptime is another: it counts a suspended machine's time too, and lxcfs invents it.
fn clock(id: libc::clockid_t) -> Duration {
    // SAFETY: zeroes are a valid `timespec`, which is plain integers.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to `now`, which lives through the call.
    if unsafe { libc::clock_gettime(id, &raw mut now) } != 0 {
        return Duration::ZERO;
    }
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

/// To standard error; `RUST_LOG` overrules the flags.
fn start_logging(args: &AgentArgs) {
    let default = match args.verbose {
        // Their warnings are of what follows from our own steps.
        0 => "info,netlink_proto=error,gotatun=warn",
        1 => "info,netlink_proto=error,lowroad_agent=debug,lowroad_core=debug",
        _ => "info,lowroad_agent=trace,lowroad_core=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Another logger in this process (a test's) stays.
    let _ = if args.log_json {
        builder.json().try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}
