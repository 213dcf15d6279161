//! A broker beside an engine, a victim and an attacker with a secret each, and what all attacks need.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::harness::{
    Agent, Broker, BrokerOptions, Container, Docker, Image, TempDir, example, random_text,
    wait_until,
};
use mayfly_wire::Facility;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
/// Each refusal is soon on record, also the second of a kind.
const NODE: &str = "limits.refusal_seconds = 1";
const IMAGE: &str = "attacks:app";

/// Who gets what, and a lift for each rule of the baseline that a container's label `lift` names.
const ACCESS: &str = r#"
@id("victim") permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
  resource == Mayfly::Credential::"victim-key")
when { principal has container && principal.container has compose_service
  && principal.container.compose_service == "victim" };

@id("attacker") permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
  resource == Mayfly::Credential::"attacker-key")
when { principal has container && principal.container has compose_service
  && principal.container.compose_service == "attacker" };
"#;
const CREDENTIALS: &str = r#"
[credential.victim-key]
engine = "kv"
path = "attacks/victim"
ttl = "15m"
[credential.attacker-key]
engine = "kv"
path = "attacks/attacker"
ttl = "15m"
"#;
const RULES: [&str; 7] = [
    "namespaces",
    "privileged",
    "host-pid",
    "engine-socket",
    "sys-admin",
    "sys-ptrace",
    "seccomp",
];

/// The default of every container here: a modest one.
const MODEST: [&str; 5] = [
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=1000:1000",
    "--read-only",
    "--tmpfs=/tmp:mode=1777",
];

/// See the module.
pub struct World {
    pub docker: &'static Docker,
    pub broker: Broker,
    pub victim: Container<'static>,
    pub victim_secret: String,
    pub attacker_secret: String,
    /// A directory that all containers share, as `/shared`.
    pub shared: TempDir,
    attackers: RefCell<BTreeMap<String, Rc<Container<'static>>>>,
    forbidden: BTreeSet<Facility>,
}

impl World {
    pub fn new(docker: &'static Docker) -> Result<Self> {
        Image::with_sidecar()?
            .busybox()?
            .program(&example("with_pid")?, "with_pid")?
            .program(&example("keyring_attack")?, "keyring_attack")?
            .load(docker, IMAGE)?;
        let options = BrokerOptions {
            engines: vec![docker.socket()],
            broker: "[log]\nlevel = \"info,mayfly_node=debug\"".to_string(),
            node: NODE.to_string(),
            ..BrokerOptions::default()
        };
        let broker = Broker::start(docker.realm(), options)?;
        let (victim_secret, attacker_secret) = (random_text(24)?, random_text(24)?);
        for (path, secret) in [("victim", &victim_secret), ("attacker", &attacker_secret)] {
            broker.cli_with_input(&["kv", "put", &format!("attacks/{path}"), "-"], secret)?;
        }
        let lifts = RULES.map(|rule| {
            format!(
                "@id(\"lift-{rule}\") @lifts(\"baseline-{rule}\") permit (principal is \
                 Mayfly::Workload, action == Mayfly::Action::\"issue\", resource) when \
                 {{ principal.hasTag(\"lift\") && principal.getTag(\"lift\") like \"*{rule}*\" }};\n"
            )
        });
        let access = format!("{ACCESS}{}", lifts.concat());
        broker.apply(&[("access.cedar", &access), ("credentials.toml", CREDENTIALS)])?;
        let shared = TempDir::new()?;
        fs::set_permissions(shared.path(), PermissionsExt::from_mode(0o1777))?;
        let victim = container(docker, &broker, &shared, "victim", &[])?;
        Ok(Self {
            docker,
            broker,
            victim,
            victim_secret,
            attacker_secret,
            shared,
            attackers: RefCell::default(),
            forbidden: BTreeSet::new(),
        })
    }

    /// What the node must do without.
    pub fn forbidden(&self) -> &BTreeSet<Facility> {
        &self.forbidden
    }

    /// Starts the broker again, its node without some facilities. The containers stay.
    pub fn forbid(&mut self, facilities: &[Facility]) -> Result<()> {
        self.forbidden = facilities.iter().copied().collect();
        let names: Vec<&str> = facilities
            .iter()
            .map(|facility| facility.as_str())
            .collect();
        self.broker.stop()?;
        self.broker
            .configure_node(&format!("forbid = {names:?}\n{NODE}"))?;
        self.broker.restart()
    }

    /// The container of the attacker's service with these options, which is kept for the next time.
    pub fn attacker(&self, options: &[&str]) -> Result<Rc<Container<'static>>> {
        let name = options.join(" ");
        if let Some(known) = self.attackers.borrow().get(&name) {
            return Ok(Rc::clone(known));
        }
        let made = container(self.docker, &self.broker, &self.shared, "attacker", options)?;
        let made = Rc::new(made);
        self.attackers.borrow_mut().insert(name, Rc::clone(&made));
        Ok(made)
    }

    /// A process of the attacker's in one of its containers, which must never see the victim's secret.
    pub fn agent(&self, container: &Container<'_>) -> Result<Agent> {
        self.agent_as(container, &[])
    }

    /// The same with options of `docker exec`.
    pub fn agent_as(&self, container: &Container<'_>, options: &[&str]) -> Result<Agent> {
        Ok(Agent::exec(container, options)?.must_not_learn(&[&self.victim_secret]))
    }

    /// A process of the victim's, which must never see the attacker's secret: nobody may plant that.
    pub fn victims_agent(&self) -> Result<Agent> {
        Ok(Agent::exec(&self.victim, &[])?.must_not_learn(&[&self.attacker_secret]))
    }

    /// Asks for both credentials on a new connection: the attacker gets its own and not the victim's.
    pub fn gets_its_own_at_most(&self, agent: &mut Agent) -> Result<()> {
        let own = agent.ask("attacker-key")?;
        ensure!(
            own == format!("200 {}", self.attacker_secret),
            "expected the attacker's own, found {own}"
        );
        self.is_refused(agent.ask("victim-key")?)
    }

    /// Whether an answer is a refusal.
    pub fn is_refused(&self, answer: String) -> Result<()> {
        let secrets = [&self.victim_secret, &self.attacker_secret];
        ensure!(
            (answer == "closed" || answer.starts_with("403 ") || answer.starts_with("401 "))
                && secrets.iter().all(|secret| !answer.contains(*secret)),
            "expected a refusal, found {answer}"
        );

        Ok(())
    }

    /// A container of the attacker's service with these options, whose first process is an agent; and
    /// the container's name. It ends with the agent.
    pub fn first_process(&self, options: &[&str]) -> Result<(Agent, String)> {
        let name = format!("mayfly-{}", random_text(8)?);
        let mut command = self.docker.client();
        command.args([
            "run",
            "--rm",
            "--interactive",
            "--network=none",
            "--name",
            &name,
        ]);
        command.args(settings(&self.broker, &self.shared, "attacker", options));
        command.arg(IMAGE);
        let agent = Agent::spawn(command)?.must_not_learn(&[&self.victim_secret]);
        Ok((agent, name))
    }

    /// A container of another image, of no service.
    pub fn of_image(&self, image: &str) -> Result<Container<'static>> {
        let settings = settings(&self.broker, &self.shared, "none", &[]);
        let mut words: Vec<&str> = settings.iter().map(String::as_str).collect();
        words.extend([image, "/bin/mayfly-probe", "say", "up"]);
        self.docker.run(words)
    }

    /// Applies one policy beside the usual ones.
    pub fn apply(&self, policy: &str) -> Result<()> {
        let files = [
            ("access.cedar", ACCESS),
            ("more.cedar", policy),
            ("credentials.toml", CREDENTIALS),
        ];
        self.broker.apply(&files).map(drop)
    }

    /// How many audit records there are.
    pub fn mark(&self) -> Result<usize> {
        Ok(self.records()?.len())
    }

    /// Waits for an audit record after a mark.
    pub fn on_record(
        &self,
        mark: usize,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait_until(SOON, &format!("an audit record of {what}"), || {
            let records = self.records()?;
            let new = records.get(mark..).unwrap_or_default();
            match new.iter().find(|record| fits(&record["event"])) {
                Some(record) => Ok(Some(record["event"].clone())),
                None => bail!("the new records: {new:#?}"),
            }
        })
    }

    /// Waits for the record of a refusal by the node, for one of these reasons.
    pub fn refusal_on_record(&self, mark: usize, reasons: &[&str]) -> Result<Value> {
        self.on_record(mark, &format!("a refusal: {reasons:?}"), |event| {
            event["type"] == "node_refused"
                && reasons
                    .iter()
                    .any(|reason| event["refusal"]["reason"] == *reason)
        })
    }

    /// Waits for the record of a denial by these policies, with what the kernel lacked.
    pub fn denial_on_record(
        &self,
        mark: usize,
        container: &Container<'_>,
        policies: &[&str],
    ) -> Result<()> {
        let name = container.inspect()?["Name"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_string();
        let event = self.on_record(
            mark,
            &format!("a denial of {name} by {policies:?}"),
            |event| {
                let found = event["policies"].as_array();
                event["type"] == "denied"
                    && event["who"]["name"] == name.as_str()
                    && found.is_some_and(|found| {
                        policies
                            .iter()
                            .all(|policy| found.iter().any(|f| f == policy))
                    })
            },
        )?;
        let lacking = event["who"]["lacking"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for facility in &self.forbidden {
            ensure!(
                lacking.iter().any(|f| f == facility.as_str()),
                "{facility} is not told as lacking: {event}"
            );
        }
        Ok(())
    }

    /// The latest evidence about a container.
    pub fn evidence(&self, container: &Container<'_>) -> Result<Value> {
        let all = self.broker.cli_json(&["workloads"])?;
        let all = all.as_array().context("no list of workloads")?;
        let one = all
            .iter()
            .find(|one| one["evidence"]["container"]["id"] == container.id());
        Ok(
            one.with_context(|| format!("{} is not among {all:#?}", container.id()))?["evidence"]
                .clone(),
        )
    }

    /// The victim gets its own, and its evidence and record say what the node does without.
    pub fn the_evidence_says_so(&self) -> Result<()> {
        let mark = self.mark()?;
        let mut victim = self.victims_agent()?;
        let own = victim.ask("victim-key")?;
        ensure!(own == format!("200 {}", self.victim_secret), "{own}");
        let evidence = self.evidence(&self.victim)?;
        ensure!(evidence["assurance"] == "inspected", "{evidence}");
        let issued = self.on_record(mark, "what was issued", |event| event["type"] == "issued")?;
        for facility in &self.forbidden {
            for lacking in [&evidence["lacking"], &issued["who"]["lacking"]] {
                let told = lacking
                    .as_array()
                    .is_some_and(|l| l.iter().any(|f| f == facility.as_str()));
                ensure!(told, "{facility} is not told as lacking: {lacking}");
            }
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.broker.state_dir().join("audit.jsonl"))?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("an audit record"))
            .collect()
    }
}

/// Starts a container of a service, which waits to be killed.
fn container(
    docker: &'static Docker,
    broker: &Broker,
    shared: &TempDir,
    service: &str,
    options: &[&str],
) -> Result<Container<'static>> {
    let settings = settings(broker, shared, service, options);
    let mut words: Vec<&str> = settings.iter().map(String::as_str).collect();
    words.extend([IMAGE, "/bin/mayfly-probe", "say", "up"]);
    docker.run(words)
}

/// The options of a container. One that asks for capabilities gets them beside the usual ones.
fn settings(broker: &Broker, shared: &TempDir, service: &str, options: &[&str]) -> Vec<String> {
    let strong = |option: &str| option.starts_with("--cap-add") || option == "--privileged";
    let modest = if options.iter().any(|option| strong(option)) {
        &MODEST[2..]
    } else {
        &MODEST[..]
    };
    let mut all = vec![
        format!("--label=com.docker.compose.service={service}"),
        format!(
            "--volume={}:/run/mayfly:ro",
            broker.workload_dir().display()
        ),
        format!("--volume={}:/shared", shared.path().display()),
    ];
    all.extend(
        modest
            .iter()
            .chain(options)
            .map(|option| (*option).to_string()),
    );
    all
}
