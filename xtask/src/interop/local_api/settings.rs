//! Preferences that the stock command line sets on lowroad's socket: shown as set, and in force. Exit nodes, which lowroad cannot use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LIMIT, Nodes, Run, Try, refused};
use crate::{
    interop::{server::Server, table::Table},
    tailnet::Client,
    traffic::Pinger,
    wait,
};

const PACE: Duration = Duration::from_millis(50);
/// Long enough for ten answers.
const PINGED: Duration = Duration::from_millis(500);

/// A flag of `set`, the preference that it changes, its name for `get`, and what both have to say then.
struct Setting {
    flag: &'static str,
    field: &'static str,
    name: &'static str,
    value: &'static str,
}

const fn setting(
    flag: &'static str,
    field: &'static str,
    name: &'static str,
    value: &'static str,
) -> Setting {
    Setting {
        flag,
        field,
        name,
        value,
    }
}

/// All but the first put back.
const STORED: &[Setting] = &[
    setting("--accept-routes", "RouteAll", "accept-routes", "true"),
    setting("--accept-dns=false", "CorpDNS", "accept-dns", "false"),
    setting("--accept-dns", "CorpDNS", "accept-dns", "true"),
    setting("--operator=guest", "OperatorUser", "operator", "guest"),
    setting("--operator=", "OperatorUser", "operator", ""),
];
const HOSTNAMES: &[Setting] = &[
    setting(
        "--hostname=lowroad-two",
        "Hostname",
        "hostname",
        "lowroad-two",
    ),
    setting("--hostname=lowroad", "Hostname", "hostname", "lowroad"),
];
const SHIELDS: &[Setting] = &[
    setting("--shields-up", "ShieldsUp", "shields-up", "true"),
    setting("--shields-up=false", "ShieldsUp", "shields-up", "false"),
];

impl Setting {
    fn set(&self, ok: Run) -> Result<()> {
        ok(&["set", self.flag])?;
        let prefs: Value = serde_json::from_str(&ok(&["debug", "prefs"])?)?;
        // What is empty may be left out.
        let shown = match &prefs[self.field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        ensure!(shown == self.value, "{} is {shown:?} then", self.field);
        let got = ok(&["get", self.name])?;
        ensure!(got.trim() == self.value, "get says {got:?} then");
        Ok(())
    }

    fn row(&self, table: &mut Table, ok: Run, in_force: impl FnOnce() -> Result<String>) {
        table.try_it(&format!("set {}", self.flag), || {
            self.set(ok)?;
            in_force()
        });
    }
}

pub fn rows(table: &mut Table, nodes: &Nodes, ok: Run) -> Result<()> {
    for setting in STORED {
        setting.row(table, ok, || Ok(String::new()));
    }
    for setting in HOSTNAMES {
        setting.row(table, ok, || {
            let time = nodes.stock.wait_for_peer(setting.value, LIMIT)?;
            Ok(format!("seen after {:.2} s", time.as_secs_f64()))
        });
    }
    let address = nodes.own.ip(4)?;
    for setting in SHIELDS {
        setting.row(table, ok, || {
            let wanted = setting.value != "true";
            let what = if wanted { "answers" } else { "silence" };
            wait::wait_for(what, LIMIT, || {
                let ping = Pinger::start(nodes.stock.namespace(), address, PACE)?;
                wait::pass(PINGED)?;
                let answers = ping.stop().answered > 0;
                Ok((answers == wanted).then_some(()))
            })?;
            Ok(what.to_owned())
        });
    }
    table.try_it("get --json", || {
        let all: Value = serde_json::from_str(&ok(&["get", "--json"])?)?;
        ensure!(all["hostname"] == "lowroad", "{all}");
        ensure!(all["accept-routes"] == true, "{all}");
        ensure!(all["exit-node"] == "", "{all}");
        Ok(String::new())
    });
    Ok(())
}

pub fn exit_nodes(
    table: &mut Table,
    server: &Server,
    nodes: &Nodes,
    run: Try,
    ok: Run,
) -> Result<()> {
    table.try_it("exit-node list", || {
        // As the stock daemon has it, too: that there is none is an error.
        let said = run(&["exit-node", "list"])?.stderr;
        ensure!(said.contains("no exit nodes found"), "{said}");
        Ok("no exit nodes found".to_owned())
    });
    table.try_it("exit-node list, with one offered", || {
        nodes.stock.cli(&["set", "--advertise-exit-node"])?;
        server.wait_for_offer("stock", "0.0.0.0/0", LIMIT)?;
        server.approve_routes("stock", "0.0.0.0/0,::/0")?;
        let (list, _) = wait::wait_for("it in the list", LIMIT, || {
            let list = ok(&["exit-node", "list"])?;
            Ok(list.contains("stock.tail.lab").then_some(list))
        })?;
        let line = list.lines().find(|line| line.contains("stock"));
        Ok(line.context("no line with it")?.trim().to_owned())
    });
    // Only who is offered gets as far as the socket.
    refused::setting(table, run, ok, &["set", "--exit-node=stock"]);
    nodes.stock.cli(&["set", "--advertise-exit-node=false"])?;
    Ok(())
}
