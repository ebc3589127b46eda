//! A server on loopback, in this process.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use lowroad_coordinator::{
    Error,
    admin::{
        api::{Ask, AuthKeyInfo, NewKey, NodeInfo, Signature},
        client,
    },
    args::{Serve, StunAddr},
    config::Config,
    server::Server,
    state::Timing,
};
use serde_json::Value;

pub struct Lab {
    _dir: tempfile::TempDir,
    pub config: Config,
    server: Option<Server>,
}

/// Times in which a test can see what happens after them.
pub fn quick() -> Timing {
    Timing {
        offline_grace: Duration::from_millis(300),
        ephemeral_timeout: Duration::from_millis(600),
        registration_lifetime: Duration::from_secs(60),
        keep_alive: Duration::from_secs(50),
        write_timeout: Duration::from_secs(2),
    }
}

impl Lab {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = Serve {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            url: Some("http://127.0.0.1:1".to_owned()),
            stun: Some(StunAddr::Off),
            base_domain: Some("tail.test".to_owned()),
            ..Serve::default()
        };
        let mut config = Config::load(&dir.path().join("state"), &flags).unwrap();
        config.settings.timing = quick();
        change(&mut config);
        let server = Server::start(config.clone()).await.unwrap();
        Self {
            _dir: dir,
            config,
            server: Some(server),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.as_ref().unwrap().address
    }

    pub fn state_dir(&self) -> PathBuf {
        self.config.state_dir.clone()
    }

    pub async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    pub async fn start(&mut self) {
        self.server = Some(Server::start(self.config.clone()).await.unwrap());
    }

    pub async fn ask(&self, ask: Ask) -> Result<Value, Error> {
        client::ask(&self.config.state_dir, &ask).await
    }

    pub async fn key_with(&self, change: impl FnOnce(&mut NewKey)) -> String {
        let mut new = NewKey {
            user: "lab".to_owned(),
            reusable: true,
            ephemeral: false,
            expiry_seconds: 3600,
            tags: Vec::new(),
        };
        change(&mut new);
        let answer = self.ask(Ask::AuthKeysCreate(new)).await.unwrap();
        serde_json::from_value::<AuthKeyInfo>(answer).unwrap().key
    }

    /// A reusable key of user `lab`.
    pub async fn key(&self) -> String {
        self.key_with(|_| {}).await
    }

    pub async fn nodes(&self) -> Vec<NodeInfo> {
        serde_json::from_value(self.ask(Ask::NodesList { user: None }).await.unwrap()).unwrap()
    }

    pub async fn node(&self, name: &str) -> NodeInfo {
        serde_json::from_value(
            self.ask(Ask::NodesShow {
                node: name.to_owned(),
            })
            .await
            .unwrap(),
        )
        .unwrap()
    }

    pub async fn set_policy(&self, text: &str) {
        self.ask(Ask::PolicySet {
            text: text.to_owned(),
            signature: Signature::default(),
            based_on: None,
        })
        .await
        .unwrap();
    }
}
