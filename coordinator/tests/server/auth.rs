//! Who may join.

use std::time::Duration;

use hyper::StatusCode;
use lowroad_coordinator::admin::api::{Ask, AuthKeyInfo};
use lowroad_wire::{control::RegisterResponse, key::NodePublic};
use time::OffsetDateTime;

use crate::{
    client::{Client, SOON, get, peer},
    lab::Lab,
};

/// As the stock client shows it to its user; of another status it says nothing.
fn refused(result: Result<RegisterResponse, (StatusCode, String)>) -> String {
    let response = result.expect("it is refused by the answer's field");
    let text = response.error;
    assert!(!text.is_empty(), "the server should have refused");
    assert!(!response.machine_authorized && response.auth_url.is_empty());
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[tokio::test]
async fn wrong_expired_and_used_keys_are_refused_and_say_why() {
    let lab = Lab::new().await;
    let single = lab.key_with(|key| key.reusable = false).await;
    let short = lab.key_with(|key| key.expiry_seconds = 0).await;
    let expired = lab.key().await;
    lab.ask(Ask::AuthKeysExpire {
        key: expired.clone(),
    })
    .await
    .unwrap();
    let mut a = Client::new(lab.address(), "a").await;
    assert!(refused(a.register(Some("lrkey-auth-000000000000-0")).await).contains("not known"));
    let mut tampered = single.clone();
    tampered.replace_range(
        tampered.len() - 1..,
        if single.ends_with('0') { "1" } else { "0" },
    );
    assert!(refused(a.register(Some(&tampered)).await).contains("not known"));
    assert!(refused(a.register(Some(&short)).await).contains("expired"));
    assert!(refused(a.register(Some(&expired)).await).contains("expired"));
    assert!(a.register(Some(&single)).await.unwrap().machine_authorized);
    let mut b = Client::new(lab.address(), "b").await;
    assert!(refused(b.register(Some(&single)).await).contains("already used"));
    // The node that used it may start again with it, as clients do.
    assert!(a.register(Some(&single)).await.unwrap().machine_authorized);
    assert_eq!(lab.nodes().await.len(), 1);
}

#[tokio::test]
async fn secrets_of_keys_are_shown_once_and_stored_as_hashes() {
    let mut lab = Lab::new().await;
    let key = lab.key().await;
    let secret = key.rsplit('-').next().unwrap();
    let list: Vec<AuthKeyInfo> =
        serde_json::from_value(lab.ask(Ask::AuthKeysList { user: None }).await.unwrap()).unwrap();
    assert!(list.iter().all(|info| !info.key.contains(secret)));
    let dir = lab.state_dir();
    lab.stop().await;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes()),
            "{}",
            path.display()
        );
    }
}

#[tokio::test]
async fn a_key_with_tags_makes_a_tagged_node() {
    let lab = Lab::new().await;
    let key = lab
        .key_with(|key| key.tags = vec!["web".to_owned(), "tag:prod".to_owned()])
        .await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut poll = a.poll().await;
    poll.until("a netmap", |_| true).await;
    let mut web = Client::new(lab.address(), "web").await;
    let response = web.register(Some(&key)).await.unwrap();
    assert_eq!(response.login.login_name, "tagged-devices");
    poll.until("web", |netmap| {
        peer(netmap, "web").is_some_and(|web| web.tags == ["tag:prod", "tag:web"])
    })
    .await;
    let user = poll.peer("web").unwrap().user;
    assert_eq!(poll.netmap.users[&user].display_name, "Tagged Devices");
    assert_eq!(lab.node("web").await.user.map(|user| user.name), None);

    let mut other = Client::new(lab.address(), "other").await;
    other.hostinfo.request_tags = vec!["tag:db".to_owned()];
    assert!(refused(other.register(Some(&key)).await).contains("tag:db"));
}

#[tokio::test]
async fn a_node_gets_the_tags_it_asks_for_if_the_policy_lets_its_user_give_them() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::new(lab.address(), "a").await;
    a.hostinfo.request_tags = vec!["tag:web".to_owned()];
    assert!(refused(a.register(Some(&key)).await).contains("tag:web"));
    lab.set_policy(r#"{"tagOwners": {"tag:web": ["lab@"]}}"#)
        .await;
    assert!(a.register(Some(&key)).await.unwrap().machine_authorized);
    assert_eq!(lab.node("a").await.tags, ["tag:web"]);
}

#[tokio::test]
async fn an_ephemeral_node_is_deleted_after_it_disconnects() {
    let lab = Lab::new().await;
    let key = lab.key_with(|key| key.ephemeral = true).await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut watcher = a.poll().await;
    let mut e = Client::joined(lab.address(), "e", &key).await;
    let poll = e.poll().await;
    watcher
        .until("e online", |netmap| {
            peer(netmap, "e").is_some_and(|e| e.online == Some(true))
        })
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.nodes().await.len(), 2, "not while it is connected");
    drop(poll);
    watcher
        .until("e gone", |netmap| peer(netmap, "e").is_none())
        .await;
    assert_eq!(lab.nodes().await.len(), 1);
}

#[tokio::test]
async fn logging_out_expires_a_node_and_deletes_an_ephemeral_one() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let mut e = Client::joined(
        lab.address(),
        "e",
        &lab.key_with(|key| key.ephemeral = true).await,
    )
    .await;
    for client in [&mut a, &mut e] {
        let mut request = client.request(None);
        request.expiry = Some(OffsetDateTime::from_unix_timestamp(123).unwrap());
        let response = client.send_register(&request).await.unwrap();
        assert!(response.node_key_expired && !response.machine_authorized);
    }
    let nodes = lab.nodes().await;
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].expired);
    assert!(a.register(None).await.unwrap().node_key_expired);
}

#[tokio::test]
async fn a_person_approves_a_machine_at_its_login_page() {
    let lab = Lab::new().await;
    let mut a = Client::new(lab.address(), "a").await;
    let url = a.register(None).await.unwrap().auth_url;
    let id = url
        .strip_prefix("http://127.0.0.1:1/register/")
        .unwrap()
        .to_owned();
    assert_eq!(
        a.register(None).await.unwrap().auth_url,
        url,
        "asking again gives the same page"
    );
    assert!(
        get(lab.address(), &format!("/register/{id}"))
            .await
            .contains(&format!("nodes approve {id}"))
    );
    let mut followup = a.request(None);
    followup.followup = url.clone();
    let waiting = tokio::spawn(a.post_later("/machine/register", &followup).await);
    assert!(
        lab.ask(Ask::NodesApprove {
            registration: "0".to_owned(),
            user: "carol".to_owned()
        })
        .await
        .is_err()
    );
    lab.ask(Ask::NodesApprove {
        registration: url,
        user: "alice".to_owned(),
    })
    .await
    .unwrap();
    let (status, body) = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(status, StatusCode::OK);
    let response: RegisterResponse = serde_json::from_slice(&body).unwrap();
    assert!(response.machine_authorized && response.auth_url.is_empty());
    assert_eq!(response.login.login_name, "alice");
    a.poll().await.until("a netmap", |_| true).await;
    assert!(
        get(lab.address(), &format!("/register/{id}"))
            .await
            .starts_with("HTTP/1.1 404")
    );
    let users = lab.ask(Ask::UsersList).await.unwrap();
    assert!(
        !users.to_string().contains("carol"),
        "a mistaken approval makes no user"
    );
}

#[tokio::test]
async fn a_login_page_ends_and_the_waiting_machine_gets_another() {
    let lab = Lab::with(|config| {
        config.settings.timing.registration_lifetime = Duration::from_millis(400)
    })
    .await;
    let mut a = Client::new(lab.address(), "a").await;
    let first = a.register(None).await.unwrap().auth_url;
    let mut followup = a.request(None);
    followup.followup = first.clone();
    let second = a.send_register(&followup).await.unwrap().auth_url;
    assert!(!second.is_empty() && second != first);
    // One that was never ours is answered at once.
    let mut foreign = a.request(None);
    foreign.followup = "https://elsewhere/register/abc".to_owned();
    assert!(!a.send_register(&foreign).await.unwrap().auth_url.is_empty());
}

#[tokio::test]
async fn a_key_is_rotated_in_exchange_for_the_old_one() {
    let lab = Lab::new().await;
    let mut a = Client::joined(lab.address(), "a", &lab.key().await).await;
    let old = a.node.public();
    a.new_node_key();
    let mut request = a.request(None);
    request.old_node_key = Some(old);
    assert!(a.send_register(&request).await.unwrap().machine_authorized);
    let nodes = lab.nodes().await;
    assert_eq!(
        (nodes.len(), nodes[0].node_key.clone()),
        (1, a.node.public().to_string())
    );

    // It brings no tags along that its user may not give.
    let mut greedy = request.clone();
    greedy.old_node_key = Some(a.node.public());
    greedy.node_key = Some(NodePublic::from_bytes([7; 32]));
    let hostinfo = greedy.hostinfo.get_or_insert_default();
    hostinfo.request_tags = vec!["tag:admin".to_owned()];
    assert!(refused(a.send_register(&greedy).await).contains("tag:admin"));

    // Somebody else's old key is worth nothing.
    let mut thief = Client::new(lab.address(), "thief").await;
    let mut request = thief.request(None);
    request.old_node_key = Some(a.node.public());
    assert!(
        !thief
            .send_register(&request)
            .await
            .unwrap()
            .auth_url
            .is_empty()
    );
    let mut request = thief.request(None);
    request.node_key = Some(a.node.public());
    assert!(refused(thief.send_register(&request).await).contains("another machine"));
}

#[tokio::test]
async fn the_same_host_name_gets_a_number() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    Client::joined(lab.address(), "web", &key).await;
    Client::joined(lab.address(), "Web.example.com", &key).await;
    let names: Vec<_> = lab
        .nodes()
        .await
        .into_iter()
        .map(|node| node.given_name)
        .collect();
    assert_eq!(names, ["web", "web-1"]);
}

#[tokio::test]
async fn a_host_that_calls_itself_a_number_is_not_taken_for_the_node_of_that_id() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let _victim = Client::joined(lab.address(), "victim", &key).await;
    let _other = Client::joined(lab.address(), "1", &key).await;
    let ask = |node: &str| {
        lab.ask(Ask::NodesShow {
            node: node.to_owned(),
        })
    };
    let error = ask("1").await.unwrap_err().to_string();
    assert!(
        error.contains("1.tail.test") && error.contains("100.64.0.1"),
        "{error}"
    );
    assert_eq!(ask("1.tail.test").await.unwrap()["id"], "2");
    assert_eq!(ask("100.64.0.1").await.unwrap()["id"], "1");
    assert_eq!(ask("2").await.unwrap()["givenName"], "1");
}

#[tokio::test]
async fn who_is_made_by_an_approval_may_give_tags_at_once() {
    let lab = Lab::new().await;
    lab.set_policy(r#"{"tagOwners": {"tag:web": ["autogroup:member"]}}"#)
        .await;
    let mut a = Client::new(lab.address(), "a").await;
    a.hostinfo.request_tags = vec!["tag:web".to_owned()];
    let url = a.register(None).await.unwrap().auth_url;
    lab.ask(Ask::NodesApprove {
        registration: url,
        user: "dora".to_owned(),
    })
    .await
    .unwrap();
    assert_eq!(lab.node("a").await.tags, ["tag:web"]);
}

#[tokio::test]
async fn a_login_page_does_not_give_away_the_key_that_another_machine_has_come_with() {
    let lab = Lab::new().await;
    let key = lab.key().await;
    let mut a = Client::new(lab.address(), "a").await;
    let mut thief = Client::new(lab.address(), "thief").await;
    let mut request = thief.request(None);
    request.node_key = Some(a.node.public());
    let url = thief.send_register(&request).await.unwrap().auth_url;
    assert!(a.register(Some(&key)).await.unwrap().machine_authorized);
    let approved = lab.ask(Ask::NodesApprove {
        registration: url,
        user: "lab".to_owned(),
    });
    assert!(
        approved
            .await
            .unwrap_err()
            .to_string()
            .contains("another machine")
    );
    assert_eq!(lab.nodes().await.len(), 1);
}
