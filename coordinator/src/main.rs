//! `lowroad-coordinator`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use lowroad_coordinator::{
    Error,
    args::{Cli, Command, Policy},
    commands,
    config::Config,
    limits,
    server::Server,
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let as_json = cli.json;
    let failed = match &cli.command {
        // As with diff: 1 says that there are differences.
        Command::Policy(Policy::Diff {
            exit_code: true, ..
        }) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(as_json, &Error::io("start threads")(error));
            return failed;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Differs) => ExitCode::FAILURE,
        Err(error) => {
            say(as_json, &error);
            failed
        }
    }
}

fn say(as_json: bool, error: &Error) {
    if as_json {
        let json = match error {
            Error::Policy(refused) => refused.json(),
            error => json!({ "error": error.to_string() }),
        };
        let _ = writeln!(std::io::stdout(), "{json:#}");
    }
    let _ = writeln!(std::io::stderr(), "lowroad-coordinator: {error}");
}

async fn run(cli: Cli) -> Result<(), Error> {
    let Command::Serve(flags) = cli.command else {
        return commands::run(&cli.state_dir, cli.json, cli.command).await;
    };
    log(cli.json);
    limits::raise_open_files();
    limits::keep_memory_private();
    // Listened for before the server says that it serves.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listen for SIGINT"))?;
    let server = Server::start(Config::load(&cli.state_dir, &flags)?).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    server.stop().await;
    Ok(())
}

/// To standard error; `LOWROAD_LOG` chooses how much, as in `debug` or `lowroad_coordinator=trace`.
fn log(as_json: bool) {
    let filter = EnvFilter::try_from_env("LOWROAD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,rusqlite_migration=warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Its complaint about a closed standard error would go there too, and panic.
        .log_internal_errors(false);
    if as_json {
        subscriber.json().init();
    } else {
        subscriber.with_target(false).init();
    }
}
