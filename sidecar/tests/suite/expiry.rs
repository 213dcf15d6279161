//! What becomes of files when their time is over.

use crate::sandbox::{Sandbox, eventually, in_time};
use crate::server::{Server, ending, in_milliseconds, is_to_come, value};
use std::fs;
use std::time::Duration;

const NAMES: [&str; 3] = ["gone", "kept", "late"];

/// With `max_stale` in milliseconds at its end.
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
"#;

#[test]
fn each_output_ends_as_it_was_told() {
    in_time(ends_as_it_was_told);
}

fn ends_as_it_was_told(max_stale: u64) -> Option<()> {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config = sandbox.config(&format!("{CONFIG}max_stale = \"{max_stale}ms\"\n"));
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&NAMES.map(|name| value(name, "secret")));
    let record = fs::read_to_string(sandbox.dir().join("..data/..expiry")).unwrap();
    let ends: Vec<Vec<&str>> = record
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!([ends[0][0], ends[1][0], ends[2][0]], NAMES);
    assert_eq!(ends[0][1], ends[0][2]);
    assert_eq!(ends[1][1], u64::MAX.to_string());
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert_eq!(number(ends[2][1]), number(ends[2][2]) + max_stale);
    let end = in_milliseconds(1_000);
    peer.publish(&ending(end, NAMES));
    drop((peer, server));
    sidecar.says("expired names=\"gone");
    if sidecar.log().contains("expired names=\"gone,late\"") {
        return None;
    }
    sidecar.says("stale names=\"kept,late\"");
    assert!(!sandbox.has("gone"));
    assert_eq!(sandbox.read("kept"), b"secret");
    let late = sandbox.find("late");
    if !is_to_come(end + max_stale) {
        return None;
    }
    assert_eq!(late.as_deref(), Some(&b"secret"[..]));
    eventually("its status says so", || {
        let (said, code) = sandbox.ask(&["health"]);
        code == 1 && said.contains("stale: kept")
    });
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
    peer.publish(&NAMES.map(|name| value(name, "secret")));
    eventually("it is well", || sandbox.ask(&["health"]).1 == 0);
    assert_eq!(sidecar.log().matches("stale names").count(), 1);
    Some(())
}

#[test]
fn an_application_is_stopped_that_is_not_to_run_without_it() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let name = format!("app-{}", std::process::id() % 100_000);
    let program = sandbox.program(&name, &fs::read("/bin/sleep").unwrap());
    let mut application = std::process::Command::new(&program)
        .arg("1000")
        .spawn()
        .unwrap();
    let config = sandbox.config(&format!(
        "on_expiry = \"stop-application\"\n[application]\nprocess = \"name:{name}\"\n"
    ));
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "secret"), value("b", "1")]);
    assert!(application.try_wait().unwrap().is_none());
    let [a] = ending(in_milliseconds(1_000), ["a"]);
    peer.publish(&[a, value("b", "1")]);
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
    let pid = nix::unistd::Pid::from_raw(sidecar.pid().try_into().unwrap());
    let send = |signal| nix::sys::signal::kill(pid, signal).unwrap();
    let left = in_time(|left| {
        let end = in_milliseconds(left);
        let [a] = ending(end, ["a"]);
        peer.publish(&[a, value("b", "1")]);
        send(nix::sys::signal::SIGSTOP);
        if !is_to_come(end) {
            send(nix::sys::signal::SIGCONT);
            return None;
        }
        Some(left)
    });
    std::thread::sleep(Duration::from_millis(left + 5_000));
    eventually("it is overdue", || {
        let (said, code) = sandbox.ask(&["health"]);
        code == 1 && said.contains("overdue: a")
    });
    assert!(sandbox.has("a"));
    send(nix::sys::signal::SIGCONT);
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
    peer.publish(&ending(in_milliseconds(1_000), ["a", "b"]));
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
    let noted = sandbox.base().join("noted");
    let noted_at = noted.display();
    let script = format!(
        "#!/bin/sh\ntrap 'echo term >> {noted_at}; {end}' TERM\necho start >> {noted_at}\n\
         while :; do sleep 0.02; done\n"
    );
    let program = sandbox.program(&name, script.as_bytes());
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
    peer.publish(&ending(in_milliseconds(1_000), ["a"]));
    sidecar.says("told the application how=\"stop\"");
    eventually("the next starts", || noted(&log, "start") > 1);
    std::thread::sleep(Duration::from_millis(1_500));
    let counts = (noted(&log, "start"), noted(&log, "term"));
    // A later end is another one, which the new one is to heed.
    peer.publish(&ending(in_milliseconds(1_000), ["a"]));
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
    peer.publish(&ending(in_milliseconds(1_000), ["a", "b"]));
    eventually("it is asked twice", || noted(&log, "term") >= 2);
    // One of them is not all of them.
    peer.publish(&[value("a", "secret")]);
    // What the sidecar says, because the application may be slow to note it.
    let asked = || sidecar.log().matches("has not ended yet").count();
    let before = asked();
    eventually("it is asked again", || asked() > before);
    peer.publish(&[value("a", "secret"), value("b", "secret")]);
    peer.ping();
    // One may have been on its way.
    std::thread::sleep(Duration::from_millis(200));
    let before = asked();
    std::thread::sleep(Duration::from_millis(2_500));
    let (later, heard) = (asked(), noted(&log, "term"));
    end(&mut supervisor, &name);
    assert_eq!(later, before);
    assert!(heard <= before, "asked {before} times, heard {heard}");
    assert!(!sidecar.log().contains("gave up"));
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}
