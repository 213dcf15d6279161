//! The program `mayfly-node` itself, with its broker at the other end of the node link.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers fail the test"
)]
#![expect(dead_code, reason = "the support is shared with other suites")]

mod link_server;
mod support;

use link_server::{Authority, Server};
use mayfly_node::remote::BrokerConfig;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::NodeEvent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::container::Container;
use support::{Temporary, until};

/// What the link's server tells every node to watch: nobody of this boot.
fn workload() -> WorkloadKey {
    WorkloadKey {
        boot_id: "boot".into(),
        cgroup_id: 7,
        pidns_id: 8,
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mayfly-node"))
}

fn write_config(directory: &Path, broker: &BrokerConfig) -> std::path::PathBuf {
    let path = directory.join("node.toml");
    let text = format!(
        "[node]\nname = \"node-1\"\nworkload_socket = {:?}\nengine_sockets = []\n\
         [broker]\naddresses = {:?}\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        directory.join("own/workload.sock"),
        broker.addresses,
        broker.ca,
        broker.certificate,
        broker.key,
    );
    std::fs::write(&path, text).unwrap();
    path
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_reports_and_stops() {
    let directory = Temporary::new();
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let config = write_config(&directory.0, &authority.node_config(&[server.address()]));
    let mut command = program();
    command.arg("--config").arg(config).args(["--log", "json"]);
    let mut node = Program(command.stderr(Stdio::null()).spawn().unwrap());

    let socket = directory.0.join("own/workload.sock");
    until("its socket", || socket.exists().then_some(())).await;
    // Of another boot, so dead.
    let died = NodeEvent::Died {
        workload: workload(),
    };
    until("the death of one to watch", || {
        server.events().contains(&died).then_some(())
    })
    .await;

    let client = Container::hostile(&["session", socket.to_str().unwrap()]);
    client.says("status 101").await;
    let hello = client.says("hello ").await;
    client.kill();
    until("the death of the client", || {
        let deaths = server.events().into_iter().filter_map(|event| match event {
            NodeEvent::Died { workload } => Some(format!("hello {}", workload.id())),
            NodeEvent::Refused(_) | NodeEvent::PublishFailed(_) | NodeEvent::Overdue(_) => None,
        });
        deaths.into_iter().find(|death| *death == hello)
    })
    .await;

    // It keeps what it holds from others of its uid.
    let memory = format!("/proc/{}/mem", node.0.id());
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(memory).unwrap());
    assert_eq!(owner, 0);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.0.id())).unwrap();
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    assert_eq!(cores.unwrap().split_whitespace().nth(4), Some("1"));

    kill(Pid::from_raw(node.0.id() as i32), Signal::SIGTERM).unwrap();
    let status = until("its end", || node.0.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let directory = Temporary::new();
    let path = directory.0.join("node.toml");
    let broker = "[broker]\naddresses = ['broker:7443']\nca = '/nonexistent/ca.pem'\n\
                  certificate = '/nonexistent/node.pem'\nkey = '/nonexistent/node.key'\n";
    let cases = [
        ("[node]\nnam = 'x'\n".to_owned(), "nam"),
        ("[node]\nname = 'x'\n".to_owned(), "broker"),
        (format!("{broker}[node]\nname = 'a b'\n"), "node.name"),
        (
            format!("{broker}[node.limits]\nping_seconds = 0\n"),
            "node.limits.ping_seconds",
        ),
        (
            format!("{broker}[node]\nname = 'x'\n"),
            "/nonexistent/ca.pem",
        ),
        (broker.replace("broker:7443", "broker"), "broker.addresses"),
    ];
    for (text, named) in cases {
        std::fs::write(&path, &text).unwrap();
        let done = program().arg("--config").arg(&path).output().unwrap();
        let log = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(64), "{text}{log}");
        assert!(
            log.contains(named) && log.contains("node.toml"),
            "{named}: {log}"
        );
    }
    let done = program().output().unwrap();
    assert_eq!(done.status.code(), Some(64));
    let help = program().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("[broker]"));
}
