//! Where figures are taken: a broker with its embedded node, a configuration, bare containers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{Bare, BareOptions, Broker, BrokerOptions, Realm, binary, random_text};

/// How long anything may take before the bench gives up.
pub const LIMIT: Duration = Duration::from_secs(20);
/// The credential of the figures that need one.
pub const CREDENTIAL: &str = "bench";
/// Where the benches' own program is in a container.
const PROGRAM: &str = "/opt/bench";

/// Everyone may have everything: what is measured is a decision, not a refusal.
pub const POLICY: &str = r#"
@id("bench")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;

/// What is measured is how fast it can be, and a few containers ask for all of it.
const UNPACED: &str = "limits.requests_per_second_per_container = 1000000\n\
    limits.request_burst_per_container = 1000000\n";

/// A configured broker.
pub struct Place {
    /// It.
    pub broker: Broker,
}

impl Place {
    /// Starts one with these credentials, each with a value.
    pub fn new(options: BrokerOptions, names: &[String]) -> Result<Self> {
        let mut credentials = String::new();
        for name in names {
            credentials.push_str(&format!(
                "[credential.{name}]\nengine = \"kv\"\npath = \"bench/{name}\"\nttl = \"1h\"\n"
            ));
        }
        let place = Self::of(options, &credentials)?;
        for name in names {
            place.put(name)?.done()?;
        }
        Ok(place)
    }

    /// Starts one with this configuration.
    pub fn of(mut options: BrokerOptions, config: &str) -> Result<Self> {
        options.node.push_str(UNPACED);
        let broker = Broker::start(Realm::host(), options)?;
        broker.apply(&[("credentials.toml", config), ("policy.cedar", POLICY)])?;
        Ok(Self { broker })
    }

    /// One with the one credential.
    pub fn of_one() -> Result<Self> {
        Self::new(BrokerOptions::default(), &[CREDENTIAL.to_string()])
    }

    /// Sends a new random value, on a connection made before.
    pub fn put(&self, name: &str) -> Result<Put> {
        let value = random_text(48)?;
        let body = format!(
            "{{\"fields\":{{\"value\":\"{}\"}}}}",
            STANDARD.encode(&value)
        );
        let request = format!(
            "PUT /v1/kv/bench/{name} HTTP/1.1\r\nHost: mayfly\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(self.broker.admin_socket())
            .context("connecting to the admin socket")?;
        stream.set_read_timeout(Some(LIMIT))?;
        let begun = Instant::now();
        stream.write_all(request.as_bytes())?;
        Ok(Put {
            stream,
            value,
            begun,
        })
    }

    /// Options for a container with this broker's workload socket and the benches' own program.
    pub fn options(&self) -> Result<BareOptions> {
        options_with(&self.broker.workload_dir())
    }

    /// A container whose first process does one of the jobs of [`super::inside`].
    pub fn container(&self, job: &[&str]) -> Result<Bare> {
        run_inside(&self.options()?, job)
    }
}

/// A container's options with the workload socket's directory, the programs that stand in containers,
/// and the benches' own.
pub fn options_with(sockets: &Path) -> Result<BareOptions> {
    let own = std::env::current_exe().context("finding the bench itself")?;
    Ok(BareOptions::default()
        .bind(sockets, "run/mayfly")
        .bind(&own, PROGRAM)
        .bind(&binary("mayfly-sidecar")?, "opt/mayfly-sidecar")
        .bind(&binary("mayfly-shim")?, "opt/mayfly-shim"))
}

/// A container whose first process does one of the jobs of [`super::inside`].
pub fn run_inside(options: &BareOptions, job: &[&str]) -> Result<Bare> {
    Bare::run(
        Realm::host(),
        options,
        &[&[PROGRAM, "inside"], job].concat(),
    )
}

/// A value on its way.
pub struct Put {
    stream: UnixStream,
    /// The value.
    pub value: String,
    /// When it was sent.
    pub begun: Instant,
}

impl Put {
    /// Waits for the answer.
    pub fn done(mut self) -> Result<()> {
        let mut answer = String::new();
        self.stream
            .read_to_string(&mut answer)
            .context("waiting for the answer to a put")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "a put failed: {answer}");
        Ok(())
    }
}

/// A file of a container, as seen from outside.
pub fn file_in(container: &Bare, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/run/secrets/{name}", container.pid()))
}

/// Looks again and again, 20 times in a millisecond, until it is so; gives the time when it was.
pub fn spin(what: &str, mut so: impl FnMut() -> bool) -> Result<Instant> {
    let start = Instant::now();
    while !so() {
        if start.elapsed() > LIMIT {
            bail!("waited {LIMIT:?} for {what}");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(Instant::now())
}

/// The rest of the line in a container's output that begins with a word.
pub fn said(container: &Bare, word: &str) -> Result<String> {
    let start = format!("{word} ");
    let deadline = Instant::now() + LIMIT;
    loop {
        let logs = container.logs();
        let mut lines = logs
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        if let Some(rest) = lines.find_map(|line| line.strip_prefix(&start)) {
            return Ok(rest.trim_end().to_string());
        }
        if Instant::now() > deadline {
            bail!("waited {LIMIT:?} for {word:?} from a container; its output:\n{logs}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
