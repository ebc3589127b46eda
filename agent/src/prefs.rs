//! Preferences: what the user asked for, in the stock client's names and JSON.
//!
//! `up` with flags states the complete set of preferences; `set` changes the named ones only. A preference whose feature does not exist yet is refused
//! where it enters ([`Change::refusal`]), so that none is ever taken silently.

mod stock;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

/// The server that stock clients use when none is named.
pub const DEFAULT_CONTROL_URL: &str = "https://controlplane.tailscale.com";

/// Preferences as stored in the state file and shown by `/localapi/v0/prefs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Prefs {
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// `--accept-routes`: install the subnet routes of other nodes.
    pub route_all: bool,
    /// `--accept-dns`: stored; has no effect until there is a DNS server.
    #[serde(rename = "CorpDNS")]
    pub corp_dns: bool,
    pub want_running: bool,
    pub logged_out: bool,
    /// Refuse every connection from peers, whatever the policy says.
    pub shields_up: bool,
    pub advertise_tags: Vec<String>,
    /// Empty: the host's own name.
    pub hostname: String,
    /// The user who may change things without being root.
    pub operator_user: String,
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            control_url: DEFAULT_CONTROL_URL.to_owned(),
            route_all: false,
            corp_dns: true,
            want_running: false,
            logged_out: false,
            shields_up: false,
            advertise_tags: Vec::new(),
            hostname: String::new(),
            operator_user: String::new(),
        }
    }
}

impl Prefs {
    /// The stock daemon's JSON: our preferences, and for the rest what a stock node with these settings shows.
    pub fn to_stock_json(&self) -> Value {
        json!({
            "ControlURL": self.control_url,
            "RouteAll": self.route_all,
            "ExitNodeID": "",
            "ExitNodeIP": "",
            "InternalExitNodePrior": "",
            "ExitNodeAllowLANAccess": false,
            "CorpDNS": self.corp_dns,
            "RunSSH": false,
            "RunWebClient": false,
            "WantRunning": self.want_running,
            "LoggedOut": self.logged_out,
            "ShieldsUp": self.shields_up,
            "AdvertiseTags": if self.advertise_tags.is_empty() { Value::Null } else { json!(self.advertise_tags) },
            "Hostname": self.hostname,
            "NotepadURLs": false,
            "AdvertiseRoutes": null,
            "AdvertiseServices": null,
            "Sync": null,
            "NoSNAT": false,
            "NoStatefulFiltering": true,
            // On: `off` would be a setting, which the stock `up` wants to see stated.
            "NetfilterMode": 2,
            "OperatorUser": self.operator_user,
            "AutoUpdate": { "Check": false, "Apply": false },
            "AppConnector": { "Advertise": false },
            "PostureChecking": false,
            "NetfilterKind": "",
            "DriveShares": null,
        })
    }
}

/// Some preferences, set or left alone: the arguments of `set`, and the body of `PATCH prefs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    pub control_url: Option<String>,
    pub route_all: Option<bool>,
    pub corp_dns: Option<bool>,
    pub want_running: Option<bool>,
    pub shields_up: Option<bool>,
    pub advertise_tags: Option<Vec<String>>,
    pub hostname: Option<String>,
    pub operator_user: Option<String>,
    pub advertise_routes: Option<Vec<String>>,
    pub advertise_exit_node: Option<bool>,
    pub exit_node: Option<String>,
}

/// Why a change of preferences is refused: one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefsError {
    #[error("{flag} is refused: this version of lowroad cannot {what} yet")]
    NotYet {
        flag: &'static str,
        what: &'static str,
    },
    #[error(
        "the login server {0:?} is not a URL: it must begin with http:// or https:// and name a host, without `?`, `#` or spaces"
    )]
    BadUrl(String),
    #[error(
        "the tag {0:?} is not valid: a tag is `tag:` and a name of letters, digits and dashes that begins with a letter"
    )]
    BadTag(String),
    #[error("the host name {0:?} is not valid: at most 63 letters, digits and dashes")]
    BadHostname(String),
    #[error("the preference {0} is unknown to this version of lowroad")]
    Unknown(String),
    #[error("the preference {0} has a value of the wrong type")]
    WrongType(String),
    #[error(
        "changing settings via 'lowroad up' requires mentioning all non-default flags. To proceed, either re-run your command with --reset or use the command below \
         to explicitly mention the current value of all non-default settings:\n\n\tlowroad up {0}"
    )]
    IncompleteSet(String),
}

impl Change {
    /// What of this change has no feature behind it, if anything.
    pub fn refusal(&self) -> Option<PrefsError> {
        if self
            .advertise_routes
            .as_ref()
            .is_some_and(|routes| !routes.is_empty())
        {
            return Some(PrefsError::NotYet {
                flag: "--advertise-routes",
                what: "route for other machines",
            });
        }
        if self.advertise_exit_node == Some(true) {
            return Some(PrefsError::NotYet {
                flag: "--advertise-exit-node",
                what: "be an exit node",
            });
        }
        if self.exit_node.as_ref().is_some_and(|node| !node.is_empty()) {
            return Some(PrefsError::NotYet {
                flag: "--exit-node",
                what: "use an exit node",
            });
        }
        None
    }

    /// Checks the values, normalising tags (`web` is `tag:web`) and the URL.
    pub fn validate(&mut self) -> Result<(), PrefsError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if let Some(url) = &mut self.control_url {
            *url = normal_url(url)?;
        }
        for tag in self.advertise_tags.iter_mut().flatten() {
            *tag = normal_tag(tag)?;
        }
        if let Some(hostname) = &self.hostname {
            let valid = hostname.len() <= 63
                && hostname
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if !valid {
                return Err(PrefsError::BadHostname(hostname.clone()));
            }
        }
        Ok(())
    }

    pub fn apply(&self, prefs: &mut Prefs) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        set(&mut prefs.control_url, &self.control_url);
        set(&mut prefs.route_all, &self.route_all);
        set(&mut prefs.corp_dns, &self.corp_dns);
        set(&mut prefs.want_running, &self.want_running);
        set(&mut prefs.shields_up, &self.shields_up);
        set(&mut prefs.advertise_tags, &self.advertise_tags);
        set(&mut prefs.hostname, &self.hostname);
        set(&mut prefs.operator_user, &self.operator_user);
    }

    /// True if no setting is named, as in a plain `lowroad up`.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Stock's rule of the complete set: the flags of `up` must repeat every setting that differs from its default.
    pub fn require_complete(&self, current: &Prefs) -> Result<(), PrefsError> {
        if self.is_empty() {
            return Ok(());
        }
        let mut wanted = current.clone();
        self.apply(&mut wanted);
        let missing = missing_flags(self, current);
        if missing.is_empty() {
            return Ok(());
        }
        Err(PrefsError::IncompleteSet(flags_of(&wanted).join(" ")))
    }

    /// The body of `PATCH prefs`: each field counts only beside `<Field>Set: true`, and one that has fields of its own by those that are set so.
    pub fn from_masked_json(body: &Value) -> Result<Self, PrefsError> {
        let Some(object) = body.as_object() else {
            return Err(PrefsError::WrongType("(whole body)".into()));
        };
        let mut change = Self::default();
        for (field, mask) in object
            .iter()
            .filter_map(|(key, mask)| Some((key.strip_suffix("Set")?, mask)))
        {
            let value = object.get(field).unwrap_or(&Value::Null);
            match mask {
                Value::Bool(true) => change.take(field, value)?,
                Value::Object(mask) if !mask.is_empty() => {
                    change.take(field, &masked(value, mask))?
                }
                _ => {}
            }
        }
        Ok(change)
    }

    /// A whole set of preferences in the stock shape; those that we don't have are ignored unless they ask for something, because stock clients send all
    /// of theirs.
    pub fn from_whole_json(body: &Value) -> Result<Self, PrefsError> {
        let Some(object) = body.as_object() else {
            return Err(PrefsError::WrongType("(whole body)".into()));
        };
        let mut change = Self::default();
        for (field, value) in object {
            match change.take(field, value) {
                Err(PrefsError::Unknown(_)) | Ok(()) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(change)
    }

    fn take(&mut self, field: &str, value: &Value) -> Result<(), PrefsError> {
        let wrong = || PrefsError::WrongType(field.to_owned());
        let text = || match value {
            Value::Null => Ok(String::new()),
            other => other.as_str().map(str::to_owned).ok_or_else(wrong),
        };
        let flag = || match value {
            Value::Null => Ok(false),
            other => other.as_bool().ok_or_else(wrong),
        };
        let list = || {
            serde_json::from_value::<Option<Vec<String>>>(value.clone())
                .map(Option::unwrap_or_default)
                .map_err(|_| wrong())
        };
        match field {
            "ControlURL" => self.control_url = Some(text()?),
            "RouteAll" => self.route_all = Some(flag()?),
            "CorpDNS" => self.corp_dns = Some(flag()?),
            "WantRunning" => self.want_running = Some(flag()?),
            "ShieldsUp" => self.shields_up = Some(flag()?),
            "AdvertiseTags" => self.advertise_tags = Some(list()?),
            "Hostname" => self.hostname = Some(text()?),
            "OperatorUser" => self.operator_user = Some(text()?),
            "AdvertiseRoutes" => self.advertise_routes = Some(list()?),
            // Two names of one: the other is empty.
            "ExitNodeID" | "ExitNodeIP" => {
                let node = text()?;
                let known = self.exit_node.take().filter(|known| !known.is_empty());
                self.exit_node = known.or(Some(node));
            }
            other => return stock::judge(other, value),
        }
        Ok(())
    }
}

/// The fields of a value that its mask sets.
fn masked(value: &Value, mask: &Map<String, Value>) -> Value {
    let set = mask
        .iter()
        .filter(|(_, set)| **set == Value::Bool(true))
        .filter_map(|(name, _)| name.strip_suffix("Set"));
    set.filter_map(|name| Some((name.to_owned(), value.get(name)?.clone())))
        .collect()
}

/// Settings that differ from their default, as the flags of `up` that state them.
pub fn flags_of(prefs: &Prefs) -> Vec<String> {
    let default = Prefs::default();
    let mut flags = Vec::new();
    let mut flag = |text: String| flags.push(text);
    if prefs.control_url != default.control_url {
        flag(format!("--login-server={}", prefs.control_url));
    }
    if prefs.route_all != default.route_all {
        flag("--accept-routes".into());
    }
    if prefs.corp_dns != default.corp_dns {
        flag("--accept-dns=false".into());
    }
    if prefs.shields_up != default.shields_up {
        flag("--shields-up".into());
    }
    if !prefs.advertise_tags.is_empty() {
        flag(format!(
            "--advertise-tags={}",
            prefs.advertise_tags.join(",")
        ));
    }
    if !prefs.hostname.is_empty() {
        flag(format!("--hostname={}", prefs.hostname));
    }
    if !prefs.operator_user.is_empty() {
        flag(format!("--operator={}", prefs.operator_user));
    }
    flags
}

fn missing_flags(change: &Change, current: &Prefs) -> Vec<String> {
    let named = |flag: &str| match flag {
        "--login-server" => change.control_url.is_some(),
        "--accept-routes" => change.route_all.is_some(),
        "--accept-dns" => change.corp_dns.is_some(),
        "--shields-up" => change.shields_up.is_some(),
        "--advertise-tags" => change.advertise_tags.is_some(),
        "--hostname" => change.hostname.is_some(),
        "--operator" => change.operator_user.is_some(),
        _ => false,
    };
    let mut flags = flags_of(current);
    flags.retain(|flag| !named(flag.split('=').next().unwrap_or(flag)));
    flags
}

fn normal_tag(tag: &str) -> Result<String, PrefsError> {
    let name = tag.strip_prefix("tag:").unwrap_or(tag);
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if valid {
        Ok(format!("tag:{name}"))
    } else {
        Err(PrefsError::BadTag(tag.to_owned()))
    }
}

fn normal_url(url: &str) -> Result<String, PrefsError> {
    let trimmed = url.trim_end_matches('/');
    let bad = || PrefsError::BadUrl(url.to_owned());
    // The parser drops a fragment unread, whatever is in it; a query has no meaning here.
    if trimmed.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '#' | '?')) {
        return Err(bad());
    }
    let uri: hyper::Uri = trimmed.parse().map_err(|_| bad())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(trimmed.to_owned()),
        _ => Err(bad()),
    }
}

/// An auth key on its way from the command line to the control server: never shown, never stored.
#[derive(Clone, Default, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct AuthKey(String);

impl AuthKey {
    pub fn new(key: String) -> Self {
        Self(key)
    }

    pub fn is_empty(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// The stock client sends an empty key for none.
    pub fn deserialize_some<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Self>, D::Error> {
        let key = Option::<Self>::deserialize(from)?;
        Ok(key.filter(|key| !key.is_empty()))
    }

    /// The key itself, for the registration request and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(redacted)")
    }
}

/// `Some` if the text is an address rather than a name.
pub fn as_address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

#[cfg(test)]
mod tests;
