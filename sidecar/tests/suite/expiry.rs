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
    eventually("it is said", || {
        sandbox.ask(&["health"]) == ("expired: a\n".to_owned(), 1)
    });
}

#[test]
fn what_has_expired_is_a_fault_until_it_is_back_or_withdrawn() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[short("a"), short("b")]);
    sidecar.says("expired names=\"a,b\"");
    eventually("it is said", || {
        sandbox.ask(&["health"]) == ("expired: a, b\n".to_owned(), 1)
    });
    let report = server.report("204 No Content");
    assert_eq!(report.detail.as_str(), "a,b");
    // Also by a sidecar that finds nothing left to remove.
    sidecar.kill();
    drop(peer);
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.withdraw("b");
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]), ("expired: a\n".to_owned(), 1));
    peer.publish(&[value("a", "secret")]);
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}

/// An application that notes each start and each SIGTERM, and its supervisor, which starts it again.
fn supervised(
    sandbox: &Sandbox,
    name: &str,
    end: &str,
) -> (std::process::Child, String, std::path::PathBuf) {
    let name = format!("{name}-{}", std::process::id() % 100_000);
    let (program, noted) = (sandbox.base().join(&name), sandbox.base().join("noted"));
    let noted_at = noted.display();
    let script = format!(
        "#!/bin/sh\necho start >> {noted_at}\ntrap 'echo term >> {noted_at}; {end}' TERM\n\
         while :; do sleep 0.02; done\n"
    );
    fs::write(&program, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, executable).unwrap();
    let supervisor = std::process::Command::new("sh")
        .args(["-c", "while :; do \"$0\"; done"])
        .arg(&program)
        .spawn()
        .unwrap();
    (supervisor, name, noted)
}

fn noted(path: &std::path::Path, word: &str) -> usize {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| *line == word).count()
}

fn end(supervisor: &mut std::process::Child, name: &str) {
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    std::process::Command::new("sh")
        .arg("-c")
        .arg("for p in /proc/[0-9]*; do if [ \"$(cat $p/comm 2>/dev/null)\" = \"$0\" ]; then kill -9 ${p#/proc/}; fi; done")
        .arg(name)
        .status()
        .unwrap();
}

#[test]
fn what_a_supervisor_starts_in_its_place_is_not_stopped() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (mut supervisor, name, log) = supervised(&sandbox, "again", "exit 0");
    let config = sandbox.config(&format!(
        "on_expiry = \"stop-application\"\n[application]\nprocess = \"name:{name}\"\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    eventually("it starts", || noted(&log, "start") == 1);
    peer.publish(&[short("a")]);
    sidecar.says("told the application how=\"stop\"");
    std::thread::sleep(Duration::from_millis(1_500));
    let counts = (noted(&log, "start"), noted(&log, "term"));
    // A later end is another one, which the new one is to heed.
    peer.publish(&[short("a")]);
    eventually("the next is stopped", || noted(&log, "term") == 2);
    end(&mut supervisor, &name);
    assert_eq!(counts, (2, 1));
}

#[test]
fn what_is_back_in_time_stops_nobody_any_more() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (mut supervisor, name, log) = supervised(&sandbox, "deaf", ":");
    let config = sandbox.config(&format!(
        "on_expiry = \"stop-application\"\n[application]\nprocess = \"name:{name}\"\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    eventually("it starts", || noted(&log, "start") == 1);
    peer.publish(&[short("a"), short("b")]);
    eventually("it is asked twice", || noted(&log, "term") == 2);
    // One of them is not all of them.
    peer.publish(&[value("a", "secret")]);
    eventually("it is asked again", || noted(&log, "term") == 3);
    peer.publish(&[value("a", "secret"), value("b", "secret")]);
    peer.ping();
    let asked = noted(&log, "term");
    std::thread::sleep(Duration::from_millis(2_500));
    let later = noted(&log, "term");
    end(&mut supervisor, &name);
    assert_eq!(later, asked);
    assert!(!sidecar.log().contains("gave up"));
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}
