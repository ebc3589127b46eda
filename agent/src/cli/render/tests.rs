use std::{env, fs, path::PathBuf};

use super::*;

/// The standard output of a captured stock command, without the header lines; `None` (said) if the samples are missing.
fn captured(name: &str) -> Option<String> {
    let root = env::var_os("LOWROAD_SAMPLES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples")),
        PathBuf::from,
    );
    let root = if root.is_dir() {
        root
    } else {
        PathBuf::from("/work/shared/samples")
    };
    match fs::read_to_string(root.join("captures/cli").join(name)) {
        Ok(text) => {
            let body = text.splitn(3, '\n').nth(2).unwrap_or_default().to_owned();
            Some(
                body.split("\n--- stderr")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            )
        }
        Err(error) => {
            println!("SKIPPED: samples of stock CLI output are missing: {error}\nskipped 1");
            None
        }
    }
}

const ALL: StatusView = StatusView {
    peers: true,
    self_node: true,
    active: false,
};

#[test]
fn the_status_table_is_the_stock_clients_to_the_byte() {
    let (Some(json), Some(text), Some(active)) = (
        captured("status.json"),
        captured("status.txt"),
        captured("status-peers-active.txt"),
    ) else {
        return;
    };
    let parsed: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(status(&parsed, ALL, 0), text);
    assert_eq!(
        status(
            &parsed,
            StatusView {
                active: true,
                ..ALL
            },
            0
        ),
        active
    );
}

#[test]
fn the_status_json_keeps_every_key_of_the_stock_clients_in_its_order() {
    let Some(json) = captured("status.json") else {
        return;
    };
    let parsed: Status = serde_json::from_str(&json).unwrap();
    let ours = serde_json::to_string_pretty(&parsed).unwrap();
    let (ours, rest) = ours
        .split_once(",\n  \"Lowroad\"")
        .expect("our own key comes last");
    assert!(rest.contains("Dataplane"));
    assert_eq!(format!("{ours}\n}}\n").trim(), json.trim());
}

#[test]
fn whois_reads_as_the_stock_clients() {
    let (Some(json), Some(text)) = (captured("whois.json"), captured("whois.txt")) else {
        return;
    };
    let parsed: WhoIs = serde_json::from_str(&json).unwrap();
    assert_eq!(whois(&parsed).trim_end(), text.trim_end());
}

#[test]
fn a_pong_reads_as_the_stock_clients() {
    let mut result = PingResult {
        node_name: "d".into(),
        node_ip: "100.64.0.4".into(),
        endpoint: "203.0.113.32:41641".into(),
        latency_seconds: 0.0004,
        ..PingResult::default()
    };
    if let Some(text) = captured("ping-d.txt") {
        assert_eq!(pong(&result, PingKind::Disco), text.trim_end());
    }
    result.endpoint.clear();
    result.derp_region_code = "lab".into();
    result.latency_seconds = 0.0016;
    assert_eq!(
        pong(&result, PingKind::Disco),
        "pong from d (100.64.0.4) via DERP(lab) in 2ms"
    );
    result.latency_seconds = 1.25;
    assert!(pong(&result, PingKind::Disco).ends_with("in 1.25s"));
    result.peer_api_port = Some(40_001);
    assert_eq!(
        pong(&result, PingKind::Tsmp),
        "pong from d (100.64.0.4, 40001) via TSMP in 1.25s"
    );
}

#[test]
fn names_of_others_cannot_steer_the_terminal() {
    let peer = PeerStatus {
        dns_name: "a\u{1b}[2Jb\n100.64.0.9 c".into(),
        os: "\u{9b}31m".into(),
        ..PeerStatus::default()
    };
    let shown = Status {
        peer: Some(BTreeMap::from([("nodekey:a".to_owned(), peer)])),
        health: vec!["x\r\ny".into()],
        ..Status::default()
    };
    let text = status(&shown, ALL, 0);
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n'),
        "{text:?}"
    );
    assert_eq!(text.lines().count(), 4, "{text:?}");
    assert_eq!(printable("a\u{7}\n\tb"), "a\u{fffd}\n\tb");
}

#[test]
fn status_says_which_data_plane_runs() {
    let mut shown = Status::default();
    shown.lowroad.dataplane = "kernel".into();
    shown.lowroad.device = "lowroad0".into();
    shown.lowroad.port = 41641;
    let text = status(&shown, ALL, 0);
    assert!(
        text.ends_with("# Data plane: kernel (lowroad0, UDP port 41641)\n"),
        "{text:?}"
    );
}

#[test]
fn a_stopped_node_says_so_instead_of_a_table() {
    let Some(json) = captured("status-down.json") else {
        return;
    };
    let parsed: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(not_running(&parsed).as_deref(), Some("lowroad is stopped."));
}

#[test]
fn an_offline_peer_shows_when_it_was_last_seen() {
    let peer = PeerStatus {
        last_seen: "1970-01-01T00:10:00Z".into(),
        ..PeerStatus::default()
    };
    assert_eq!(activity(&peer, 600 + 180), "offline, last seen 3m ago");
    let relayed = PeerStatus {
        online: true,
        active: true,
        relay: "lab".into(),
        tx_bytes: 1,
        ..PeerStatus::default()
    };
    assert_eq!(activity(&relayed, 0), "active; relay \"lab\", tx 1 rx 0");
}
