//! Garbage on the workload socket, by one who is in no container: it is turned away before anything
//! is attested, and others are served meanwhile.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail the test"
)]
#![expect(dead_code, reason = "the support is shared with another suite")]

mod support;

use std::time::Duration;
use support::container::Container;
use support::{Node, SOON, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Sends bytes, and gives all that comes until the node closes.
async fn exchange(node: &Node, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&node.socket).await.unwrap();
    // It may have been closed before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .expect("the node closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/session HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\n\
         Upgrade: mayfly-session\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn still_serves(node: &Node) {
    let client = Container::hostile(&["session", node.path()]);
    client.says("bundle 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_turned_away() {
    let node = Node::start(|config| config.limits.header_seconds = 20).await;
    let status = |answer: String| answer.get(..12).unwrap_or_default().to_owned();

    let long = format!("X-Long: {}\r\n", "a".repeat(64 * 1024));
    assert_eq!(
        status(exchange(&node, &post(&long, "")).await),
        "HTTP/1.1 431"
    );
    let many = "X-Many: 1\r\n".repeat(200);
    assert_eq!(
        status(exchange(&node, &post(&many, "")).await),
        "HTTP/1.1 431"
    );
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 * 1024));
    assert!(status(exchange(&node, path.as_bytes()).await).starts_with("HTTP/1.1 4"));

    let large = "x".repeat(1 << 20);
    assert_eq!(
        status(exchange(&node, &post("", &large)).await),
        "HTTP/1.1 413"
    );
    for body in [
        "[".repeat(30_000),
        "{\"a\":".repeat(6_000),
        "{}".into(),
        String::new(),
    ] {
        assert_eq!(
            status(exchange(&node, &post("", &body)).await),
            "HTTP/1.1 400"
        );
    }
    for request in [
        "GET / HTTP/1.1",
        "GET /v1/credentialsx HTTP/1.1",
        "GET /v2/session HTTP/1.1",
    ] {
        let request = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = exchange(&node, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert!(answer.contains("\"code\":\"not_found\""), "{answer}");
    }
    let wrong = b"DELETE /v1/credentials HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = exchange(&node, wrong).await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET"),
        "{answer}"
    );

    for _ in 0..50 {
        let mut random = vec![0; 4096];
        getrandom::fill(&mut random).unwrap();
        exchange(&node, &random).await;
    }
    still_serves(&node).await;
    assert!(node.broker.sessions.lock().unwrap().len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_in_no_container_gets_nothing_and_is_reported() {
    let node = Node::start(|_| {}).await;
    let request = b"GET /v1/credentials/orders-db HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = exchange(&node, request).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("\"code\":\"not_attested\""), "{answer}");
    let refusal = until("a report", || node.broker.refusals("not_a_container").pop()).await;
    assert_eq!(refusal.pid, Some(std::process::id()));
    assert!(node.broker.sessions.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_are_cut_off() {
    let node = Node::start(|config| {
        config.limits.header_seconds = 1;
        config.limits.body_seconds = 1;
    })
    .await;
    let slow = async {
        let mut stream = UnixStream::connect(&node.socket).await.unwrap();
        // A byte now and then, for as long as the node takes it.
        for byte in b"GET /v1/whoami HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaa"
            .iter()
            .cycle()
        {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, slow).await.expect("it is cut off");
    until("a report", || node.broker.refusals("too_slow").pop()).await;

    let mut whole = post("", "{}");
    whole.truncate(whole.len() - 1);
    let answer = exchange(&node, &whole).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    still_serves(&node).await;
}
