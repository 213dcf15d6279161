//! What becomes of files when their time is over.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Given, Server, in_milliseconds, value};
use std::fs;
use std::time::Duration;

fn short(name: &'static str) -> Given {
    let mut given = value(name, "secret");
    given.expires_at = in_milliseconds(1_000);
    given
}

const CONFIG: &str = r#"
[[output]]
credential = "gone"
format = "raw"

[[output]]
credential = "kept"
format = "raw"
on_expiry = "keep-stale"

[[output]]
credential = "late"
format = "raw"
on_expiry = "keep-stale"
max_stale = "1500ms"
"#;

#[test]
fn each_output_ends_as_it_was_told() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config = sandbox.config(CONFIG);
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[short("gone"), short("kept"), short("late")]);
    let record = fs::read_to_string(sandbox.dir().join("..data/..expiry")).unwrap();
    let ends: Vec<Vec<&str>> = record
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!(
        [ends[0][0], ends[1][0], ends[2][0]],
        ["gone", "kept", "late"]
    );
    assert_eq!(ends[0][1], ends[0][2]);
    assert_eq!(ends[1][1], u64::MAX.to_string());
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert_eq!(number(ends[2][1]), number(ends[2][2]) + 1_500);
    drop((peer, server));
    sidecar.says("expired names=\"gone\"");
    sidecar.says("stale names=\"kept,late\"");
    assert!(!sandbox.has("gone"));
    assert_eq!(sandbox.read("kept"), b"secret");
    assert_eq!(sandbox.read("late"), b"secret");
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("stale: kept"), "{said}");
    sidecar.says("expired names=\"late\"");
    assert!(!sandbox.has("late"));
    // A new process does not take what is stale for good, nor away.
    sidecar.kill();
    let sidecar = sandbox.start(&["--config", &config]);
    sidecar.says("stale names=\"kept\"");
    assert_eq!(sandbox.read("kept"), b"secret");
    // A renewal makes it good again.
    let server = Server::bind(&sandbox.socket());
    let mut peer = server.session();
    peer.publish(&[
        value("gone", "secret"),
        value("kept", "secret"),
        value("late", "secret"),
    ]);
    eventually("it is well", || sandbox.ask(&["health"]).1 == 0);
    assert_eq!(sidecar.log().matches("stale names").count(), 1);
}

#[test]
fn an_application_is_stopped_that_is_not_to_run_without_it() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let program = sandbox
        .base()
        .join(format!("app-{}", std::process::id() % 100_000));
    fs::copy("/bin/sleep", &program).unwrap();
    let name = program.file_name().unwrap().to_str().unwrap().to_owned();
    let mut application = std::process::Command::new(&program)
        .arg("1000")
        .spawn()
        .unwrap();
    let config = sandbox.config(&format!(
        "on_expiry = \"stop-application\"\n[application]\nprocess = \"name:{name}\"\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[short("a"), value("b", "1")]);
    assert!(application.try_wait().unwrap().is_none());
    drop((peer, server));
    sidecar.says("stopping the application");
    let mut status = None;
    eventually("the application ends", || {
        status = application.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status.unwrap()),
        Some(15)
    );
    assert!(!sandbox.has("a") && sandbox.has("b"));
    sidecar.says("told the application how=\"stop\"");
}

#[test]
fn what_a_frozen_sidecar_does_not_remove_is_overdue_and_goes_when_it_wakes() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[short("a"), value("b", "1")]);
    let pid = nix::unistd::Pid::from_raw(sidecar.pid().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(6_500));
    assert!(sandbox.has("a"));
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("overdue: a"), "{said}");
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    eventually("it goes", || !sandbox.has("a"));
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}
