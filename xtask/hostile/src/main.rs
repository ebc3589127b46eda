//! `lowroad-hostile`: what the lab throws at agents and the coordinator. It attacks only the addresses it is given, which are
//! those of a lab's own namespaces, for a bounded time and with a bounded number of packets.
//!
//! `lowroad-hostile COMMAND name=value…`; the lab's scenarios (`xtask/src/lab/hostile*.rs`) say which.

mod client;
mod control;
mod member;
mod packets;
mod peer;
mod relay;
mod relay_client;

use std::{collections::BTreeMap, env, process::ExitCode, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail};

/// What follows the command.
#[derive(Debug)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    pub fn text(&self, name: &str) -> Result<&str> {
        let value = self.0.get(name);
        Ok(value.with_context(|| format!("`{name}=` is missing"))?)
    }

    pub fn get<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        let wrong = || format!("`{name}={text}` makes no sense");
        text.parse().ok().with_context(wrong)
    }

    /// How long the attack lasts.
    pub fn duration(&self) -> Result<Duration> {
        Ok(Duration::from_millis(self.get("ms")?))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lowroad-hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut words = env::args().skip(1);
    let command = words.next().context("which command?")?;
    let pairs = words.map(|word| {
        let (name, value) = word.split_once('=').context("arguments are name=value")?;
        Ok((name.to_owned(), value.to_owned()))
    });
    let args = Args(pairs.collect::<Result<_>>()?);
    match command.as_str() {
        "peer" => peer::run(&args).await,
        "relay" => relay::run(&args).await,
        "control" => control::run(&args).await,
        "client" => client::run(&args).await,
        other => bail!("there is no command {other}"),
    }
}
