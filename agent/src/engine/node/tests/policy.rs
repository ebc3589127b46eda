//! Policies: compiled beside the loop, in force or nothing passes.

use super::*;

#[tokio::test]
async fn what_the_filter_leaves_out_of_a_policy_is_told() {
    let (mut node, _) = node_on(|_| {}).await;
    let mut message = netmap(1..=1);
    message["PacketFilter"][0]["SrcIPs"] = json!(["100.64.1.1", "nonsense"]);
    take(&mut node, &message);
    reconcile(&mut node).await;
    assert_eq!(node.filter_notes().len(), 1);
    assert!(node.filter_notes()[0].contains("nonsense"));
}

#[tokio::test]
async fn a_policy_that_fails_once_is_in_force_at_once_and_nothing_is_closed() {
    let (mut node, kernel) = running(1..=1).await;
    take(&mut node, &other_policy());
    kernel.fail_installs(1);
    reconcile(&mut node).await;
    assert_eq!(kernel.installed().len(), 2);
    assert!(!kernel.is_closed() && node.closed().is_none() && node.programmed);
}

#[tokio::test]
async fn while_a_policy_cannot_be_put_in_force_nothing_passes_by_the_one_before() {
    let (mut node, kernel) = running(1..=1).await;
    let clock = OffsetDateTime::UNIX_EPOCH;
    // Whatever keeps the new one from being installed.
    let causes: [fn(&FakeHandle); 2] = [|k| k.fail_installs(2), |k| k.fail_observe(true)];
    for (cause, port) in causes.into_iter().zip([80, 443]) {
        let mut message = other_policy();
        message["PacketFilter"][0]["DstPorts"][0]["Ports"] = json!({"First": port, "Last": port});
        take(&mut node, &message);
        node.compare_whole();
        cause(&kernel);
        assert!(node.reconcile(Instant::now(), clock).await.is_err());
        assert!(kernel.is_closed() && node.closed().is_some());
        kernel.heal();
        reconcile(&mut node).await;
        assert!(!kernel.is_closed() && node.closed().is_none());
    }
}

/// What the new policy grants an address must not be had by the peer that had it under the old one.
#[tokio::test]
async fn an_address_leaves_its_peer_before_another_policy_comes_into_force() {
    let (mut node, kernel) = running(1..=3).await;
    let addresses = |n: u16| peer(n)["Addresses"][0].clone();
    let (mut second, mut third) = (peer(2), peer(3));
    // The first leaves, and the others hand their addresses on.
    second["Addresses"] = json!([addresses(1)]);
    third["Addresses"] = json!([addresses(2)]);
    let mut message = admitting(80);
    message["PeersRemoved"] = json!([2]);
    message["PeersChanged"] = json!([second, third]);
    take(&mut node, &message);
    // As it is at the moment of the installation.
    kernel.fail_installs(2);
    let clock = OffsetDateTime::UNIX_EPOCH;
    assert!(node.reconcile(Instant::now(), clock).await.is_err());
    let peers = kernel.observed().device.unwrap().peers;
    assert_eq!(peers.len(), 2);
    assert!(peers.values().all(|peer| peer.allowed_ips.is_empty()));
    reconcile(&mut node).await;
    let peers = kernel.observed().device.unwrap().peers;
    let held = |n| peers[&peer_key(n)].allowed_ips.first().unwrap().to_string();
    assert_eq!([held(2), held(3)], [addresses(1), addresses(2)]);
}

/// Another one than before for each port. How large it is does not matter where nobody waits for the compiler.
fn admitting(port: u16) -> Value {
    let ports = json!({"First": port, "Last": port});
    json!({"PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": ports}]}]})
}

/// Whether that one is in force.
fn admits(kernel: &FakeHandle, port: u16) -> bool {
    let installed = kernel.installed();
    let text = format!("{port}");
    let rules = &installed.last().unwrap().rules;
    rules.last().is_some_and(|rule| rule.text.contains(&text))
}

#[tokio::test]
async fn the_policy_from_before_all_was_closed_is_installed_anew() {
    let (mut node, kernel) = running(1..=1).await;
    take(&mut node, &admitting(80));
    reconcile(&mut node).await;
    take(&mut node, &admitting(443));
    node.compare_whole();
    kernel.fail_observe(true);
    let clock = OffsetDateTime::UNIX_EPOCH;
    assert!(node.reconcile(Instant::now(), clock).await.is_err());
    assert!(kernel.is_closed() && admits(&kernel, 80));
    kernel.heal();
    take(&mut node, &admitting(80));
    reconcile(&mut node).await;
    assert!(!kernel.is_closed() && node.closed().is_none() && admits(&kernel, 80));
}

async fn advance(node: &mut Node) -> Option<usize> {
    let advanced = node.advance(Instant::now(), OffsetDateTime::UNIX_EPOCH);
    advanced.await.unwrap()
}

#[tokio::test]
async fn while_a_large_policy_is_compiled_nothing_is_programmed_and_only_the_newest_comes_into_force()
 {
    let (mut node, kernel) = running(1..=3).await;
    node.compile_patience = Duration::ZERO;
    kernel.take_steps();
    take(&mut node, &admitting(40_001));
    take(&mut node, &json!({"PeersRemoved": [2]}));
    assert_eq!(advance(&mut node).await, None);
    assert!(node.is_compiling() && !node.programmed);
    take(&mut node, &admitting(40_002));
    assert_eq!(advance(&mut node).await, None);
    node.finish_compiling().await;
    assert_eq!(advance(&mut node).await, None, "that was the older one");
    assert_eq!(kernel.installed().len(), 1);
    assert!(kernel.take_steps().is_empty());
    node.finish_compiling().await;
    assert_eq!(advance(&mut node).await, Some(2));
    assert!(node.programmed && !node.is_compiling());
    assert_eq!(kernel.installed().len(), 2);
    assert!(admits(&kernel, 40_002));
}

#[tokio::test]
async fn a_large_policy_that_is_refused_is_not_compiled_again_before_all_is_closed() {
    let (mut node, kernel) = running(1..=1).await;
    node.compile_patience = Duration::ZERO;
    take(&mut node, &admitting(40_001));
    assert_eq!(advance(&mut node).await, None);
    node.finish_compiling().await;
    kernel.fail_installs(4);
    let clock = OffsetDateTime::UNIX_EPOCH;
    assert!(node.advance(Instant::now(), clock).await.is_err());
    assert!(kernel.is_closed() && !node.is_compiling());
    assert!(
        node.advance(Instant::now(), clock).await.is_err(),
        "at once"
    );
    assert!(advance(&mut node).await.is_some(), "at once");
    assert!(!kernel.is_closed() && admits(&kernel, 40_001));
}

#[tokio::test]
async fn a_failure_that_concerns_no_policy_closes_nothing() {
    let (mut node, kernel) = running(1..=1).await;
    kernel.fail_observe(true);
    node.compare_whole();
    let clock = OffsetDateTime::UNIX_EPOCH;
    assert!(node.reconcile(Instant::now(), clock).await.is_err());
    take(&mut node, &json!({"PeersChanged": [peer(1)]}));
    assert!(node.reconcile(Instant::now(), clock).await.is_err());
    assert!(!kernel.is_closed() && node.closed().is_none());
}

#[tokio::test]
async fn a_filter_that_somebody_took_off_is_lost_and_comes_back() {
    let (mut node, kernel) = node_on(|_| {}).await;
    assert!(!node.filter_is_lost(), "there was none yet");
    take(&mut node, &netmap(1..=1));
    reconcile(&mut node).await;
    assert!(!node.filter_is_lost());
    kernel.change(|observed| observed.device.as_mut().unwrap().filter_attached = false);
    assert!(node.filter_is_lost());
    node.compare_whole();
    reconcile(&mut node).await;
    assert!(!node.filter_is_lost());
    assert_eq!(kernel.installed().len(), 2, "with its policy");
}

#[tokio::test]
async fn a_filter_that_is_lost_while_another_is_compiled_lets_nothing_pass_until_then() {
    let (mut node, kernel) = running(1..=1).await;
    take(&mut node, &admitting(40_001));
    reconcile(&mut node).await;
    node.compile_patience = Duration::ZERO;
    take(&mut node, &admitting(40_002));
    kernel.change(|observed| observed.device.as_mut().unwrap().filter_attached = false);
    assert_eq!(advance(&mut node).await, None);
    assert!(!node.filter_is_lost(), "it is attached, without rules");
    // Not even the same as before is taken to be in force.
    take(&mut node, &admitting(40_001));
    let before = kernel.installed().len();
    reconcile(&mut node).await;
    assert_eq!(kernel.installed().len(), before + 1);
    assert!(admits(&kernel, 40_001));
}
