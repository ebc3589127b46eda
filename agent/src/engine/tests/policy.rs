//! Policies that take long to compile, and those that the kernel refuses.

use super::*;

#[tokio::test]
async fn while_a_large_policy_is_compiled_the_engine_answers_and_takes_messages_after_it() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    let stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
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
    let agent = Agent::start(&dir);
    let steps = agent.up(request(&server.url)).await;
    let stream = admit(&mut server).await;
    assert_eq!(last(steps).await, Progress::Done);
    let kernel = agent.kernel();
    let nothing_passes = async || {
        let health = agent.status().await.health;
        health
            .into_iter()
            .find(|line| line.starts_with("nothing passes"))
    };
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
