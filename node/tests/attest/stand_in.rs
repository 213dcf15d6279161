//! A container engine that says what a test wants. What Docker really says is tested with Docker.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::harness::{Cgroup, NAMESPACES, Node, Told, unique};
use mayfly_wire::Evidence;

pub const ID: &str = "4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
pub const DIGEST: &str = "sha256:aa1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";

pub type Says = Box<dyn FnMut(&str) -> Option<String> + Send>;

/// What the engine stumbles over, in the place of an answer: it answers 500, or not at all.
pub const FAILS: &str = "fails";
pub const HANGS: &str = "hangs";

fn answer(mut stream: UnixStream, says: &Mutex<Says>, asked: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    asked.fetch_add(1, Ordering::Relaxed);
    let path = first.split(' ').nth(1).unwrap();
    let said = (says.lock().unwrap())(path);
    let (status, body) = match said {
        Some(said) if said == HANGS => {
            // Until the one who asked gives up.
            let _gone = lines.next();
            return;
        }
        Some(said) if said == FAILS => ("500 Internal Server Error", said),
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

/// An engine that answers each path with what `says` makes of it.
pub struct Engine {
    pub path: PathBuf,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Engine {
    pub fn new(says: impl FnMut(&str) -> Option<String> + Send + 'static) -> Self {
        let path = std::env::temp_dir().join(unique("engine"));
        let listener = UnixListener::bind(&path).unwrap();
        let says: Arc<Mutex<Says>> = Arc::new(Mutex::new(Box::new(says)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (Arc::clone(&says), Arc::clone(&asked));
        // They end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, count) = (Arc::clone(&answers), Arc::clone(&count));
                std::thread::spawn(move || answer(stream.unwrap(), &answers, &count));
            }
        });
        Self { path, says, asked }
    }

    pub fn says(&self, says: impl FnMut(&str) -> Option<String> + Send + 'static) {
        *self.says.lock().unwrap() = Box::new(says);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn node(&self) -> Node {
        Node::with_engines(&[], vec![self.path.clone()])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Says that this pid is a container's, which was started at some time.
pub fn honest(
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
pub const LATER: &str = "2999-01-01T00:00:00.000000000Z";
/// Before.
pub const EARLIER: &str = "2001-01-01T00:00:00.000000000Z";

pub fn inspected(id: &str, pid: u32, started: &str) -> String {
    format!(
        r#"{{"Id":"{id}","Name":"/orders","Image":"{DIGEST}",
        "State":{{"Pid":{pid},"StartedAt":"{started}"}},
        "Config":{{"Image":"shop/orders:latest","Labels":{{"com.docker.compose.project":"shop",
        "com.docker.compose.service":"orders"}}}},
        "HostConfig":{{"Privileged":false,"CapAdd":["SYS_PTRACE"],"CapDrop":null}}}}"#
    )
}

/// A container whose cgroup's name has the id in it, and the pid of its first process.
pub fn named(id: &str) -> (Cgroup, Told, u32) {
    let cgroup = Cgroup::new(&format!("docker-{id}.scope"));
    let mut told = Told::start(&cgroup, &NAMESPACES);
    let pid = first_pid(&mut told);
    (cgroup, told, pid)
}

pub fn first_pid(told: &mut Told) -> u32 {
    let node = Node::new(&[]);
    let (_stream, peer) = node.connected(told);
    peer.pid()
}

pub fn attested(node: &Node, told: &mut Told) -> Evidence {
    let (_stream, peer) = node.connected(told);
    node.attest(&peer).unwrap().evidence
}
