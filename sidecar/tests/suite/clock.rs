//! The broker's clock and ours need not agree: what counts is how long something is good for.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Given, Server, in_milliseconds, value};
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
    peer.publish(&[good_for(2_500, 2 * HOUR)]);
    drop((peer, server));
    sidecar.kill();
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    assert_eq!(sandbox.read("a"), b"secret");
    sidecar.says("expired names=\"a\"");
    assert!(!sandbox.has("a"));
}

#[test]
fn a_broker_whose_clock_is_ahead_makes_nothing_last_longer() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let mut given = value("a", "secret");
    given.expires_at = in_milliseconds(HOUR + 1_000);
    let mut bundle = peer.sealing.seal(&[given]);
    bundle.now += HOUR;
    peer.send(&mayfly_wire::session::ServerMessage::Bundle(bundle))
        .unwrap();
    peer.acknowledged();
    assert!(sandbox.has("a"));
    eventually("it goes", || !sandbox.has("a"));
}

#[test]
fn a_broker_that_does_not_say_what_time_it_is_goes_by_ours() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let mut bundle = peer.sealing.seal(&[good_for(1_000, 0)]);
    bundle.now = 0;
    peer.send(&mayfly_wire::session::ServerMessage::Bundle(bundle))
        .unwrap();
    peer.acknowledged();
    assert!(sandbox.has("a"));
    eventually("it goes", || !sandbox.has("a"));
}
