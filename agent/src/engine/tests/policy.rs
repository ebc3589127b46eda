//! Policies that take long to compile, those that are too large, and those that the kernel refuses.

use super::*;

#[tokio::test]
async fn while_a_large_policy_is_compiled_the_engine_answers_and_takes_messages_after_it() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let rule = |n: u32| json!({"SrcIPs": [format!("10.{}.{}.{}", n / 62_500, n / 250 % 250, n % 250)], "DstPorts": [{"IP": "*", "Ports": {"First": n % 60_000 + 1, "Last": n % 60_000 + 1}}]});
    let rules: Vec<_> = (0..60_000).map(rule).collect();
    stream.send(json!({"PacketFilter": rules})).await.unwrap();
    stream.send(json!({"PeersRemoved": [2]})).await.unwrap();

    let kernel = agent.kernel();
    let mut answered = Vec::new();
    let in_force = async {
        while kernel.installed().len() < 2 {
            let status = agent.status().await;
            if status.lowroad.waiting_for == "the kernel to be programmed" {
                answered.push(Instant::now());
            }
        }
    };
    timeout(PATIENCE, in_force)
        .await
        .expect("it comes into force");
    // The compiler has a second's work. If the engine waited for it, only what comes together would be waited for: 5 ms.
    let times = answered.first().zip(answered.last());
    let meanwhile = times.map(|(first, last)| *last - *first).unwrap();
    assert!(meanwhile > Duration::from_millis(100), "{meanwhile:?}");
    until(|| kernel.observed().device.unwrap().peers.is_empty()).await;
    agent.end().await;
}

#[tokio::test]
async fn a_policy_that_the_kernel_refuses_closes_the_device_health_says_why_and_it_is_tried_again()
{
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let kernel = agent.kernel();
    let nothing_passes = async || health_line(&agent, "nothing passes").await;
    assert_eq!(nothing_passes().await, None);

    // Once at first, once more at once, and once after a while.
    kernel.fail_installs(3);
    let refused = Instant::now();
    let rules =
        json!([{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 80, "Last": 80}}]}]);
    stream.send(json!({"PacketFilter": rules})).await.unwrap();
    until(|| kernel.is_closed()).await;
    assert_eq!(kernel.installed().len(), 1, "the one before");
    let why = nothing_passes().await.expect("health says so");
    assert!(why.contains("injected failure: install"), "{why}");

    until(|| !kernel.is_closed()).await;
    assert!(refused.elapsed() >= RETRY_INTERVAL);
    assert_eq!(kernel.installed().len(), 2);
    assert_eq!(nothing_passes().await, None);
    agent.end().await;
}

fn admitting(port: u16) -> serde_json::Value {
    json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": port, "Last": port}}]})
}

#[tokio::test]
async fn a_policy_that_is_too_large_closes_the_device_and_health_says_that_none_is_in_force() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let kernel = agent.kernel();
    // Each stands for 254 prefixes.
    let mut rule = admitting(80);
    rule["SrcIPs"] = json!(["::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"]);
    let mut too_large = vec![rule; 3_000];
    too_large.push(admitting(80));
    for (rules, in_force) in [
        (vec![admitting(80)], 1),
        (too_large, 0),
        (vec![admitting(443)], 1),
    ] {
        let before = kernel.installed().len();
        stream.send(json!({"PacketFilter": rules})).await.unwrap();
        until(|| kernel.installed().len() > before).await;
        assert_eq!(kernel.installed()[before].rules.len(), in_force);
        let line = health_line(&agent, "1 parts of the policy are not in force").await;
        let says = |line: &String| line.contains("prefixes: none is in force (see the log)");
        assert_eq!(line.as_ref().is_some_and(says), in_force == 0, "{line:?}");
        assert_eq!(line.is_some(), in_force == 0, "{line:?}");
    }
    agent.end().await;
}
