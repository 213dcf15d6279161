//! Containers with more power than the baseline allows.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::world::World;

/// A privileged container, as far as this machine can make one.
const PRIVILEGED: [&str; 3] = ["--privileged", "--runtime=trimmed", "--user=0:0"];

/// One kind of container.
struct Weak<'a> {
    options: Vec<&'a str>,
    /// The rules of the baseline that forbid it; none for one that is only unusual.
    rules: &'a [&'a str],
}

/// Each gets nothing; with its rules lifted, nothing but its own.
pub fn all(world: &World) -> Result<()> {
    let socket = world.docker.socket();
    let socket = socket.display();
    let dir = world.docker.dir().display();
    let (by_name, renamed, by_dir) = (
        format!("--volume={socket}:/var/run/docker.sock"),
        format!("--volume={socket}:/tmp/innocent"),
        format!("--volume={dir}:/innocent"),
    );
    let kinds = [
        Weak {
            options: PRIVILEGED.to_vec(),
            rules: &[
                "baseline-privileged",
                "baseline-sys-admin",
                "baseline-sys-ptrace",
                "baseline-seccomp",
            ],
        },
        Weak {
            options: vec![&by_name],
            rules: &["baseline-engine-socket"],
        },
        Weak {
            options: vec![&renamed],
            rules: &["baseline-engine-socket"],
        },
        Weak {
            options: vec![&by_dir],
            rules: &["baseline-engine-socket"],
        },
        Weak {
            options: vec!["--pid=host"],
            rules: &["baseline-host-pid"],
        },
        Weak {
            options: vec!["--cap-add=SYS_PTRACE"],
            rules: &["baseline-sys-ptrace"],
        },
        Weak {
            options: vec!["--cap-add=SYS_ADMIN"],
            rules: &["baseline-sys-admin"],
        },
        Weak {
            options: vec!["--security-opt=seccomp=unconfined"],
            rules: &["baseline-seccomp"],
        },
        Weak {
            options: vec!["--cgroupns=host"],
            rules: &[],
        },
        Weak {
            options: vec!["--userns=host"],
            rules: &[],
        },
    ];
    for kind in kinds {
        one(world, &kind).with_context(|| format!("{:?}", kind.options))?;
    }
    Ok(())
}

fn one(world: &World, kind: &Weak<'_>) -> Result<()> {
    if !kind.rules.is_empty() {
        let container = world.attacker(&kind.options)?;
        let mark = world.mark()?;
        let mut agent = world.agent(&container)?;
        for credential in ["attacker-key", "victim-key"] {
            world.is_refused(agent.ask(credential)?)?;
        }
        world.denial_on_record(mark, &container, kind.rules)?;
    }
    // What a container with CAP_SYS_ADMIN or more says of its mounts is not to be trusted, so that
    // nobody can tell that no engine's socket is among them.
    let lift = kind
        .rules
        .iter()
        .map(|rule| rule.trim_start_matches("baseline-"));
    let label = format!(
        "--label=lift={} engine-socket",
        lift.collect::<Vec<_>>().join(" ")
    );
    let container = world.attacker(&[&kind.options[..], &[&label]].concat())?;
    let mut agent = world.agent(&container)?;
    world.gets_its_own_at_most(&mut agent)?;
    ensure!(world.evidence(&container)?["assurance"] == "inspected");
    Ok(())
}

/// Containers whose first process gives up all that the kernel shows of its power, and then asks. The
/// next one, of `docker exec`, has it all again: what the engine granted counts.
pub fn given_up(world: &World) -> Result<()> {
    let every = ["--cap-add=ALL", "--runtime=trimmed", "--user=0:0"];
    let kinds = [
        Weak {
            options: PRIVILEGED.to_vec(),
            rules: &[
                "baseline-privileged",
                "baseline-seccomp",
                "baseline-sys-admin",
                "baseline-sys-ptrace",
            ],
        },
        Weak {
            options: every.to_vec(),
            rules: &[
                "baseline-privileged",
                "baseline-sys-admin",
                "baseline-sys-ptrace",
            ],
        },
        Weak {
            options: vec!["--cap-add=SYS_ADMIN", "--user=0:0"],
            rules: &["baseline-sys-admin"],
        },
        Weak {
            options: vec!["--cap-add=SYS_PTRACE", "--user=0:0"],
            rules: &["baseline-sys-ptrace"],
        },
        Weak {
            options: vec![
                "--security-opt=seccomp=unconfined",
                "--cap-add=SETPCAP",
                "--user=0:0",
            ],
            rules: &["baseline-seccomp"],
        },
    ];
    for kind in kinds {
        one_given_up(world, &kind).with_context(|| format!("{:?}, given up", kind.options))?;
    }
    Ok(())
}

fn one_given_up(world: &World, kind: &Weak<'_>) -> Result<()> {
    let mark = world.mark()?;
    let (mut agent, name) = world.first_process(&kind.options)?;
    agent.tell("harden")?;
    for credential in ["attacker-key", "victim-key"] {
        world.is_refused(agent.ask(credential)?)?;
    }
    // By these rules and no others, so that it is the engine's word that does it.
    world.on_record(mark, "its denial", |event| {
        event["type"] == "denied"
            && event["who"]["name"] == name.as_str()
            && event["policies"] == json!(kind.rules)
    })?;
    let all = world.broker.cli_json(&["workloads"])?;
    let evidence = all.as_array().and_then(|all| {
        let mut evidence = all.iter().map(|one| &one["evidence"]);
        evidence.find(|one| one["container"]["name"] == name.as_str())
    });
    let init = &evidence.context("no evidence about it")?["init"];
    ensure!(
        init["bounding_capabilities"] == json!([]) && init["seccomp_mode"] == json!(2),
        "the kernel still shows its power: {init}"
    );
    let explained = world.broker.cli(&["explain", &name, "attacker-key"])?;
    for rule in kind.rules {
        ensure!(
            explained.contains(&format!("forbid by {rule}: ")),
            "{explained}"
        );
    }
    // With them lifted, it gets its own: nothing else forbids it.
    let lift = kind.rules.join(" ").replace("baseline-", "");
    let label = format!("--label=lift={lift}");
    let (mut agent, _) = world.first_process(&[&kind.options[..], &[&label]].concat())?;
    agent.tell("harden")?;
    world.gets_its_own_at_most(&mut agent)
}
