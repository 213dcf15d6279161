//! The last moment of each process: the kernel does not wipe the pages that it takes back, so nothing may
//! stand in them.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, TempDir, Traced, random_text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::super::resilience::app::{self, App, SOON};
use super::super::resilience::node::{Node, broker_for_nodes};
use super::search::{Search, values};

/// The parts of a host of its own, with four values published, one of them rotated.
struct Scene {
    broker: Broker,
    node: Node,
    app: App,
    search: Search,
    values: Vec<(String, Vec<u8>)>,
}

impl Scene {
    fn new() -> Result<Self> {
        let (broker, address) = broker_for_nodes()?;
        let node = Node::start(&broker, &address, "residue-node-1")?;
        let mut values = values(4)?;
        let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
        app::kv_credentials(&broker, &names, app::TOKENS)?;
        for (name, value) in &values {
            app::put(&broker, name, value)?;
        }
        let app = App::start(&node.workload_dir(), "")?;
        for (name, value) in &values {
            app.wait_for_secret(name, value, SOON)?;
        }
        let mut search = Search::of(&values);
        let (name, value) = &mut values[0];
        *value = random_text(44)?.into_bytes();
        app::put(&broker, name, value)?;
        app.wait_for_secret(name, value, SOON)?;
        search.add(name, value);
        Ok(Self {
            broker,
            node,
            app,
            search,
            values,
        })
    }

    /// Ends a process with SIGTERM and searches what it leaves.
    fn ends(&self, what: &str, pid: i32, control: &str) -> Result<()> {
        let term = || Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?);
        let look = || self.search.process(what, pid, control);
        let seen = Traced::seize(pid)?.at_exit(term, look);
        seen.with_context(|| format!("the last moment of the {what}"))
    }

    /// Runs the admin program to its end and searches what it leaves; gives what it printed.
    fn mayfly(&self, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let dir = TempDir::new()?;
        let gate = dir.join("gate");
        mkfifo(&gate, Mode::S_IRWXU)?;
        let mayfly = self.broker.mayfly()?;
        // It must not be over before it is traced.
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"read -r _ <"$0"; exec "$@""#])
            .arg(&gate);
        command.arg(mayfly.get_program()).args(mayfly.get_args());
        command.args(args).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let pid = child.id().cast_signed();
        let mut stdin = child.stdin.take().context("no input")?;
        let go = || {
            std::fs::write(&gate, "go\n")?;
            stdin.write_all(input)?;
            drop(stdin);
            Ok(())
        };
        let look = || {
            self.search
                .process("admin program", pid, args[args.len() - 1])
        };
        Traced::seize(pid)?
            .at_exit(go, look)
            .with_context(|| format!("the last moment of mayfly {args:?}"))?;
        // It was waited for already, by whom it was traced.
        let (mut said, mut complained) = (Vec::new(), String::new());
        if let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) {
            out.read_to_end(&mut said)?;
            err.read_to_string(&mut complained)?;
        }
        ensure!(complained.is_empty(), "mayfly {args:?}: {complained}");
        Ok(said)
    }
}

#[test]
fn nobody_leaves_a_secret_in_the_memory_that_goes_back() -> Result<()> {
    let mut scene = Scene::new()?;
    // The admin program, with values in its hands: in and out, by pipe and by file, as text and as JSON.
    let text = random_text(40)?;
    scene.search.add("put by pipe", text.as_bytes());
    scene.mayfly(
        &["kv", "put", "--trim", "e2e/credential-number-3"],
        text.as_bytes(),
    )?;
    scene
        .app
        .wait_for_secret("credential-number-3", text.as_bytes(), SOON)?;
    let path = "e2e/credential-number-0";
    let read = scene.mayfly(&["kv", "get", "--field", "value", path], b"")?;
    ensure!(read == scene.values[0].1, "kv get printed something else");
    for options in [
        &["kv", "get", "--reveal"][..],
        &["--output", "json", "kv", "get", "--reveal"],
    ] {
        let read = scene.mayfly(&[options, &[path]].concat(), b"")?;
        ensure!(
            String::from_utf8_lossy(&read).contains(std::str::from_utf8(&scene.values[0].1)?),
            "mayfly {options:?} printed something else"
        );
    }

    let fetch = "curl -s --unix-socket /run/mayfly/workload.sock \
                 http://m/v1/credentials/credential-number-2/value";
    ensure!(scene.app.tell(fetch)?.as_bytes() == scene.values[2].1);

    // The sidecar alone, which is started again; then with its application.
    let sidecar = scene.app.sidecar()?;
    scene.ends("sidecar", sidecar, "/run/mayfly/workload.sock")?;
    wait_until(SOON, "another sidecar", || {
        Ok((scene.app.sidecar()? != sidecar).then_some(()))
    })?;
    scene
        .app
        .wait_for_secret("credential-number-3", text.as_bytes(), SOON)?;
    scene.ends("shim", scene.app.bare().pid(), "/mf/mayfly-shim\0run")?;
    scene.ends("node", scene.node.pid()?, "run/workload.sock")?;
    // It has heard of the death, and has nothing more to say.
    std::thread::sleep(Duration::from_millis(100));
    scene.ends("broker", scene.broker.pid()?, "credential-number-3")
}
