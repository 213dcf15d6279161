//! `sidecar.toml`: what is published, in which form.

use crate::sandbox::{Sandbox, in_time};
use crate::server::{Given, Server, ending, fields, in_milliseconds, is_to_come, value};
use mayfly_wire::{Code, PublishFault};
use std::fs;
use std::os::unix::fs::MetadataExt as _;

fn database(password: &'static [u8]) -> Given {
    fields(
        "orders-db",
        &[
            ("database", b"orders"),
            ("host", b"db.example"),
            ("password", password),
            ("port", b"5432"),
            ("type", b"postgresql"),
            ("username", b"app"),
        ],
    )
}

const FORMS: &str = r#"
[[output]]
credential = "orders-db"
file = "conf/db.env"
format = "env"
prefix = "DB_"

[[output]]
credential = "orders-db"
file = ".pgpass"
format = "pgpass"
mode = "0440"
owner = 1234
group = 4321

[[output]]
credential = "orders-db"
file = "conf/url"
format = "url"

[[output]]
credential = "orders-db"
file = "conf/user"
format = "raw"
field = "username"

[[output]]
credential = ["orders-db", "api-token"]
file = "app.conf"
format = "template"
template_file = "app.conf.j2"
"#;

#[test]
fn each_output_has_its_form_and_its_owner() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    fs::write(
        sandbox.base().join("app.conf.j2"),
        "token={{ secrets['api-token'].value }}\npassword={{ secrets['orders-db'].password }}\n",
    )
    .unwrap();
    let config = sandbox.config(FORMS);
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    assert!(peer.sealing.hello.want.is_none());
    let given = |password| {
        [
            value("api-token", "t0ken"),
            database(password),
            value("rest", "r"),
        ]
    };
    peer.publish(&given(b"it's"));
    let env = sandbox.read("conf/db.env");
    assert!(
        String::from_utf8(env)
            .unwrap()
            .contains("DB_PASSWORD='it'\\''s'\n")
    );
    assert_eq!(
        sandbox.read(".pgpass"),
        b"db.example:5432:orders:app:it's\n"
    );
    let url = b"postgresql://app:it%27s@db.example:5432/orders";
    assert_eq!(sandbox.read("..data/conf/url"), url);
    assert_eq!(sandbox.read("conf/user"), b"app");
    assert_eq!(sandbox.read("app.conf"), b"token=t0ken\npassword=it's\n");
    assert_eq!(sandbox.read("rest"), b"r");
    let status = fs::metadata(sandbox.dir().join(".pgpass")).unwrap();
    let owned = (status.mode() & 0o7777, status.uid(), status.gid());
    assert_eq!(owned, (0o440, 1234, 4321));
    // What has an output is published as that says, and no other way.
    assert!(!sandbox.has("orders-db") && !sandbox.has("api-token"));
    // What does not change stays the file that it is.
    let before = ["conf/user", "rest", "conf/url"].map(|name| sandbox.identity(name));
    peer.publish(&given(b"other"));
    let after = ["conf/user", "rest", "conf/url"].map(|name| sandbox.identity(name));
    assert_eq!(before[..2], after[..2]);
    assert_ne!(before[2], after[2]);
    assert_eq!(sandbox.read("app.conf"), b"token=t0ken\npassword=other\n");
}

#[test]
fn what_cannot_be_rendered_keeps_its_content_and_the_others_do_not_wait() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config = sandbox.config(FORMS.split("[[output]]\ncredential = [").next().unwrap());
    let mut sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[database(b"first"), value("rest", "1")]);
    let before = sandbox.identity(".pgpass");
    // A line break cannot be said in a .pgpass; a shell can.
    peer.bundle(&[database(b"sec\nond"), value("rest", "2")]);
    let report = server.report("204 No Content");
    assert_eq!((report.generation, report.code), (2, PublishFault::Output));
    peer.ping();
    assert_eq!(
        sandbox.read(".pgpass"),
        b"db.example:5432:orders:app:first\n"
    );
    assert_eq!(sandbox.identity(".pgpass"), before);
    assert_eq!(sandbox.read("rest"), b"2");
    assert!(
        sandbox
            .read("conf/db.env")
            .ends_with(b"DB_USERNAME='app'\n")
    );
    sidecar.says("output failed output=\".pgpass\" why=\"the field `password` has a line break");
    assert!(!sidecar.log().contains("ond"), "a value is in the log");
    let status = sandbox.status();
    assert_eq!(status["status"]["failed"][0]["path"], ".pgpass");
    let (said, code) = sandbox.ask(&["health"]);
    assert!(
        code == 1 && said.starts_with(".pgpass: the field `password`"),
        "{said}"
    );
    // It was not acknowledged, and the next that can be is; that it failed is said no more.
    peer.publish(&[database(b"third"), value("rest", "2")]);
    assert_eq!(
        sandbox.read(".pgpass"),
        b"db.example:5432:orders:app:third\n"
    );
    assert_eq!(sandbox.ask(&["health"]), ("ok\n".to_owned(), 0));
    // Also not after a restart, with a configuration that says less.
    sidecar.kill();
    drop(peer);
    let config = sandbox.config("[[output]]\ncredential = \"orders-db\"\nformat = \"fields\"\n");
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.publish(&[database(b"third"), value("rest", "2")]);
    assert!(!sandbox.has(".pgpass") && !sandbox.has("conf"));
    assert_eq!(sandbox.read("orders-db/password"), b"third");
}

#[test]
fn what_is_missing_for_a_while_keeps_its_file_and_what_is_denied_does_not() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config = sandbox.config(
        "only_outputs = true\n[[output]]\ncredential = \"a\"\nfile = \"a.json\"\nformat = \"json\"\n",
    );
    let _sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    // Nothing is asked for that nobody would see.
    let want = peer.sealing.hello.want.clone().unwrap();
    assert_eq!(
        want.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["a"]
    );
    peer.publish(&[value("a", "1")]);
    assert_eq!(sandbox.read("a.json"), b"{\"value\":\"1\"}\n");
    let before = sandbox.identity("a.json");
    peer.bundle_without(&[], "a", Code::Unavailable);
    peer.acknowledged();
    assert_eq!(sandbox.identity("a.json"), before);
    peer.bundle_without(&[], "a", Code::Denied);
    peer.acknowledged();
    assert!(!sandbox.has("a.json"));
    peer.publish(&[value("a", "2")]);
    peer.withdraw("a");
    peer.ping();
    assert!(!sandbox.has("a.json") && !sandbox.has("..data/a.json"));
}

#[test]
fn so_it_is_of_what_has_no_output() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[fields("a", &[("x", b"1"), ("y", b"1")]), value("b", "1")]);
    let before = [sandbox.identity("a/x"), sandbox.identity("a/y")];
    for (content, code) in [("2", Code::Unavailable), ("3", Code::Sealed)] {
        peer.bundle_without(&[value("b", content)], "a", code);
        peer.acknowledged();
        assert_eq!(sandbox.read("b"), content.as_bytes());
        let after = [sandbox.identity("a/x"), sandbox.identity("a/y")];
        assert_eq!(after, before);
        let (said, bad) = sandbox.ask(&["health"]);
        assert!(bad == 1 && said.contains("missing: a: "), "{said}");
    }
    // What the application took away keeps nothing else from being published.
    fs::remove_file(sandbox.dir().join("..data/a/x")).unwrap();
    peer.bundle_without(&[value("b", "4")], "a", Code::Unavailable);
    peer.acknowledged();
    assert_eq!(sandbox.read("b"), b"4");
    assert!(sandbox.has("a/y") && !sandbox.has("a/x"));
    peer.bundle_without(&[value("b", "4")], "a", Code::Denied);
    peer.acknowledged();
    assert!(!sandbox.has("a") && !sandbox.has("..data/a"));
    // What is not even named was not granted.
    peer.publish(&[value("a", "2"), value("b", "4")]);
    peer.publish(&[value("b", "4")]);
    assert!(!sandbox.has("a"));
    // It is good until its end, and no longer.
    in_time(|left| {
        let end = in_milliseconds(left);
        let [short] = ending(end, ["a"]);
        peer.publish(&[short, value("b", "4")]);
        peer.bundle_without(&[value("b", "5")], "a", Code::Unavailable);
        peer.acknowledged();
        let found = sandbox.find("a");
        is_to_come(end).then(|| assert_eq!(found.unwrap(), b"secret"))
    });
    sidecar.says("expired names=\"a\"");
    assert!(!sandbox.has("a") && !sandbox.has("..data/a"));
    assert_eq!(sandbox.read("b"), b"5");
}

#[test]
fn a_name_is_taken_once() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config =
        sandbox.config("[[output]]\ncredential = \"a\"\nfile = \"b/url\"\nformat = \"raw\"\n");
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    peer.bundle(&[value("a", "1"), value("b", "2"), value("c", "3")]);
    peer.ping();
    assert_eq!(sandbox.read("b/url"), b"1");
    assert_eq!(sandbox.read("c"), b"3");
    sidecar.says("output=\"b\" why=\"its name is taken by the output b/url\"");
}

#[test]
fn a_configuration_that_is_wrong_is_named_before_anything_happens() {
    let sandbox = Sandbox::new();
    let _server = Server::bind(&sandbox.socket());
    for (text, part) in [
        ("outputs = []", "outputs"),
        (
            "[[output]]\ncredential = \"a\"\nfile = \"../a\"\nformat = \"raw\"",
            "inside the publishing",
        ),
    ] {
        let config = sandbox.config(text);
        let mut sidecar = sandbox.start(&["--config", &config]);
        assert_eq!(sidecar.wait().code(), Some(78));
        sidecar.says(part);
        sidecar.says(&config);
        assert!(sandbox.names().is_empty());
    }
    let mut sidecar = sandbox.start(&["--config", "/nowhere/sidecar.toml"]);
    assert_eq!(sidecar.wait().code(), Some(78));
    sidecar.says("/nowhere/sidecar.toml");
}

#[test]
fn once_ends_badly_if_an_output_cannot_be_made() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config =
        sandbox.config("[[output]]\ncredential = \"a\"\nfile = \"a.json\"\nformat = \"json\"\n");
    let mut sidecar = sandbox.start(&["--once", "--config", &config]);
    let mut peer = server.session();
    peer.bundle(&[value("a", b"\xff")]);
    assert_eq!(sidecar.wait().code(), Some(74));
    sidecar.says("is not UTF-8");
    // A new socket, without what the dead one left in the queue.
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&["--once", "--config", &config]);
    let mut peer = server.session();
    peer.publish(&[value("a", "good")]);
    assert_eq!(sidecar.wait().code(), Some(0));
    assert_eq!(sandbox.read("a.json"), b"{\"value\":\"good\"}\n");
}

#[test]
fn an_output_of_what_is_not_granted_is_told() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let config =
        sandbox.config("[[output]]\ncredential = \"a\"\nfile = \"a.json\"\nformat = \"json\"\n");
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    // The rest is acknowledged: nobody waits for it.
    peer.publish(&[value("b", "1")]);
    sidecar.says("output failed output=\"a.json\" why=\"a is not granted to this workload\"");
    assert!(
        sandbox
            .ask(&["health"])
            .0
            .contains("a.json: a is not granted")
    );
    peer.publish(&[value("a", "1"), value("b", "1")]);
    assert_eq!(sandbox.ask(&["health"]).1, 0);
    let mut sidecar = sandbox.start(&["--config", &config, "--want", "b"]);
    assert_eq!(sidecar.wait().code(), Some(64));
    sidecar.says("an output is made of a, which --want does not name");
}
