//! A server, a broker that makes roles there, and a crowd of small containers that hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Realm, Small, TempDir, binary, random_text, wait_until,
};
use serde_json::Value;

use super::record::Record;
use super::server::Server;
use crate::e2e::resilience::app::ALL;

pub const SOON: Duration = Duration::from_secs(30);

/// Two roles and a stored value for everybody.
const NAMES: [&str; 3] = ["orders-db", "plain", "reports-db"];

/// How long leases last, and what was replaced.
#[derive(Clone, Copy)]
pub struct Times {
    pub ttl: &'static str,
    pub grace: &'static str,
}

pub const LONG: Times = Times {
    ttl: "10m",
    grace: "1s",
};

/// A container of the crowd.
pub struct Member {
    pub small: Small,
    held: PathBuf,
}

impl Member {
    /// What it holds, by name: user and password of an account, nothing of anything else.
    pub fn held(&self) -> BTreeMap<String, Vec<String>> {
        self.lines("held")
    }

    /// What it lacks, by name: the code.
    pub fn missing(&self) -> BTreeMap<String, Vec<String>> {
        self.lines("missing")
    }

    fn lines(&self, kind: &str) -> BTreeMap<String, Vec<String>> {
        let text = std::fs::read_to_string(&self.held).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            (words.next()? == kind).then_some((words.next()?, words.collect()))
        });
        lines.collect()
    }
}

/// The containers.
pub struct Crowd {
    pub members: Vec<Member>,
    dir: TempDir,
    socket: PathBuf,
}

impl Crowd {
    fn new(broker: &Broker) -> Result<Self> {
        let dir = TempDir::new()?;
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        };
        // uid 1000 starts the probe, leaves its word, and finds the socket.
        open(dir.path(), 0o1777)?;
        std::fs::copy(binary("mayfly-probe")?, dir.join("probe"))?;
        let socket = broker.workload_socket();
        for above in socket.ancestors().skip(1).take(2) {
            open(above, 0o711)?;
        }
        Ok(Self {
            members: Vec::new(),
            dir,
            socket,
        })
    }

    /// One more.
    pub fn join(&mut self) -> Result<&Member> {
        let held = self.dir.join(random_text(8)?);
        let file = held.display().to_string();
        let small = self.run(&["holder", &self.socket.display().to_string(), &file])?;
        self.members.push(Member { small, held });
        self.members.last().context("nobody joined")
    }

    /// Kills one of them.
    pub fn kill(&mut self, which: usize) -> Result<()> {
        let member = self.members.swap_remove(which % self.members.len());
        member.small.kill()
    }

    /// Has as many more ask for everything so many times, one session for each, and waits for them. Each
    /// time they must be given something.
    pub fn ask(&self, containers: usize, times: usize, limit: Duration) -> Result<()> {
        let mut asking = Vec::new();
        for _ in 0..containers {
            let file = self.dir.join(random_text(8)?);
            let (socket, count) = (self.socket.display().to_string(), times.to_string());
            let small = self.run(&["asks", &socket, &count, &file.display().to_string()])?;
            asking.push((small, file));
        }
        for (_small, file) in &asking {
            let given = wait_until(limit, "the end of the asking", || {
                Ok(Some(std::fs::read_to_string(file)?))
            })?;
            ensure!(
                given.parse() == Ok(times),
                "{given} of {times} were answered"
            );
        }
        Ok(())
    }

    fn run(&self, args: &[&str]) -> Result<Small> {
        Small::run(&self.dir.join("probe"), args)
    }
}

pub struct Scene {
    pub crowd: Crowd,
    pub broker: Broker,
    pub server: Server,
    pub record: Record,
}

impl Scene {
    pub fn start(times: Times, members: usize) -> Result<Self> {
        Self::with(times, members, BrokerOptions::default())
    }

    pub fn with(times: Times, members: usize, options: BrokerOptions) -> Result<Self> {
        let server = Server::start()?;
        let broker = Broker::start(Realm::host(), options)?;
        configure(&broker, &server, times)?;
        let mut scene = Self {
            crowd: Crowd::new(&broker)?,
            broker,
            server,
            record: Record::default(),
        };
        for _ in 0..members {
            scene.crowd.join()?;
        }
        scene.settled(SOON)?;
        Ok(scene)
    }

    pub fn leases(&self) -> Result<Vec<Value>> {
        let reply = self.broker.admin().get("/v1/leases")?;
        Ok(serde_json::from_slice(&reply.body)?)
    }

    /// Waits until the leases are those of the crowd and no others, and the roles at the server are
    /// those of the leases, exactly; then reads on in the record, which must say so too.
    pub fn settled(&mut self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let settled = wait_until(limit, "roles, leases and containers to be the same", || {
            let same = self.are_the_same();
            if same.is_err() {
                std::thread::sleep(Duration::from_millis(15));
            }
            same.map(Some)
        });
        settled.with_context(|| tail(&self.broker))?;
        Ok(begun.elapsed())
    }

    fn are_the_same(&mut self) -> Result<()> {
        let leases = self.leases()?;
        self.are_the_crowds(&leases)?;
        let (roles, accounts) = (self.server.roles()?, accounts(&leases));
        ensure!(
            roles == accounts,
            "roles without a lease: {:?}; leases without a role: {:?}",
            roles.difference(&accounts).collect::<Vec<_>>(),
            accounts.difference(&roles).collect::<Vec<_>>()
        );
        self.record.read_on(&self.broker)?;
        ensure!(ids(&self.leases()?) == ids(&leases), "leases still change");
        self.record.is_of(ids(&leases).into_iter())
    }

    /// Each living container has each credential once, and nobody else has anything.
    fn are_the_crowds(&self, leases: &[Value]) -> Result<()> {
        let mut found: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for lease in leases {
            let workload = lease["workload"]["cgroup_id"].as_u64();
            let names = found.entry(workload.context("no workload")?).or_default();
            let name = lease["credential"].as_str().context("no credential")?;
            ensure!(lease["state"] == "active", "it is not active: {lease}");
            ensure!(names.insert(name), "a second lease: {lease}");
        }
        let all: BTreeSet<&str> = NAMES.into();
        let members = self.crowd.members.iter();
        let expected = members.map(|member| (member.small.id(), all.clone()));
        let expected: BTreeMap<_, _> = expected.collect();
        ensure!(
            found == expected,
            "{} containers live; leases of the dead: {:?}; containers without all of theirs: {:?}",
            expected.len(),
            found
                .keys()
                .filter(|id| !expected.contains_key(id))
                .collect::<Vec<_>>(),
            expected
                .keys()
                .filter(|id| found.get(id) != Some(&all))
                .map(|id| (id, found.get(id)))
                .collect::<Vec<_>>()
        );
        Ok(())
    }

    /// Everybody in the crowd can use what it was given last.
    pub fn all_get_in(&self) -> Result<()> {
        let mut tried = 0;
        for member in &self.crowd.members {
            for (name, account) in member.held() {
                let [user, password] = &account[..] else {
                    continue;
                };
                let asked = self.server.0.psql_as(user, password, "SELECT 1");
                asked.with_context(|| format!("{name} of {user}"))?;
                tried += 1;
            }
        }
        let expected = 2 * self.crowd.members.len();
        ensure!(tried == expected, "{tried} accounts, expected {expected}");
        Ok(())
    }

    /// The record is whole by the broker's own word.
    pub fn verified(&self) -> Result<()> {
        self.broker.cli(&["audit", "verify"]).map(drop)
    }
}

fn ids(leases: &[Value]) -> BTreeSet<&str> {
    leases
        .iter()
        .filter_map(|lease| lease["lease"].as_str())
        .collect()
}

/// The accounts of leases.
pub fn accounts(leases: &[Value]) -> BTreeSet<String> {
    let named = |lease: &Value| lease["account"].as_str().map(str::to_owned);
    leases.iter().filter_map(named).collect()
}

/// The end of the broker's log, for the message of a test that fails.
fn tail(broker: &Broker) -> String {
    let log = broker.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

pub fn configure(broker: &Broker, server: &Server, times: Times) -> Result<()> {
    let Times { ttl, grace } = times;
    let role = format!(
        r#"engine = "postgres"
connection = "shop"
ttl = "{ttl}"
grace = "{grace}"
create = ["CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL {{{{expiration}}}}"]
"#
    );
    let toml = format!(
        "[connection.shop]\nengine = \"postgres\"\nhost = \"127.0.0.1\"\nport = {}\n\
         username = \"postgres\"\ntls = \"off\"\n\
         [credential.orders-db]\n{role}[credential.reports-db]\n{role}\
         [credential.plain]\nengine = \"kv\"\npath = \"plain\"\nttl = \"{ttl}\"\n",
        server.0.port()
    );
    broker.cli_with_input(&["kv", "put", "plain"], "a value")?;
    broker.apply(&[("leases.toml", &toml), ("all.cedar", ALL)])?;
    let set = ["connection", "set", "shop"];
    let password = mayfly_tests::harness::PostgresServer::PASSWORD;
    broker.cli_with_input(&set, password).map(drop)
}
