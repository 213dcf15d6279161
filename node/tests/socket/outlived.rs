//! A process that asks, and dies before it is answered, while its container lives and another process
//! holds its connection. Everything that is read about it was read before: whether it has exited is
//! the last thing that is looked at.

use super::support::container::Container;
use super::support::{Node, until};

async fn dead(node: &Node, manner: &str) -> Container {
    let go = node.directory.0.join("go");
    let words = ["outlive", node.path(), manner, go.to_str().unwrap()];
    let client = Container::hostile(&words);
    client.says("asked").await;
    until("the question", || {
        (node.broker.sessions.lock().unwrap().len() == 1).then_some(())
    })
    .await;
    std::fs::write(go, "").unwrap();
    client.says("dead").await;
    client
}

async fn reported(node: &Node) {
    until("a report", || node.broker.refusals("peer_exited").pop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_not_released_to_who_outlives_the_one_that_asked() {
    let node = Node::start(|_| {}).await;
    node.broker.hold.send_replace(true);
    let client = dead(&node, "once").await;
    node.broker.hold.send_replace(false);
    client.says("HTTP/1.1 ").await;
    assert!(!client.output().contains("first"), "{}", client.output());
    client.says("HTTP/1.1 403").await;
    reported(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_not_sent_to_who_outlives_the_one_with_the_session() {
    let node = Node::start(|_| {}).await;
    let client = dead(&node, "session").await;
    node.broker.value.send_replace("second".into());
    client.says("{").await;
    assert!(
        !client.output().contains("encapsulated"),
        "{}",
        client.output()
    );
    reported(&node).await;
}
