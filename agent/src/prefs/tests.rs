//! What changes preferences, and what is refused.

use super::*;

#[test]
fn up_with_flags_must_repeat_every_setting_that_differs_from_its_default() {
    let current = Prefs {
        route_all: true,
        hostname: "gate".into(),
        ..Prefs::default()
    };
    let change = Change {
        hostname: Some("gate".into()),
        ..Change::default()
    };
    let error = change.require_complete(&current).unwrap_err().to_string();
    assert!(
        error.contains("lowroad up --accept-routes --hostname=gate"),
        "{error}"
    );
    assert!(error.contains("--reset"));
    let complete = Change {
        hostname: Some("gate".into()),
        route_all: Some(false),
        ..Change::default()
    };
    assert_eq!(complete.require_complete(&current), Ok(()));
    assert_eq!(Change::default().require_complete(&current), Ok(()));
}

fn refusal(mut change: Change) -> String {
    change.validate().unwrap_err().to_string()
}

#[test]
fn a_feature_that_does_not_exist_yet_is_refused_by_its_flag() {
    let change = Change {
        advertise_routes: Some(vec!["10.0.0.0/8".into()]),
        ..Change::default()
    };
    assert!(refusal(change).starts_with("--advertise-routes is refused"));
    let change = Change {
        exit_node: Some("b".into()),
        ..Change::default()
    };
    assert!(refusal(change).starts_with("--exit-node is refused"));
    let mut nothing = Change {
        advertise_routes: Some(vec![]),
        advertise_exit_node: Some(false),
        exit_node: Some(String::new()),
        ..Change::default()
    };
    assert_eq!(nothing.validate(), Ok(()));
}

#[test]
fn an_exit_node_is_refused_by_whichever_of_its_names() {
    for (id, ip) in [("n1", ""), ("", "100.64.0.1"), ("n1", "100.64.0.1")] {
        let whole = json!({"ExitNodeID": id, "ExitNodeIP": ip});
        let change = Change::from_whole_json(&whole).unwrap();
        assert!(
            refusal(change).starts_with("--exit-node is refused"),
            "{whole}"
        );
    }
    let none = json!({"ExitNodeID": "", "ExitNodeIP": ""});
    let mut change = Change::from_whole_json(&none).unwrap();
    assert_eq!(change.validate(), Ok(()));
}

#[test]
fn tags_may_be_named_without_their_prefix() {
    let mut change = Change {
        advertise_tags: Some(vec!["web".into(), "tag:db".into()]),
        ..Change::default()
    };
    change.validate().unwrap();
    assert_eq!(change.advertise_tags.unwrap(), ["tag:web", "tag:db"]);
}

#[test]
fn a_masked_patch_changes_only_what_its_mask_names() {
    let body = json!({"RouteAll": true, "RouteAllSet": true, "CorpDNS": false});
    let change = Change::from_masked_json(&body).unwrap();
    assert_eq!(
        change,
        Change {
            route_all: Some(true),
            ..Change::default()
        }
    );
    let off = json!({"RunSSH": false, "RunSSHSet": true});
    assert_eq!(Change::from_masked_json(&off), Ok(Change::default()));
    let not_there = json!({"RunSSH": true, "RunSSHSet": true});
    let why = Change::from_masked_json(&not_there).unwrap_err();
    assert!(why.to_string().starts_with("--ssh is refused"), "{why}");
    let updates =
        |mask| json!({"AutoUpdate": {"Check": true, "Apply": true}, "AutoUpdateSet": mask});
    let why = Change::from_masked_json(&updates(json!({"ApplySet": true}))).unwrap_err();
    assert!(why.to_string().starts_with("--auto-update"), "{why}");
    for mask in [
        json!({"CheckSet": true}),
        json!({"ApplySet": false}),
        json!({}),
    ] {
        let change = Change::from_masked_json(&updates(mask));
        assert_eq!(change, Ok(Change::default()));
    }
    let unknown = json!({"Sing": true, "SingSet": true});
    assert_eq!(
        Change::from_masked_json(&unknown),
        Err(PrefsError::Unknown("Sing".into()))
    );
}

/// As `tailscale debug prefs` of a fresh stock daemon says: its `up` wants every preference stated that differs from these.
#[test]
fn fresh_preferences_are_the_stock_defaults() {
    let fresh = Prefs::default().to_stock_json();
    for (field, value) in [
        ("NetfilterMode", json!(2)),
        ("NoStatefulFiltering", json!(true)),
        ("NoSNAT", json!(false)),
        ("CorpDNS", json!(true)),
        ("RouteAll", json!(false)),
        ("ShieldsUp", json!(false)),
        ("RunSSH", json!(false)),
    ] {
        assert_eq!(fresh[field], value, "{field}");
    }
}

#[test]
fn a_login_server_must_be_an_http_url_with_a_host() {
    for bad in [
        "hs.lab",
        "ftp://x",
        "https://",
        "",
        "http://a b",
        "https://hs.lab#b\t",
        "https://hs.lab#b",
        "https://hs.lab?b",
        "https://hs.lab/\n",
    ] {
        assert!(normal_url(bad).is_err(), "{bad}");
    }
    assert_eq!(normal_url("https://hs.lab/").unwrap(), "https://hs.lab");
}

#[test]
fn an_auth_key_never_shows_in_debug_output() {
    assert_eq!(
        format!("{:?}", AuthKey::new("hskey-secret".into())),
        "AuthKey(redacted)"
    );
}
