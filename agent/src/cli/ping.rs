//! `lowroad ping`: pings until the path is direct, as the stock client does.

use std::{io::Write, time::Duration};

use serde_json::json;

use super::{Failure, Outcome, args::PingArgs, client::Client, render};
use crate::status::{PingKind, PingResult, Status, TIMED_OUT};

/// Pause between two pings.
const INTERVAL: Duration = Duration::from_secs(1);

pub async fn run(client: &Client, args: &PingArgs) -> Outcome {
    let address = resolve(client, &args.peer).await?;
    let kind = args.kind();
    let until_direct = args.until_direct.unwrap_or(true) && kind == PingKind::Disco;
    let mut answered = false;
    let mut sent = 0u32;
    loop {
        let path = format!("/localapi/v0/ping?ip={address}&type={kind}");
        let answer =
            tokio::time::timeout(args.timeout, client.post::<PingResult>(&path, &json!({}))).await;
        sent = sent.saturating_add(1);
        let mut out = std::io::stdout();
        match answer {
            Err(_) => writeln!(out, "ping {:?} timed out", args.peer)?,
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(result)) if result.err == TIMED_OUT => {
                writeln!(out, "ping {:?} timed out", args.peer)?;
            }
            Ok(Ok(result)) if result.is_local_ip => {
                return Ok(writeln!(out, "{} is local Tailscale IP", result.ip)?);
            }
            Ok(Ok(result)) if !result.err.is_empty() => return Err(Failure::new(result.err)),
            Ok(Ok(result)) => {
                writeln!(out, "{}", render::pong(&result, kind))?;
                answered = true;
                // As the stock client does: through the tunnel, one answer says it all.
                let found = until_direct && !result.endpoint.is_empty();
                if found || kind != PingKind::Disco {
                    return Ok(());
                }
            }
        }
        out.flush()?;
        if args.c != 0 && sent >= args.c {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    match (answered, until_direct) {
        (false, _) => Err(Failure::new("no reply")),
        (true, true) => Err(Failure::new("direct connection not established")),
        (true, false) => Ok(()),
    }
}

async fn resolve(client: &Client, name: &str) -> Result<std::net::IpAddr, Failure> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let status: Status = client.get("/localapi/v0/status").await?;
    let nodes = status
        .self_node
        .iter()
        .chain(status.peer.iter().flatten().map(|(_, peer)| peer));
    let found = nodes
        .filter(|node| node.is_called(name))
        .find_map(|node| node.first_ip());
    found.ok_or_else(|| {
        Failure::new(format!(
            "error looking up IP of {name:?}: no node of this tailnet has that name"
        ))
    })
}
