//! Requests to the shim: one at a time, each with its own answer.

use crate::sandbox::Sandbox;
use crate::server::{Server, value};
use mayfly_wire::Code;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

struct Shim {
    stream: BufReader<UnixStream>,
    sidecar: Child,
}

impl Shim {
    /// One that starts its application with these, or if there are none with a complete set; `None` if
    /// it runs already.
    fn start(sandbox: &Sandbox, config: &str, awaited: Option<&str>) -> Self {
        let config = sandbox.config(config);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        let sidecar = Command::new(env!("CARGO_BIN_EXE_mayfly-sidecar"))
            .args(["--shim", "--config", &config, "--dir"])
            .arg(sandbox.dir())
            .arg("--socket")
            .arg(sandbox.socket())
            .args(awaited.map(|names| format!("--awaited={names}")))
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let stream = BufReader::new(ours);
        Self { stream, sidecar }
    }

    fn is_asked(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    fn is_left_alone(&mut self, duration: Duration) -> bool {
        let limit = |limit| self.stream.get_ref().set_read_timeout(Some(limit)).unwrap();
        limit(duration);
        let nothing = self.stream.buffer().is_empty() && self.stream.fill_buf().is_err();
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        nothing
    }

    fn answer(&mut self, answer: &str) {
        self.stream.get_mut().write_all(answer.as_bytes()).unwrap();
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.sidecar.kill();
        let _ = self.sidecar.wait();
    }
}

const ON_HUP: &str = "[application]\nprocess = \"parent\"\n\
                      [[notify]]\nsignal = \"HUP\"\ndebounce = \"1ms\"\n[acknowledge]\n";
const MOMENT: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn what_runs_with_what_it_waited_for_is_told_whatever_else_is_missing() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(&sandbox, ON_HUP, Some("a"));
    let mut peer = server.session();
    peer.bundle_without(&[value("c", "1")], "a", Code::Unavailable);
    peer.acknowledged();
    peer.bundle_without(&[value("a", "1"), value("c", "1")], "b", Code::Unavailable);
    peer.acknowledged();
    // It runs by now, with the first `a`, and nobody says in its place that it uses the second.
    peer.bundle_without(&[value("a", "2"), value("c", "1")], "b", Code::Unavailable);
    assert_eq!(shim.is_asked(), "signal 1\n");
    assert!(peer.is_silent(MOMENT));
    shim.answer("ok\n");
    peer.acknowledged();
    peer.bundle(&[value("a", "2"), value("b", "1"), value("c", "1")]);
    assert_eq!(shim.is_asked(), "signal 1\n");
    shim.answer("ok\n");
    peer.acknowledged();
}

#[test]
fn what_is_not_started_is_not_told_and_what_runs_is_even_of_a_first_set() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(&sandbox, ON_HUP, Some(""));
    let mut peer = server.session();
    for content in ["1", "2"] {
        peer.bundle_without(&[value("a", content)], "b", Code::Unavailable);
        peer.acknowledged();
    }
    peer.publish(&[value("a", "2"), value("b", "1")]);
    assert!(shim.is_left_alone(MOMENT));
    peer.bundle(&[value("a", "2"), value("b", "2")]);
    assert_eq!(shim.is_asked(), "signal 1\n");
    shim.answer("ok\n");
    peer.acknowledged();
    // Its sidecar was ended, took everything with it, and is started again.
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(&sandbox, ON_HUP, None);
    let mut peer = server.session();
    peer.bundle(&[value("a", "3")]);
    assert_eq!(shim.is_asked(), "signal 1\n");
    assert!(peer.is_silent(MOMENT));
    shim.answer("ok\n");
    peer.acknowledged();
}

#[test]
fn a_second_request_waits_for_the_answer_to_the_first() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(
        &sandbox,
        "[application]\nprocess = \"parent\"\n\
         [[notify]]\nsignal = \"HUP\"\ndebounce = \"1ms\"\ntimeout = \"8s\"\n\
         [[notify]]\nrestart = true\ndebounce = \"1ms\"\ntimeout = \"8s\"\n",
        Some(""),
    );
    let mut peer = server.session();
    peer.publish(&[value("a", "1")]);
    peer.publish(&[value("a", "2")]);
    let first = shim.is_asked();
    assert!(shim.is_left_alone(Duration::from_millis(500)));
    shim.answer("ok\n");
    let second = shim.is_asked();
    let mut both = [first.trim(), second.trim()];
    both.sort_unstable();
    assert_eq!(both, ["restart", "signal 1"]);
    assert_eq!(
        sandbox.status()["status"]["notify"][0]["error"],
        serde_json::Value::Null
    );
    shim.answer("ok\n");
    assert!(shim.is_left_alone(Duration::from_millis(500)));
}

#[test]
fn what_could_not_be_done_is_asked_again() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(
        &sandbox,
        "[application]\nprocess = \"parent\"\n[[notify]]\non = [\"a\"]\nsignal = \"HUP\"\n\
         [[notify]]\non = [\"b\"]\nrestart = true\n",
        Some(""),
    );
    let mut peer = server.session();
    peer.publish(&[value("a", "1"), value("b", "1")]);
    peer.publish(&[value("a", "2"), value("b", "1")]);
    assert_eq!(shim.is_asked(), "signal 1\n");
    shim.answer("ok\n");
    peer.publish(&[value("a", "2"), value("b", "2")]);
    for answer in ["it does not end\n", "ok\n"] {
        assert_eq!(shim.is_asked(), "restart\n");
        shim.answer(answer);
    }
}

#[test]
fn a_late_answer_counts_for_what_it_answers_and_for_nothing_else() {
    let sandbox = Sandbox::new();
    let server = Server::bind(&sandbox.socket());
    let mut shim = Shim::start(
        &sandbox,
        "[application]\nprocess = \"parent\"\n\
         [[notify]]\non = [\"a\"]\nrestart = true\ndebounce = \"1ms\"\ntimeout = \"1s\"\n\
         attempts = 100\n\
         [[notify]]\non = [\"b\"]\nsignal = \"HUP\"\ndebounce = \"1ms\"\ntimeout = \"30s\"\n",
        Some(""),
    );
    let notify = |number: usize| {
        let status = sandbox.status();
        let told = &status["status"]["notify"][number];
        (told["state"].clone(), told["error"].clone())
    };
    let wait_for = |number: usize, state: &str, error: &str| {
        let start = Instant::now();
        loop {
            let (found, why) = notify(number);
            if found == state && why.as_str().unwrap_or("").contains(error) {
                return;
            }
            let late = start.elapsed() > LIMIT;
            assert!(!late, "{found} {why}, not {state} {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut peer = server.session();
    peer.publish(&[value("a", "1"), value("b", "1")]);
    peer.publish(&[value("a", "2"), value("b", "1")]);
    assert_eq!(shim.is_asked(), "restart\n");
    wait_for(0, "pending", "longer than 1s");
    // It was given up, not answered: nothing more is asked, by anybody.
    peer.publish(&[value("a", "2"), value("b", "2")]);
    assert!(shim.is_left_alone(Duration::from_millis(1_500)));
    // The restart failed, which is no word about the signal; that is asked now.
    shim.answer("it does not end\n");
    let mut asked = vec![shim.is_asked()];
    shim.answer("ok\n");
    asked.push(shim.is_asked());
    shim.answer("ok\n");
    asked.sort_unstable();
    assert_eq!(asked, ["restart\n", "signal 1\n"]);
    wait_for(0, "idle", "");
    wait_for(1, "idle", "");
    // Late, and good: it is not done a second time.
    peer.publish(&[value("a", "3"), value("b", "2")]);
    assert_eq!(shim.is_asked(), "restart\n");
    wait_for(0, "pending", "longer than 1s");
    shim.answer("ok\n");
    wait_for(0, "idle", "");
    assert!(shim.is_left_alone(Duration::from_millis(1_000)));
    // But what has changed since has not been told.
    peer.publish(&[value("a", "4"), value("b", "2")]);
    assert_eq!(shim.is_asked(), "restart\n");
    wait_for(0, "pending", "longer than 1s");
    peer.publish(&[value("a", "5"), value("b", "2")]);
    shim.answer("ok\n");
    assert_eq!(shim.is_asked(), "restart\n");
    shim.answer("ok\n");
    wait_for(0, "idle", "");
}
