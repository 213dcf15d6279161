//! When files cannot be written, or the place is not any more what it was.

use crate::sandbox::{Sandbox, eventually, in_time};
use crate::server::{Given, Server, ending, fields, in_milliseconds, is_to_come, value};
use mayfly_wire::{Code, PublishFault};
use std::fs;
use std::time::Duration;

#[test]
fn what_does_not_fit_costs_nothing_else_its_renewal() {
    in_time(does_not_fit);
}

fn does_not_fit(left: u64) -> Option<()> {
    let sandbox = Sandbox::with("size=64k");
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let set = |other: &[u8]| {
        [
            fields("db", &[("password", b"good"), ("username", b"app")]),
            value("other", other),
            value("token", "good"),
        ]
    };
    peer.publish(&set(b"1"));
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    let expires_at = in_milliseconds(left);
    peer.publish(&set(b"1").map(|given| Given {
        expires_at,
        ..given
    }));
    peer.bundle(&set(&[b'x'; 200_000]));
    let report = server.report("204 No Content");
    if !is_to_come(expires_at) {
        return None;
    }
    assert_eq!(report.code, PublishFault::NoSpace);
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("publishing failed: "), "{said}");
    // At the old end only what is not renewed goes. Meanwhile the record says so too.
    sidecar.says("expired names=\"other\"");
    peer.ping();
    assert!(!sandbox.has("other"));
    assert_eq!(sandbox.read("token"), b"good");
    assert_eq!(sandbox.read("db/password"), b"good");
    let (said, _) = sandbox.ask(&["health"]);
    assert!(said.contains("expired: other"), "{said}");
    sidecar.kill();
    drop((peer, server));
    // Another one knows what was renewed, and what has gone.
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.ping();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(sandbox.read("token"), b"good");
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && said.contains("expired: other"), "{said}");
    peer.publish(&set(b"2"));
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]), ("ok\n".to_owned(), 0));
    assert!(!sidecar.log().contains("expired names"));
    Some(())
}

#[test]
fn a_renewal_is_on_record_without_a_page_to_spare() {
    let sandbox = Sandbox::with("size=64k");
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let mut given = [value("a", "good"), value("b", "good")];
    given[0].expires_at = in_milliseconds(20_000);
    peer.publish(&given);
    peer.ping();
    let filler = sandbox.dir().join("filler");
    assert!(fs::write(&filler, vec![1; 64 * 1024]).is_err());
    given[0].expires_at = in_milliseconds(3_600_000);
    peer.bundle(&given);
    sidecar.says("publishing failed");
    // Who watches over the sidecar acts by this.
    let record = fs::read_to_string(sandbox.dir().join("..data/..expiry")).unwrap();
    let lines: Vec<_> = record.lines().collect();
    let end: u64 = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert!(
        lines.len() == 2 && end > in_milliseconds(3_000_000),
        "{record}"
    );
    fs::remove_file(filler).unwrap();
    peer.acknowledged();
    assert_eq!(sandbox.read("a"), b"good");
}

#[test]
fn an_incomplete_set_that_cannot_be_marked_is_tried_again() {
    let sandbox = Sandbox::with("size=1m,nr_inodes=24");
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let fillers: Vec<_> = (0..30)
        .map(|n| sandbox.dir().join(format!("f{n}")))
        .collect();
    assert!(fillers.iter().any(|filler| fs::write(filler, "").is_err()));
    peer.bundle_without(&[value("a", "1")], "b", Code::Unavailable);
    sidecar.says("publishing failed");
    assert!(!sandbox.has("..data"));
    for filler in fillers {
        let _ = fs::remove_file(filler);
    }
    peer.acknowledged();
    assert!(sandbox.has("..incomplete"));
    assert_eq!(sandbox.read("a"), b"1");
}

#[test]
fn a_name_that_is_taken_costs_nothing_else_its_renewal_either() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    fs::write(sandbox.dir().join("b"), "not ours").unwrap();
    let left = in_time(|left| {
        let end = in_milliseconds(left);
        peer.publish(&ending(end, ["a"]));
        let said = sidecar.log().matches("at `b`").count();
        peer.bundle(&[value("a", "secret"), value("b", "1")]);
        eventually("at `b`", || sidecar.log().matches("at `b`").count() > said);
        is_to_come(end).then_some(left)
    });
    let before = sidecar.log().matches("expired").count();
    std::thread::sleep(Duration::from_millis(left + 500));
    peer.ping();
    assert_eq!(sandbox.read("a"), b"secret");
    assert_eq!(sidecar.log().matches("expired").count(), before);
}

#[test]
fn a_status_that_cannot_be_written_is_none_rather_than_an_old_one() {
    let sandbox = Sandbox::with("size=64k");
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    // No room for a single page more: what takes it all is the application's own.
    let filler = sandbox.dir().join("filler");
    let _ = fs::write(&filler, vec![1; 64 * 1024]);
    drop((peer, server));
    sidecar.says("session failed");
    eventually("there is a status that is true, or none", || {
        let (said, code) = sandbox.ask(&["status"]);
        // Another file can take its room before it is written again.
        let _ = fs::write(&filler, vec![1; 64 * 1024]);
        code == 1 && said.contains("no ..status") || said.contains("without a session")
    });
    fs::remove_file(&filler).unwrap();
    let server = Server::bind(&sandbox.socket());
    let mut peer = server.session();
    peer.publish(&[value("a", "2")]);
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]).1, 0);
}

#[test]
fn swap_that_comes_into_use_later_is_a_fault() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let swaps = sandbox.base().join("swaps");
    let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    fs::write(&swaps, head).unwrap();
    let log = fs::File::create(sandbox.base().join("log")).unwrap();
    let mut sidecar = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$1\" /proc/swaps && exec \"$0\" --dir \"$2\" --socket \"$3\"")
        .arg(env!("CARGO_BIN_EXE_mayfly-sidecar"))
        .arg(&swaps)
        .arg(sandbox.dir())
        .arg(sandbox.socket())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    let used =
        format!("{head}/swapfile                               file\t\t2097148\t\t0\t\t-2\n");
    fs::write(&swaps, used).unwrap();
    peer.publish(&[value("a", "1")]);
    peer.ping();
    let (said, code) = sandbox.ask(&["health"]);
    assert!(
        code == 1 && said.contains("could be written to swap"),
        "{said}"
    );
    fs::write(&swaps, head).unwrap();
    peer.publish(&[value("a", "1")]);
    peer.ping();
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
}
