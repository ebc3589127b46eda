use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::cli::client::{Client, ClientError};

struct Fixture {
    _dir: TempDir,
    path: PathBuf,
    asks: mpsc::Receiver<Ask>,
}

/// A server of which only the user `own` may write.
fn serve(own: u32) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/lowroad.sock");
    let listener = bind(&path).unwrap();
    let (sender, asks) = mpsc::channel(4);
    tokio::spawn(
        Server::new(
            sender,
            Rights {
                own_user: own,
                ..Rights::default()
            },
        )
        .run(listener),
    );
    Fixture {
        _dir: dir,
        path,
        asks,
    }
}

async fn raw(fixture: &Fixture, request: &str) -> String {
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_question_reaches_the_engine_and_its_answer_the_client() {
    let mut fixture = serve(0);
    let client = Client::new(&fixture.path);
    let asked = tokio::spawn(async move {
        client
            .get::<Status>("/localapi/v0/status?peers=false")
            .await
    });
    let Some(Ask::Status {
        peers: false,
        reply,
    }) = fixture.asks.recv().await
    else {
        panic!("not a status question")
    };
    reply
        .send(Status {
            version: "x".into(),
            ..Status::default()
        })
        .unwrap();
    assert_eq!(asked.await.unwrap().unwrap().version, "x");
}

#[tokio::test]
async fn requests_from_web_pages_and_for_other_hosts_are_refused_in_the_stock_shape() {
    let fixture = serve(0);
    for headers in [
        "Host: evil.example",
        "Host: local-tailscaled.sock\r\nOrigin: http://evil.example",
        "Host: local-tailscaled.sock\r\nReferer: http://x/",
    ] {
        let answer = raw(
            &fixture,
            &format!("GET /localapi/v0/prefs HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("{\"error\":\""), "{answer}");
    }
    let answer = raw(
        &fixture,
        "GET /nowhere HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(
        answer.to_lowercase().contains("tailscale-cap: "),
        "{answer}"
    );
}

#[tokio::test]
async fn a_user_who_is_neither_root_nor_operator_may_only_read() {
    // Root may always write, so that this can be seen by other users only; the rule itself is a function of the user's number.
    let (asks, _keep) = mpsc::channel(1);
    let mut rights = Rights {
        own_user: 7,
        operator: Arc::new(ArcSwapOption::from_pointee(1000)),
        group: String::new(),
    };
    for user in [0, 7, 1000] {
        assert!(rights.may_write(user, |_| false));
    }
    assert!(!rights.may_write(1001, |_| true), "no group is configured");
    rights.group = "42".to_owned();
    assert!(rights.may_write(1001, |group| group == 42));
    assert!(!rights.may_write(1001, |group| group == 43));
    rights.group = "a group that this machine hasn't".to_owned();
    assert!(!rights.may_write(1001, |_| true));
    let server = Server::new(asks, rights);
    let (reply, _answer) = oneshot::channel();
    let refused = server.send(false, Ask::Down { reply }).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let (reply, _answer) = oneshot::channel();
    let refused = server.send(false, Ask::Login { reply }).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let (reply, _answer) = oneshot::channel();
    assert!(server.send(false, Ask::Prefs { reply }).await.is_ok());
}

#[tokio::test]
async fn progress_of_up_arrives_line_by_line() {
    let mut fixture = serve(0);
    let client = Client::new(&fixture.path);
    let request = UpRequest {
        auth_key: Some(AuthKey::new("k".into())),
        ..UpRequest::default()
    };
    let reader = tokio::spawn(async move {
        let mut lines = client
            .stream(Method::POST, "/lowroad/v0/up", &request)
            .await
            .unwrap();
        let mut steps = Vec::new();
        while let Some(step) = lines.next::<Progress>().await.unwrap() {
            steps.push(step);
        }
        steps
    });
    let Some(Ask::Up { request, progress }) = fixture.asks.recv().await else {
        panic!("not an up")
    };
    assert_eq!(request.auth_key.unwrap().reveal(), "k");
    progress
        .send(Progress::Waiting("the kernel".into()))
        .await
        .unwrap();
    progress.send(Progress::Done).await.unwrap();
    drop(progress);
    assert_eq!(
        reader.await.unwrap(),
        [Progress::Waiting("the kernel".into()), Progress::Done]
    );
}

/// What `start` and `up` take of the auth key that a client sends.
async fn auth_key_taken(path: &str, body: &str) -> Option<String> {
    let mut fixture = serve(0);
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = timeout(Duration::from_secs(10), fixture.asks.recv()).await;
    let key = match asked.expect("it is asked").expect("the server goes on") {
        Ask::Start {
            auth_key, reply, ..
        } => {
            reply.send(Ok(())).unwrap();
            auth_key
        }
        Ask::Up { request, .. } => request.auth_key,
        other => panic!("neither start nor up: {other:?}"),
    };
    key.map(|key| key.reveal().to_owned())
}

#[tokio::test]
async fn an_empty_auth_key_is_none() {
    for (path, field) in [
        ("/localapi/v0/start", "AuthKey"),
        ("/lowroad/v0/up", "auth_key"),
    ] {
        for (value, taken) in [
            (r#""""#, None),
            (r#"" \n""#, None),
            ("null", None),
            (r#""k""#, Some("k".to_owned())),
        ] {
            let body = format!("{{\"{field}\": {value}}}");
            assert_eq!(auth_key_taken(path, &body).await, taken, "{path} {body}");
        }
        assert_eq!(auth_key_taken(path, "{}").await, None, "{path}");
    }
}

#[tokio::test]
async fn an_unreadable_body_is_refused_without_repeating_it() {
    let fixture = serve(0);
    let body = "{\"auth_key\": [\"hskey-secret\"]}";
    let answer = raw(
        &fixture,
        &format!("POST /lowroad/v0/up HTTP/1.1\r\nHost: local-tailscaled.sock\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && !answer.contains("secret"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let live = bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(SocketError::Live(_))));
    drop(live);
    let again = bind(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o666
    );
    drop(again);
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(bind(&file), Err(SocketError::NotASocket(_))));
}

#[tokio::test]
async fn without_an_agent_the_client_says_how_to_start_one() {
    let error = Client::new(std::path::Path::new("/nonexistent/sock"))
        .get::<Value>("/x")
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. })
            && error.to_string().contains("systemctl start lowroad"),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_that_never_ends_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = bind(&path).unwrap();
    let (sender, _asks) = mpsc::channel(4);
    let mut server = Server::new(sender, Rights::default());
    server.request_within = Duration::from_millis(200);
    tokio::spawn(server.run(listener));
    for begun in [
        "",
        "GET /localapi/v0/status HTTP/1.1\r\nHost: local-",
        "POST /lowroad/v0/set HTTP/1.1\r\nHost: local-tailscaled.sock\r\nContent-Length: 100\r\n\r\n{",
    ] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{begun:?} is waited for");
    }
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_a_place_that_is_free_again_serves() {
    let fixture = serve(0);
    let mut open = Vec::new();
    for _ in 0..places::EACH {
        open.push(UnixStream::connect(&fixture.path).await.unwrap());
    }
    let within = Duration::from_secs(10);
    let mut one_more = UnixStream::connect(&fixture.path).await.unwrap();
    let closed = timeout(within, one_more.read(&mut [0; 1])).await;
    assert_eq!(closed.expect("it is closed").unwrap_or(0), 0);
    drop(open);
    let request =
        "GET /nowhere HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n";
    let served = async {
        loop {
            let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
            let mut answer = String::new();
            let sent = stream.write_all(request.as_bytes()).await;
            // A place is free once the server has seen its connection's end.
            if sent.is_ok()
                && stream.read_to_string(&mut answer).await.is_ok()
                && !answer.is_empty()
            {
                return answer;
            }
        }
    };
    let answer = timeout(within, served)
        .await
        .expect("a place is free again");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test]
async fn preferences_can_be_checked_before_they_are_set() {
    let fixture = serve(0);
    let client = Client::new(&fixture.path);
    for (prefs, expected) in [
        (json!({"Hostname": "gate", "RunSSH": false}), None),
        (json!({"Hostname": "no name"}), Some("no name")),
        (json!({"RunSSH": true}), Some("--ssh is refused")),
        (json!({"AdvertiseRoutes": ["192.0.2.0/24"]}), Some("routes")),
    ] {
        let answer: serde_json::Value = client
            .post("/localapi/v0/check-prefs", &prefs)
            .await
            .unwrap();
        let error = answer["Error"].as_str();
        assert_eq!(error.is_some(), expected.is_some(), "{answer}");
        assert!(
            error.unwrap_or_default().contains(expected.unwrap_or("")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_the_name_of_the_call() {
    let fixture = serve(0);
    for (method, path) in [
        ("GET", "/localapi/v0/metrics"),
        ("GET", "/localapi/v0/dns-config"),
        ("POST", "/localapi/v0/serve-config"),
        ("PUT", "/localapi/v0/profiles/"),
    ] {
        let answer = raw(
            &fixture,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n\r\n"
            ),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        let said = format!("{method} {path} does not exist in this agent");
        assert!(answer.contains(&said), "{answer}");
    }
}
