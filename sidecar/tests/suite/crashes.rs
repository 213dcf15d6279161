//! Killed at any instant: readers see a complete set, and the next start removes what is left.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Given, Request, Server, fields, value};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

const KILLS: u32 = 50;

fn set(number: u32) -> [Given; 4] {
    let text = format!("{number:0>100}");
    let half = [("password", text.as_bytes()), ("username", text.as_bytes())];
    [
        value("a", &text),
        fields("b", &half),
        value("c", "same"),
        value("d", &text),
    ]
}

#[test]
fn killed_at_any_instant() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let (done, number) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let Ok(mut peer) = server.try_request().and_then(Request::accept) else {
                    continue;
                };
                loop {
                    let next = number.fetch_add(1, Ordering::Relaxed);
                    let bundle = peer.sealing.seal(&set(next));
                    let sent = peer.send(&mayfly_wire::session::ServerMessage::Bundle(bundle));
                    if sent.is_err() || peer.hear().is_err() {
                        break;
                    }
                }
            }
        });
        let start = Instant::now();
        let mut sidecar = sandbox.start(&[]);
        eventually("a set is published", || sandbox.has("..data"));
        let span = (start.elapsed() * 4).max(Duration::from_millis(40));
        sidecar.kill();
        let before = number.load(Ordering::Relaxed);
        let (mut round, mut rotated) = (0, 0);
        while round < KILLS || rotated < KILLS {
            assert!(start.elapsed() < Duration::from_secs(60), "{rotated} sets");
            let mut sidecar = sandbox.start(&[]);
            // From before it is ready to well into its rotations, on a machine as busy as this one.
            std::thread::sleep(span * (round * 19 % KILLS) / KILLS);
            sidecar.kill();
            check_complete(&sandbox);
            round += 1;
            rotated = number.load(Ordering::Relaxed) - before;
        }
        done.store(true, Ordering::Relaxed);
        // The server waits for one more connection, or has it, and ends with that.
        let before = number.load(Ordering::Relaxed);
        let mut sidecar = sandbox.start(&[]);
        eventually("it is served", || {
            serving.is_finished() || number.load(Ordering::Relaxed) > before
        });
        sidecar.kill();
    });
    // A new socket: in the queue of the old one are connections of the dead.
    let server = Server::bind(&sandbox.socket());
    let _sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&set(1));
    check_complete(&sandbox);
    eventually("nothing is left over", || {
        let names = sandbox.published_names();
        let ours = ["..data", "a", "b", "c", "d"];
        names.len() == 6
            && ours
                .iter()
                .all(|name| names.iter().any(|found| found == name))
    });
}

/// What is published is whole.
fn check_complete(sandbox: &Sandbox) {
    let data = sandbox.dir().join("..data");
    let read = |name: &str| fs::read_to_string(data.join(name)).unwrap();
    let first = read("a");
    assert_eq!(first.len(), 100);
    for name in ["b/password", "b/username", "d"] {
        assert_eq!(read(name), first, "{name}");
    }
    assert_eq!(read("c"), "same");
    assert_eq!(sandbox.read("b/username"), first.as_bytes());
}

#[test]
fn a_start_overwrites_and_removes_what_is_left() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    sidecar.kill();
    drop(peer);
    // As if it had been killed in the middle of the next generation, and of the swap.
    let left = sandbox.dir().join("..gen-left");
    fs::create_dir_all(left.join("db")).unwrap();
    fs::write(left.join("db/password"), "secret").unwrap();
    fs::hard_link(sandbox.dir().join("a"), left.join("a")).unwrap();
    let held = fs::File::open(left.join("db/password")).unwrap();
    std::os::unix::fs::symlink("..gen-left", sandbox.dir().join("..data_tmp")).unwrap();
    std::os::unix::fs::symlink("..data/stale", sandbox.dir().join("stale")).unwrap();
    let sidecar = sandbox.start(&[]);
    sidecar.says("started");
    assert_eq!(sandbox.published_names().len(), 3, "{:?}", sandbox.names());
    assert_eq!(sandbox.read("a"), b"1");
    let mut content = [1; 6];
    std::os::unix::fs::FileExt::read_exact_at(&held, &mut content, 0).unwrap();
    assert_eq!(content, [0; 6]);
}
