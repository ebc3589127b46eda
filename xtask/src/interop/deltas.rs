//! What Headscale's administration and a peer itself change of that peer, and what Headscale changes of itself and of its nodes, as two others see it: lowroad's
//! status has to become what a stock node's is, field by field.

mod seen;
mod settings;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::seen::{OWNER, Seen, WATCHERS, has, is, own};
use super::{
    Lab,
    member::{Kind, Member},
    relay,
    server::{self, KeyOptions, Server},
    shape::in_order,
    table::Table,
};
use crate::{lab::secs, tailnet::Client, wait};

const LIMIT: Duration = secs(90);
/// A stock node may try to report by the connection that it had at the address before, until it gives that up after two minutes.
const MOVED: Duration = secs(180);
const POLICY: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:web": ["ann@"]}}"#;
/// Headscale's own relay, as the matrix configures it.
const EMBEDDED: (u16, &str) = (999, "lab");
const SUBNET: &str = "10.77.0.0/24";
/// As Go writes it, to whole seconds.
const END: &str = "2099-01-01T00:00:00Z";

struct Watchers<'a> {
    lowroad: &'a Member,
    stock: &'a Member,
}

impl Watchers<'_> {
    fn both(&self) -> [&Member; 2] {
        [self.lowroad, self.stock]
    }

    /// A change that either watcher has to see, as it has not before; and then the same in all fields.
    fn row(
        &self,
        table: &mut Table,
        what: &str,
        change: impl FnOnce() -> Result<()>,
        shown: impl Fn(&Seen) -> bool,
    ) -> bool {
        table.try_it(what, || {
            for watcher in self.both() {
                let early = shown(&Seen::by(watcher)?);
                ensure!(!early, "{} shows it before the change", watcher.name());
            }
            change()?;
            self.see(Instant::now(), shown)
        })
    }

    /// Says when each first saw it, to a status command or two.
    fn see(&self, start: Instant, shown: impl Fn(&Seen) -> bool) -> Result<String> {
        let mut times: [Option<Duration>; 2] = [None; 2];
        let seen = wait::wait_for("the change at both", LIMIT, || {
            for (watcher, time) in self.both().into_iter().zip(&mut times) {
                if time.is_none() && shown(&Seen::by(watcher)?) {
                    *time = Some(start.elapsed());
                }
            }
            Ok(times[0].zip(times[1]))
        });
        let ((lowroad, stock), _) = seen.with_context(|| {
            let [lowroad, stock] = times.map(|time| time.is_some());
            format!("seen by lowroad: {lowroad}, by stock: {stock}")
        })?;
        wait::wait_for("the same in all fields", LIMIT, || {
            let differences = Seen::by(self.stock)?.differences(&Seen::by(self.lowroad)?);
            ensure!(differences.is_empty(), "{}", differences.join("; "));
            Ok(Some(()))
        })?;
        Ok(format!(
            "lowroad after {:.2} s, stock after {:.2} s, all fields the same after {:.2} s",
            lowroad.as_secs_f64(),
            stock.as_secs_f64(),
            start.elapsed().as_secs_f64()
        ))
    }
}

pub fn on_headscale(lab: &Lab, table: &mut Table, kind: Kind) -> Result<()> {
    table.area(&format!(
        "a {} peer that changes on Headscale, as lowroad and stock see it",
        kind.name()
    ));
    let _relay = relay::start(lab)?;
    let mut server = Server::with_second_relay(lab, server::Kind::Headscale, POLICY)?;
    settings::prepare(lab, &mut server)?;
    let key = server.auth_key("ann", KeyOptions::default())?;
    let lowroad = Member::public(lab, Kind::Lowroad, WATCHERS[0], 30)?;
    let stock = Member::public(lab, Kind::Stock, WATCHERS[1], 31)?;
    for node in [&lowroad, &stock] {
        node.up(&key)?;
    }
    lowroad.wait_for_peer(stock.name(), LIMIT)?;
    stock.wait_for_peer(lowroad.name(), LIMIT)?;
    let watchers = Watchers {
        lowroad: &lowroad,
        stock: &stock,
    };
    let mut peer = Member::public(lab, kind, "peer", 32)?;
    let join = || peer.up(&key).map(drop);
    let joined = watchers.row(table, "joins", join, is("Online", true));
    ensure!(joined, "without this there is nothing more to try");
    settings::relays(table, lab, &watchers, &server);
    names(table, &watchers, &server, &peer);
    if kind == Kind::Stock {
        // A lowroad node offers no routes yet, and its home relay is the nearest.
        routes(table, &watchers, &server, &peer);
        another_home(table, &watchers, &peer);
    }
    sight(table, &watchers, &server, &mut peer)?;
    // Not before its daemon ends: for Headscale it is online as long as the connection lives that it had at the address before.
    moves(table, &watchers, &peer);
    keys(table, &watchers, &server, &peer, &key);
    settings::records(table, lab, &watchers);
    settings::pings(table, &watchers, &server);
    settings::attributes(table, &watchers, &server);
    settings::everything(table, &watchers, &server);
    base_domain(table, &watchers, &mut server);
    owners(table, &watchers, &mut server, &peer)?;
    watchers_themselves(table, &watchers, &server);
    Ok(())
}

fn names(table: &mut Table, watchers: &Watchers, server: &Server, peer: &Member) {
    watchers.row(
        table,
        "renamed by the administrator",
        || server.rename("peer", "other"),
        is("DNSName", "other.tail.lab."),
    );
    watchers.row(
        table,
        "set --hostname",
        || peer.cli(&["set", "--hostname=peer-by-itself"]).map(drop),
        is("HostName", "peer-by-itself"),
    );
    watchers.row(
        table,
        "set --hostname, as before",
        || peer.cli(&["set", "--hostname=peer"]).map(drop),
        is("HostName", "peer"),
    );
}

fn routes(table: &mut Table, watchers: &Watchers, server: &Server, peer: &Member) {
    let offer = |flag: &str, route: &str| -> Result<()> {
        peer.cli(&["set", flag])?;
        server.wait_for_offer("peer", route, LIMIT)
    };
    let subnet = format!("--advertise-routes={SUBNET}");
    watchers.row(
        table,
        "a route, offered and approved",
        || {
            offer(&subnet, SUBNET)?;
            server.approve_routes("peer", SUBNET)
        },
        has("PrimaryRoutes", SUBNET),
    );
    watchers.row(
        table,
        "the approval withdrawn",
        || server.approve_routes("peer", ""),
        is("PrimaryRoutes", Value::Null),
    );
    watchers.row(
        table,
        "approved again",
        || server.approve_routes("peer", SUBNET),
        has("AllowedIPs", SUBNET),
    );
    watchers.row(
        table,
        "the offer withdrawn",
        || peer.cli(&["set", "--advertise-routes="]).map(drop),
        is("PrimaryRoutes", Value::Null),
    );
    watchers.row(
        table,
        "an exit node, offered and approved",
        || {
            offer("--advertise-exit-node", "0.0.0.0/0")?;
            server.approve_routes("peer", "0.0.0.0/0,::/0")
        },
        is("ExitNodeOption", true),
    );
    watchers.row(
        table,
        "and no more",
        || {
            let flag = "--advertise-exit-node=false";
            peer.cli(&["set", flag]).map(drop)
        },
        is("ExitNodeOption", false),
    );
}

/// Where it is reached, of which a status shows nothing.
fn moves(table: &mut Table, watchers: &Watchers, peer: &Member) {
    table.try_it("another address", || {
        let address = peer.ip(4)?.to_string();
        let endpoints = |watcher: &Member| -> Result<Value> {
            let text = watcher.cli(&["whois", "--json", &address])?;
            let who: Value = serde_json::from_str(&text)?;
            Ok(in_order(&who["Node"]["Endpoints"]))
        };
        let known = |endpoints: &Value| endpoints.to_string().contains("203.0.113.132:");
        let by_itself = || match peer.status() {
            Ok(status) => status["Self"]["Addrs"].to_string(),
            Err(error) => format!("{error:#}"),
        };
        for watcher in watchers.both() {
            ensure!(!known(&endpoints(watcher)?), "known before it moves");
        }
        peer.move_on_segment(32, 132)?;
        let (all, time) = wait::wait_for("the same endpoints", MOVED, || {
            let [lowroad, stock] = watchers.both().map(endpoints);
            let (lowroad, stock) = (lowroad?, stock?);
            ensure!(
                lowroad == stock && known(&stock),
                "stock {stock}, lowroad {lowroad}"
            );
            Ok(Some(stock))
        })
        .with_context(|| format!("the peer itself has {}", by_itself()))?;
        Ok(format!("{all} after {:.2} s", time.as_secs_f64()))
    });
}

fn another_home(table: &mut Table, watchers: &Watchers, peer: &Member) {
    // Whichever it has chosen.
    let two = (relay::REGION, relay::CODE);
    let at_home = |code: &'static str| is("Relay", code);
    let to = match Seen::by(watchers.stock) {
        Ok(seen) if at_home(two.1)(&seen) => EMBEDDED,
        _ => two,
    };
    watchers.row(
        table,
        "another home relay",
        || {
            let region = to.0.to_string();
            peer.cli(&["debug", "force-prefer-derp", &region])?;
            peer.cli(&["debug", "restun"]).map(drop)
        },
        at_home(to.1),
    );
}

/// Hidden, away and back.
fn sight(table: &mut Table, watchers: &Watchers, server: &Server, peer: &mut Member) -> Result<()> {
    let [one, other] = [watchers.lowroad.ip(4)?, watchers.stock.ip(4)?];
    let without = format!(
        r#"{{"acls": [{{"action": "accept", "src": ["{one}", "{other}"], "dst": ["{one}:*", "{other}:*"]}}],
            "tagOwners": {{"tag:web": ["ann@"]}}}}"#
    );
    watchers.row(
        table,
        "hidden by a policy that does not connect them",
        || server.set_policy(&without),
        |seen| seen.peers.is_empty(),
    );
    watchers.row(
        table,
        "and shown by the next",
        || server.set_policy(POLICY),
        is("InNetworkMap", true),
    );
    watchers.row(
        table,
        "its daemon ends",
        || {
            peer.stop();
            Ok(())
        },
        is("Online", false),
    );
    watchers.row(
        table,
        "and starts again",
        || peer.restart(),
        is("Online", true),
    );
    Ok(())
}

fn keys(table: &mut Table, watchers: &Watchers, server: &Server, peer: &Member, key: &str) {
    watchers.row(
        table,
        "its key gets an end",
        || server.set_expiry("peer", Some(END)),
        is("KeyExpiry", END),
    );
    watchers.row(
        table,
        "and has none",
        || server.set_expiry("peer", None),
        is("KeyExpiry", Value::Null),
    );
    watchers.row(
        table,
        "expired by the administrator",
        || server.to_node("expire", "peer"),
        is("Expired", true),
    );
    watchers.row(
        table,
        "logged in anew",
        || peer.up_with(key, &["--force-reauth"]).map(drop),
        |seen| is("Expired", Value::Null)(seen) && is("Online", true)(seen),
    );
}

/// Headscale reads it when it starts.
fn base_domain(table: &mut Table, watchers: &Watchers, server: &mut Server) {
    watchers.row(
        table,
        "Headscale started with another base domain",
        || server.change_base_domain("other.lab"),
        |seen| {
            let name = seen.peer()["DNSName"].as_str().unwrap_or_default();
            seen.tailnet["MagicDNSSuffix"] == "other.lab" && name.ends_with(".other.lab.")
        },
    );
}

/// Other owners, and none.
fn owners(
    table: &mut Table,
    watchers: &Watchers,
    server: &mut Server,
    peer: &Member,
) -> Result<()> {
    let bobs = server.auth_key("bob", KeyOptions::default())?;
    watchers.row(
        table,
        "another user's, by a login: this Headscale has no command for it",
        || {
            peer.up_with(&bobs, &["--force-reauth"])?;
            // The other user's node is another one.
            server.leave_only("peer", &peer.node_key()?)
        },
        |seen| seen.peers.len() == 1 && is(OWNER, "bob")(seen) && is("Online", true)(seen),
    );
    watchers.row(
        table,
        "its user renamed, which Headscale tells when it starts again",
        || {
            server.rename_user("bob", "robert")?;
            server.start_again()
        },
        |seen| is(OWNER, "robert")(seen) && is("Online", true)(seen),
    );
    watchers.row(
        table,
        "tagged by the administrator",
        || server.tag("peer", "tag:web"),
        has("Tags", "tag:web"),
    );
    watchers.row(
        table,
        "logs out",
        || peer.cli(&["logout"]).map(drop),
        |seen| is("Expired", true)(seen) || is("Online", false)(seen) || seen.peers.is_empty(),
    );
    watchers.row(
        table,
        "deleted by the administrator",
        || server.to_node("delete", "peer"),
        |seen| seen.peers.is_empty(),
    );
    Ok(())
}

/// Last: who has a tag is never again a user's.
fn watchers_themselves(table: &mut Table, watchers: &Watchers, server: &Server) {
    let both = |change: &dyn Fn(&str) -> Result<()>| WATCHERS.into_iter().try_for_each(change);
    watchers.row(
        table,
        "the watchers' own keys get an end",
        || both(&|name| server.set_expiry(name, Some(END))),
        own("KeyExpiry", END),
    );
    watchers.row(
        table,
        "and have none",
        || both(&|name| server.set_expiry(name, None)),
        own("KeyExpiry", Value::Null),
    );
    watchers.row(
        table,
        "the watchers are tagged",
        || both(&|name| server.tag(name, "tag:web")),
        |seen| own("Tags", vec!["tag:web"])(seen) && !own(OWNER, "ann")(seen),
    );
}
