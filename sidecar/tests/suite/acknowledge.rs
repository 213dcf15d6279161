//! The broker hears that the application uses what was published, when it does.

use crate::notify::{lines, program};
use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, value};
use mayfly_wire::PublishFault;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn the_broker_hears_when_the_command_has_succeeded() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (program, calls) = program(
        &sandbox,
        "until test -e $(dirname $0)/go; do sleep 0.02; done",
    );
    let config = sandbox.config(&format!(
        "[[notify]]\ncommand = [{program:?}]\ndebounce = \"1ms\"\n[acknowledge]\ntimeout = \"20s\"\n"
    ));
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    // Nobody uses anything older than the first set.
    peer.publish(&[value("a", "1")]);
    peer.bundle(&[value("a", "2")]);
    eventually("it is published", || sandbox.read("a") == b"2");
    eventually("the command runs", || lines(&calls).len() == 1);
    assert_eq!(sandbox.status()["status"]["acknowledging"], true);
    assert!(peer.is_silent(Duration::from_millis(300)));
    fs::write(sandbox.base().join("go"), "").unwrap();
    peer.acknowledged();
    // What changes nothing is acknowledged at once.
    peer.publish(&[value("a", "2")]);
    assert_eq!(lines(&calls).len(), 1);
}

#[test]
fn the_application_acknowledges_by_a_file_and_nobody_does_it_in_its_place() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let word = sandbox.base().join("loaded");
    let start = |timeout: &str| {
        let config = format!("[acknowledge]\nfile = {word:?}\ntimeout = {timeout:?}\n");
        sandbox.start(&["--config", &sandbox.config(&config)])
    };
    let current = || fs::read_link(sandbox.dir().join("..data")).unwrap();
    let mut sidecar = start("60s");
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    let took = ["2", "3", "4"].map(|content| {
        peer.bundle(&[value("a", content)]);
        eventually("it is published", || {
            sandbox.read("a") == content.as_bytes()
        });
        fs::write(&word, "..gen-another").unwrap();
        assert!(peer.is_silent(Duration::from_millis(100)));
        let start = Instant::now();
        fs::write(&word, current().to_str().unwrap()).unwrap();
        peer.acknowledged();
        start.elapsed()
    });
    // While it has its time, it need not wait for a look that comes once a second.
    let least = took.iter().min().unwrap();
    assert!(*least < Duration::from_millis(400), "{took:?}");
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    assert!(sidecar.terminate().success());
    // Without a word, it is said at the end of its time. A new session does not make it forget.
    fs::remove_file(&word).unwrap();
    drop(peer);
    let sidecar = start("500ms");
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.bundle(&[value("a", "3")]);
    eventually("it is published", || sandbox.read("a") == b"3");
    drop(peer);
    let mut peer = server.session();
    peer.bundle(&[value("a", "3")]);
    let report = server.report("204 No Content");
    assert_eq!(report.code, PublishFault::NotAcknowledged);
    sidecar.says("not acknowledged");
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("not acknowledged"), "{said}");
    assert!(peer.is_silent(Duration::from_millis(500)));
    // Late is better than never.
    fs::write(&word, current().to_str().unwrap()).unwrap();
    peer.acknowledged();
    eventually("it is well again", || sandbox.ask(&["health"]).1 == 0);
}
