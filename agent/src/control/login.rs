//! Which node key is registered: the one there is, one of an earlier login, or a new one.

use std::time::Duration;

use lowroad_wire::{control::RegisterResponse, key::NodePrivate};
use tokio::{sync::oneshot, time::sleep};
use tracing::info;

use super::{
    Client, ControlError, ControlEvent, Gone,
    channel::Channel,
    register::{self, Attempt, Registered},
};

/// A server that answers at once, instead of waiting for the person, is asked this often.
const VISIT_PAUSE: Duration = Duration::from_secs(1);

impl Client {
    pub(super) async fn register(
        &mut self,
        channel: &Channel,
    ) -> Result<Result<(), Gone>, ControlError> {
        let mut rotated = false;
        if self.options.node.is_none() || self.options.force_reauth {
            if self.new_node_key().await.is_err() {
                return Ok(Err(Gone));
            }
            self.options.force_reauth = false;
            rotated = true;
        }
        let mut followup: Option<String> = None;
        loop {
            let sent = match self.attempt(channel, followup.as_deref()).await {
                // A wait for a person that ran out is simply asked again.
                Err(ControlError::Silent(_)) if followup.is_some() => continue,
                other => other?,
            };
            let sent = match sent {
                // A server may also call a key expired that another one has replaced.
                Registered::Visit(_) | Registered::Expired if !rotated && followup.is_none() => {
                    match self.find_left(channel).await? {
                        Ok(Some(response)) => Registered::Done(response),
                        Ok(None) => sent,
                        Err(Gone) => return Ok(Err(Gone)),
                    }
                }
                sent => sent,
            };
            let told = match sent {
                Registered::Expired if rotated => return Err(ControlError::KeyExpired),
                Registered::Visit(_) if self.keeps_auth_key() => {
                    rotated = true;
                    info!("the server does not know the node key: logging in with a new one");
                    self.new_node_key().await
                }
                Registered::Expired => {
                    rotated = true;
                    followup = None;
                    info!("the node key has expired: registering a new one");
                    self.new_node_key().await
                }
                Registered::Visit(url) => {
                    if followup.is_some() {
                        sleep(VISIT_PAUSE).await;
                    }
                    let told = if followup.as_deref() == Some(&url) {
                        Ok(())
                    } else {
                        self.tell(ControlEvent::Visit(url.clone())).await
                    };
                    followup = Some(url);
                    told
                }
                Registered::Done(response) => {
                    self.registered = true;
                    self.options.old_node = None;
                    self.options.auth_key = None;
                    return Ok(self.tell(ControlEvent::Registered(response)).await);
                }
            };
            if told.is_err() {
                return Ok(Err(Gone));
            }
        }
    }

    /// An auth key waits for a new node key.
    fn keeps_auth_key(&self) -> bool {
        self.options.accepted && self.options.auth_key.is_some()
    }

    async fn attempt(
        &self,
        channel: &Channel,
        followup: Option<&str>,
    ) -> Result<Registered, ControlError> {
        let hostinfo = self.facts.borrow().hostinfo.clone();
        let Some(node) = &self.options.node else {
            return Err(ControlError::KeyExpired);
        };
        let auth_key = self.options.auth_key.as_ref();
        let attempt = Attempt {
            node,
            old: self.options.old_node.as_ref(),
            auth_key: auth_key.filter(|_| followup.is_none() && !self.keeps_auth_key()),
            followup,
            hostinfo: &hostinfo,
        };
        register::register(channel, &attempt).await
    }

    /// The server doesn't know the node key: it may know one of those that were left.
    async fn find_left(
        &mut self,
        channel: &Channel,
    ) -> Result<Result<Option<Box<RegisterResponse>>, Gone>, ControlError> {
        if self.options.auth_key.is_some() {
            return Ok(Ok(None));
        }
        let hostinfo = self.facts.borrow().hostinfo.clone();
        for (n, node) in self.options.left.clone().into_iter().enumerate() {
            let attempt = Attempt {
                node: &node,
                old: None,
                auth_key: None,
                followup: None,
                hostinfo: &hostinfo,
            };
            match register::register(channel, &attempt).await {
                Ok(Registered::Done(response)) => {
                    info!(key = %node.public().short(), "the server knows this node by the key of an earlier login");
                    let taken = self.take_node_key(node, None).await;
                    return Ok(taken.map(|()| Some(response)));
                }
                Ok(_) | Err(ControlError::Refused(_)) => {}
                // It has answered the key in use, and so can be asked to log in.
                Err(
                    why @ (ControlError::RateLimited(_)
                    | ControlError::Status { .. }
                    | ControlError::Unreadable { .. }
                    | ControlError::Silent(_)),
                ) => {
                    info!(error = %why, "cannot ask the server about the keys of earlier logins");
                    break;
                }
                Err(why) => {
                    // The next connection goes further.
                    self.options.left.remove(n);
                    return Err(why);
                }
            }
        }
        Ok(Ok(None))
    }

    async fn new_node_key(&mut self) -> Result<(), Gone> {
        let mut random = zeroize::Zeroizing::new([0; 32]);
        if getrandom::fill(&mut *random).is_err() {
            return Err(Gone);
        }
        let node = NodePrivate::from_random(*random);
        // A key that was never registered is nothing to go back to.
        let known = self.options.node.take();
        let old = self.options.old_node.take().or(known);
        self.take_node_key(node, old).await
    }

    /// Goes on with another key once it is kept: one that only the server has kept would be lost with this process.
    async fn take_node_key(
        &mut self,
        node: NodePrivate,
        old: Option<NodePrivate>,
    ) -> Result<(), Gone> {
        self.options.node = Some(node.clone());
        self.options.old_node.clone_from(&old);
        self.options.accepted = false;
        let (kept, is_kept) = oneshot::channel();
        self.tell(ControlEvent::NodeKey { node, old, kept }).await?;
        is_kept.await.map_err(|_| Gone)
    }
}
