//! How it goes with more nodes. Slow, and about numbers: `cargo test -p lowroad-coordinator --test server -- --ignored --nocapture scale`.

use std::time::{Duration, Instant};

use crate::{
    client::{Client, peer},
    lab::Lab,
};

const NODES: usize = 200;
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn two_hundred_nodes() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let began = Instant::now();
    let mut clients = Vec::new();
    let mut polls = Vec::new();
    for number in 0..NODES {
        let mut client = Client::joined(lab.address(), &format!("n{number}"), &key).await;
        let mut poll = client.poll().await;
        poll.until("a netmap", |_| true).await;
        // Somebody has to read, or the polls' windows fill up.
        polls.push(tokio::spawn(async move {
            poll.until_within(LIMIT, "all online", |netmap| {
                netmap.peers.len() == NODES - 1
                    && netmap.peers.values().all(|node| node.online == Some(true))
            })
            .await;
            poll
        }));
        clients.push(client);
    }
    println!("{NODES} joined one after the other: {:?}", began.elapsed());
    let mut ready = Vec::new();
    for poll in polls {
        ready.push(poll.await.unwrap());
    }
    println!("and all know all: {:?}", began.elapsed());
    let began = Instant::now();
    clients[0].update(&["192.0.2.1:7"], Some(999)).await;
    println!("an update is acknowledged: {:?}", began.elapsed());
    let waits = ready.iter_mut().skip(1).map(|poll| async move {
        poll.until("the endpoint", |netmap| {
            peer(netmap, "n0").is_some_and(|node| !node.endpoints.is_empty())
        })
        .await;
    });
    futures_util::future::join_all(waits).await;
    println!("and known to all: {:?}", began.elapsed());
    let began = Instant::now();
    lab.set_policy(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}"#)
        .await;
    println!("a policy is acknowledged: {:?}", began.elapsed());
    let waits = ready.iter_mut().map(|poll| async move {
        poll.until("the filter", |netmap| {
            netmap
                .filter_rules()
                .any(|rule| rule.dst_ports.iter().any(|port| port.ports.last == 22))
        })
        .await;
    });
    futures_util::future::join_all(waits).await;
    println!("and in force for all: {:?}", began.elapsed());
}
