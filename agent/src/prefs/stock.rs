//! Preferences of the stock daemon that ask for what this agent doesn't do.

use serde_json::{Value, json};

use super::PrefsError;

/// Field, what it is where nothing is asked for (beside `null` and what is empty), the flag that sets it, and what that would be.
const NOT_THERE: [(&str, &str, &str, &str); 16] = [
    ("RunSSH", "false", "--ssh", "run an SSH server"),
    ("RunWebClient", "false", "--webclient", "serve a web page"),
    (
        "NoSNAT",
        "false",
        "--snat-subnet-routes=false",
        "route for other machines",
    ),
    (
        "NoStatefulFiltering",
        "true",
        "--stateful-filtering",
        "route for other machines",
    ),
    (
        "NetfilterMode",
        "2",
        "--netfilter-mode",
        "do without its packet filter, which is no nftables rule",
    ),
    (
        "NetfilterKind",
        "\"\"",
        "the kind of netfilter",
        "use netfilter",
    ),
    (
        "ExitNodeAllowLANAccess",
        "false",
        "--exit-node-allow-lan-access",
        "use an exit node",
    ),
    (
        "AutoExitNode",
        "\"\"",
        "--exit-node=auto:any",
        "use an exit node",
    ),
    (
        "AppConnector",
        "{\"Advertise\":false}",
        "--advertise-connector",
        "be an app connector",
    ),
    (
        "AdvertiseServices",
        "[]",
        "a service to advertise",
        "serve one",
    ),
    (
        "PostureChecking",
        "false",
        "--report-posture",
        "tell of its host's posture",
    ),
    ("AutoUpdate", "{}", "--auto-update", "update itself"),
    (
        "RelayServerPort",
        "null",
        "--relay-server-port",
        "relay for peers",
    ),
    (
        "RelayServerStaticEndpoints",
        "[]",
        "--relay-server-static-endpoints",
        "relay for peers",
    ),
    (
        "RemoteConfig",
        "false",
        "remote configuration",
        "be configured by the login server",
    ),
    ("DriveShares", "[]", "a directory to share", "share one"),
];

/// Whether a field asks for nothing.
///
/// # Errors
/// It asks for what isn't there, or nobody knows what for.
pub fn judge(field: &str, value: &Value) -> Result<(), PrefsError> {
    let known = NOT_THERE.iter().find(|(name, ..)| *name == field);
    let Some((_, nothing, flag, what)) = known else {
        return Err(PrefsError::Unknown(field.to_owned()));
    };
    let is_empty = match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        // Updates: to look for one changes nothing.
        Value::Object(fields) if field == "AutoUpdate" => fields.get("Apply") != Some(&json!(true)),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let nothing: Value = serde_json::from_str(nothing).unwrap_or_default();
    match is_empty || *value == nothing {
        true => Ok(()),
        false => Err(PrefsError::NotYet { flag, what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefs::{Change, Prefs};

    #[test]
    fn what_a_stock_client_sends_when_it_asks_for_nothing_is_taken() {
        let sent = Prefs::default().to_stock_json();
        assert_eq!(Change::from_whole_json(&sent).map(drop), Ok(()));
        for (field, value) in [
            ("AutoUpdate", json!({"Check": true, "Apply": null})),
            ("AutoUpdate", json!({"Check": true, "Apply": ""})),
            ("NoStatefulFiltering", json!("")),
            ("RunSSH", json!(false)),
        ] {
            assert_eq!(judge(field, &value), Ok(()), "{field}: {value}");
        }
        // Newer and older clients have fields that nobody knows here.
        let unknown = json!({"Sync": true, "AllowSingleHosts": true, "Persist": {"NodeID": "n1"}});
        assert_eq!(Change::from_whole_json(&unknown).map(drop), Ok(()));
    }

    #[test]
    fn what_asks_for_something_that_is_not_there_is_refused_by_its_flag() {
        for (field, value, flag) in [
            ("RunSSH", json!(true), "--ssh"),
            ("NoSNAT", json!(true), "--snat-subnet-routes=false"),
            ("NetfilterMode", json!(0), "--netfilter-mode"),
            ("NoStatefulFiltering", json!(false), "--stateful-filtering"),
            (
                "AppConnector",
                json!({"Advertise": true}),
                "--advertise-connector",
            ),
            (
                "AutoUpdate",
                json!({"Check": true, "Apply": true}),
                "--auto-update",
            ),
            ("AutoExitNode", json!("any"), "--exit-node=auto:any"),
            ("RelayServerPort", json!(0), "--relay-server-port"),
            ("AdvertiseServices", json!(["svc:a"]), "a service"),
            ("PostureChecking", json!(true), "--report-posture"),
            ("RemoteConfig", json!(true), "remote configuration"),
            (
                "RelayServerStaticEndpoints",
                json!(["192.0.2.1:40000"]),
                "--relay-server-static-endpoints",
            ),
        ] {
            let why = judge(field, &value).unwrap_err().to_string();
            assert!(why.starts_with(flag), "{field}: {value}: {why}");
            let whole = json!({"Hostname": "gate", field: value});
            assert!(Change::from_whole_json(&whole).is_err(), "{whole}");
        }
    }
}
