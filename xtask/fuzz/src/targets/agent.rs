//! The agent's own doors: its socket, its preferences, its state file.

use std::{os::unix::fs::MetadataExt, path::Path};

use lowroad_agent::{
    localapi::{Ask, Rights, Server, watch::Watcher},
    prefs::{Change, Prefs},
    state::State,
    status::{PingResult, Status},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{broadcast, mpsc},
};

/// Preferences as a client of the local API sends them, and as they are stored.
pub fn prefs(input: &[u8]) {
    if let Ok(prefs) = serde_json::from_slice::<Prefs>(input) {
        let text = serde_json::to_vec(&prefs).expect("what was read can be written");
        assert_eq!(
            serde_json::from_slice::<Prefs>(&text).expect("what we write, we read"),
            prefs
        );
    }
    let Ok(json) = serde_json::from_slice(input) else {
        return;
    };
    let changes = [
        serde_json::from_slice::<Change>(input).ok(),
        Change::from_masked_json(&json).ok(),
        Change::from_whole_json(&json).ok(),
    ];
    for mut change in changes.into_iter().flatten() {
        let _ = change.require_complete(&Prefs::default());
        if change.validate().is_err() {
            continue;
        }
        let valid = change.clone();
        change.validate().expect("what was put in order stays so");
        assert_eq!(change, valid);
        let mut prefs = Prefs::default();
        change.apply(&mut prefs);
        // Shown by `status` and said to the server: one line each.
        assert!(
            !prefs.control_url.contains(char::is_control)
                && !prefs.hostname.contains(char::is_control)
        );
        let shown = Change::from_whole_json(&prefs.to_stock_json()).expect("our own JSON");
        let mut again = Prefs::default();
        shown.apply(&mut again);
        assert_eq!(again, prefs, "what is shown can be set");
    }
}

pub fn prefs_seeds() -> Vec<Vec<u8>> {
    let changed = Prefs {
        hostname: "gate".to_owned(),
        advertise_tags: vec!["tag:a".to_owned()],
        ..Prefs::default()
    };
    let texts = [
        serde_json::to_string(&changed).expect("plain"),
        changed.to_stock_json().to_string(),
        r#"{"ControlURL":"https://hs.example:8443/","ControlURLSet":true,"Hostname":"a","HostnameSet":true,"AdvertiseTags":["web"],"AdvertiseTagsSet":true,"ExitNodeIDSet":true,"RouteAll":null,"RouteAllSet":true}"#.to_owned(),
        r#"{"control_url":"http://[::1]:1","shields_up":true,"hostname":"b","advertise_tags":["tag:x"],"operator_user":"ann"}"#.to_owned(),
    ];
    texts.map(String::into_bytes).to_vec()
}

/// The state file of an older, newer or broken lowroad.
pub fn state_file(input: &[u8]) {
    match State::parse(
        input,
        Path::new("/state.json"),
        &mut |bytes: &mut [u8]| {
            bytes.fill(7);
        },
    ) {
        Ok((state, _)) => assert!(state.id.len() == 16 && !state.id.contains(['/', '.'])),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("/state.json"), "{text}");
            assert!(!text.contains("privkey:"), "a key may be in it");
        }
    }
}

pub fn state_file_seeds() -> Vec<Vec<u8>> {
    let key = "5a".repeat(32);
    let whole = format!(
        r#"{{"version":1,"id":"0123456789abcdef","machine_key":"privkey:{key}","node_key":"privkey:{key}","old_node_key":null,"registered_at":"https://hs.example","made_for":"https://hs.example","left_node_keys":[{{"server":"https://other.example","key":"privkey:{key}","accepted":true}}],"server_keys":{{"https://hs.example":"mkey:{key}"}},"prefs":{{"ControlURL":"https://hs.example","WantRunning":true}}}}"#
    );
    vec![
        whole.clone().into_bytes(),
        whole.as_bytes()[..whole.len() / 2].to_vec(),
        br#"{"version":2}"#.to_vec(),
        format!(r#"{{"version":1,"id":"../../../../../etc","machine_key":"privkey:{key}"}}"#)
            .into_bytes(),
        br#"{"version":{"privkey:":1}}"#.to_vec(),
    ]
}

/// Requests on the agent's socket, one after another: `METHOD path`, a line feed, the body; a zero byte between them. After `raw `: bytes as they are.
pub fn local_api(input: &[u8]) {
    let runtime = super::runtime();
    runtime.block_on(async {
        let (asks, asked) = mpsc::channel(4);
        let engine = tokio::spawn(engine(asked));
        let own = std::fs::metadata("/proc/self").expect("there is /proc");
        let rights = Rights {
            own_user: own.uid(),
            ..Rights::default()
        };
        let server = Server::new(asks, rights);
        for request in input.split(|byte| *byte == 0).take(12) {
            let (mut near, far) = UnixStream::pair().expect("sockets are left");
            let bytes = http(request);
            let client = async {
                let _ = near.write_all(&bytes).await;
                // Who hangs up before the answer gets none.
                if request.starts_with(b"raw ") {
                    let _ = near.shutdown().await;
                }
                let mut answer = Vec::new();
                let _ = near.read_to_end(&mut answer).await;
                assert!(
                    answer.is_empty() || answer.starts_with(b"HTTP/1."),
                    "what answers isn't HTTP"
                );
                assert!(
                    !answer.is_empty() || request.starts_with(b"raw "),
                    "no answer"
                );
                assert!(answer.len() < (1 << 16) + 8 * input.len());
            };
            tokio::join!(client, server.clone().connection(far));
        }
        drop(server);
        engine.await.expect("the engine ends when nobody can ask");
    });
}

fn http(request: &[u8]) -> Vec<u8> {
    if let Some(raw) = request.strip_prefix(b"raw ") {
        return raw.to_vec();
    }
    let (line, body) = request.split_at(
        request
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(request.len()),
    );
    let body = body.get(1..).unwrap_or_default();
    let head = format!(
        " HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [line, head.as_bytes(), body].concat()
}

/// Answers as the engine does where that needs no kernel.
async fn engine(mut asked: mpsc::Receiver<Ask>) {
    let mut prefs = Prefs::default();
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Status { reply, .. } => drop(reply.send(Status::default())),
            Ask::WhoIs { reply, .. } => drop(reply.send(None)),
            Ask::Prefs { reply } => drop(reply.send(prefs.to_stock_json())),
            Ask::Set { mut change, reply } => {
                let result = change.validate().map_err(|error| error.to_string());
                drop(reply.send(result.map(|()| {
                    change.apply(&mut prefs);
                    prefs.to_stock_json()
                })));
            }
            // Who waits for progress sees its end.
            Ask::Up { mut request, .. } => {
                let complete = request.change.require_complete(&prefs);
                let valid = request.change.validate();
                if complete.and(valid).is_ok() {
                    request.change.apply(&mut prefs);
                }
            }
            Ask::Watch { reply, .. } => {
                let first = vec![prefs.to_stock_json()];
                let watcher = Watcher::new(broadcast::Sender::new(1).subscribe());
                drop(reply.send((first, watcher)))
            }
            Ask::Flows { reply } => {
                drop(reply.send((Vec::new(), broadcast::Sender::new(1).subscribe())))
            }
            Ask::Start { reply, .. }
            | Ask::Login { reply }
            | Ask::Down { reply }
            | Ask::Logout { reply } => drop(reply.send(Ok(()))),
            Ask::Ping { reply, .. } => drop(reply.send(PingResult::default())),
            Ask::DerpMap { reply } | Ask::Netcheck { reply } | Ask::Counters { reply } => {
                drop(reply.send(json!({})))
            }
            Ask::Metrics { reply } => drop(reply.send(String::new())),
        }
    }
}

pub fn local_api_seeds() -> Vec<Vec<u8>> {
    let requests = [
        "GET /localapi/v0/status?peers=false",
        "GET /localapi/v0/whois?addr=100.64.0.1%3A80",
        "GET /localapi/v0/prefs",
        "PATCH /localapi/v0/prefs\n{\"Hostname\":\"a\",\"HostnameSet\":true}",
        "POST /lowroad/v0/set\n{\"shields_up\":true}",
        "POST /lowroad/v0/up\n{\"change\":{\"control_url\":\"http://a\"},\"auth_key\":\"k\",\"timeout_ms\":1}",
        "POST /localapi/v0/start\n{\"AuthKey\":\"k\",\"UpdatePrefs\":{\"RouteAll\":true}}",
        "POST /localapi/v0/ping?ip=100.64.0.1&type=disco",
        "GET /lowroad/v0/flows?follow=true",
        "GET /localapi/v0/watch-ipn-bus?mask=0",
        "POST /localapi/v0/login-interactive",
        "raw GET /localapi/v0/status HTTP/1.1\r\nHost: evil\r\nOrigin: x\r\n\r\n",
        "raw PATCH /localapi/v0/prefs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}   \r\n0\r\n\r\n",
    ];
    let more = [
        "POST /localapi/v0/check-prefs\n{\"ControlURL\":\"https://hs.example\",\"Hostname\":\"a b\",\"RouteAll\":true}",
        "POST /localapi/v0/logout",
        "POST /lowroad/v0/down",
        "GET /localapi/v0/derpmap",
        "GET /localapi/v0/serve-config",
        "GET /localapi/v0/metrics",
        "GET /localapi/v0/usermetrics",
        "GET /lowroad/v0/netcheck",
        "GET /lowroad/v0/counters",
        "GET /lowroad/v0/flows",
        "POST /localapi/v0/ping?type=TSMP&ip=fd7a%3A%3A1",
        "DELETE /localapi/v0/prefs",
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for requests in [&requests[..], &more] {
        seeds.extend(requests.iter().map(|text| text.as_bytes().to_vec()));
        seeds.push(requests.join("\0").into_bytes());
    }
    seeds
}
