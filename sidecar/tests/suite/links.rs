//! A second name saves no file from being overwritten, unless the next generation still shows it.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, fields, in_milliseconds, value};
use std::fs;
use std::path::PathBuf;

/// Gives what is published another name, outside all generations.
fn link(sandbox: &Sandbox, published: &str, name: &str) -> PathBuf {
    let kept = sandbox.dir().join(name);
    fs::hard_link(sandbox.dir().join("..data").join(published), &kept).unwrap();
    kept
}

#[test]
fn what_is_withdrawn_expires_or_is_replaced_is_overwritten_under_every_name() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let mut short = value("short", "secret");
    short.expires_at = in_milliseconds(1_500);
    let db = fields("db", &[("password", b"secret"), ("username", b"unsaid")]);
    let all = [
        value("a", "secret"),
        db.clone(),
        value("new", "secret"),
        short,
        value("stays", "secret"),
    ];
    peer.publish(&all);
    let withdrawn = link(&sandbox, "a", "mine-a");
    let inner = link(&sandbox, "db/password", "mine-db");
    let replaced = link(&sandbox, "new", "mine-new");
    let expired = link(&sandbox, "short", "mine-short");
    let last = link(&sandbox, "stays", "mine-stays");
    let is_gone = |file: &PathBuf| fs::read(file).unwrap() == [0; 6];
    peer.withdraw("a");
    eventually("a is overwritten", || is_gone(&withdrawn));
    peer.publish(&[value("new", "secre2"), value("stays", "secret")]);
    eventually("db is overwritten", || is_gone(&inner));
    eventually("new is overwritten", || is_gone(&replaced));
    eventually("short is overwritten", || is_gone(&expired));
    // What the next generation still shows has two names while both are there, and stays.
    eventually("the last generation is gone", || sandbox.generations() == 1);
    assert_eq!(sandbox.read("stays"), b"secret");
    assert_eq!(fs::read(&last).unwrap(), b"secret");
    assert!(sidecar.terminate().success());
    assert!(is_gone(&last));
}

#[test]
fn what_a_killed_sidecar_left_is_overwritten_but_what_is_shown() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let set = |text: &str| [value("a", text), fields("b", &[("same", b"secret")])];
    peer.publish(&set("secret"));
    let old = link(&sandbox, "a", "mine");
    peer.publish(&set("secre2"));
    sidecar.kill();
    assert_eq!(sandbox.generations(), 2);
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    assert_eq!(fs::read(old).unwrap(), [0; 6]);
    assert_eq!(sandbox.read("a"), b"secre2");
    assert_eq!(sandbox.read("b/same"), b"secret");
    // A set that cannot be completed takes nothing with it.
    drop(peer);
    let mut peer = server.session();
    let [a, b] = set("secre2");
    peer.bundle(&[
        a,
        b,
        value("c", vec![b'x'; 250_000]),
        value("d", vec![b'x'; 250_000]),
        value("e", vec![b'x'; 250_000]),
        value("f", vec![b'x'; 250_000]),
        value("g", vec![b'x'; 250_000]),
    ]);
    sidecar.says("No space left");
    peer.ping();
    assert_eq!(sandbox.generations(), 1);
    assert_eq!(sandbox.read("a"), b"secre2");
    assert_eq!(sandbox.read("b/same"), b"secret");
}
