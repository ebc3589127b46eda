//! What administrators ask on the coordinator's socket.

use std::fs;

use lowroad_coordinator::{
    admin,
    hub::{Hub, now},
    state::Settings,
};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::UnixStream};

use super::folder;
use crate::targets::{coordinator_state::populate, runtime};

/// Hands of an administrator's socket, of a tailnet with two nodes: each line is the body of a request; after a line `raw`, the rest is
/// written as it is.
pub fn admin_socket(input: &[u8]) {
    let folder = folder("admin");
    let _ = fs::remove_dir_all(&folder);
    let hub = Hub::open(&folder, Settings::default(), None).expect("an empty folder");
    runtime().block_on(async {
        let listener = admin::socket::listen(&folder).expect("the folder is ours");
        let path = admin::socket::path(&folder);
        let server = tokio::spawn(admin::server::serve(listener, hub.clone()));
        let publisher = tokio::spawn(hub.clone().publish());
        let ((), joined) = hub.change(|state| populate(state, now()));
        hub.in_force(joined).await.expect("the first nodes join");
        for line in input.split(|byte| *byte == b'\n').take(20) {
            let head = format!(
                "POST /v1 HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                line.len()
            );
            let request = match line.strip_prefix(b"raw ") {
                Some(raw) => [raw, b"\r\n\r\n"].concat(),
                None => [head.as_bytes(), line].concat(),
            };
            let mut stream = UnixStream::connect(&path).await.expect("it listens");
            let _ = stream.write_all(&request).await;
            // Who hangs up before the answer gets none.
            if line.starts_with(b"raw ") {
                let _ = stream.shutdown().await;
            }
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1."),
                "what answers isn't HTTP"
            );
            assert!(
                !answer.is_empty() || line.starts_with(b"raw "),
                "no answer: a task panicked?"
            );
        }
        publisher.abort();
        server.abort();
    });
    hub.close();
}

pub fn admin_socket_seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"command":"users-create","name":"ann","display_name":"Ann"}"#,
        r#"{"command":"auth-keys-create","user":"ann","reusable":true,"ephemeral":false,"expiry_seconds":18446744073709551615,"tags":["tag:a"]}"#,
        r#"{"command":"auth-keys-list","user":null}"#,
        r#"{"command":"auth-keys-expire","key":"1"}"#,
        r#"{"command":"nodes-list","user":"ann"}"#,
        r#"{"command":"nodes-approve-routes","node":"1","routes":["10.0.0.0/8"]}"#,
        r#"{"command":"nodes-approve","registration":"x","user":"ann"}"#,
        r#"{"command":"nodes-rename","node":"1","name":"x"}"#,
        r#"{"command":"nodes-set-expiry","node":"1","expiry":"2027-01-31T18:00:00+02:00"}"#,
        r#"{"command":"policy-set","text":"{\"acls\":[]}"}"#,
        r#"{"command":"policy-get"}"#,
        r#"{"command":"users-delete","user":"1"}"#,
        "raw GET / HTTP/1.1",
        "raw POST /v1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    ];
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for lines in [&lines[..], &ABOUT_NODES] {
        seeds.extend(lines.iter().map(|line| line.as_bytes().to_vec()));
        seeds.push(lines.join("\n").into_bytes());
    }
    seeds
}

const ABOUT_NODES: [&str; 20] = [
    r#"{"command":"users-create","name":"zoe@example.com","display_name":""}"#,
    r#"{"command":"users-list"}"#,
    r#"{"command":"users-delete","user":"zoe@example.com"}"#,
    r#"{"command":"users-role","user":"bea","role":"owner"}"#,
    r#"{"command":"nodes-show","node":"n1"}"#,
    r#"{"command":"nodes-approve-routes","node":"2","routes":["10.0.0.0/8","::/0"]}"#,
    r#"{"command":"policy-set","text":"{\"acls\":[]}","author":"eve","message":"why","based_on":"no-policy"}"#,
    r#"{"command":"policy-check","text":"{\"tagOwners\":{\"tag:a\":[]},\"acls\":[{\"action\":\"accept\",\"src\":[\"bea@\"],\"dst\":[\"tag:a:443\",\"10.0.0.0/8:*\"]}]}"}"#,
    r#"{"command":"policy-set","text":"{\"tagOwners\":{\"tag:a\":[]},\"acls\":[{\"action\":\"accept\",\"src\":[\"bea@\"],\"dst\":[\"tag:a:443\"]}]}","based_on":{"version":1}}"#,
    r#"{"command":"policy-log"}"#,
    r#"{"command":"policy-get","version":1}"#,
    r#"{"command":"policy-diff","text":"{}"}"#,
    r#"{"command":"policy-diff","version":1}"#,
    r#"{"command":"policy-explain","node":"n2"}"#,
    r#"{"command":"policy-why","from":"n1","to":"n2","protocol":6,"port":443}"#,
    r#"{"command":"policy-why","from":"bea","to":"10.1.2.3","protocol":1,"port":0}"#,
    r#"{"command":"policy-rollback","version":1,"author":"","message":"back"}"#,
    r#"{"command":"nodes-expire","node":"100.64.0.1"}"#,
    r#"{"command":"nodes-delete","node":"n2."}"#,
    r#"{"command":"nodes-show","node":"nodekey:00"}"#,
];
