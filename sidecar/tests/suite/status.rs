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
    // An hour but twenty minutes, as the broker says.
    assert!(words.contains("renewal     in 39m") || words.contains("renewal     in 40m"));
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

#[test]
fn what_somebody_else_wrote_is_told_in_plain_words() {
    let sandbox = Sandbox::new();
    let status = sandbox.dir().join("..status");
    let alive = sandbox.dir().join("..alive");
    std::fs::write(&alive, "").unwrap();
    for time in [1_i64 << 62, i64::MAX, i64::MIN] {
        let time = nix::sys::time::TimeSpec::new(time, 999_999_999);
        let file = std::fs::File::open(&alive).unwrap();
        nix::sys::stat::futimens(&file, &time, &time).unwrap();
        let hostile = "\u{1b}[2Jx\nok\r\u{9b}31m\u{202e}";
        let told = serde_json::json!({"what": hostile, "state": "failed", "error": hostile});
        let mut text = serde_json::json!({
            "version": 1, "connected": true, "generation": hostile, "changed_at_ms": u64::MAX,
            "next_expiry_ms": 0, "missing": hostile, "acknowledging": false, "error": hostile,
            "items": [{"path": hostile, "expires_at_ms": u64::MAX, "stale": true}],
            "failed": [{"path": hostile, "why": hostile}], "notify": [told],
        });
        for key in ["not_published", "unfit", "not_followed"] {
            text[key] = hostile.into();
        }
        text["expired"] = [hostile].as_slice().into();
        std::fs::write(&status, text.to_string()).unwrap();
        for arguments in [
            &["health"][..],
            &["health", "--live"],
            &["status"],
            &["status", "--output", "json"],
        ] {
            let (said, code) = sandbox.ask(arguments);
            assert_eq!(code, 1, "{said}");
            let is_plain = |one: char| one == '\n' || mayfly_wire::publish::is_plain(one);
            assert!(said.chars().all(is_plain), "{said:?}");
            assert!(!said.lines().any(|line| line.starts_with("ok")), "{said:?}");
        }
    }
    std::fs::write(&status, "{\"version\": \"\u{1b}[2J\"}").unwrap();
    let (said, code) = sandbox.ask(&["health"]);
    assert!(code == 1 && !said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn that_it_cannot_end_with_the_application_is_said() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let name = format!("twice-{}", std::process::id() % 100_000);
    let program = sandbox.program(&name, &std::fs::read("/bin/sleep").unwrap());
    let start = || {
        let mut command = std::process::Command::new(&program);
        command.arg("1000").spawn().unwrap()
    };
    let (mut one, mut two) = (start(), start());
    let config = sandbox.config(&format!(
        "[application]\nprocess = \"name:{name}\"\nexit_with = true\n"
    ));
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    sidecar.says("cannot end with the application");
    eventually("its status says so", || {
        let (said, _) = sandbox.ask(&["status"]);
        said.contains("exit_with   cannot be kept: 2 processes")
    });
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let log = sidecar.log();
    assert_eq!(log.matches("cannot end with").count(), 1, "{log}");
    // Once there is one, it is followed.
    two.kill().unwrap();
    two.wait().unwrap();
    eventually("it is found", || {
        !sandbox.ask(&["status"]).0.contains("exit_with")
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    one.kill().unwrap();
    one.wait().unwrap();
    assert!(sidecar.wait().success());
}
