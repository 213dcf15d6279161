//! The workload socket, from inside real containers (of bare namespaces) and from outside of any.
//! Needs root, cgroup v2, bash, util-linux and curl.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail the test"
)]

#[path = "socket/outlived.rs"]
mod outlived;
mod support;

use mayfly_wire::link::{NodeEvent, Watched};
use mayfly_wire::{Assurance, Facility, PublishFault};
use std::time::{Duration, Instant};
use support::container::Container;
use support::{Node, until};

/// Within this a death is told; where the machine keeps the node from it once, it does not do so always.
const PROMPT: Duration = Duration::from_millis(200);

/// How long the death of one with a session takes to be told.
async fn death_to_report(node: &Node) -> Duration {
    let client = Container::hostile(&["session", node.path()]);
    client.says("bundle 1").await;
    let before = node.broker.deaths().len();
    let killed = client.kill();
    let (told, _) = until("the report", || node.broker.deaths().get(before).cloned()).await;
    told - killed
}

async fn are_told_promptly(node: &Node, first: Duration) {
    let mut took = vec![first];
    while took.len() < 5 && took.iter().all(|took| *took >= PROMPT) {
        took.push(death_to_report(node).await);
    }
    assert!(took.iter().any(|took| *took < PROMPT), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_brings_bundles_and_ends_with_its_container() {
    let node = Node::start(|_| {}).await;
    let client = Container::hostile(&["session", node.path()]);
    client.says("bundle 1 orders-db/value=first").await;
    let evidence = node.broker.evidence();
    assert_eq!(evidence.workload.cgroup_id, client.cgroup_id());
    assert_eq!(evidence.assurance, Assurance::Kernel);
    assert_eq!(evidence.node, "node-1");
    client
        .says(&format!("hello {}", evidence.workload.id()))
        .await;

    node.broker.value.send_replace("second".into());
    client.says("bundle 2 orders-db/value=second").await;
    until("an acknowledgement", || {
        (*node.broker.acknowledged.borrow() == 2).then_some(())
    })
    .await;

    let killed = client.kill();
    let (told, dead) = until("the report", || node.broker.deaths().first().cloned()).await;
    assert_eq!(dead, evidence.workload);
    println!("death_to_report {:?}", told - killed);
    are_told_promptly(&node, told - killed).await;
    until("the end of the session", || {
        (*node.broker.open.borrow() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_one_credential_in_the_clear() {
    let node = Node::start(|_| {}).await;
    let get = |path: &str| {
        let url = format!("http://localhost{path}");
        Container::run(&[
            "curl",
            "-sS",
            "--unix-socket",
            node.path(),
            &url,
            "-w",
            "\n%{http_code}\n",
        ])
    };
    let whole = get("/v1/credentials/orders-db");
    whole.says("200").await;
    let answer: serde_json::Value = serde_json::from_str(&whole.says("{").await).unwrap();
    assert_eq!(answer["fields"]["value"], "Zmlyc3Q");
    assert_eq!(answer["name"], "orders-db");
    assert!(node.broker.sessions.lock().unwrap().last().unwrap().once);

    let field = get("/v1/credentials/orders-db/value");
    field.says("200").await;
    assert_eq!(field.output(), "first\n200");
    get("/v1/credentials/orders-db/none").says("404").await;
    get("/v1/credentials/..%2f").says("404").await;

    let list = get("/v1/credentials");
    list.says("200").await;
    list.says(r#"{"credentials":["orders-db"]}"#).await;

    let who = get("/v1/whoami");
    who.says("200").await;
    let who: serde_json::Value = serde_json::from_str(&who.says("{").await).unwrap();
    assert_eq!(who["assurance"], "kernel");
    assert_eq!(who["id"].as_str().unwrap().len(), 12);
    until("the end of the sessions", || {
        (*node.broker.open.borrow() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_is_passed_on() {
    let node = Node::start(|_| {}).await;
    *node.broker.refuse.lock().unwrap() = Some(mayfly_wire::Code::Denied);
    Container::hostile(&["session", node.path()])
        .says("status 403")
        .await;
    *node.broker.refuse.lock().unwrap() = Some(mayfly_wire::Code::Sealed);
    let url = "http://localhost/v1/credentials/orders-db";
    let client = Container::run(&["curl", "-sS", "--unix-socket", node.path(), url]);
    client.says(r#"{"code":"sealed""#).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_in_one_container_is_held_to_its_pace() {
    let node = Node::start(|config| {
        config.limits.requests_per_second_per_container = 2;
        config.limits.request_burst_per_container = 10;
    })
    .await;
    let url = "http://localhost/v1/credentials/orders-db";
    let ask = format!(
        "curl -sS -o /dev/null -w '%{{http_code}} %header{{retry-after}}\n' --unix-socket {} {url}",
        node.path()
    );
    // Each from a pid namespace of its own, which must not give it a pace of its own.
    let nested = format!("unshare --pid --fork {ask}");
    let script = format!("for i in $(seq 40); do {ask}; {nested}; done; echo done; sleep 60");
    let start = Instant::now();
    let looping = Container::run(&["bash", "-c", &script]);
    looping.says("429 1").await;
    let other = Container::run(&["bash", "-c", &ask]);
    other.says("200").await;
    looping.says("done").await;
    let rate = start.elapsed().as_secs_f64() * 2.0;
    let output = looping.output();
    let count = |code: &str| output.lines().filter(|line| line.starts_with(code)).count();
    let (served, refused) = (count("200"), count("429"));
    assert_eq!(served + refused, 80, "{output}");
    assert!(
        (10..=12 + rate as usize).contains(&served),
        "{served} in {rate}"
    );
    // What reaches the broker, and so its records, is what was served, and a record or two of the rest.
    assert_eq!(node.broker.sessions.lock().unwrap().len(), served + 1);
    let noted = until("all refusals on record", || {
        let noted = node.broker.refusals("too_many_requests");
        let count: u64 = noted.iter().map(|refusal| refusal.count).sum();
        (count == refused as u64).then_some(noted)
    })
    .await;
    let most = 2 + start.elapsed().as_secs() as usize;
    assert!((1..=most).contains(&noted.len()), "{noted:?}");
    let workload = node.broker.sessions.lock().unwrap()[0]
        .evidence
        .workload
        .clone();
    assert_eq!(noted[0].workload.as_ref(), Some(&workload));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_during_a_session_is_told_once() {
    let node = Node::start(|config| config.limits.reattest_seconds = 1).await;
    let script = format!(
        "{} session {} & read -r go <{}; exec setpriv --reuid 1000 --clear-groups sleep 60",
        support::container::client(),
        node.path(),
        node.directory.0.join("go").display()
    );
    let go = node.directory.0.join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let container = Container::run(&["bash", "-c", &script]);
    container.says("bundle 1").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let changed = || node.broker.changed.lock().unwrap().clone();
    assert_eq!(changed(), [], "nothing has changed");
    // Its first process becomes another user.
    tokio::task::spawn_blocking(move || std::fs::write(go, "go\n").unwrap())
        .await
        .unwrap();
    let told = until("the change", || changed().first().cloned()).await;
    let before = node.broker.evidence();
    assert_eq!((before.init.uid, told.init.uid), (Some(0), Some(1000)));
    assert_eq!(told.workload, before.workload);
    assert_eq!(told.peer, before.peer);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(changed(), [told]);
    assert_eq!(*node.broker.open.borrow(), 1, "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_cannot_publish_is_heard() {
    let node = Node::start(|_| {}).await;
    let url = "http://localhost/v1/publish-failures";
    let post = |body: &str| {
        let curl = ["curl", "-sS", "--unix-socket", node.path(), url, "-d", body];
        Container::run(&[&curl[..], &["-w", "\n%{http_code}\n"]].concat())
    };
    let failed = r#"{"generation":2,"code":"symlink","detail":"a symlink\u001b[2J\nadvice"}"#;
    post(failed).says("204").await;
    let (_, event) = node.broker.events.lock().unwrap().last().cloned().unwrap();
    let NodeEvent::PublishFailed(report) = event else {
        unreachable!("expected a report, found {event:?}")
    };
    assert_eq!(report.failure.code, PublishFault::Symlink);
    assert_eq!(report.failure.detail.as_str(), "a symlink?[2J");
    assert_eq!(report.evidence.assurance, Assurance::Kernel);
    *node.broker.fail_events.lock().unwrap() = 1;
    post(failed).says("503").await;
    post("{}").says("400").await;
    let long = format!(
        r#"{{"generation":2,"code":"io","detail":"{}"}}"#,
        "x".repeat(5000)
    );
    post(&long).says("413").await;
    let get = Container::run(&["curl", "-sSI", "--unix-socket", node.path(), url]);
    get.says("HTTP/1.1 405").await;
    assert_eq!(node.broker.events.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_container_leaves_others_served() {
    // Whoever was kept out by the flood would be for longer than anything here takes.
    let node = Node::start(|config| config.limits.header_seconds = 60).await;
    let start = Instant::now();
    let flood = Container::hostile(&["flood", node.path(), "2000"]);
    flood.says("flooding").await;
    let other = Container::hostile(&["session", node.path()]);
    other.says("bundle 1").await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    let refused = flood.says("refused ").await;
    let refused: usize = refused.trim_start_matches("refused ").parse().unwrap();
    assert!(refused >= 1900, "{refused}");
    // A record or two, not one a try.
    let count = || {
        let records = node.broker.refusals("too_many");
        let count: u64 = records.iter().map(|record| record.count).sum();
        (count >= 1900).then_some(records.len())
    };
    let records = until("reports of it", count).await;
    assert!(records as u64 <= 3 + start.elapsed().as_secs(), "{records}");
    other.says("bundle 1").await;
}

/// It never holds more than one connection, but each must be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_connections_that_close_at_once_is_turned_away() {
    let node = Node::start(|_| {}).await;
    let start = Instant::now();
    let storm = Container::hostile(&["storm", node.path(), "3000"]);
    storm.says("stormed").await;
    let let_in = || 400 + 80 * (start.elapsed().as_secs() + 1);
    let turned_away = until("reports of it", || {
        let records = node.broker.refusals("too_many");
        let count: u64 = records.iter().map(|record| record.count).sum();
        (count + let_in() >= 3000).then_some(count)
    });
    assert!(turned_away.await > 0);
    let other = Container::hostile(&["session", node.path()]);
    other.says("bundle 1").await;
}

/// Only the first of them is told at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_tells_of_all_whom_it_refused() {
    let mut node = Node::start(|config| config.limits.refusal_seconds = 600).await;
    let ask = [
        "-sS",
        "--unix-socket",
        node.path(),
        "http://localhost/v1/whoami",
    ];
    for _ in 0..3 {
        let asked = std::process::Command::new("curl").args(ask).output();
        let said = String::from_utf8(asked.unwrap().stdout).unwrap();
        assert!(said.contains("not_attested"), "{said}");
    }
    node.stop().await;
    let told = node.broker.refusals("not_a_container");
    assert_eq!(told.iter().map(|refusal| refusal.count).sum::<u64>(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_descriptor_ends_the_connection() {
    let node = Node::start(|_| {}).await;
    let client = Container::hostile(&["descriptor", node.path()]);
    client.says(r#"answer """#).await;
    let refused = until("a report", || {
        node.broker.refusals("descriptors_passed").pop()
    })
    .await;
    assert_eq!(refused.count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_of_no_use_in_another_container() {
    let node = Node::start(|_| {}).await;
    let meeting = node.directory.0.join("meeting");
    let meeting = meeting.to_str().unwrap();
    let connector = Container::hostile(&["hand-over", node.path(), meeting]);
    connector.says("waiting").await;
    let thief = Container::hostile(&["take-over", meeting]);
    let got = thief.says("sent ").await;
    assert!(got.ends_with(r#"answer """#), "{got}");
    until("a report", || {
        node.broker.refusals("sender_in_other_container").pop()
    })
    .await;
    assert!(node.broker.sessions.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_so_peerpidfd_the_caller_repeats_a_nonce() {
    let node = Node::start(|config| config.forbid = vec![Facility::SoPeerpidfd]).await;
    let client = Container::hostile(&["nonce", node.path(), "/v1/whoami"]);
    client.says("first 401").await;
    client.says("wrong 403").await;
    let right = client.says("right 200").await;
    assert!(right.contains("\"assurance\":\"kernel\""), "{right}");
    until("a report", || node.broker.refusals("peer_unproven").pop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_answer_or_read_is_cut_off() {
    // One that does both is not, however busy the machine is.
    for seconds in [1, 5] {
        if who_does_not_is_cut_off(seconds).await {
            return;
        }
    }
    unreachable!("one that answered and read was cut off");
}

/// Whether only those were.
async fn who_does_not_is_cut_off(seconds: u64) -> bool {
    let node = Node::start(|config| {
        config.limits.ping_seconds = seconds;
        config.limits.write_seconds = seconds;
    })
    .await;
    let answering = Container::hostile(&["session", node.path()]);
    let mute = Container::hostile(&["session", node.path(), "mute"]);
    mute.says("bundle 1").await;
    answering.says("bundle 1").await;
    mute.says("refused TooSlow").await;
    mute.says("end").await;
    until("the end of one session", || {
        (*node.broker.open.borrow() <= 1).then_some(())
    })
    .await;

    // More than fits into a socket's buffers.
    node.broker.value.send_replace("x".repeat(1 << 20));
    let is_served = until("the large one, or its end", || {
        let output = answering.output();
        let mut lines = output.lines();
        lines.find_map(|line| match line {
            "end" => Some(false),
            line => line.starts_with("bundle 2").then_some(true),
        })
    });
    if !is_served.await {
        return false;
    }
    let deaf = Container::hostile(&["session", node.path(), "deaf"]);
    deaf.says("status 101").await;
    until("the end of the deaf one", || {
        let slow = node.broker.refusals("too_slow");
        let deaf = slow
            .iter()
            .any(|refusal| refusal.detail.contains("did not read"));
        (deaf && *node.broker.open.borrow() <= 1).then_some(())
    })
    .await;
    let is_open = *node.broker.open.borrow() == 1;
    is_open && !answering.output().contains("end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_is_reported_until_the_broker_takes_it() {
    let node = Node::start(|_| {}).await;
    let client = Container::hostile(&["session", node.path()]);
    client.says("bundle 1").await;
    *node.broker.fail_events.lock().unwrap() = 5;
    client.kill();
    let (_, dead) = until("the report", || node.broker.deaths().pop()).await;
    assert_eq!(dead.cgroup_id, client.cgroup_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_watches_on() {
    let mut node = Node::start(|_| {}).await;
    let mut watched = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = Container::hostile(&["session", node.path()]);
        client.says("bundle 1").await;
        let evidence = node.broker.evidence();
        watched.push(Watched {
            workload: evidence.workload,
            init_pid: evidence.init_pid,
            init_start_time: evidence.init_start_time,
        });
        clients.push(client);
    }
    node.stop().await;
    for client in &clients {
        client.says("refused Unavailable").await;
        client.says("end").await;
    }
    // One dies while no node is there to see it.
    clients.remove(0);
    assert!(node.broker.deaths().is_empty());
    *node.broker.to_watch.lock().unwrap() = watched.clone();
    let before = node.broker.heartbeats.lock().unwrap().len();
    node.restart().await;
    let (_, dead) = until("its report", || node.broker.deaths().pop()).await;
    assert_eq!(dead, watched[0].workload);
    assert!(node.broker.heartbeats.lock().unwrap()[before].starting);

    let killed = clients[0].kill();
    let (told, dead) = until("the other report", || node.broker.deaths().get(1).cloned()).await;
    assert_eq!(dead, watched[1].workload);
    are_told_promptly(&node, told - killed).await;
}

/// Not a test: prints what `cargo test … -- --ignored --nocapture` is asked for.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_sessions() {
    let node = Node::start(|config| config.limits.connections_per_container = 1000).await;
    let client = Container::hostile(&["sessions", node.path(), "2000"]);
    println!(
        "session to first bundle, microseconds: {}",
        client.says("median").await
    );
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<i64>()
            .unwrap()
    };
    let before = resident();
    let holder = Container::hostile(&["hold", node.path(), "400"]);
    holder.says("held").await;
    println!(
        "KiB a session, with the test's broker: {}",
        (resident() - before) / 400
    );
}
