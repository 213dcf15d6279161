//! Containers with more power than the baseline allows.

use anyhow::{Context, Result, ensure};

use super::world::World;

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
    let privileged = privileged()?;
    let kinds = [
        Weak {
            options: privileged.iter().map(String::as_str).collect(),
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

/// The options of a privileged container. A machine that withholds a capability from its root cannot
/// run one: there, it is made of all that the machine has, and of the host's devices.
fn privileged() -> Result<Vec<String>> {
    // Those that every engine knows.
    const CAPABILITIES: [&str; 38] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
    ];
    let status = std::fs::read_to_string("/proc/self/status")?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = u64::from_str_radix(bounding.context("no CapBnd")?.trim(), 16)?;
    let has = |number: usize| bounding >> number & 1 == 1;
    let mut options = vec!["--user=0:0".to_string()];
    if (0..CAPABILITIES.len()).all(has) {
        options.push("--privileged".to_string());
        return Ok(options);
    }
    let held = CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, _)| has(*number));
    options.extend(held.map(|(_, name)| format!("--cap-add={name}")));
    let more = [
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--volume=/dev:/dev",
    ];
    options.extend(more.map(str::to_string));
    Ok(options)
}
