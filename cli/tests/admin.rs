//! The program itself, against an admin socket that answers what each test says.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy.toml does not know as such"
)]

use mayfly_wire::Code;
use mayfly_wire::Refusal;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

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
                let (line, body) = serve(&stream.unwrap(), &answer);
                if tell.send((line, body)).is_err() {
                    break;
                }
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
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// Reads one request, answers it, and ends the connection.
fn serve(stream: &UnixStream, answer: &dyn Fn(&str) -> (u16, Value)) -> Asked {
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
    let text = json.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let mut writer = stream;
    writer.write_all((head + &text).as_bytes()).unwrap();
    (asked, String::from_utf8(body).unwrap())
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
        "[credential.x]\nengine = \"kv\"\npth = \"p\"\n",
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
