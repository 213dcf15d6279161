//! Sessions that are refused, break, and come back; and `--once`.

use crate::sandbox::{Sandbox, eventually, in_time};
use crate::server::{Request, Server, fields, value};
use mayfly_wire::Code;
use mayfly_wire::session::{Missing, ServerMessage};
use std::time::{Duration, Instant};

/// The least that a refusal is waited out which somebody must lift.
const REFUSED: Duration = Duration::from_secs(5);

#[test]
fn a_broker_that_restarts_is_found_again() {
    let sandbox = Sandbox::new();
    let sidecar = sandbox.start(&[]);
    sidecar.says("does not answer");
    let server = Server::bind(&sandbox.socket());
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    let key = peer.sealing.hello.public_key.clone();
    let before = sandbox.identity("a");
    for _ in 0..3 {
        drop(peer);
        peer = server.session();
        assert_eq!(sandbox.read("a"), b"1");
        assert_ne!(
            peer.sealing.hello.public_key, key,
            "a key of its own for each session"
        );
        peer.publish(&[value("a", "1")]);
    }
    assert_eq!(sandbox.identity("a"), before);
    drop((peer, server));
    sidecar.says("Connection refused");
    let server = Server::bind(&sandbox.socket());
    server.session().publish(&[value("a", "2")]);
    assert_eq!(sandbox.read("a"), b"2");
}

#[test]
fn the_nonce_is_echoed_on_the_same_connection_once() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&["--want", "b,a"]);
    let request = server.request();
    assert!(!request.head.contains("mayfly-nonce"));
    let again = request.challenge("n0nce");
    assert!(
        again.head.contains("mayfly-nonce: n0nce\r\n"),
        "{}",
        again.head
    );
    assert!(again.head.starts_with("post /v1/session http/1.1\r\n"));
    assert!(again.head.contains("upgrade: mayfly-session\r\n"));
    let mut peer = again.accept().unwrap();
    let want: Vec<_> = peer
        .sealing
        .hello
        .want
        .iter()
        .flatten()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(want, ["a", "b"]);
    peer.publish(&[value("a", "1")]);
    drop(peer);
    // A second challenge on one connection is not answered.
    let again = server.request().challenge("one");
    again.refuse(Code::NonceRequired);
}

#[test]
fn what_can_pass_is_asked_again_soon_and_a_denial_later() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    for code in [Code::Unavailable, Code::Sealed, Code::TooMany] {
        server.request().refuse(code);
        let refused = Instant::now();
        assert!(server.connects_within(20_000) && refused.elapsed() < REFUSED);
    }
    let request = server.request();
    let refused = Instant::now();
    request.refuse(Code::Denied);
    sidecar.says("policy does not grant this");
    assert!(!server.connects_within(4_000) || refused.elapsed() >= REFUSED);
}

#[test]
fn a_request_that_is_not_understood_ends_only_one_that_is_to_publish_once() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut once = sandbox.start(&["--once", "--log-format", "json"]);
    server.request().refuse(Code::BadRequest);
    assert_eq!(once.wait().code(), Some(76));
    for line in once.log().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            event["time_ms"].is_u64() && event["event"].is_string(),
            "{line}"
        );
    }
    // One that stays keeps what is good, and does not ask at once.
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "good")]);
    drop(peer);
    let request = server.request();
    let refused = Instant::now();
    request.refuse(Code::BadRequest);
    sidecar.says("the request is not understood");
    assert!(!server.connects_within(2_000) || refused.elapsed() >= REFUSED);
    assert_eq!(sandbox.read("a"), b"good");
    eventually("its status says so", || {
        let error = sandbox.status()["status"]["error"].to_string();
        error.contains("not understood")
    });
    assert!(sidecar.terminate().success());
}

#[test]
fn a_queue_that_is_full_is_no_failure() {
    let sandbox = Sandbox::new();
    let server = Server::bind_with(&sandbox.socket(), 1);
    let waiting = [(); 2].map(|()| std::os::unix::net::UnixStream::connect(sandbox.socket()));
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    std::thread::sleep(Duration::from_millis(1_500));
    for stream in waiting {
        server.drop_one();
        drop(stream.unwrap());
    }
    // Having failed, it would say so, and be seconds away.
    server.session().publish(&[value("a", "1")]);
    let log = sidecar.log();
    assert!(!log.contains("session failed"), "{log}");
}

#[test]
fn whoever_waits_for_the_first_set_sees_whether_it_is_complete() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&["--want", "a,b,c"]);
    let mut peer = server.session();
    for code in [Code::Unavailable, Code::Sealed] {
        // What is there need not wait, and what waits for all of it does.
        peer.bundle_without(&[value("a", "1")], "b", code);
        peer.acknowledged();
        assert_eq!(sandbox.read("a"), b"1");
        assert!(sandbox.names().contains(&"..incomplete".to_owned()));
        let (said, bad) = sandbox.ask(&["health"]);
        let faults = ["missing: b: ", code.phrase()];
        assert!(faults.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(bad, 1);
    }
    // What is denied for good is not waited for.
    peer.bundle_without(&[value("a", "1")], "b", Code::Denied);
    peer.acknowledged();
    assert_eq!(sandbox.read("a"), b"1");
    assert!(!sandbox.names().contains(&"..incomplete".to_owned()));
    // Nor is there waiting once there was a complete set.
    peer.bundle_without(&[value("a", "2")], "b", Code::Unavailable);
    peer.acknowledged();
    assert_eq!(sandbox.read("a"), b"2");
    assert!(!sandbox.names().contains(&"..incomplete".to_owned()));
    assert!(sidecar.terminate().success());

    let mut sidecar = sandbox.start(&["--want", "a,b"]);
    let mut peer = server.session();
    peer.bundle_without(&[value("a", "1")], "b", Code::Unavailable);
    peer.acknowledged();
    assert!(sandbox.names().contains(&"..incomplete".to_owned()));
    peer.publish(&[value("a", "1"), value("b", "1")]);
    assert_eq!(sandbox.read("b"), b"1");
    assert!(!sandbox.names().contains(&"..incomplete".to_owned()));
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    peer.bundle_without(&[value("a", "1")], "b", Code::Unavailable);
    peer.acknowledged();
    assert!(sidecar.terminate().success());

    in_time(|left| {
        let server = Server::bind(&sandbox.socket());
        let began = Instant::now();
        let seconds = (left / 1_000).to_string();
        let mut once = sandbox.start(&["--once", "--timeout", &seconds]);
        let mut peer = server.try_request().and_then(Request::accept).ok()?;
        let mut bundle = peer.sealing.seal(&[value("a", "1")]);
        bundle.missing = vec![Missing {
            name: "b".parse().unwrap(),
            refusal: Code::Unavailable.into(),
        }];
        peer.send(&ServerMessage::Bundle(bundle)).ok()?;
        let is_heard = began.elapsed() < Duration::from_millis(left);
        assert_eq!(once.wait().code(), Some(69));
        is_heard.then(|| once.says("last: the first set waits for b: not available now"))
    });
    assert!(sandbox.names().is_empty());
}

#[test]
fn a_default_configuration_that_cannot_be_reached_is_not_overlooked() {
    let sandbox = Sandbox::with("size=1m,mode=0750,uid=4000,gid=4000");
    let run = |prepare: &str| {
        let script = format!(
            "mount -t tmpfs none /etc && {prepare} && exec setpriv --reuid 4000 --regid 4000 \
             --clear-groups \"$0\" --once --timeout 1 --dir \"$1\" --socket /none"
        );
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(env!("CARGO_BIN_EXE_mayfly-sidecar"))
            .arg(sandbox.dir());
        let done = command.output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        (done.status.code().unwrap(), said)
    };
    let (code, said) = run("mkdir -m 0700 /etc/mayfly");
    assert!(code == 78 && said.contains("Permission denied"), "{said}");
    let (code, said) = run("mkdir -m 0755 /etc/mayfly && ln -s gone /etc/mayfly/sidecar.toml");
    assert!(code == 78 && said.contains("No such file"), "{said}");
    // There is none: that is no fault.
    for absent in ["true", "mkdir -m 0755 /etc/mayfly"] {
        let (code, said) = run(absent);
        assert_eq!(code, 69, "{said}");
    }
}

#[test]
fn what_is_denied_between_two_sessions_goes_at_once() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1"), value("b", "1")]);
    drop(peer);
    for code in [Code::Unavailable, Code::Sealed, Code::TooMany] {
        server.request().refuse(code);
    }
    // What is no decision takes nothing away.
    let request = server.request();
    assert_eq!(sandbox.read("a"), b"1");
    request.refuse(Code::Denied);
    sidecar.says("withdrawn names=\"a,b\"");
    assert!(!sandbox.has("a") && !sandbox.has("b") && !sandbox.has("..data/a"));
}

#[test]
fn once_publishes_acknowledges_and_leaves_the_files() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    for content in [b"1", b"2"] {
        let mut sidecar = sandbox.start(&["--once", "--want", "a,b"]);
        let mut peer = server.session();
        peer.publish(&[value("a", content), fields("b", &[("x", b"y")])]);
        assert_eq!(sidecar.wait().code(), Some(0));
        assert_eq!(sandbox.read("a"), content);
        assert_eq!(sandbox.read("b/x"), b"y");
        assert_eq!(sandbox.generations(), 1);
    }
}

#[test]
fn once_says_why_it_was_denied() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&["--once"]);
    server.request().refuse(Code::Denied);
    assert_eq!(sidecar.wait().code(), Some(77));
    sidecar.says(Code::Denied.phrase());

    // One of two: nothing is published.
    let mut sidecar = sandbox.start(&["--once", "--want", "a,b"]);
    let mut peer = server.session();
    peer.bundle_without(&[value("a", "1")], "b", Code::NotFound);
    assert_eq!(sidecar.wait().code(), Some(77));
    sidecar.says("b: there is nothing of that name");
    assert!(sandbox.names().is_empty());
}

#[test]
fn once_gives_up_in_time() {
    let sandbox = Sandbox::new();
    let mut sidecar = sandbox.start(&["--once", "--timeout", "1"]);
    assert_eq!(sidecar.wait().code(), Some(69));
    sidecar.says("does not answer");
    let mut sidecar = sandbox.start(&["--once"]);
    sidecar.says("does not answer");
    assert_eq!(sidecar.terminate().code(), Some(75));
}

#[test]
fn what_is_missing_is_said_and_the_rest_published() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&["--want", "a,b"]);
    let mut peer = server.session();
    for _ in 0..3 {
        peer.bundle_without(&[value("a", "1")], "b", Code::Denied);
        peer.acknowledged();
    }
    assert_eq!(sandbox.read("a"), b"1");
    assert_eq!(sidecar.log().matches("missing why=\"b: policy").count(), 1);
    // However much it is.
    let mut bundle = peer.sealing.seal(&[value("a", "1")]);
    bundle.missing = (0..10_000)
        .map(|number| Missing {
            name: format!("b{number}").parse().unwrap(),
            refusal: Code::Denied.into(),
        })
        .collect();
    peer.send(&ServerMessage::Bundle(bundle)).unwrap();
    peer.acknowledged();
    let (said, _) = sandbox.ask(&["health"]);
    assert!(
        said.contains("b63: ") && said.contains("and 9936 more"),
        "{said}"
    );
    assert!(sidecar.log().len() < 20_000);
}

#[test]
fn help_and_mistakes() {
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly-sidecar"));
        command.args(arguments).output().unwrap()
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8(help.stdout).unwrap().contains("Example"));
    let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
    assert_eq!(
        version,
        concat!("mayfly-sidecar ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let mistake = run(&["--mode", "0644"]);
    assert_eq!(mistake.status.code(), Some(64));
    assert!(
        String::from_utf8(mistake.stderr)
            .unwrap()
            .contains("0400 or 0440")
    );
}
