//! What the sidecar shows of itself.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Server, fields, value};
use mayfly_wire::Code;

#[test]
fn the_status_says_how_it_stands_and_nothing_secret() {
    let sandbox = Sandbox::new();
    let (said, code) = sandbox.ask(&["health"]);
    assert!(
        code == 1 && said.contains("no sidecar publishes here"),
        "{said}"
    );
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    eventually("it is there", || sandbox.ask(&["health", "--live"]).1 == 0);
    assert!(
        sandbox
            .ask(&["health"])
            .0
            .contains("nothing is published yet")
    );
    peer.publish(&[
        value("a", "t0p-hush"),
        fields("db", &[("password", b"hidden")]),
    ]);
    peer.ping();
    let status = sandbox.status();
    assert_eq!(
        (&status["running"], &status["status"]["connected"]),
        (&true.into(), &true.into())
    );
    assert_eq!(status["directory"]["filesystem"], "tmpfs");
    assert_eq!(status["directory"]["bytes"], 1 << 20);
    let data = std::fs::read_link(sandbox.dir().join("..data")).unwrap();
    assert_eq!(status["status"]["generation"], data.to_str().unwrap());
    assert_eq!(status["status"]["items"][1]["path"], "db");
    assert!(status["status"]["next_expiry_ms"].as_u64().unwrap() > 0);
    let (words, code) = sandbox.ask(&["status"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("running, connected") && words.contains("item        db  expires in"));
    assert!(!(words + &status.to_string() + &sidecar.log()).contains("hush"));
    peer.bundle_without(&[value("a", "t0p-hush")], "db", Code::Denied);
    peer.acknowledged();
    peer.ping();
    assert!(sandbox.ask(&["health"]).0.contains("missing: db: policy"));
    drop((peer, server));
    eventually("the session is gone", || {
        sandbox.status()["status"]["connected"] == false
    });
    // Killed: the lock is gone with it, and health says so.
    sidecar.kill();
    let (said, code) = sandbox.ask(&["health", "--live"]);
    assert_eq!((said.as_str(), code), ("the sidecar is not running\n", 1));
    // The next one takes over.
    let mut sidecar = sandbox.start(&[]);
    eventually("it lives", || sandbox.ask(&["health", "--live"]).1 == 0);
    assert!(sidecar.terminate().success());
    assert!(sandbox.names().is_empty());
}

#[test]
fn two_sidecars_in_one_directory_are_told() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _one = sandbox.start(&[]);
    let _peer = server.session();
    eventually("it lives", || sandbox.ask(&["health", "--live"]).1 == 0);
    let two = sandbox.start(&[]);
    two.says("another sidecar that lives publishes here too");
}

#[test]
fn planted_names_are_not_followed() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let victim = sandbox.base().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    for name in ["..status", "..status_new", "..alive"] {
        std::os::unix::fs::symlink(&victim, sandbox.dir().join(name)).unwrap();
    }
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    eventually("it is well", || sandbox.ask(&["health"]).1 == 0);
    assert!(sidecar.terminate().success());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(sandbox.names().is_empty());
}
