//! The server's side of administration.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use lowroad_wire::control::NodeId;
use serde::Serialize;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};

use super::{
    api::{Ask, AuthKeyInfo, Failure, NewKey, NodeInfo, PATH, PolicyDone, UserInfo},
    policy,
};
use crate::{
    Error, account,
    control::{
        Body,
        body::{Readers, Sender, json, text},
    },
    hub::{Hub, Receipt, now, random},
    model::AuthKeyText,
    policy::WhyProbe,
    state::{NewAuthKey, NodeRef, State},
    text::{parse_tag, parse_time},
};

/// Who asks: the account of the process at the other end, as the kernel knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    uid: Option<u32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred();
        Self {
            uid: credentials.map(|peer| peer.uid()).ok(),
        }
    }

    /// Empty if the kernel doesn't say. Looking a name up may take a while.
    pub(super) fn account(self) -> String {
        self.uid.map_or_else(String::new, account::name)
    }
}

/// Serves until dropped.
pub async fn serve(listener: UnixListener, hub: Arc<Hub>) {
    let readers = Arc::new(Readers::default());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, hub.clone(), readers.clone()));
            }
            Err(error) => {
                tracing::error!(%error, "administration socket");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, hub: Arc<Hub>, readers: Arc<Readers>) {
    let peer = Peer::of(&stream);
    let service = service_fn(move |request| {
        let (hub, readers) = (hub.clone(), readers.clone());
        async move { Ok::<_, Infallible>(answer(&hub, peer, &readers, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    if let Err(error) = http
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "administration connection");
    }
}

async fn answer(
    hub: &Hub,
    peer: Peer,
    readers: &Readers,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        return text(
            StatusCode::NOT_FOUND,
            format!("administration is POST {PATH}"),
        );
    }
    let result = async {
        let bytes = readers.read(request.into_body(), Sender::Admin).await?;
        let ask = serde_json::from_slice(&bytes).map_err(|error| {
            Error::bad_request(format!(
                "the request makes no sense: {error}; are server and command of the same version?"
            ))
        })?;
        act(hub, peer, ask).await
    };
    match result.await {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => json(error.status(), &failure(&error)),
    }
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Policy(refused) => Failure {
            error: refused.summary(),
            report: Some(refused.report().clone()),
        },
        error => Failure {
            error: error.to_string(),
            report: None,
        },
    }
}

async fn act(hub: &Hub, peer: Peer, ask: Ask) -> Result<Value, Error> {
    match ask {
        Ask::UsersList => hub.read(|state| {
            value(
                &state
                    .users()
                    .values()
                    .map(|user| UserInfo::from(&**user))
                    .collect::<Vec<_>>(),
            )
        }),
        Ask::UsersCreate { name, display_name } => {
            let user = settle(
                hub,
                hub.change(|state| state.create_user(&name, &display_name, now())),
            )
            .await?;
            value(&UserInfo::from(&*user))
        }
        Ask::UsersRole { user, role } => {
            let user = settle(hub, hub.change(|state| state.set_role(&user, role))).await?;
            value(&UserInfo::from(&*user))
        }
        Ask::UsersDelete { user } => {
            let user = settle(hub, hub.change(|state| state.delete_user(&user))).await?;
            value(&UserInfo::from(&*user))
        }
        Ask::AuthKeysList { user } => list_auth_keys(hub, user),
        Ask::AuthKeysCreate(new) => create_auth_key(hub, new).await,
        Ask::AuthKeysExpire { key } => {
            let key = settle(hub, hub.change(|state| state.expire_auth_key(&key, now()))).await?;
            hub.read(|state| value(&AuthKeyInfo::new(&key, state, now())))
        }
        Ask::NodesList { user } => list_nodes(hub, user),
        Ask::NodesShow { node } => node_info(hub, &NodeRef(node)),
        Ask::NodesApproveRoutes { node, routes } => {
            change_node(hub, node, |state, id| {
                state.approve_routes(id, routes, now());
                Ok(())
            })
            .await
        }
        Ask::NodesApprove { registration, user } => approve(hub, &registration, &user).await,
        Ask::NodesExpire { node } => {
            change_node(hub, node, |state, id| {
                state.expire_node(id, now());
                Ok(())
            })
            .await
        }
        Ask::NodesSetExpiry { node, expiry } => {
            let expiry = expiry.as_deref().map(parse_time).transpose();
            let expiry = expiry.map_err(Error::bad_request)?;
            change_node(hub, node, |state, id| state.set_expiry(id, expiry, now())).await
        }
        Ask::NodesDelete { node } => delete_node(hub, NodeRef(node)).await,
        Ask::NodesRename { node, name } => {
            change_node(hub, node, |state, id| state.rename_node(id, &name, now())).await
        }
        Ask::PolicyCheck { text } => {
            let policy::Checked { report, .. } = policy::check(hub, text).await?;
            value(&PolicyDone { ok: true, report })
        }
        Ask::PolicyGet { version } => policy::get(hub, version),
        Ask::PolicyLog => policy::log(hub),
        Ask::PolicyDiff(proposal) => policy::diff(hub, proposal).await,
        Ask::PolicyExplain { node } => policy::explain(hub, NodeRef(node)).await,
        Ask::PolicyWhy {
            from,
            to,
            protocol,
            port,
        } => policy::why(hub, &from, &to, WhyProbe { protocol, port }).await,
        Ask::PolicySet {
            text,
            signature,
            based_on,
        } => policy::set(hub, text, signature, based_on, peer).await,
        Ask::PolicyRollback { version, signature } => {
            policy::roll_back(hub, version, signature, peer).await
        }
    }
}

/// Waits until a change is on disk and in force.
pub(super) async fn settle<T>(
    hub: &Hub,
    (result, receipt): (Result<T, Error>, Receipt),
) -> Result<T, Error> {
    let result = result?;
    hub.saved(receipt).await?;
    hub.in_force(receipt).await?;
    Ok(result)
}

pub(super) fn value(info: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(info).map_err(|error| Error::Setting(error.to_string()))
}

fn list_auth_keys(hub: &Hub, user: Option<String>) -> Result<Value, Error> {
    hub.read(|state| {
        let user = user
            .map(|name| state.existing_user(&name).map(|user| user.id))
            .transpose()?;
        let keys = state
            .auth_keys()
            .filter(|key| user.is_none_or(|user| key.user == user));
        value(
            &keys
                .map(|key| AuthKeyInfo::new(key, state, now()))
                .collect::<Vec<_>>(),
        )
    })
}

async fn create_auth_key(hub: &Hub, new: NewKey) -> Result<Value, Error> {
    let NewKey {
        user,
        reusable,
        ephemeral,
        expiry_seconds,
        tags,
    } = new;
    let tags = tags
        .iter()
        .filter(|tag| !tag.is_empty())
        .map(|tag| parse_tag(tag));
    let tags = tags.collect::<Result<_, _>>().map_err(Error::bad_request)?;
    let text = AuthKeyText::from_random(random());
    let lifetime = Duration::from_secs(expiry_seconds);
    let created = hub.change(|state| {
        let user = state.ensure_user(&user, now())?.id;
        Ok(state.create_auth_key(
            NewAuthKey {
                user,
                reusable,
                ephemeral,
                lifetime,
                tags,
            },
            &text,
            now(),
        ))
    });
    let key = settle(hub, created).await?;
    let info = hub.read(|state| AuthKeyInfo::new(&key, state, now()));
    value(&AuthKeyInfo {
        key: text.reveal(),
        ..info
    })
}

fn list_nodes(hub: &Hub, user: Option<String>) -> Result<Value, Error> {
    let compiled = hub.snapshot().compiled.clone();
    hub.read(|state| {
        let user = user
            .map(|name| state.existing_user(&name).map(|user| user.id))
            .transpose()?;
        let nodes = state
            .nodes()
            .filter(|node| user.is_none_or(|user| node.owner.user() == Some(user)));
        value(
            &nodes
                .map(|node| NodeInfo::new(node, state, &compiled, now()))
                .collect::<Vec<_>>(),
        )
    })
}

fn node_info(hub: &Hub, node: &NodeRef) -> Result<Value, Error> {
    let compiled = hub.snapshot().compiled.clone();
    hub.read(|state| {
        value(&NodeInfo::new(
            state.find_node(node)?,
            state,
            &compiled,
            now(),
        ))
    })
}

async fn change_node(
    hub: &Hub,
    node: String,
    change: impl FnOnce(&mut State, NodeId) -> Result<(), Error>,
) -> Result<Value, Error> {
    let changed = hub.change(|state| {
        let id = state.find_node(&NodeRef(node))?.id;
        change(state, id).map(|()| id)
    });
    let id = settle(hub, changed).await?;
    let compiled = hub.snapshot().compiled.clone();
    hub.read(|state| {
        let node = state
            .node(id)
            .ok_or_else(|| Error::not_found("the node has just been deleted"))?;
        value(&NodeInfo::new(node, state, &compiled, now()))
    })
}

async fn delete_node(hub: &Hub, node: NodeRef) -> Result<Value, Error> {
    let info = node_info(hub, &node)?;
    let deleted = hub.change(|state| {
        let id = state.find_node(&node)?.id;
        state.delete_node(id);
        Ok(())
    });
    settle(hub, deleted).await?;
    Ok(info)
}

async fn approve(hub: &Hub, registration: &str, user: &str) -> Result<Value, Error> {
    let id = registration
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let (owner, receipt) = hub.change(|state| {
        // Before a user is made for nothing.
        state.check_pending(id)?;
        Ok::<_, Error>(state.ensure_user(user, now())?.id)
    });
    let owner = owner?;
    // What the policy lets a user do who has just been made.
    let compiled = hub.in_force(receipt).await?.compiled.clone();
    let approved = hub.change(|state| {
        state.approve(id, owner, (now(), Instant::now()), &|user, tag| {
            compiled.may_tag(user, tag)
        })
    });
    let node = settle(hub, approved).await?;
    change_node(hub, node.to_string(), |_, _| Ok(())).await
}
