//! What lowroad doesn't do, asked for by the stock command line: an error has to say so.

use anyhow::{Context, Result, ensure};

use super::{LOGIN_SERVER, Run, Try};
use crate::{interop::table::Table, process::Finished};

const REFUSED: &str = "is refused: this version of lowroad cannot";
/// After the name of a call.
const NO_SUCH: &str = "does not exist in this agent";

/// Settings that ask for what lowroad doesn't do.
const NO_SETTING: &[&[&str]] = &[
    &["set", "--ssh"],
    &["set", "--webclient"],
    &["set", "--snat-subnet-routes=false"],
    &["set", "--netfilter-mode=off"],
    &["set", "--advertise-connector"],
    &["set", "--advertise-exit-node"],
    &["set", "--advertise-routes=10.0.0.0/24"],
    &["set", "--exit-node-allow-lan-access"],
    &["web"],
    &[
        "up",
        LOGIN_SERVER,
        "--hostname=lowroad",
        "--accept-routes",
        "--ssh",
    ],
    &[
        "up",
        LOGIN_SERVER,
        "--hostname=lowroad",
        "--accept-routes",
        "--snat-subnet-routes=false",
    ],
];

/// Calls that lowroad has nothing for, and the commands that make them.
const NOT_THERE: &[(&[&str], &str)] = &[
    (&["bugreport"], "POST /localapi/v0/bugreport"),
    (
        &["cert", "lowroad.tail.lab"],
        "GET /localapi/v0/cert/lowroad.tail.lab",
    ),
    (&["lock", "status"], "GET /localapi/v0/tka/status"),
    (&["lock", "init"], "GET /localapi/v0/tka/status"),
    (&["drive", "list"], "GET /localapi/v0/drive/shares"),
    (&["file", "get", "/tmp"], "GET /localapi/v0/files/"),
    (&["switch", "--list"], "GET /localapi/v0/profiles/current"),
    (
        &["exit-node", "suggest"],
        "GET /localapi/v0/suggest-exit-node",
    ),
    (&["dns", "status"], "GET /localapi/v0/dns-config"),
    (&["dns", "query", "x"], "GET /localapi/v0/dns-query"),
    (&["nc", "stock", "80"], "POST /localapi/v0/dial"),
    (&["id-token", "x"], "GET /localapi/v0/id-token"),
    (&["serve", "3000"], "POST /localapi/v0/query-feature"),
    (
        &["serve", "--bg", "--http=8080", "3000"],
        "POST /localapi/v0/serve-config",
    ),
    (&["syspolicy", "list"], "GET /localapi/v0/policy/"),
    (&["debug", "metrics"], "GET /localapi/v0/metrics"),
    (
        &["login", LOGIN_SERVER, "--timeout=10s"],
        "PUT /localapi/v0/profiles/",
    ),
];

/// What the command line gives up by itself, for what lowroad answers it.
const NOT_DONE: &[(&[&str], &str)] = &[
    (
        &["ping", "--peerapi", "stock"],
        "lowroad knows no pings of type \"peerapi\"",
    ),
    // By the node's capabilities: the call that comes first fails, and is passed over.
    (&["funnel", "3000"], "Funnel not available"),
];

pub fn rows(table: &mut Table, run: Try, ok: Run) {
    for arguments in NO_SETTING {
        setting(table, run, ok, arguments);
    }
    for (arguments, call) in NOT_THERE {
        table.try_it(&arguments.join(" "), || {
            let line = error_line(run(arguments)?, NO_SUCH)?;
            ensure!(line.contains(call), "it names another call: {line}");
            Ok(format!("refused: {line}"))
        });
    }
    for (arguments, words) in NOT_DONE {
        table.try_it(&arguments.join(" "), || {
            let line = error_line(run(arguments)?, words)?;
            Ok(format!("refused: {line}"))
        });
    }
}

/// Changes nothing, and says why.
pub fn setting(table: &mut Table, run: Try, ok: Run, arguments: &[&str]) {
    table.try_it(&arguments.join(" "), || {
        let before = ok(&["debug", "prefs"])?;
        let said = error_line(run(arguments)?, REFUSED)?;
        ensure!(ok(&["debug", "prefs"])? == before, "preferences are others");
        Ok(said)
    });
}

/// The line with these words, of a command that failed.
fn error_line(finished: Finished, words: &str) -> Result<String> {
    let all = format!("{}{}", finished.stderr, finished.stdout);
    ensure!(finished.code() != 0, "no error: {all}");
    let said = all.lines().find(|line| line.contains(words));
    let said = said.with_context(|| format!("it does not say {words:?}: {all}"))?;
    Ok(said.trim().to_owned())
}
