//! The policy decides, in the kernel, and a change is in force at once.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};

use super::{Lab, ms, secs};
use crate::{
    tailnet::{Client as _, Node, timed},
    traffic::{self, Pinger},
    wait,
};

const WEB_ONLY: &str = r#"{
    // Everybody may fetch pages; nothing else.
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:80"]}],
}"#;
const WEB_AND_8080: &str =
    r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80", "*:8080"]}]}"#;
const NOTHING: &str = r#"{"acls": []}"#;

pub fn a_refused_connection_is_dropped_and_told_and_a_change_opens_it(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(WEB_ONLY)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let _open = traffic::Server::start(&bravo.namespace, 80)?;
    let _closed = traffic::Server::start(&bravo.namespace, 8080)?;
    let at = |port| Ok::<_, anyhow::Error>(SocketAddr::new(bravo.ip(4)?, port));
    traffic::get(&alpha.namespace, at(80)?, 1000, secs(10))?;
    refused_by(&bravo, &alpha, at(8080)?)?;
    let (event, _) = wait::wait_for("the drop among bravo's flows", secs(5), || {
        bravo.drop_event(8080)
    })?;
    lab.note(&event);

    coordinator.set_policy(WEB_AND_8080)?;
    let (_, time) = wait::wait_for("port 8080 open", secs(20), || {
        traffic::get(&alpha.namespace, at(8080)?, 1000, ms(400)).map(Some)
    })?;
    lab.within("policy change to effect", time, secs(1))?;

    coordinator.set_policy(WEB_ONLY)?;
    let closed = || {
        wait::wait_for("port 8080 closed", secs(20), || {
            let fetched = traffic::get(&alpha.namespace, at(8080)?, 1000, ms(300));
            Ok(fetched
                .is_err_and(|error| is_unanswered(&error))
                .then_some(()))
        })
    };
    let ((), time) = timed(closed)?.0;
    // One attempt must run into its own limit first.
    lab.within("closing it again", time, secs(1))?;
    refused_by(&bravo, &alpha, at(8080)?)?;
    traffic::get(&alpha.namespace, at(80)?, 1000, secs(5))?;
    // They still know each other, but alpha may do nothing.
    let (from, to) = (bravo.ip(4)?, alpha.ip(4)?);
    coordinator.set_policy(&format!(
        r#"{{"acls": [{{"action": "accept", "src": ["{from}"], "dst": ["{to}:80"]}}]}}"#
    ))?;
    let once = ["ping", "-c", "1", "--timeout", "500ms", "--icmp", "bravo"];
    wait::wait_for("ICMP refused", secs(20), || {
        let ping = alpha.try_cli(&once)?;
        Ok(ping.stderr.contains("no reply").then_some(()))
    })?;
    // The node itself answers whatever its policy.
    pong(&alpha, "--tsmp", "bravo")
}

/// `ping` through the tunnel, answered.
pub fn pong(from: &Node, kind: &str, to: &str) -> Result<()> {
    let line = from.cli(&["ping", "-c", "1", kind, to])?;
    let via = kind.trim_start_matches('-').to_uppercase();
    let expected = format!("via {via} in");
    ensure!(
        line.starts_with("pong from ") && line.contains(&expected),
        "{line}"
    );
    Ok(())
}

pub fn without_rules_nothing_passes(lab: &Lab) -> Result<()> {
    let coordinator = lab.coordinator(super::ALLOW_ALL)?;
    let key = coordinator.auth_key("ann", "")?;
    let alpha = lab.public_node("alpha", 30)?;
    let bravo = lab.public_node("bravo", 31)?;
    alpha.up(&key)?;
    bravo.up(&key)?;
    let address = bravo.ip(4)?;
    let ping = Pinger::start(&alpha.namespace, address, ms(50))?;
    ping.first_answer(secs(20))?;
    coordinator.set_policy(NOTHING)?;
    // They know each other no longer, so mostly the sender's own kernel keeps them.
    silent(&ping, secs(20))?;
    lab.note(&ping.report().to_string());
    coordinator.set_policy(super::ALLOW_ALL)?;
    let before = ping.answered();
    let (_, time) = wait::wait_for("answers again", secs(20), || {
        Ok((ping.answered() > before).then_some(()))
    })?;
    lab.note(&format!("open again after {:.2} s", time.as_secs_f64()));
    Ok(())
}

/// Waits until of so many pings in a row none is answered although as many have followed.
pub fn silent(ping: &Pinger, limit: Duration) -> Result<()> {
    const PINGS: usize = 10;
    wait::wait_for("pings that nobody answers", limit, || {
        let report = ping.report();
        let Some(first) = report.sent.checked_sub(2 * PINGS) else {
            return Ok(None);
        };
        let silent = first as u32..(first + PINGS) as u32;
        let unanswered = report
            .unanswered
            .iter()
            .filter(|one| silent.contains(&one.number));
        Ok((unanswered.count() == PINGS).then_some(()))
    })
    .map(drop)
}

/// A connection that gets no answer for a second.
///
/// # Errors
/// It is made, or something answers that nothing is there: then its packets passed.
pub fn refused(from: &Node, to: SocketAddr) -> Result<()> {
    match traffic::get(&from.namespace, to, 1000, ms(1000)) {
        Ok(_) => bail!("{to} answered, although the policy refuses it"),
        Err(error) => {
            crate::signals::check()?;
            ensure!(
                is_unanswered(&error),
                "{error:#}, although the policy refuses it"
            );
            Ok(())
        }
    }
}

/// As [`refused`], and the filter of `by` says that it was its doing.
pub fn refused_by(by: &Node, from: &Node, to: SocketAddr) -> Result<()> {
    let before = by.refused_packets()?;
    refused(from, to)?;
    let after = by.refused_packets()?;
    ensure!(
        after > before,
        "nobody answers at {to}, but {} refused nothing",
        by.name
    );
    Ok(())
}

/// No connection came about, and nobody said why.
fn is_unanswered(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<traffic::NotConnected>();
    cause.is_some_and(|cause| cause.0.kind() == io::ErrorKind::TimedOut)
}
