//! The broker's clock and ours need not agree: what counts is how long something is good for.

use crate::sandbox::{Sandbox, eventually, in_time};
use crate::server::{Given, Server, in_milliseconds, is_to_come, value};
use mayfly_wire::session::ServerMessage;
use std::fs;

const HOUR: u64 = 3_600_000;

/// Good for so long by the clock of a broker that is so far behind.
fn good_for(left: u64, behind: u64) -> Given {
    let mut given = value("a", "secret");
    given.expires_at = in_milliseconds(left) - behind;
    given
}

#[test]
fn a_broker_whose_clock_is_behind_is_taken_by_what_is_left() {
    in_time(behind_by_two_hours);
}

fn behind_by_two_hours(left: u64) -> Option<()> {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.sealing.behind = 2 * HOUR;
    peer.publish(&[good_for(HOUR, 2 * HOUR)]);
    peer.ping();
    assert_eq!(sandbox.read("a"), b"secret");
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    // What others read is in this machine's time.
    let expected = in_milliseconds(HOUR);
    let near = |time: u64| time.abs_diff(expected) < 10_000;
    let record = || fs::read_to_string(sandbox.dir().join("..data/..expiry")).unwrap();
    let times: Vec<u64> = record()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(times.len() == 2 && times.iter().all(|time| near(*time)));
    let status = sandbox.status();
    let time = status["status"]["items"][0]["expires_at_ms"].as_u64();
    assert!(near(time.unwrap()), "{status}");
    // A renewal counts from its own moment; so does a restart without a broker from the record.
    let end = in_milliseconds(left);
    peer.publish(&[good_for(left, 2 * HOUR)]);
    drop((peer, server));
    sidecar.kill();
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    let found = sandbox.find("a");
    if !is_to_come(end) {
        return None;
    }
    assert_eq!(found.as_deref(), Some(&b"secret"[..]));
    sidecar.says("expired names=\"a\"");
    assert!(!sandbox.has("a"));
    Some(())
}

#[test]
fn a_broker_whose_clock_is_ahead_makes_nothing_last_longer() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    in_time(|left| {
        let end = in_milliseconds(left);
        let mut given = value("a", "secret");
        given.expires_at = end + HOUR;
        let mut bundle = peer.sealing.seal(&[given]);
        bundle.now += HOUR;
        peer.send(&ServerMessage::Bundle(bundle)).unwrap();
        peer.acknowledged();
        let found = sandbox.has("a");
        is_to_come(end).then(|| assert!(found))
    });
    eventually("it goes", || !sandbox.has("a"));
}

#[test]
fn a_broker_that_does_not_say_what_time_it_is_goes_by_ours() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    in_time(|left| {
        let end = in_milliseconds(left);
        let mut bundle = peer.sealing.seal(&[good_for(left, 0)]);
        bundle.now = 0;
        peer.send(&ServerMessage::Bundle(bundle)).unwrap();
        peer.acknowledged();
        let found = sandbox.has("a");
        is_to_come(end).then(|| assert!(found))
    });
    eventually("it goes", || !sandbox.has("a"));
}
