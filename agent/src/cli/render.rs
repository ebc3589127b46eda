//! Text as the stock client prints it: pure functions of the LocalAPI's answers.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::Value;

use crate::status::{
    BackendState, Flow, NEVER, PeerStatus, PingKind, PingResult, Status, UserStatus, WhoIs,
};

/// What `status` shows besides the nodes' lines.
#[derive(Clone, Copy, Debug)]
pub struct StatusView {
    pub peers: bool,
    pub self_node: bool,
    pub active: bool,
}

/// Why there is no table to show: the state is not running or starting.
pub fn not_running(status: &Status) -> Option<String> {
    Some(match status.backend_state {
        BackendState::Running | BackendState::Starting => return None,
        BackendState::Stopped => "lowroad is stopped.".to_owned(),
        BackendState::NeedsLogin if status.auth_url.is_empty() => "Logged out.".to_owned(),
        BackendState::NeedsLogin => format!("Logged out.\nLog in at: {}", status.auth_url),
        BackendState::NeedsMachineAuth => {
            "Machine is not yet approved by tailnet admin.".to_owned()
        }
        BackendState::NoState => "unexpected state: NoState".to_owned(),
    })
}

/// The table of `status`, with the health section. `now` is seconds since the epoch, for "last seen".
pub fn status(status: &Status, view: StatusView, now: i64) -> String {
    let mut rows = Vec::new();
    if let Some(node) = status.self_node.as_ref().filter(|_| view.self_node) {
        rows.push(status_row(status, node, now));
    }
    if view.peers {
        let mut peers: Vec<_> = status.peer.iter().flatten().map(|(_, peer)| peer).collect();
        peers.sort_by_key(|peer| (sort_name(peer), peer.first_ip()));
        peers.retain(|peer| !view.active || peer.active);
        rows.extend(peers.into_iter().map(|peer| status_row(status, peer, now)));
    }
    let mut text = table(&rows);
    if !status.health.is_empty() {
        text.push_str("\n# Health check:\n");
        for message in &status.health {
            let _ = writeln!(text, "#     - {}", one_line(message));
        }
    }
    let own = &status.lowroad;
    if !own.dataplane.is_empty() {
        let (device, port) = (&own.device, own.port);
        let _ = writeln!(
            text,
            "\n# Data plane: {} ({device}, UDP port {port})",
            own.dataplane
        );
    }
    text
}

/// Text of others for a terminal: no control character reaches it, or a peer's name could rewrite the screen.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

/// As [`printable`], and in one line.
fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

fn sort_name(peer: &PeerStatus) -> String {
    if peer.dns_name.is_empty() {
        peer.host_name.to_lowercase()
    } else {
        peer.dns_name.to_lowercase()
    }
}

fn status_row(status: &Status, peer: &PeerStatus, now: i64) -> [String; 5] {
    [
        peer.first_ip().map(|ip| ip.to_string()).unwrap_or_default(),
        short_name(status, peer),
        owner(&status.user, peer.user_id),
        peer.os.clone(),
        activity(peer, now),
    ]
    .map(|cell| one_line(&cell))
}

fn activity(peer: &PeerStatus, now: i64) -> String {
    let traffic = peer.tx_bytes != 0 || peer.rx_bytes != 0;
    let offline = if peer.online {
        String::new()
    } else {
        format!("offline{}", last_seen(&peer.last_seen, now))
    };
    let after = if peer.online {
        String::new()
    } else {
        format!("; {offline}")
    };
    let mut text = if !peer.active {
        match (peer.exit_node, peer.exit_node_option, traffic, peer.online) {
            (true, ..) => format!("idle; exit node{after}"),
            (_, true, ..) => format!("idle; offers exit node{after}"),
            (_, _, true, _) => format!("idle{after}"),
            (_, _, _, false) => offline,
            _ => "-".to_owned(),
        }
    } else {
        let exit = match (peer.exit_node, peer.exit_node_option) {
            (true, _) => "exit node; ",
            (_, true) => "offers exit node; ",
            _ => "",
        };
        let path = if !peer.cur_addr.is_empty() {
            format!("direct {}", peer.cur_addr)
        } else if !peer.peer_relay.is_empty() {
            format!("peer-relay {}", peer.peer_relay)
        } else {
            format!("relay {:?}", peer.relay)
        };
        format!("active; {exit}{path}{after}")
    };
    if traffic {
        let _ = write!(text, ", tx {} rx {}", peer.tx_bytes, peer.rx_bytes);
    }
    text
}

fn last_seen(time: &str, now: i64) -> String {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    if time == NEVER || time.is_empty() {
        return String::new();
    }
    let Ok(seen) = OffsetDateTime::parse(time, &Rfc3339) else {
        return String::new();
    };
    let minutes = (now - seen.unix_timestamp()).max(0) / 60;
    match minutes {
        0 => ", last seen just now".to_owned(),
        1..60 => format!(", last seen {minutes}m ago"),
        60..1440 => format!(", last seen {}h ago", minutes / 60),
        _ => format!(", last seen {}d ago", minutes / 1440),
    }
}

/// The name without the tailnet's suffix; a quoted host name where there is none.
pub fn short_name(status: &Status, peer: &PeerStatus) -> String {
    let name = peer.dns_name.trim_end_matches('.');
    let base = name
        .strip_suffix(&status.magic_dns_suffix)
        .map_or(name, |base| base.trim_end_matches('.'));
    if base.is_empty() {
        format!("({:?})", peer.host_name)
    } else {
        base.to_owned()
    }
}

fn owner(users: &Option<BTreeMap<i64, UserStatus>>, id: i64) -> String {
    if id == 0 {
        return "-".to_owned();
    }
    match users.as_ref().and_then(|users| users.get(&id)) {
        Some(user) => match user.login_name.find('@') {
            Some(at) => user.login_name[..=at].to_owned(),
            None => user.login_name.clone(),
        },
        None => id.to_string(),
    }
}

/// Columns as wide as their widest cell plus two, the last one too, as Go's tabwriter makes them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(text, "{cell:<w$}", w = width + 2);
        }
        text.push('\n');
    }
    text
}

/// One line for a ping's answer.
pub fn pong(result: &PingResult, kind: PingKind) -> String {
    let via = if kind != PingKind::Disco {
        kind.to_string()
    } else if !result.endpoint.is_empty() {
        result.endpoint.clone()
    } else if !result.peer_relay.is_empty() {
        format!("peer-relay({})", result.peer_relay)
    } else {
        format!("DERP({})", result.derp_region_code)
    };
    let latency = Duration::try_from_secs_f64(result.latency_seconds).unwrap_or_default();
    let port = result.peer_api_port.map(|port| format!(", {port}"));
    format!(
        "pong from {} ({}{}) via {via} in {}",
        result.node_name,
        result.node_ip,
        port.unwrap_or_default(),
        go_milliseconds(latency)
    )
}

/// A duration rounded to milliseconds, as Go prints it.
fn go_milliseconds(duration: Duration) -> String {
    let ms = (duration.as_secs_f64() * 1000.0).round() as u64;
    match ms {
        0 => "0s".to_owned(),
        1..1000 => format!("{ms}ms"),
        _ => {
            let seconds = format!("{:.3}", (ms % 60_000) as f64 / 1000.0);
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            if ms < 60_000 {
                format!("{seconds}s")
            } else {
                format!("{}m{seconds}s", ms / 60_000)
            }
        }
    }
}

pub fn whois(who: &WhoIs) -> String {
    let node = &who.node;
    let text = |key: &str| {
        node.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = |key: &str| -> Vec<String> {
        node.get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    };
    let mut out = String::from("Machine:\n");
    let _ = writeln!(
        out,
        "  Name:          {}",
        text("Name").trim_end_matches('.')
    );
    let _ = writeln!(out, "  ID:            {}", text("StableID"));
    let _ = writeln!(out, "  Addresses:     [{}]", list("Addresses").join(" "));
    let tags = list("Tags");
    if tags.is_empty() {
        let _ = writeln!(
            out,
            "User:\n  Name:     {}\n  ID:       {}",
            who.user_profile.login_name, who.user_profile.id
        );
    } else {
        let _ = writeln!(out, "  Tags:          {}", tags.join(", "));
    }
    if let Some(caps) = who.cap_map.as_ref().filter(|caps| !caps.is_empty()) {
        out.push_str("Capabilities:\n");
        for (cap, values) in caps {
            let _ = writeln!(out, "  - {cap}:");
            for value in values.as_array().into_iter().flatten() {
                let _ = writeln!(out, "      {value}");
            }
        }
    }
    out
}

/// The report of `netcheck` as text.
pub fn netcheck(report: &Value) -> String {
    let text = |key: &str| report.get(key).and_then(Value::as_str).unwrap_or_default();
    let flag = |key: &str| report.get(key).and_then(Value::as_bool).unwrap_or_default();
    let mut out = String::from("\nReport:\n");
    let _ = writeln!(out, "\t* Time: {}", text("Now"));
    let _ = writeln!(out, "\t* UDP: {}", flag("UDP"));
    for (name, key) in [("IPv4", "GlobalV4"), ("IPv6", "GlobalV6")] {
        match text(key) {
            "" => writeln!(out, "\t* {name}: no"),
            address => writeln!(out, "\t* {name}: yes, {address}"),
        }
        .expect("writing to a string cannot fail");
    }
    let varies = report
        .get("MappingVariesByDestIP")
        .and_then(Value::as_bool)
        .map(|b| b.to_string())
        .unwrap_or_default();
    let _ = writeln!(out, "\t* MappingVariesByDestIP: {varies}");
    let regions = report.get("RegionLatency").and_then(Value::as_object);
    let named = |id: &str| {
        report
            .pointer(&format!("/Lowroad/Regions/{id}"))
            .and_then(Value::as_str)
            .unwrap_or(id)
            .to_owned()
    };
    if let Some(id) = report
        .get("PreferredDERP")
        .and_then(Value::as_u64)
        .filter(|id| *id != 0)
    {
        let _ = writeln!(out, "\t* Nearest DERP: {}", named(&id.to_string()));
    }
    out.push_str("\t* DERP latency:\n");
    for (id, latency) in regions.into_iter().flatten() {
        let _ = writeln!(
            out,
            "\t\t- {}: {:.1}ms",
            named(id),
            latency.as_f64().unwrap_or_default() / 1e6
        );
    }
    out
}

/// One line for a refused packet.
pub fn flow(flow: &Flow) -> String {
    let end = |ip: std::net::IpAddr, port: u16| {
        if port == 0 {
            ip.to_string()
        } else {
            std::net::SocketAddr::new(ip, port).to_string()
        }
    };
    let rule = flow
        .rule
        .map(|rule| format!(" rule {rule}"))
        .unwrap_or_default();
    format!(
        "{} {} {} {} {} > {} ({}){rule} {} bytes",
        flow.time,
        flow.verdict,
        flow.direction,
        flow.proto,
        end(flow.src, flow.src_port),
        end(flow.dst, flow.dst_port),
        flow.reason,
        flow.length
    )
}

#[cfg(test)]
mod tests;
