//! What a container engine says, and when it is not believed. The engine here is a server that says
//! what a test wants; what Docker really says is tested with Docker.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::harness::{Cgroup, NAMESPACES, Node, Told, container, id_of, unique};
use mayfly_wire::evidence::Settings;
use mayfly_wire::{Assurance, Code, Evidence};

const ID: &str = "4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
const DIGEST: &str = "sha256:aa1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";

type Says = Box<dyn FnMut(&str) -> Option<String> + Send>;

/// An engine that answers each path with what `says` makes of it.
struct Engine {
    path: PathBuf,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Engine {
    fn new(says: impl FnMut(&str) -> Option<String> + Send + 'static) -> Self {
        let path = std::env::temp_dir().join(unique("engine"));
        let listener = UnixListener::bind(&path).unwrap();
        let says: Arc<Mutex<Says>> = Arc::new(Mutex::new(Box::new(says)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (Arc::clone(&says), Arc::clone(&asked));
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                count.fetch_add(1, Ordering::Relaxed);
                let path = first.split(' ').nth(1).unwrap();
                let (status, body) = match (answers.lock().unwrap())(path) {
                    Some(body) => ("200 OK", body),
                    None => ("404 Not Found", "{}".to_owned()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _gone = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { path, says, asked }
    }

    fn says(&self, says: impl FnMut(&str) -> Option<String> + Send + 'static) {
        *self.says.lock().unwrap() = Box::new(says);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn node(&self) -> Node {
        Node::with_engines(&[], vec![self.path.clone()])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Says that this pid is a container's, which was started at some time.
fn honest(
    id: &'static str,
    pid: u32,
    started: &'static str,
) -> impl FnMut(&str) -> Option<String> + Send {
    move |path| {
        if path == format!("/containers/{id}/json") {
            return Some(inspected(id, pid, started));
        }
        match path {
            "/version" => Some(r#"{"Components":[{"Name":"Engine"}]}"#.to_owned()),
            path if path.starts_with("/containers/json") => Some(format!(r#"[{{"Id":"{id}"}}]"#)),
            path if path == format!("/images/{DIGEST}/json") => {
                Some(r#"{"RepoDigests":["shop/orders@sha256:bb","<none>@<none>"]}"#.to_owned())
            }
            _ => None,
        }
    }
}

/// After any process of the tests was started.
const LATER: &str = "2999-01-01T00:00:00.000000000Z";
/// Before.
const EARLIER: &str = "2001-01-01T00:00:00.000000000Z";

fn inspected(id: &str, pid: u32, started: &str) -> String {
    format!(
        r#"{{"Id":"{id}","Name":"/orders","Image":"{DIGEST}",
        "State":{{"Pid":{pid},"StartedAt":"{started}"}},
        "Config":{{"Image":"shop/orders:latest","Labels":{{"com.docker.compose.project":"shop",
        "com.docker.compose.service":"orders"}}}},
        "HostConfig":{{"Privileged":false,"CapAdd":["SYS_PTRACE"],"CapDrop":null}}}}"#
    )
}

/// A container whose cgroup's name has the id in it, and the pid of its first process.
fn named(id: &str) -> (Cgroup, Told, u32) {
    let cgroup = Cgroup::new(&format!("docker-{id}.scope"));
    let mut told = Told::start(&cgroup, &NAMESPACES);
    let pid = first_pid(&mut told);
    (cgroup, told, pid)
}

fn first_pid(told: &mut Told) -> u32 {
    let node = Node::new(&[]);
    let (_stream, peer) = node.connected(told);
    peer.pid()
}

fn attested(node: &Node, told: &mut Told) -> Evidence {
    let (_stream, peer) = node.connected(told);
    node.attest(&peer).unwrap().evidence
}

#[test]
fn metadata_is_bound_and_asked_for_once() {
    let (cgroup, mut told, pid) = named(ID);
    let engine = Engine::new(honest(ID, pid, LATER));
    let node = engine.node();
    let evidence = attested(&node, &mut told);
    assert_eq!(evidence.assurance, Assurance::Inspected);
    assert_eq!(evidence.workload.cgroup_id, id_of(&cgroup));
    let found = evidence.container.clone().unwrap();
    assert_eq!(
        (
            found.engine.as_str(),
            found.id.as_str(),
            found.name.as_str()
        ),
        ("docker", ID, "orders")
    );
    assert_eq!(found.image.config_digest, DIGEST);
    assert_eq!(found.image.reference, "shop/orders:latest");
    assert_eq!(
        found.image.repo_digests.into_iter().collect::<Vec<_>>(),
        ["shop/orders@sha256:bb"]
    );
    assert_eq!(found.compose_service.as_deref(), Some("orders"));
    assert_eq!(
        found.settings,
        Settings {
            privileged: Some(false),
            granted_capabilities: Some(vec!["sys_ptrace".to_owned()]),
            ..Settings::default()
        }
    );
    assert_eq!(evidence.display_name(), "orders");
    let asked = engine.asked();
    // From now on it lies, and nobody asks.
    engine.says(|_| None);
    assert_eq!(attested(&node, &mut told), evidence);
    assert_eq!(engine.asked(), asked);
}

#[test]
fn a_container_without_an_id_in_its_cgroups_name_is_found_among_all() {
    let (cgroup, mut told) = container("nameless");
    let engine = Engine::new(honest(ID, first_pid(&mut told), LATER));
    let evidence = attested(&engine.node(), &mut told);
    assert_eq!(evidence.assurance, Assurance::Inspected);
    assert_eq!(evidence.workload.cgroup_id, id_of(&cgroup));
}

#[test]
fn a_cgroup_named_after_a_victims_id_does_not_get_its_metadata() {
    let (_victims, mut victim, pid) = named(ID);
    let engine = Engine::new(honest(ID, pid, LATER));
    let node = engine.node();
    // Its own cgroup has the name; and one inside of its own.
    let (_own, mut attacker, _) = named(ID);
    let (outer, mut nested) = container("nested");
    let inner = outer.inside(&format!("docker-{ID}.scope"));
    for directory in inner.directories() {
        nested.tell(&format!("move {}", directory.display()));
    }
    for attacker in [&mut attacker, &mut nested] {
        let evidence = attested(&node, attacker);
        assert_eq!(
            (evidence.assurance, &evidence.container),
            (Assurance::Kernel, &None)
        );
    }
    assert_eq!(attested(&node, &mut victim).assurance, Assurance::Inspected);
}

#[test]
fn the_outermost_known_container_wins() {
    const INNER: &str = "bb1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
    let (outer, mut told, pid) = named(ID);
    let (_victims, mut victim, victims_pid) = named(INNER);
    let (mut one, mut other) = (honest(ID, pid, LATER), honest(INNER, victims_pid, LATER));
    let engine = Engine::new(move |path| one(path).or_else(|| other(path)));
    let node = engine.node();
    assert_eq!(attested(&node, &mut victim).container.unwrap().id, INNER);
    let inner = outer.inside(INNER);
    for directory in inner.directories() {
        told.tell(&format!("move {}", directory.display()));
    }
    let evidence = attested(&node, &mut told);
    assert_eq!(evidence.container.unwrap().id, ID);
    assert_eq!(evidence.workload.cgroup_id, id_of(&outer));
}

#[test]
fn an_engine_that_lies_or_raves_is_not_believed() {
    let cases: [(&str, Says); 5] = [
        (
            "another id",
            Box::new(|path| {
                path.starts_with("/containers/4")
                    .then(|| inspected(DIGEST, 1, LATER))
            }),
        ),
        ("a stopped container", Box::new(honest(ID, 0, LATER))),
        (
            "our own pid",
            Box::new(honest(ID, std::process::id(), LATER)),
        ),
        ("no such pid", Box::new(honest(ID, 999_999_999, LATER))),
        ("no such container", Box::new(|_| None)),
    ];
    for (what, says) in cases {
        let (_cgroup, mut told, _) = named(ID);
        let engine = Engine::new(says);
        let evidence = attested(&engine.node(), &mut told);
        assert_eq!(
            (evidence.assurance, evidence.container),
            (Assurance::Kernel, None),
            "{what}"
        );
    }
}

#[test]
fn a_container_that_changes_meanwhile_is_not_bound() {
    for later in ["pid", "start", "image", "settings"] {
        let (_cgroup, mut told, pid) = named(ID);
        let mut count = 0;
        let mut usual = honest(ID, pid, LATER);
        let engine = Engine::new(move |path| {
            let answer = usual(path)?;
            count += u32::from(path.ends_with(&format!("{ID}/json")));
            // Every other time, so that no two answers in a row agree.
            Some(match (count % 2 == 0, later) {
                (false, _) => answer,
                (true, "pid") => answer.replace(&format!("\"Pid\":{pid}"), "\"Pid\":0"),
                (true, "start") => answer.replace("2999", "3000"),
                (true, "settings") => answer.replace("\"Privileged\":false", "\"Privileged\":true"),
                (true, _) => answer.replace("sha256:aa", "sha256:ab"),
            })
        });
        let evidence = attested(&engine.node(), &mut told);
        assert_eq!(evidence.assurance, Assurance::Kernel, "{later}");
    }
}

/// A container has died, a process in a cgroup of its name has got its pid, and the engine has not
/// noticed yet.
#[test]
fn a_process_younger_than_its_container_waits_for_the_engine_to_notice() {
    let (_cgroup, mut told, pid) = named(ID);
    let asked = Instant::now();
    let mut usual = honest(ID, pid, EARLIER);
    let engine = Engine::new(move |path| {
        let noticed = asked.elapsed() > Duration::from_millis(500);
        usual(path).filter(|_| !(noticed && path.contains(ID)))
    });
    let node = engine.node();
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    // Or the host's clock was set since, and the engine still says the same.
    engine.says(honest(ID, pid, EARLIER));
    let node = engine.node();
    let start = Instant::now();
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Inspected);
    assert!(start.elapsed() > Duration::from_millis(900));
}

#[test]
fn behind_an_engine_that_gives_no_answer_nobody_passes_for_a_bare_container() {
    for answer in ["{".repeat(100_000), " ".repeat(9 << 20)] {
        let (_cgroup, mut told, _) = named(ID);
        let engine = Engine::new(move |_| Some(answer.clone()));
        refused(&engine.node(), &mut told);
    }
}

fn refused(node: &Node, told: &mut Told) {
    let (_stream, peer) = node.connected(told);
    let error = node.attest(&peer).unwrap_err();
    assert_eq!(error.reason, "engine_unavailable", "{error}");
    assert_eq!(error.code(), Code::Unavailable);
}

#[test]
fn an_engine_that_is_not_there_is_no_engine() {
    let path = std::env::temp_dir().join(unique("absent"));
    let node = Node::with_engines(&[], vec![path.clone()]);
    let (_cgroup, mut told, _) = named(ID);
    // The second time it is not asked.
    for _ in 0..2 {
        assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    }
    drop(UnixListener::bind(&path).unwrap());
    let node = Node::with_engines(&[], vec![path.clone()]);
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_silent_engine_costs_its_time_once() {
    let path = std::env::temp_dir().join(unique("silent"));
    let _listener = UnixListener::bind(&path).unwrap();
    let node = Node::with_engines(&[], vec![path.clone()]);
    let (_cgroup, mut told, _) = named(ID);
    let start = Instant::now();
    refused(&node, &mut told);
    assert!(start.elapsed() < Duration::from_secs(4));
    let (_other, mut other, _) = named(ID);
    let start = Instant::now();
    refused(&node, &mut other);
    assert!(start.elapsed() < Duration::from_secs(1));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_companion_in_a_container_of_its_own_is_named() {
    const OTHER: &str = "cc1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
    let (application, mut told, pid) = named(ID);
    let sidecar = Cgroup::new(&format!("docker-{OTHER}.scope"));
    let namespace = format!("--pid=/proc/{pid}/ns/pid");
    let words = ["nsenter", &namespace, "unshare", "--mount", "--net"];
    let mut companion = Told::start(&sidecar, &words);
    let companions_pid = {
        let node = Node::new(&[]);
        let (_stream, peer) = node.connected(&mut companion);
        peer.pid()
    };
    let (mut one, mut other) = (honest(ID, pid, LATER), honest(OTHER, companions_pid, LATER));
    let engine = Engine::new(move |path| one(path).or_else(|| other(path)));
    let node = engine.node();
    let (_stream, peer) = node.connected(&mut companion);
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.container.unwrap().id, ID);
    assert_eq!(evidence.workload.cgroup_id, id_of(&application));
    assert_eq!(evidence.init_pid, pid);
    let found = evidence.companion.unwrap();
    assert_eq!(found.cgroup_id, id_of(&sidecar));
    assert_eq!(found.container.unwrap().id, OTHER);
    // Its own container's first process tells where it began.
    assert_eq!(evidence.own_namespaces, Some(true));
    companion.tell("unshare mount");
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.own_namespaces, Some(false));
    // The application itself is the same workload, without a companion.
    let own = attested(&node, &mut told);
    assert_eq!((own.workload, own.companion), (evidence.workload, None));
}
