//! Symlinks that an application planted, places that will not do, and a server that talks garbage.

use crate::sandbox::Sandbox;
use crate::server::{Sealing, Server, fields, noise, value};
use mayfly_wire::PublishFault;
use mayfly_wire::session::{MAX_SERVER_LINE, ServerMessage};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn planted_names_are_refused_and_never_followed() {
    let outside = std::env::temp_dir().join(format!("mayfly-outside-{}", std::process::id()));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("a"), "untouched").unwrap();
    for planted in ["..data", "..gen-x", "..data_tmp"] {
        for target in [outside.as_path(), "..gen-y/../../x".as_ref()] {
            let sandbox = Sandbox::new();
            symlink(target, sandbox.dir().join(planted)).unwrap();
            let mut sidecar = sandbox.start(&[]);
            assert_eq!(sidecar.wait().code(), Some(78), "{planted}");
            sidecar.says(&format!("at `{planted}`"));
            assert_eq!(sandbox.names(), [planted]);
        }
    }
    // A generation of another uid, and a file in place of the link to it.
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.dir().join("..gen-x")).unwrap();
    std::os::unix::fs::chown(sandbox.dir().join("..gen-x"), Some(1000), None).unwrap();
    assert_eq!(sandbox.start(&[]).wait().code(), Some(78));
    let sandbox = Sandbox::new();
    fs::write(sandbox.dir().join("..data"), "").unwrap();
    assert_eq!(sandbox.start(&[]).wait().code(), Some(78));

    assert_eq!(fs::read(outside.join("a")).unwrap(), b"untouched");
    fs::remove_dir_all(outside).unwrap();
}

#[test]
fn names_planted_while_it_runs_stop_publishing_and_nothing_else() {
    let sandbox = Sandbox::new();
    let victim = sandbox.base().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    // At the name of a credential to come.
    let link = sandbox.dir().join("b");
    symlink(&victim, &link).unwrap();
    peer.bundle(&[value("a", "2"), value("b", "2")]);
    sidecar.says("at `b`");
    let report = server.report("204 No Content");
    assert_eq!((report.generation, report.code), (2, PublishFault::Symlink));
    peer.ping();
    assert_eq!(sandbox.read("a"), b"1");
    fs::remove_file(&link).unwrap();
    peer.acknowledged();
    assert_eq!(sandbox.read("b"), b"2");
    // In place of the generation, of a file, of a credential's directory.
    let data = sandbox.dir().join("..data");
    let real = fs::read_link(&data).unwrap();
    fs::remove_file(&data).unwrap();
    symlink(sandbox.base(), &data).unwrap();
    peer.bundle(&[value("a", "3"), value("b", "2")]);
    sidecar.says("at `..data`");
    // Whether anybody listens changes nothing.
    let report = server.report("503 X");
    assert_eq!((report.generation, report.code), (3, PublishFault::Symlink));
    // At once: between two steps it could try again, and make the link itself.
    let back = sandbox.dir().join("back");
    symlink(&real, &back).unwrap();
    fs::rename(&back, &data).unwrap();
    peer.acknowledged();
    let file = data.join("a");
    fs::remove_file(&file).unwrap();
    symlink(&victim, &file).unwrap();
    peer.publish(&[value("a", "3"), value("b", "2")]);
    assert_eq!(sandbox.read("a"), b"3");
    fs::remove_file(data.join("a")).unwrap();
    symlink(sandbox.base(), data.join("a")).unwrap();
    drop(peer);
    let mut peer = server.session();
    peer.publish(&[fields("a", &[("victim", b"x")])]);
    assert_eq!(sandbox.read("a/victim"), b"x");
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
}

#[test]
fn what_is_found_before_a_session_is_reported_and_ends_it_all_the_same() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    symlink("/etc", sandbox.dir().join("..data")).unwrap();
    let link = sandbox.base().join("link");
    symlink(sandbox.dir(), &link).unwrap();
    let disk = sandbox.base().to_str().unwrap();
    let link = link.to_str().unwrap();
    for (arguments, code, part) in [
        (&[][..], PublishFault::Symlink, "a symlink to \"/etc\""),
        (&["--once"], PublishFault::Symlink, "at `..data`"),
        (
            &["--dir", link],
            PublishFault::Symlink,
            "symlinks are not followed",
        ),
        (&["--dir", disk], PublishFault::NotTmpfs, "only on a tmpfs"),
    ] {
        let mut sidecar = sandbox.start(arguments);
        let report = server.report("204 No Content");
        assert_eq!((report.generation, report.code), (0, code));
        assert!(report.detail.as_str().contains(part), "{report:?}");
        assert_eq!(sidecar.wait().code(), Some(78));
        sidecar.says("info reported to the broker");
    }
    let mut sidecar = sandbox.start(&[]);
    server.report("429 X");
    assert_eq!(sidecar.wait().code(), Some(78));
    sidecar.says("warn not reported");
}

#[test]
fn only_a_tmpfs_will_do() {
    let sandbox = Sandbox::new();
    let disk = sandbox.base().join("disk");
    fs::create_dir(&disk).unwrap();
    let refused = |dir: &std::path::Path, parts: &[&str]| {
        let mut sidecar = sandbox.start(&["--dir", dir.to_str().unwrap()]);
        assert_eq!(sidecar.wait().code(), Some(78), "{}", dir.display());
        for part in parts {
            sidecar.says(part);
        }
    };
    refused(
        &disk,
        &[
            "published only on a tmpfs",
            "driver_opts",
            "--tmpfs",
            "noswap",
        ],
    );
    refused(&disk.join("none"), &["none does not exist"]);
    let link = sandbox.base().join("link");
    symlink(sandbox.dir(), &link).unwrap();
    refused(&link, &["symlinks are not followed"]);
    refused(&link.join("sub"), &["symlinks are not followed"]);
    refused("relative".as_ref(), &["absolute path"]);
    refused(&sandbox.dir().join("../disk"), &["without `..`"]);

    // A directory in a tmpfs will.
    let inner = sandbox.dir().join("inner");
    fs::create_dir(&inner).unwrap();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&["--dir", inner.to_str().unwrap()]);
    server.session().publish(&[value("a", "1")]);
    assert_eq!(fs::read(inner.join("a")).unwrap(), b"1");
}

#[test]
fn a_read_only_tmpfs_is_refused() {
    use nix::mount::{MsFlags, mount};
    let sandbox = Sandbox::new();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
    mount(
        None::<&str>,
        &sandbox.dir(),
        None::<&str>,
        flags,
        None::<&str>,
    )
    .unwrap();
    let mut sidecar = sandbox.start(&[]);
    assert_eq!(sidecar.wait().code(), Some(78));
    sidecar.says("mounted read-only");
}

#[test]
fn garbage_ends_the_session_and_leaves_the_files() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    server.session().publish(&[value("a", "good")]);
    let before = sandbox.identity("a");
    let line = |text: &str| (text.to_owned() + "\n").into_bytes();
    let credential = |name: &str, sealed: &str| {
        line(&format!(
            r#"{{"type":"bundle","generation":9,"encapsulated":"AAAA","credentials":[{{"name":"{name}","lease":"l","expires_at":9999999999999,"layout":"value","fields":[{{"name":"value","sealed":"{sealed}"}}]}}]}}"#
        ))
    };
    let endless = vec![b'x'; MAX_SERVER_LINE + 64 * 1024];
    let garbage = [
        endless,
        line("not json"),
        line(&"[".repeat(100_000)),
        line(r#"{"type":"surprise"}"#),
        line(
            r#"{"type":"hello","protocol":1,"workload":{"boot_id":"b","cgroup_id":1,"pidns_id":1}}"#,
        ),
        vec![0xff; 5000].into_iter().chain([b'\n']).collect(),
        credential("../x", "AAAA"),
        credential("..data", "AAAA"),
        credential("a/b", "AAAA"),
        credential("a", "not base64!"),
        credential("a", "AAAA"),
        line(r#"{"type":"withdraw","names":["../../etc"]}"#),
    ];
    for bytes in garbage {
        let mut peer = server.session();
        // So that it does not wait longer and longer.
        peer.publish(&[value("a", "good")]);
        // It may hang up before it has read all.
        let _ = peer.send_bytes(&bytes);
        peer.hung_up();
        assert_eq!(sandbox.identity("a"), before);
    }
    // Sealed to another key, another workload, another generation, or in another order.
    for change in 0..4 {
        let mut peer = server.session();
        peer.publish(&[value("a", "good")]);
        let mut other = sealing_but(&peer.sealing, change);
        let mut bundle = other.seal(&[value("a", "evil"), value("b", "evil")]);
        match change {
            2 => bundle.generation += 1,
            3 => {
                let first = bundle.credentials[0].fields[0].sealed.clone();
                bundle.credentials[0].fields[0].sealed =
                    bundle.credentials[1].fields[0].sealed.clone();
                bundle.credentials[1].fields[0].sealed = first;
            }
            _ => {}
        }
        peer.send(&ServerMessage::Bundle(bundle)).unwrap();
        peer.hung_up();
        assert_eq!(sandbox.identity("a"), before);
    }
    // The first value opens and the second does not: half a set is never seen.
    let mut peer = server.session();
    let mut bundle = peer.sealing.seal(&[value("a", "evil"), value("b", "evil")]);
    bundle.credentials[1].fields[0].sealed = noise(40);
    peer.send(&ServerMessage::Bundle(bundle)).unwrap();
    peer.hung_up();
    assert_eq!(sandbox.identity("a"), before);
    assert_eq!(sandbox.read("a"), b"good");
    assert_eq!(sandbox.generations(), 1);
    server.session().publish(&[value("a", "better")]);
    assert_eq!(sandbox.read("a"), b"better");
    assert!(!sidecar.log().contains("evil"));
    assert!(sidecar.terminate().success());
}

/// Seals as a session would, but for one thing.
fn sealing_but(sealing: &Sealing, change: usize) -> Sealing {
    let mut sealing = sealing.clone();
    match change {
        0 => sealing.hello.public_key = mayfly_wire::sealed::generate().1,
        1 => sealing.workload.cgroup_id += 1,
        _ => {}
    }
    sealing
}
