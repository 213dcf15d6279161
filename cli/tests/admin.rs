//! The program itself, against an admin socket that answers what each test says.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy.toml does not know as such"
)]

use mayfly_wire::Code;
use mayfly_wire::Refusal;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

/// One request as it arrived: `METHOD PATH`, and its body.
type Asked = (String, String);

/// A socket that answers each request by its first line, and tells what was asked.
struct Broker {
    socket: PathBuf,
    asked: Receiver<Asked>,
}

impl Broker {
    fn answering(name: &str, answer: impl Fn(&str) -> (u16, Value) + Send + 'static) -> Self {
        let socket =
            std::env::temp_dir().join(format!("mayfly-{name}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (tell, asked) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&stream.unwrap(), &tell, &answer);
            }
        });
        Self { socket, asked }
    }

    fn refusing(name: &str, code: Code) -> Self {
        let refusal = json!(Refusal::because(code, "the cause, for the operator"));
        Self::answering(name, move |_| (code.http_status(), refusal.clone()))
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        run(&self.socket, arguments, input)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.try_iter().collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn run(socket: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .env("MAYFLY_ADMIN_SOCKET", socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without having read any of it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Reads one request, tells of it before whoever asked can be done with the answer, answers it, and ends
/// the connection.
fn serve(stream: &UnixStream, tell: &Sender<Asked>, answer: &dyn Fn(&str) -> (u16, Value)) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let asked = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let (status, json) = answer(&asked);
    // Whoever listened may be gone.
    let _ = tell.send((asked, String::from_utf8(body).unwrap()));
    let text = json.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let mut writer = stream;
    writer.write_all((head + &text).as_bytes()).unwrap();
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn each_refusal_has_its_exit_status_and_tells_the_cause() {
    for (code, status) in [
        (Code::Denied, 3),
        (Code::NotFound, 4),
        (Code::Conflict, 5),
        (Code::Sealed, 6),
        (Code::Internal, 1),
    ] {
        let broker = Broker::refusing(&format!("refusing-{status}"), code);
        let output = broker.run(&["leases"], "");
        assert_eq!(output.status.code(), Some(status), "{code:?}");
        assert_eq!(
            text(&output.stderr),
            "mayfly: the cause, for the operator\n"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn nobody_there_is_told_with_the_socket() {
    let output = run(Path::new("/nowhere/admin.sock"), &["status"], "");
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains("/nowhere/admin.sock"));
}

#[test]
fn a_value_is_not_even_asked_for_unless_it_shall_be_shown() {
    let version = json!({"path": "a/b", "version": 2, "created_at": 0, "deleted": false,
        "fields": ["value"]});
    let value = json!({"path": "a/b", "version": 2, "fields": {"value": "czNjcmV0"}});
    let broker = Broker::answering("get", move |asked| {
        let history = asked.starts_with("GET /v1/kv-history/");
        (
            200,
            if history {
                json!([version])
            } else {
                value.clone()
            },
        )
    });
    let output = broker.run(&["kv", "get", "a/b"], "");
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("fields: value"));
    assert_eq!(
        broker.asked(),
        [("GET /v1/kv-history/a/b".to_owned(), String::new())]
    );
    let output = broker.run(&["kv", "get", "a/b", "--field", "value"], "");
    assert_eq!(output.stdout, b"s3cret");
    let output = broker.run(&["kv", "get", "a/b", "--field", "other"], "");
    assert_eq!(output.status.code(), Some(4));
    assert!(output.stdout.is_empty() && !text(&output.stderr).contains("s3cret"));
}

#[test]
fn a_value_goes_from_standard_input_to_the_broker_byte_for_byte() {
    let stored = json!({"path": "a/b", "version": 1, "created_at": 0, "deleted": false,
        "fields": ["value"]});
    let broker = Broker::answering("put", move |_| (200, stored.clone()));
    let output = broker.run(&["kv", "put", "a/b", "--if-version", "0"], "s3cret\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let asked = broker.asked();
    let (line, body) = &asked[0];
    assert_eq!(line, "PUT /v1/kv/a/b");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        json!({"fields": {"value": "czNjcmV0Cg"}, "if_version": 0})
    );
}

#[test]
fn a_value_in_an_argument_is_refused_and_not_repeated() {
    let broker = Broker::refusing("argument", Code::Internal);
    for arguments in [
        &["kv", "put", "a/b", "password=hunter2"][..],
        &["kv", "put", "a/b", "--field", "password=hunter2"],
        &["kv", "put", "a/b", "--field", "hunter2"],
    ] {
        let output = broker.run(arguments, "");
        assert_eq!(output.status.code(), Some(2));
        assert!(
            !text(&output.stderr).contains("hunter2"),
            "{}",
            text(&output.stderr)
        );
    }
    assert!(broker.asked().is_empty(), "the broker must not hear of it");
}

#[test]
fn apply_holds_on_to_the_plan_that_was_shown() {
    let dir = std::env::temp_dir().join(format!("mayfly-apply-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let config = "[credential.x]\nengine = \"kv\"\npath = \"p\"\nttl = \"1m\"\n";
    std::fs::write(dir.join("a.toml"), config).unwrap();
    let change = json!({"action": "create", "kind": "credential", "name": "x", "details": [],
        "leases": 0});
    let plan = json!({"base": 41, "changes": [change]});
    let broker = Broker::answering("apply", move |asked| {
        let check = asked == "POST /v1/policy/check";
        (
            200,
            if check {
                json!({"policies": 0, "problems": []})
            } else {
                plan.clone()
            },
        )
    });
    let dir_text = dir.to_str().unwrap();
    let output = broker.run(&["apply", "-f", dir_text], "y\n");
    assert_eq!(
        output.status.code(),
        Some(2),
        "nobody is asked through a pipe"
    );
    assert!(
        broker
            .asked()
            .iter()
            .all(|(line, _)| line != "POST /v1/apply")
    );
    let output = broker.run(&["apply", "-f", dir_text, "--yes"], "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let asked = broker.asked();
    let (line, body) = asked.last().unwrap();
    assert_eq!(line, "POST /v1/apply");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["base"], 41);
    assert_eq!(body["desired"]["credentials"][0]["ttl_seconds"], 60);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_mistake_in_the_configuration_is_told_before_the_broker_is_asked() {
    let dir = std::env::temp_dir().join(format!("mayfly-mistake-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(
        dir.join("a.toml"),
        "[credential.x]\nengine = \"kv\"\npth = \"p\"\nttl = \"1m\"\n",
    )
    .unwrap();
    let broker = Broker::refusing("mistake", Code::Internal);
    let output = broker.run(&["plan", "-f", dir.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(
        text(&output.stderr).contains("a.toml:3: "),
        "{}",
        text(&output.stderr)
    );
    assert!(broker.asked().is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_mistake_that_the_broker_finds_is_told_with_its_place() {
    let dir = std::env::temp_dir().join(format!("mayfly-found-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let config = "[credential.x]\nengine = \"kv\"\npath = \"p\"\nttl = \"1s\"\n";
    std::fs::write(dir.join("a.toml"), config).unwrap();
    let broker = Broker::answering("found", |asked| match asked {
        "POST /v1/policy/check" => (200, json!({"policies": 0, "problems": []})),
        _ => {
            let said = "credential x: ttl: expected 5 seconds\nb.cedar:7: expected another";
            (400, json!(Refusal::because(Code::BadRequest, said)))
        }
    });
    std::fs::write(dir.join("b.cedar"), "").unwrap();
    let output = broker.run(&["plan", "-f", dir.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(64));
    let (said, at) = (text(&output.stderr), dir.display());
    let expected = format!(
        "mayfly: {at}/a.toml:4: credential x: ttl: expected 5 seconds\n\
         {at}/b.cedar:7: expected another\n"
    );
    assert_eq!(said, expected);
    std::fs::remove_dir_all(dir).unwrap();
}

/// A new terminal, and a `kv put` that has it as its own and asks on it. Nothing is typed before the
/// question, because what came before is thrown away.
fn asking(broker: &Broker) -> (OpenptyResult, Child) {
    let terminal = openpty(None, None).unwrap();
    let mut child = Command::new("setsid")
        .arg("--ctty")
        .arg(env!("CARGO_BIN_EXE_mayfly"))
        .arg("--socket")
        .arg(&broker.socket)
        .args(["kv", "put", "orders/db"])
        .stdin(terminal.slave.try_clone().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 64];
    let length = child.stderr.as_mut().unwrap().read(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said[..length]).starts_with("Value"));
    assert!(!echoes(&terminal), "what is typed would be shown");
    (terminal, child)
}

fn echoes(terminal: &OpenptyResult) -> bool {
    let flags = tcgetattr(&terminal.slave).unwrap().local_flags;
    flags.contains(LocalFlags::ECHO)
}

#[test]
fn a_value_is_asked_for_twice_on_a_terminal_and_not_shown() {
    let broker = Broker::answering("terminal", |_| {
        let version = json!({"path": "orders/db", "version": 1, "created_at": 1, "deleted": false,
            "fields": ["value"]});
        (200, version)
    });
    let (terminal, child) = asking(&broker);
    let mut master = File::from(terminal.master.try_clone().unwrap());
    // Both lines at once, as from a paste.
    master.write_all(b"sesame\nsesame\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(echoes(&terminal));
    let (line, body) = broker.asked().remove(0);
    assert_eq!(line, "PUT /v1/kv/orders/db");
    assert!(body.contains("c2VzYW1l"), "{body}");
    let mut shown = [0; 64];
    let length = master.read(&mut shown).unwrap();
    assert!(!String::from_utf8_lossy(&shown[..length]).contains("sesame"));
}

#[test]
fn whatever_ends_the_asking_leaves_the_terminal_as_it_was() {
    let broker = Broker::refusing("interrupted", Code::Internal);
    // Ctrl-C as it is typed, and a signal from elsewhere.
    let (terminal, mut child) = asking(&broker);
    let mut master = File::from(terminal.master.try_clone().unwrap());
    master.write_all(b"half a sec\x03").unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    assert!(echoes(&terminal), "Ctrl-C left the terminal without echo");

    let (terminal, mut child) = asking(&broker);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert!(echoes(&terminal), "SIGTERM left the terminal without echo");
    assert!(broker.asked().is_empty());
}
