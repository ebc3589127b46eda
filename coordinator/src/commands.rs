//! The commands other than `serve`.

mod policy;

use std::{io::Write as _, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Error,
    admin::{
        api::{Ask, AuthKeyInfo, NewKey, NodeInfo, UserInfo},
        client, render,
    },
    args::{AuthKeys, Command, Nodes, Users},
    text::rfc3339,
};

/// Runs a command and prints what comes of it.
pub async fn run(state_dir: &Path, as_json: bool, command: Command) -> Result<(), Error> {
    let (ask, show) = match command {
        Command::Serve(_) => {
            return Err(Error::Setting(
                "`serve` is no administration command".to_owned(),
            ));
        }
        Command::Users(command) => users(command),
        Command::AuthKeys(command) => auth_keys(command),
        Command::Nodes(command) => nodes(command),
        Command::Policy(command) => return policy::run(state_dir, as_json, command).await,
    };
    let answer = client::ask(state_dir, &ask).await?;
    print(as_json, &answer, || show.text(&answer))
}

/// How to show an answer to people.
enum Show {
    Users,
    User(&'static str),
    UserRole,
    AuthKeys,
    NewAuthKey,
    AuthKey(&'static str),
    Nodes,
    Node,
    NodeDone(&'static str),
    NodeExpiry,
}

impl Show {
    fn text(&self, answer: &Value) -> Result<String, Error> {
        Ok(match self {
            Self::Users => render::users(&parse::<Vec<UserInfo>>(answer)?),
            Self::UserRole => {
                let user = parse::<UserInfo>(answer)?;
                format!("user {} is {} now\n", user.name, user.role)
            }
            Self::User(done) => format!("user {} {done}\n", parse::<UserInfo>(answer)?.name),
            Self::AuthKeys => render::auth_keys(&parse::<Vec<AuthKeyInfo>>(answer)?),
            // Alone on its line, for scripts that take it from here.
            Self::NewAuthKey => format!("{}\n", parse::<AuthKeyInfo>(answer)?.key),
            Self::AuthKey(done) => {
                format!("auth key {} {done}\n", parse::<AuthKeyInfo>(answer)?.id)
            }
            Self::Nodes => render::nodes(&parse::<Vec<NodeInfo>>(answer)?),
            Self::Node => render::node(&parse(answer)?),
            Self::NodeDone(done) => {
                let node = parse::<NodeInfo>(answer)?;
                format!("node {} ({}) {done}\n", node.given_name, node.id)
            }
            Self::NodeExpiry => {
                let node = parse::<NodeInfo>(answer)?;
                let ends = node.expiry.map_or_else(
                    || "does not end by itself".to_owned(),
                    |time| format!("ends at {time}"),
                );
                format!("the key of node {} ({}) {ends}\n", node.given_name, node.id)
            }
        })
    }
}

fn users(command: Users) -> (Ask, Show) {
    match command {
        Users::List => (Ask::UsersList, Show::Users),
        Users::Create { name, display_name } => (
            Ask::UsersCreate {
                name,
                display_name: display_name.unwrap_or_default(),
            },
            Show::User("created"),
        ),
        Users::Role { user, role } => (Ask::UsersRole { user, role }, Show::UserRole),
        Users::Delete { user } => (Ask::UsersDelete { user }, Show::User("deleted")),
    }
}

fn auth_keys(command: AuthKeys) -> (Ask, Show) {
    match command {
        AuthKeys::List { user } => (Ask::AuthKeysList { user }, Show::AuthKeys),
        AuthKeys::Create {
            user,
            reusable,
            ephemeral,
            expiry,
            tags,
        } => {
            let new = NewKey {
                user,
                reusable,
                ephemeral,
                expiry_seconds: expiry.as_secs(),
                tags,
            };
            (Ask::AuthKeysCreate(new), Show::NewAuthKey)
        }
        AuthKeys::Expire { key } => (Ask::AuthKeysExpire { key }, Show::AuthKey("expired")),
    }
}

fn nodes(command: Nodes) -> (Ask, Show) {
    match command {
        Nodes::List { user } => (Ask::NodesList { user }, Show::Nodes),
        Nodes::Show { node } => (Ask::NodesShow { node }, Show::Node),
        Nodes::ApproveRoutes { node, routes } => {
            let routes = routes.into_iter().filter_map(|route| route.0).collect();
            (Ask::NodesApproveRoutes { node, routes }, Show::Node)
        }
        Nodes::Approve { registration, user } => (
            Ask::NodesApprove { registration, user },
            Show::NodeDone("approved"),
        ),
        Nodes::Expire {
            node,
            at: None,
            never: false,
        } => (
            Ask::NodesExpire { node },
            Show::NodeDone("expired; it must log in again"),
        ),
        Nodes::Expire { node, at, .. } => {
            let expiry = at.map(rfc3339);
            (Ask::NodesSetExpiry { node, expiry }, Show::NodeExpiry)
        }
        Nodes::Delete { node } => (Ask::NodesDelete { node }, Show::NodeDone("deleted")),
        Nodes::Rename { node, name } => {
            (Ask::NodesRename { node, name }, Show::NodeDone("renamed"))
        }
    }
}

fn parse<T: DeserializeOwned>(answer: &Value) -> Result<T, Error> {
    T::deserialize(answer).map_err(|error| Error::Answer(error.to_string()))
}

fn print(
    as_json: bool,
    answer: &Value,
    text: impl FnOnce() -> Result<String, Error>,
) -> Result<(), Error> {
    let text = if as_json {
        format!("{answer:#}\n")
    } else {
        text()?
    };
    // A closed pipe, as of `| head`, is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
