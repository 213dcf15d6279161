//! A second name saves no file from being overwritten, unless the next generation still shows it.

use crate::sandbox::{GRACE, Sandbox, eventually, in_grace};
use crate::server::{Server, ending, fields, in_milliseconds, value};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

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
    let db = fields("db", &[("password", b"secret"), ("username", b"unsaid")]);
    let all = [
        value("a", "secret"),
        db.clone(),
        value("new", "secret"),
        value("short", "secret"),
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
    let [short] = ending(in_milliseconds(1_000), ["short"]);
    let [new, stays] = [value("new", "secre2"), value("stays", "secret")];
    peer.publish(&[new, short, stays]);
    eventually("db is overwritten", || is_gone(&inner));
    eventually("new is overwritten", || is_gone(&replaced));
    eventually("short is overwritten", || is_gone(&expired));
    sidecar.says("expired names=\"short\"");
    // What the next generation still shows has two names while both are there, and stays.
    eventually("the last generation is gone", || sandbox.generations() == 1);
    assert_eq!(sandbox.read("stays"), b"secret");
    assert_eq!(fs::read(&last).unwrap(), b"secret");
    assert!(sidecar.terminate().success());
    assert!(is_gone(&last));
}

#[test]
fn what_a_killed_sidecar_left_is_overwritten_but_what_is_shown() {
    in_grace(|_| killed_with_two_generations());
}

fn killed_with_two_generations() -> Option<()> {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let set = |text: &str| [value("a", text), fields("b", &[("same", b"secret")])];
    peer.publish(&set("secret"));
    let old = link(&sandbox, "a", "mine");
    let replaced = Instant::now();
    peer.publish(&set("secre2"));
    sidecar.kill();
    if replaced.elapsed() >= GRACE {
        return None;
    }
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
    Some(())
}
