//! After publishing, the process holds nothing of a value.

use crate::sandbox::{Sandbox, eventually};
use crate::server::{Given, Server, fields, value};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

const WINDOW: usize = 16;

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// How many places of a process's memory hold any 16 bytes in a row of any of the values. It is stopped
/// meanwhile, so that its memory is all the time what it is first found to be.
fn places(pid: u32, values: &[Vec<u8>]) -> usize {
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let send = |signal| {
        let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    send(nix::sys::signal::SIGSTOP);
    eventually("it stops", || stat().contains(") T "));
    let found = places_of_the_stopped(pid, values);
    send(nix::sys::signal::SIGCONT);
    found
}

fn places_of_the_stopped(pid: u32, values: &[Vec<u8>]) -> usize {
    let wanted: HashSet<&[u8]> = values
        .iter()
        .flat_map(|value| value.windows(WINDOW))
        .collect();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = 0;
    let mut scanned = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with('r') || rest.contains("[vvar") || rest.contains("[vsyscall]") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        memory.read_exact_at(&mut bytes, start).unwrap();
        scanned += bytes.len();
        found += bytes
            .windows(WINDOW)
            .filter(|window| wanted.contains(window))
            .count();
    }
    assert!(scanned > 1 << 20, "only {scanned} bytes were there to scan");
    found
}

#[test]
fn memory_holds_no_value_after_publishing() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start(&[]);
    let mut peer = server.session();
    let secrets: Vec<_> = [64, 64, 3000, 5].map(random).into();
    let set = |first: &[u8]| -> [Given; 3] {
        [
            value("api-token", first),
            fields(
                "orders-db",
                &[("password", &secrets[1]), ("short", &secrets[3])],
            ),
            value("tls-key", &secrets[2]),
        ]
    };
    peer.publish(&set(&secrets[0]));
    assert_eq!(sandbox.read("api-token"), secrets[0]);
    // What is there by right is found, so the search works.
    let public = [b"/run/mayfly/workload.sock".to_vec()];
    assert!(places(sidecar.pid(), &public) > 0);
    assert_eq!(
        places(sidecar.pid(), &secrets[..3]),
        0,
        "after the first bundle"
    );
    // Compared with the files, carried over, replaced.
    let other = random(64);
    peer.publish(&set(&secrets[0]));
    peer.publish(&set(&other));
    let all = [&secrets[..3], &[other]].concat();
    assert_eq!(places(sidecar.pid(), &all), 0, "after rotation");
    peer.withdraw("orders-db");
    peer.ping();
    assert_eq!(places(sidecar.pid(), &all), 0, "after withdrawal");
}

/// Every format, and a template that uses everything; and one that fails after it did.
const FORMS: &str = r#"
[[output]]
credential = ["db", "token"]
file = "t"
format = "template"
template = """
{% for name in secrets.db %}{{ name }}={{ secrets.db[name] | json }}{{ secrets.db[name] | upper }}
{{ secrets.db[name] | sh }}{% endfor %}{{ secrets.token.value }}{{ secrets.token.value | url }}"""

[[output]]
credential = "db"
file = "bad"
format = "template"
template = "{{ password }}{{ password + 1 }}"

[[notify]]
command = ["/bin/true"]
debounce = "1ms"
"#;

#[test]
fn memory_holds_no_value_after_rendering() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut text = FORMS.to_owned();
    for format in [
        "env",
        "dotenv",
        "json",
        "properties",
        "pgpass",
        "my.cnf",
        "url",
        "jdbc",
    ] {
        let table =
            format!("credential = \"db\"\nfile = \"out/{format}\"\nformat = \"{format}\"\n");
        text += &format!("[[output]]\n{table}");
    }
    let config = sandbox.config(&text);
    let sidecar = sandbox.start(&["--config", &config]);
    let mut peer = server.session();
    // As hexadecimal digits, which every format takes as they are.
    let secret = |length: usize| -> Vec<u8> {
        let digits: Vec<_> = random(length)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        digits.concat().into_bytes()
    };
    let mut all = Vec::new();
    for round in 0..4 {
        let (password, token) = (secret(40), secret(900));
        let place: [(&str, &[u8]); 3] = [("host", b"h"), ("type", b"mysql"), ("username", b"u")];
        let mut given = fields("db", &place);
        given.fields.insert(1, ("password", password.clone()));
        peer.bundle(&[given, value("token", &token)]);
        peer.ping();
        let out = String::from_utf8(sandbox.read("t")).unwrap();
        assert!(out.contains(std::str::from_utf8(&password).unwrap()));
        assert!(sandbox.read("out/url").ends_with(b"@h"));
        for value in [&password, &token] {
            all.push(value.clone());
            all.push(value.to_ascii_uppercase());
        }
        if round > 0 {
            sidecar.says("told the application");
        }
        assert_eq!(
            places(sidecar.pid(), &all),
            0,
            "after rendering, round {round}"
        );
    }
    sidecar.says("output failed output=\"bad\"");
    let log = sidecar.log();
    let leaked = |value: &Vec<u8>| log.contains(std::str::from_utf8(value).unwrap());
    assert!(!all.iter().any(leaked), "{log}");
}

#[test]
fn the_process_is_closed_to_others() {
    let sandbox = Sandbox::with("size=1m,mode=0750,uid=4000");
    let _server = Server::bind(&sandbox.socket());
    let sidecar = sandbox.start_as(4000, &[]);
    sidecar.says("started");
    let limits = fs::read_to_string(format!("/proc/{}/limits", sidecar.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("1"), "{core}");
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let threads = status
        .lines()
        .find(|line| line.starts_with("Threads:"))
        .unwrap();
    assert_eq!(threads.split_whitespace().nth(1), Some("1"));
    // The kernel gives an undumpable process's files to root.
    let owner = fs::metadata(format!("/proc/{}/mem", sidecar.pid())).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
}
