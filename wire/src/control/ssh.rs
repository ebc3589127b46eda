use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{StableId, go};

/// Who may log in to a node over the SSH server that stock clients bring (protocol.md 10.4; `tailcfg.SSHPolicy`).
///
/// The first rule that has a principal for the source and a local user for the login name decides; without one, nobody may.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshPolicy {
    #[serde(rename = "rules", deserialize_with = "go::null")]
    pub rules: Vec<SshRule>,
}

/// One rule; it holds for those of its principals that ask for one of its users.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshRule {
    /// When the rule ends; `None`: never.
    #[serde(
        rename = "ruleExpires",
        with = "go::timestamp",
        skip_serializing_if = "Option::is_none"
    )]
    pub rule_expires: Option<OffsetDateTime>,
    /// Any one of them is enough.
    #[serde(rename = "principals", deserialize_with = "go::null")]
    pub principals: Vec<SshPrincipal>,
    /// Login name asked for to local user: `*` is any name that isn't listed, `=` the same name, and an empty user none.
    #[serde(rename = "sshUsers", deserialize_with = "go::null")]
    pub ssh_users: BTreeMap<String, String>,
    #[serde(rename = "action", deserialize_with = "go::null")]
    pub action: SshAction,
    /// Names of environment variables that are taken over, with `*` and `?` as wildcards.
    #[serde(
        rename = "acceptEnv",
        deserialize_with = "go::null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub accept_env: Vec<String>,
}

/// Where a connection comes from; all that is said has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct SshPrincipal {
    #[serde(rename = "node", skip_serializing_if = "go::is_default")]
    pub node: StableId,
    /// An address of a node.
    #[serde(rename = "nodeIP", skip_serializing_if = "String::is_empty")]
    pub node_ip: String,
    #[serde(rename = "userLogin", skip_serializing_if = "String::is_empty")]
    pub user_login: String,
    /// Everybody.
    #[serde(rename = "any", skip_serializing_if = "go::is_default")]
    pub any: bool,
}

/// What happens to a connection: it is accepted, rejected, or its node asks elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshAction {
    /// Shown to who connects.
    #[serde(rename = "message", skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(rename = "reject", skip_serializing_if = "go::is_default")]
    pub reject: bool,
    #[serde(rename = "accept", skip_serializing_if = "go::is_default")]
    pub accept: bool,
    /// Nanoseconds after which the session is ended; 0: never.
    #[serde(rename = "sessionDuration", skip_serializing_if = "go::is_default")]
    pub session_duration: i64,
    #[serde(
        rename = "allowAgentForwarding",
        skip_serializing_if = "go::is_default"
    )]
    pub allow_agent_forwarding: bool,
    /// Where the node gets the action from that decides, through its control channel. It puts in `$SRC_NODE_IP`,
    /// `$SRC_NODE_ID`, `$DST_NODE_IP`, `$DST_NODE_ID`, `$SSH_USER` and `$LOCAL_USER`.
    #[serde(rename = "holdAndDelegate", skip_serializing_if = "String::is_empty")]
    pub hold_and_delegate: String,
    #[serde(
        rename = "allowLocalPortForwarding",
        skip_serializing_if = "go::is_default"
    )]
    pub allow_local_port_forwarding: bool,
    #[serde(
        rename = "allowRemotePortForwarding",
        skip_serializing_if = "go::is_default"
    )]
    pub allow_remote_port_forwarding: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the hosted service sends it (samples/vectors/policy/ssh.jsonl, ssh-g2 and ssh-a6).
    const RECORDED: &str = concat!(
        r#"{"rules":[{"principals":[{"nodeIP":"100.101.179.105"}],"sshUsers":{"root":"root"},"#,
        r#""action":{"accept":true,"allowAgentForwarding":true,"allowLocalPortForwarding":true,"#,
        r#""allowRemotePortForwarding":true},"acceptEnv":["GIT_*"]},"#,
        r#"{"principals":[{"nodeIP":"fd7a:115c:a1e0::1"}],"sshUsers":{"*":"=","root":""},"#,
        r#""action":{"holdAndDelegate":"https://unused/$SRC_NODE_ID"}}]}"#
    );

    #[test]
    fn a_recorded_policy_is_read_and_written_back_the_same() {
        let policy: SshPolicy = serde_json::from_str(RECORDED).unwrap();
        assert!(policy.rules[0].action.accept && !policy.rules[1].action.accept);
        assert_eq!(policy.rules[1].ssh_users["*"], "=");
        assert_eq!(serde_json::to_string(&policy).unwrap(), RECORDED);
    }

    #[test]
    fn null_is_no_rule_and_no_action_accepts_nothing() {
        let none: SshPolicy = serde_json::from_str(r#"{"rules":null}"#).unwrap();
        assert_eq!(none, SshPolicy::default());
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"{"rules":[]}"#);
        let bare = r#"{"rules":[{"principals":null,"sshUsers":null,"action":null}]}"#;
        let bare: SshPolicy = serde_json::from_str(bare).unwrap();
        assert_eq!(bare.rules, [SshRule::default()]);
    }
}
