//! The ssh section of a policy of our coordinator's, on a stock node that runs the stock SSH server.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Lab,
    hosts::ORDINARY,
    member::{Kind, Member},
    server::{self, KeyOptions, Server},
    table::Table,
};
use crate::{
    lab::secs,
    process::{self, Daemon},
    shell::find_program,
    tailnet::Client,
    wait,
};

const LIMIT: Duration = secs(30);
/// Of one attempt.
const LOGIN: Duration = secs(20);

/// Everybody may connect to everything, and log in as this section says.
fn policy(ssh: &str) -> String {
    policy_with(&format!(r#", "ssh": [{ssh}]"#))
}

fn policy_with(more: &str) -> String {
    format!(
        r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
            "tagOwners": {{"tag:web": ["ann@"]}}{more}}}"#
    )
}

const OWN: &str = r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}"#;
const TAGGED: &str =
    r#"{"action": "accept", "src": ["bob@"], "dst": ["tag:web"], "users": ["autogroup:nonroot"]}"#;

const CHECKED: &str = r#"{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}"#;
/// What our coordinator has stock nodes say.
const NO_CHECKS: &str = "has this login checked";

pub fn on_ours(lab: &Lab, table: &mut Table) -> Result<()> {
    table.area("ssh: a stock server on our coordinator");
    find_program("ssh").context("there is no ssh: install openssh-client")?;
    let server = Server::start(lab, server::Kind::Ours, &policy(OWN))?;
    let key = |user, tags| {
        let ephemeral = false;
        server.auth_key(user, KeyOptions { tags, ephemeral })
    };
    let mut members = Vec::new();
    for (kind, name, last, user, tags) in [
        (Kind::Stock, "anns", 30, "ann", ""),
        (Kind::Stock, "tagged", 31, "ann", "tag:web"),
        (Kind::Stock, "ann", 32, "ann", ""),
        (Kind::Lowroad, "bob", 33, "bob", ""),
    ] {
        let member = Member::public(lab, kind, name, last)?;
        member.up(&key(user, tags)?)?;
        members.push(member);
    }
    let [anns, tagged, ann, bob] = &members[..] else {
        unreachable!("four were made")
    };
    for target in [anns, tagged] {
        target.cli(&["set", "--ssh"])?;
        for from in [ann, bob] {
            from.wait_for_peer(target.name(), LIMIT)?;
        }
    }

    table.try_it("autogroup:self: the same user's node lets in", || {
        becomes(ann, anns, "root", true)
    });
    table.try_it("and another's not", || becomes(bob, anns, "root", false));
    table.try_it("nor the same user under another login", || {
        becomes(ann, anns, ORDINARY, false)
    });
    table.try_it("nor into a tagged node", || {
        becomes(ann, tagged, "root", false)
    });
    let session = Session::begin(lab, ann, anns)?;
    table.try_it("a change of policy opens another's login", || {
        server.set_policy(&policy(TAGGED))?;
        becomes(bob, tagged, ORDINARY, true)
    });
    table.try_it("autogroup:nonroot is not root", || {
        becomes(bob, tagged, "root", false)
    });
    table.try_it("and closes the first", || becomes(ann, anns, "root", false));
    table.try_it("whose open session ends", || session.ends());
    table.try_it("a check is refused at once, and told why", || {
        server.set_policy(&policy(CHECKED))?;
        // The policy before refuses it as well.
        let (_, time) = wait::wait_for(NO_CHECKS, LIMIT, || {
            let (is_in, said) = attempt(ann, anns, "root")?;
            ensure!(is_in != Some(true), "it was let in");
            Ok(said.contains(NO_CHECKS).then_some(()))
        })?;
        Ok(format!("after {:.2} s", time.as_secs_f64()))
    });
    for (what, closed) in [
        ("with an empty section nobody logs in", policy("")),
        ("nor without one", policy_with("")),
    ] {
        table.try_it(what, || {
            server.set_policy(&policy(TAGGED))?;
            becomes(bob, tagged, ORDINARY, true)?;
            server.set_policy(&closed)?;
            becomes(bob, tagged, ORDINARY, false)
        });
    }
    Ok(())
}

fn login(from: &Member, to: &Member, user: &str, command: &str) -> Result<Command> {
    let mut ssh = from.namespace().command("ssh");
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "ConnectTimeout=10",
    ] {
        ssh.args(["-o", option]);
    }
    ssh.arg(format!("{user}@{}", to.ip(4)?)).arg(command);
    Ok(ssh)
}

/// Soon a login succeeds, or is refused by the policy, and so it stays.
fn becomes(from: &Member, to: &Member, user: &str, wanted: bool) -> Result<String> {
    let start = Instant::now();
    let mut last = String::new();
    let reached = wait::wait_for("", LIMIT, || {
        let (is_in, said) = attempt(from, to, user)?;
        last = said;
        Ok((is_in == Some(wanted)).then_some(()))
    });
    let what = format!("{user}@{} from {}", to.name(), from.name());
    ensure!(reached.is_ok(), "{what}, at last: {last}");
    let time = start.elapsed();
    let (is_in, said) = attempt(from, to, user)?;
    ensure!(is_in == Some(wanted), "{what}, and then: {said}");
    Ok(format!(
        "{} after {:.2} s",
        if wanted { "in" } else { "refused" },
        time.as_secs_f64()
    ))
}

/// Whether the policy let a login in, where it is known; and what was said.
fn attempt(from: &Member, to: &Member, user: &str) -> Result<(Option<bool>, String)> {
    let mut ssh = login(from, to, user, "echo in as $(id -un)")?;
    let finished = process::run(&mut ssh, "", LOGIN)?;
    let said = format!("{} {}", finished.stdout.trim(), finished.stderr.trim());
    let is_in = said.starts_with(&format!("in as {user}"));
    let is_refused = ["policy does not permit", "Permission denied", NO_CHECKS]
        .iter()
        .any(|why| said.contains(why));
    // Any other failure says nothing of the policy.
    let known = (is_in || is_refused).then_some(is_in);
    Ok((known, said))
}

/// A login that stays.
struct Session {
    daemon: Daemon,
    log: PathBuf,
}

impl Session {
    fn begin(lab: &Lab, from: &Member, to: &Member) -> Result<Self> {
        let log = lab.net.folder().join("session");
        let mut ssh = login(from, to, "root", "echo begun; exec sleep 300")?;
        let daemon = Daemon::spawn(&mut ssh, &log)?;
        wait::wait_for("a session", LIMIT, || {
            let said = std::fs::read_to_string(&log)?;
            Ok(said.contains("begun").then_some(()))
        })?;
        Ok(Self { daemon, log })
    }

    fn ends(mut self) -> Result<String> {
        let (what, time) = wait::wait_for("its end", LIMIT, || {
            let said = std::fs::read_to_string(&self.log)?;
            let revoked = said
                .contains("Access revoked")
                .then(|| "revoked".to_owned());
            Ok(revoked.or(self.daemon.ended().map(|status| status.to_string())))
        })?;
        Ok(format!("{what} after {:.2} s", time.as_secs_f64()))
    }
}
