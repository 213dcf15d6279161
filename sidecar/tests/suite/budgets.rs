//! What the sidecar costs. The numbers of design section 11 hold for the profile `small`; with it:
//! `cargo test --profile small -p mayfly-sidecar --test suite budgets -- --nocapture`.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Given, Server, fields, value};
use std::fs;
use std::time::{Duration, Instant};

const NAMES: [&str; 20] = [
    "c00", "c01", "c02", "c03", "c04", "c05", "c06", "c07", "c08", "c09", "c10", "c11", "c12",
    "c13", "c14", "c15", "c16", "c17", "c18", "c19",
];

fn twenty(secret: &[u8]) -> Vec<Given> {
    let given = NAMES.iter().map(|name| match name.as_bytes()[2] % 2 {
        0 => value(name, secret),
        _ => fields(name, &[("password", secret), ("username", b"app")]),
    });
    given.collect()
}

fn kib(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Processor time so far.
fn worked(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// User and system time so far, in clock ticks, and switches of context.
fn activity(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let mut fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11);
    let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
    (next() + next(), kib(pid, "voluntary_ctxt_switches"))
}

#[test]
fn twenty_credentials_stay_small_and_idle() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&twenty(b"first"));
    peer.publish(&twenty(b"second"));
    eventually("the first generation is gone", || {
        sandbox.generations() == 1
    });
    let resident = kib(sidecar.pid(), "VmRSS");
    let parts = ["RssAnon", "RssFile"].map(|key| kib(sidecar.pid(), key));
    // The largest bundle, and back.
    let large = vec![b'x'; 100_000];
    peer.publish(&[value("a", &large), value("b", &large), value("c", &large)]);
    peer.publish(&twenty(b"third"));
    eventually("the large generation is gone", || {
        sandbox.generations() == 1
    });
    let after_large = kib(sidecar.pid(), "VmRSS");

    // At first it may still be on its way to sleep.
    let mut idle = (u64::MAX, u64::MAX);
    for _ in 0..3 {
        let before = activity(sidecar.pid());
        std::thread::sleep(Duration::from_secs(3));
        let after = activity(sidecar.pid());
        idle = idle.min((after.0 - before.0, after.1 - before.1));
        if idle <= (0, 1) {
            break;
        }
    }
    let binary = fs::metadata(env!("CARGO_BIN_EXE_mayfly-sidecar"))
        .unwrap()
        .len();
    println!(
        "binary {binary} bytes; resident {resident} KiB (anonymous, file: {parts:?}), after a large \
         bundle {after_large} KiB; in three idle seconds {} ticks and {} wakeups",
        idle.0, idle.1
    );
    assert_eq!(idle.0, 0, "it works while nothing happens");
    assert!(idle.1 <= 1, "it wakes while nothing happens");
    assert!(resident <= 6 * 1024 && after_large <= 8 * 1024);
}

#[test]
fn from_start_to_file() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut start_to_file = Vec::new();
    let mut change_to_file = Vec::new();
    // The same without what else the machine does.
    let (mut start_work, mut change_work) = (Vec::new(), Vec::new());
    for round in 0..50 {
        let set = |n: u32| [value("a", format!("{round} {n}"))];
        let start = Instant::now();
        let mut sidecar = sandbox.start(&[]);
        let mut peer = server.session();
        peer.bundle(&set(0));
        while !sandbox.has("a") {
            assert!(start.elapsed() < Duration::from_secs(30), "no file");
            std::hint::spin_loop();
        }
        start_to_file.push(start.elapsed());
        peer.acknowledged();
        let first = worked(sidecar.pid());
        start_work.push(first);
        let start = Instant::now();
        peer.publish(&set(1));
        change_to_file.push(start.elapsed());
        change_work.push(worked(sidecar.pid()) - first);
        assert_eq!(sandbox.read("a"), format!("{round} 1").as_bytes());
        assert!(sidecar.terminate().success());
    }
    for (what, mut times, most) in [
        ("start to file", start_to_file, 200),
        ("start to file, processor", start_work, 20),
        ("change to file", change_to_file, 200),
        ("change to file, processor", change_work, 20),
    ] {
        times.sort();
        let (least, median, last) = (times[0], times[25], times[47]);
        println!("{what}: least {least:?}, median {median:?}, 48th of 50 {last:?}");
        // The median says what a busy machine makes of it.
        assert!(least < Duration::from_millis(most));
    }
}

#[test]
fn a_minute_at_idle_is_three_pings() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    peer.publish(&twenty(b"first"));
    // The first pings warm up.
    for _ in 0..10 {
        peer.ping();
    }
    let minutes = (0..3).map(|_| {
        let before = worked(sidecar.pid());
        for _ in 0..150 {
            peer.ping();
        }
        (worked(sidecar.pid()) - before) / 50
    });
    let minute = minutes.min().unwrap();
    println!("processor time of a minute at idle: {minute:?}");
    assert!(minute < Duration::from_millis(1));
}
