//! The node's side of the node link, against a small server that speaks as `mayfly_wire::link` says.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

mod link_server;

use link_server::{Authority, Server};
use mayfly_node::remote::{BrokerConfig, RemoteBroker};
use mayfly_node::upstream::Upstream as _;
use mayfly_wire::link::{Heartbeat, NodeEvent, SessionRequest, SessionUpdate, Watched};
use mayfly_wire::session::{Hello, MAX_SERVER_LINE, PROTOCOL, ServerMessage};
use mayfly_wire::{Assurance, Code, Evidence, Posture, WorkloadKey, sealed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Long enough for anything here, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn workload() -> WorkloadKey {
    WorkloadKey {
        boot_id: "boot".into(),
        cgroup_id: 7,
        pidns_id: 8,
    }
}

fn evidence() -> Evidence {
    Evidence {
        workload: workload(),
        node: "node-1".into(),
        assurance: Assurance::Kernel,
        lacking: Default::default(),
        cgroup_path: Some("/box".into()),
        container: None,
        companion: None,
        own_namespaces: Some(true),
        peer: Posture::default(),
        init: Posture::default(),
        init_pid: 1,
        init_start_time: 2,
    }
}

fn request() -> SessionRequest {
    let hello = Hello {
        protocol: PROTOCOL,
        public_key: sealed::generate().1,
        want: None,
    };
    SessionRequest {
        evidence: evidence(),
        hello,
        once: false,
        csr: None,
    }
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        node: "node-1".into(),
        boot_id: "boot".into(),
        starting: true,
    }
}

fn remote(config: BrokerConfig) -> RemoteBroker {
    RemoteBroker::new(config).unwrap()
}

#[tokio::test]
async fn questions_are_answered_over_one_connection() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let broker = remote(authority.node_config(&[server.address()]));
    let watch = broker.heartbeat(heartbeat()).await.unwrap();
    let expected = Watched {
        workload: workload(),
        init_pid: 5,
        init_start_time: 6,
    };
    assert_eq!(watch.workloads, [expected]);
    let granted = broker.granted(evidence()).await.unwrap();
    assert_eq!(granted.credentials[0].as_str(), "orders-db");
    let died = NodeEvent::Died {
        workload: workload(),
    };
    broker.event(died.clone()).await.unwrap();
    assert_eq!(server.events(), [died]);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_session_streams_both_ways() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let broker = remote(authority.node_config(&[server.address()]));
    let mut session = broker.session(request()).await.unwrap();
    let hello = ServerMessage::Hello {
        protocol: PROTOCOL,
        workload: workload(),
    };
    assert_eq!(session.down.recv().await, Some(hello));
    // The server answers each acknowledgement with a bundle of the next generation.
    for generation in 1..=50 {
        session
            .up
            .send(SessionUpdate::Ack { generation })
            .await
            .unwrap();
        match session.down.recv().await {
            Some(ServerMessage::Bundle(bundle)) => assert_eq!(bundle.generation, generation + 1),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.open_sessions(), 1);
    drop(session);
    let start = Instant::now();
    while server.open_sessions() > 0 {
        assert!(start.elapsed() < SOON, "it stays open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The end of sessions that were dropped already must not cut off those that go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_dropped_sessions_leave_the_others_be() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let broker = Arc::new(remote(authority.node_config(&[server.address()])));
    let mut lasting = broker.session(request()).await.unwrap();
    lasting.down.recv().await.unwrap();
    let once = SessionRequest {
        once: true,
        ..request()
    };
    let mut asking = JoinSet::new();
    for _ in 0..128 {
        let (broker, once) = (Arc::clone(&broker), once.clone());
        asking.spawn(async move {
            for _ in 0..60 {
                let mut session = broker.session(once.clone()).await.unwrap();
                assert!(session.down.recv().await.is_some(), "cut off");
            }
        });
    }
    asking.join_all().await;
    let update = SessionUpdate::Ack { generation: 1 };
    lasting.up.send(update).await.unwrap();
    let answer = lasting.down.recv().await;
    assert!(matches!(answer, Some(ServerMessage::Bundle(_))), "cut off");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_refusal_arrives_as_it_was_said() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let broker = remote(authority.node_config(&[server.address()]));
    server.refuse_sessions(Code::Denied);
    let refusal = broker.session(request()).await.err().unwrap();
    assert_eq!(refusal.code, Code::Denied);
}

#[tokio::test]
async fn a_lost_broker_is_replaced_by_another() {
    let authority = Authority::new();
    let first = Server::start(&authority).await;
    let second = Server::start(&authority).await;
    let broker = remote(authority.node_config(&[first.address(), second.address()]));
    broker.heartbeat(heartbeat()).await.unwrap();
    let (used, other) = if first.connections() == 1 {
        (first, second)
    } else {
        (second, first)
    };
    let mut session = broker.session(request()).await.unwrap();
    session.down.recv().await.unwrap();
    used.stop();
    // The session ends, which the node passes on; new questions go to the other.
    let ended = tokio::time::timeout(SOON, session.down.recv()).await;
    assert_eq!(ended.unwrap(), None);
    let start = Instant::now();
    while broker.heartbeat(heartbeat()).await.is_err() {
        assert!(start.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other.connections(), 1);
}

#[tokio::test]
async fn no_broker_at_all_is_said_at_once() {
    let authority = Authority::new();
    let gone = Server::start(&authority).await;
    let address = gone.address();
    gone.stop();
    let broker = remote(authority.node_config(&[address]));
    let mut took = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        let refusal = broker.heartbeat(heartbeat()).await.unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        took.push(start.elapsed());
    }
    took.sort();
    // One or the other may be the machine's.
    assert!(took[40] < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_broker_of_another_authority_is_not_spoken_to() {
    let authority = Authority::new();
    let impostor = Server::start(&Authority::new()).await;
    let broker = remote(authority.node_config(&[impostor.address()]));
    let refusal = broker.session(request()).await.err().unwrap();
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(impostor.requests(), 0);
}

#[tokio::test]
async fn a_line_beyond_the_limit_ends_the_session() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    server.send_lines_of(MAX_SERVER_LINE + 2);
    let broker = remote(authority.node_config(&[server.address()]));
    let mut session = broker.session(request()).await.unwrap();
    let ended = tokio::time::timeout(SOON, session.down.recv()).await;
    assert_eq!(ended.unwrap(), None);
}
