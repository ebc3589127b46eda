//! Rules to add, as JSON.

use serde_json::{Map, Value};

/// A rule to add.
#[derive(Clone, Debug, PartialEq)]
pub enum NewRule {
    Acl(AclRule),
    Grant(GrantRule),
}

/// An entry of `acls`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AclRule {
    /// None: the default ones.
    pub protocol: Option<String>,
    pub sources: Vec<String>,
    /// With their ports.
    pub destinations: Vec<String>,
}

/// An entry of `grants`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GrantRule {
    pub sources: Vec<String>,
    pub destinations: Vec<String>,
    /// Ports, with their protocols.
    pub ip: Vec<String>,
    /// Capabilities, with their parameters.
    pub app: Map<String, Value>,
    /// Tags of routers.
    pub via: Vec<String>,
}

impl NewRule {
    pub(super) fn section(&self) -> &'static str {
        match self {
            Self::Acl(_) => "acls",
            Self::Grant(_) => "grants",
        }
    }

    /// What is empty is left out, except sources and destinations.
    pub(super) fn fields(&self) -> Vec<(&'static str, Value)> {
        let list = |strings: &[String]| Value::from(strings.to_vec());
        match self {
            Self::Acl(rule) => {
                let mut fields = vec![("action", "accept".into())];
                let protocol = rule.protocol.as_deref();
                fields.extend(protocol.map(|name| ("proto", name.into())));
                fields.push(("src", list(&rule.sources)));
                fields.push(("dst", list(&rule.destinations)));
                fields
            }
            Self::Grant(rule) => {
                let mut fields = vec![
                    ("src", list(&rule.sources)),
                    ("dst", list(&rule.destinations)),
                ];
                for (name, strings) in [("ip", &rule.ip), ("via", &rule.via)] {
                    if !strings.is_empty() {
                        fields.push((name, list(strings)));
                    }
                }
                if !rule.app.is_empty() {
                    fields.push(("app", rule.app.clone().into()));
                }
                fields
            }
        }
    }

    pub(super) fn json(&self) -> String {
        let fields = self.fields().into_iter();
        let fields = fields.map(|(name, value)| format!("{}:{value}", quoted(name)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A JSON list of strings.
pub(super) fn strings(texts: &[String]) -> String {
    Value::from(texts.to_vec()).to_string()
}
