//! Whoever asks much keeps nobody else waiting.

use super::*;

#[tokio::test]
async fn a_user_who_asks_without_end_does_not_hold_up_a_revocation() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), TestServer::start(7).await);
    let (agent, stream) = connected(&dir, &mut server).await;
    let answered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let askers: Vec<_> = (0..64)
        .map(|_| {
            let (asks, answered) = (agent.asks.clone(), answered.clone());
            tokio::spawn(async move {
                loop {
                    let (reply, answer) = oneshot::channel();
                    let ask = Ask::Status { peers: true, reply };
                    if asks.send(ask).await.is_err() || answer.await.is_err() {
                        break;
                    }
                    answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            })
        })
        .collect();
    let count = || answered.load(std::sync::atomic::Ordering::Relaxed);
    until(|| count() > 500).await;
    stream.send(json!({"PeersRemoved": [2]})).await.unwrap();
    let kernel = agent.kernel();
    until(|| kernel.observed().device.unwrap().peers.is_empty()).await;
    let before = count();
    until(|| count() > before + 500).await;
    for asker in askers {
        asker.abort();
    }
    agent.end().await;
}
