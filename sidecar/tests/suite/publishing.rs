//! What readers see.

use crate::sandbox::{GRACE, Sandbox, eventually, in_grace, in_time};
use crate::server::{Server, ending, fields, in_milliseconds, is_to_come, value};
use mayfly_wire::PublishFault;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[test]
fn values_and_fields_become_files() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    assert!(peer.sealing.hello.want.is_none());
    peer.publish(&[
        value("api-token", "t0ken"),
        fields("orders-db", &[("password", b"p4ss"), ("username", b"app")]),
    ]);
    assert_eq!(sandbox.read("api-token"), b"t0ken");
    assert_eq!(sandbox.read("orders-db/password"), b"p4ss");
    assert_eq!(sandbox.read("..data/orders-db/username"), b"app");
    let link = fs::read_link(sandbox.dir().join("orders-db")).unwrap();
    assert_eq!(link.to_str(), Some("..data/orders-db"));
    let status = fs::metadata(sandbox.dir().join("api-token")).unwrap();
    assert_eq!(status.mode() & 0o7777, 0o400);
    assert_eq!(sandbox.generations(), 1);
}

#[test]
fn large_and_empty_values_arrive_whole() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&["--want", "large,empty"]);
    let mut peer = server.session();
    let large: Vec<u8> = (0..256 * 1024).map(|n: u32| (n / 3) as u8).collect();
    peer.publish(&[value("empty", ""), value("large", &large)]);
    assert_eq!(sandbox.read("large"), large);
    assert_eq!(sandbox.read("empty"), b"");
    let before = sandbox.identity("large");
    peer.publish(&[value("empty", ""), value("large", &large)]);
    assert_eq!(sandbox.identity("large"), before);
}

#[test]
fn only_what_changed_is_written() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let db =
        |password: &'static [u8]| fields("db", &[("password", password), ("username", b"app")]);
    peer.publish(&[value("a", "1"), db(b"old")]);
    let before = [sandbox.identity("a"), sandbox.identity("db/username")];
    let data = fs::read_link(sandbox.dir().join("..data")).unwrap();

    peer.publish(&[value("a", "1"), db(b"old")]);
    assert_eq!(fs::read_link(sandbox.dir().join("..data")).unwrap(), data);

    peer.publish(&[value("a", "1"), db(b"new")]);
    assert_ne!(fs::read_link(sandbox.dir().join("..data")).unwrap(), data);
    assert_eq!(sandbox.read("db/password"), b"new");
    assert_eq!(
        [sandbox.identity("a"), sandbox.identity("db/username")],
        before
    );

    // A new process finds the files as they are, and leaves them so.
    let data = fs::read_link(sandbox.dir().join("..data")).unwrap();
    sidecar.kill();
    drop(peer);
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    assert_eq!(sandbox.read("a"), b"1");
    peer.publish(&[value("a", "1"), db(b"new")]);
    assert_eq!(
        [sandbox.identity("a"), sandbox.identity("db/username")],
        before
    );
    assert_eq!(fs::read_link(sandbox.dir().join("..data")).unwrap(), data);
}

#[test]
fn what_somebody_wrote_into_a_file_is_repaired() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "right")]);
    fs::write(sandbox.dir().join("a"), "wrong").unwrap();
    peer.publish(&[value("a", "right")]);
    assert_eq!(sandbox.read("a"), b"right");
}

#[test]
fn a_credential_can_change_its_shape() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[fields("a", &[("x", b"2"), ("y", b"3")])]);
    assert_eq!(sandbox.read("a/x"), b"2");
    peer.publish(&[fields("a", &[("x", b"2")])]);
    assert!(!sandbox.dir().join("a/y").exists());
    peer.publish(&[value("a", "4")]);
    assert_eq!(sandbox.read("a"), b"4");
}

#[test]
fn a_reader_of_one_generation_never_sees_two() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let set = |number: u32| {
        let text = format!("{number:0>200}");
        let half = [("password", text.as_bytes()), ("username", text.as_bytes())];
        [value("a", &text), fields("b", &half), value("same", "same")]
    };
    peer.publish(&set(0));
    let (done, reads) = (AtomicBool::new(false), AtomicU32::new(0));
    let rotations = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                let data = fs::File::open(sandbox.dir().join("..data")).unwrap();
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&data));
                let read = |name: &str| {
                    let mut text = String::new();
                    let mut file = fs::File::open(format!("{path}/{name}"))?;
                    file.read_to_string(&mut text)?;
                    Ok::<_, std::io::Error>(text)
                };
                let found = ["a", "b/password", "b/username", "a", "same"].map(read);
                // Who was kept from it for longer may find it gone.
                if start.elapsed() >= GRACE {
                    continue;
                }
                let [first, password, username, again, same] = found.map(Result::unwrap);
                assert!(
                    first.parse::<u128>().is_ok() || first.len() == 200,
                    "{first:?}"
                );
                assert_eq!([&password, &username, &again], [&first; 3], "torn");
                assert_eq!(same, "same");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        let mut rotations = 0;
        // Long enough for both, however busy the machine is.
        while (rotations < 150 || reads.load(Ordering::Relaxed) < 3_000) && !reader.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(60), "too slow");
            rotations += 1;
            peer.publish(&set(rotations));
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        rotations
    });
    let reads = reads.into_inner();
    println!("{reads} consistent reads during {rotations} rotations");
    eventually("only the last generation is left", || {
        sandbox.generations() == 1
    });
}

#[test]
fn replaced_content_is_overwritten_after_its_grace() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let old = "old secret ".repeat(900);
    let mut content = vec![1; old.len()];
    let held = in_grace(|_| {
        peer.publish(&[value("a", &old), value("b", "stays")]);
        let held = fs::File::open(sandbox.dir().join("a")).unwrap();
        let replaced = Instant::now();
        peer.publish(&[value("a", "new"), value("b", "stays")]);
        std::thread::sleep(GRACE / 2);
        held.read_exact_at(&mut content, 0).unwrap();
        if replaced.elapsed() >= GRACE {
            return None;
        }
        assert_eq!(content, old.as_bytes(), "its grace is not over");
        Some(held)
    });
    eventually("the replaced file is overwritten", || {
        held.read_exact_at(&mut content, 0).unwrap();
        content.iter().all(|byte| *byte == 0)
    });
    eventually("and removed", || held.metadata().unwrap().nlink() == 0);
    assert_eq!(held.metadata().unwrap().len(), old.len() as u64);
    assert_eq!(sandbox.read("b"), b"stays");
    assert_eq!(sandbox.generations(), 1);
}

#[test]
fn what_is_withdrawn_goes_at_once_and_the_rest_stays() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let both = [fields("gone", &[("x", b"secret")]), value("kept", "1")];
    peer.publish(&both);
    // A second generation shares the file, so it has two names when it is withdrawn.
    let held = in_grace(|number| {
        let replaced = Instant::now();
        peer.publish(&[both[0].clone(), value("kept", number.to_string())]);
        let held = fs::File::open(sandbox.dir().join("gone/x")).unwrap();
        let names = held.metadata().unwrap().nlink();
        (replaced.elapsed() < GRACE).then(|| assert!(names >= 2))?;
        Some(held)
    });
    let kept = sandbox.identity("kept");
    let same = sandbox.find("kept").unwrap();
    peer.withdraw("gone");
    peer.ping();
    let mut content = [1; 6];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0; 6]);
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    assert!(!sandbox.has("gone") && !sandbox.has("..data/gone"));
    assert_eq!(sandbox.identity("kept"), kept);
    // The bundle that follows changes nothing more, and an empty one takes the rest.
    peer.publish(&[value("kept", same)]);
    assert_eq!(sandbox.identity("kept"), kept);
    peer.publish(&[]);
    assert!(!sandbox.has("kept") && sandbox.has("..data"));
}

#[test]
fn what_is_not_renewed_goes_without_a_broker() {
    in_time(not_renewed);
}

fn not_renewed(left: u64) -> Option<()> {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let long = value("long", "1");
    peer.publish(&[long.clone(), value("short", "secret")]);
    let held = fs::File::open(sandbox.dir().join("short")).unwrap();
    let end = in_milliseconds(left);
    let [short] = ending(end, ["short"]);
    peer.publish(&[long, short]);
    drop((peer, server));
    std::thread::sleep(Duration::from_millis(left / 2));
    let found = sandbox.find("short");
    if !is_to_come(end) {
        return None;
    }
    let found = found.expect("files outlive the session");
    assert_eq!(found, b"secret");
    sidecar.says("expired names=\"short\"");
    assert!(!sandbox.has("short"));
    assert_eq!(sandbox.read("long"), b"1");
    let mut content = [1; 6];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0; 6]);
    Some(())
}

#[test]
fn a_restart_without_a_broker_knows_when_files_end() {
    in_time(restarted_without_a_broker);
}

fn restarted_without_a_broker(left: u64) -> Option<()> {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("long", "1"), value("short", "secret")]);
    // A renewal that changes nothing else is recorded too.
    let end = in_milliseconds(left);
    let [short] = ending(end, ["short"]);
    peer.publish(&[value("long", "1"), short]);
    drop((peer, server));
    sidecar.kill();
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    let found = sandbox.find("short");
    if !is_to_come(end) {
        return None;
    }
    assert_eq!(found.as_deref(), Some(&b"secret"[..]));
    sidecar.says("expired names=\"short\"");
    assert!(!sandbox.has("short"));
    assert_eq!(sandbox.read("long"), b"1");
    Some(())
}

#[test]
fn mode_owner_and_another_uid() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&["--mode", "0440", "--owner", "1234:4321"]);
    let mut peer = server.session();
    peer.publish(&[fields("a", &[("x", b"1")])]);
    let status = fs::metadata(sandbox.dir().join("a/x")).unwrap();
    let owned = (status.mode() & 0o7777, status.uid(), status.gid());
    assert_eq!(owned, (0o440, 1234, 4321));
    peer.publish(&[fields("a", &[("x", b"2")])]);
    assert!(sidecar.terminate().success());

    // Without any capability, on a tmpfs of its own.
    let sandbox = Sandbox::with("size=1m,mode=0750,uid=4000,gid=4000");
    let socket = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start_as(4000, &[]);
    let mut peer = socket.session();
    peer.publish(&[value("a", "1"), value("b", "1")]);
    let held = fs::File::open(sandbox.dir().join("a")).unwrap();
    peer.publish(&[value("a", "2"), value("b", "1")]);
    assert_eq!(sandbox.read("a"), b"2");
    assert!(sidecar.terminate().success());
    assert!(sandbox.names().is_empty());
    let mut content = [1];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0], "{}", sidecar.log());

    let mut sidecar = sandbox.start_as(4000, &["--owner", "4001"]);
    assert_eq!(sidecar.wait().code(), Some(78));
    sidecar.says("CAP_CHOWN");
}

#[test]
fn sigterm_wipes_everything() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.dir().join("of-others"), "stays").unwrap();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "secret"), fields("b", &[("x", b"1")])]);
    peer.publish(&[value("a", "newer!"), fields("b", &[("x", b"1")])]);
    let held = fs::File::open(sandbox.dir().join("a")).unwrap();
    assert_eq!(sidecar.terminate().code(), Some(0));
    assert_eq!(sandbox.names(), ["of-others"]);
    let mut content = [1; 6];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0; 6]);
}

#[test]
fn without_space_the_last_generation_stays() {
    let sandbox = Sandbox::with("size=64k");
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "good")]);
    let before = sandbox.identity("a");
    peer.bundle(&[value("a", vec![b'x'; 200_000]), value("b", "1")]);
    sidecar.says("No space left");
    let report = server.report("204 No Content");
    assert_eq!((report.generation, report.code), (2, PublishFault::NoSpace));
    peer.ping();
    assert_eq!(sandbox.read("a"), b"good");
    assert_eq!(sandbox.identity("a"), before);
    assert!(!sandbox.has("b"));
    assert_eq!(sandbox.generations(), 1);
    peer.publish(&[value("a", "good"), value("b", "2")]);
    assert_eq!(sandbox.read("b"), b"2");
    assert_eq!(sandbox.identity("a"), before);

    // It is tried again by itself when there is room.
    let filler = sandbox.dir().join("filler");
    fs::write(&filler, vec![1; 40_000]).unwrap();
    peer.bundle(&[value("a", vec![b'y'; 40_000])]);
    sidecar.says("publishing failed");
    peer.ping();
    fs::remove_file(&filler).unwrap();
    peer.acknowledged();
    assert_eq!(sandbox.read("a"), vec![b'y'; 40_000]);
}
