//! What the whole is for: containers of one image and one uid, and each gets its own service's secret
//! alone, because of what the kernel and the engine say it is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Bare, BareOptions, Broker, BrokerOptions, Compose, Container, Docker, Image, Realm, binary,
    random_text, wait_until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

const ACCESS: &str = r#"
@id("orders") permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
  resource == Mayfly::Credential::"orders-key")
when { principal has container && principal.container has compose_service
  && principal.container.compose_service == "orders" };
@id("reports") permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
  resource == Mayfly::Credential::"reports-key")
when { principal has container && principal.container has compose_service
  && principal.container.compose_service == "reports" };
"#;
const CREDENTIALS: &str = r#"
[credential.orders-key]
engine = "kv"
path = "services/orders"
ttl = "15m"
[credential.reports-key]
engine = "kv"
path = "services/reports"
ttl = "15m"
[policy]
hardened = true
"#;
/// Where the machine binds its controllers to v1, pure v2 has no limits that could be demanded.
const NO_LIMITS: &str = r#"
@id("no-limits-here") @lifts("hardened-limits")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;

/// `orders` has shim and sidecar in its own container; `reports` has a companion. Without `nocopy`, the
/// engine would give the volume, which is in use by then, the owner of the directory in the companion's
/// image.
const SERVICES: &str = r#"
  orders: &modest
    image: services:app
    user: "1000:1000"
    network_mode: none
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: 64m
    pids_limit: 32
    entrypoint: [/bin/mayfly-shim, run, --sidecar, --wait, orders-key, --]
    command: [/bin/mayfly-probe, say, running]
    volumes: ["SOCKET:/run/mayfly:ro", "orders-secrets:/run/secrets"]
  reports:
    <<: *modest
    entrypoint: [/bin/mayfly-probe]
    command: [say, running]
    volumes: ["reports-secrets:/run/secrets:ro"]
  companion:
    <<: *modest
    pid: "service:reports"
    entrypoint: [/bin/mayfly-sidecar]
    command: []
    volumes: ["SOCKET:/run/mayfly:ro", "reports-secrets:/run/secrets:nocopy"]
"#;

#[test]
fn each_service_gets_its_own_secret_alone() -> Result<()> {
    for docker in Docker::both()? {
        services(docker).with_context(|| format!("on {}", docker.realm().name()))?;
    }
    Ok(())
}

fn services(docker: &'static Docker) -> Result<()> {
    let digest = Image::with_sidecar()?
        .busybox()?
        .load(docker, "services:app")?;
    let broker = Broker::beside(docker)?;
    let limits = docker.realm().cgroup_v1("pids")?.is_some() || has_limits(docker)?;
    let more = if limits { "" } else { NO_LIMITS };
    broker.apply(&[
        ("access.cedar", &format!("{ACCESS}{more}")),
        ("credentials.toml", CREDENTIALS),
    ])?;
    let secrets = [random_text(24)?, random_text(24)?];
    for (name, secret) in ["orders", "reports"].iter().zip(&secrets) {
        broker.cli_with_input(&["kv", "put", &format!("services/{name}"), "-"], secret)?;
    }
    let services = SERVICES.replace("SOCKET", &broker.workload_dir().display().to_string());
    let compose = Compose::up(docker, &services, &["orders-secrets", "reports-secrets"])?;
    let (orders, reports) = (compose.service("orders")?, compose.service("reports")?);
    let companion = (compose.service("companion"))
        .with_context(|| format!("{:?}", compose.cli(&["logs", "companion"])))?;

    // Seen from inside of each.
    orders.wait_for_log("running", SOON)?;
    for (container, name, secret) in [
        (&orders, "orders-key", &secrets[0]),
        (&reports, "reports-key", &secrets[1]),
    ] {
        let path = format!("/run/secrets/{name}");
        let found = wait_until(SOON, &path, || container.exec(&["cat", &path]).map(Some));
        let found = found.with_context(|| format!("{:?}", companion.logs()))?;
        ensure!(found == *secret, "{name} holds something else");
        ensure!(
            container.exec(&["ls", "/run/secrets"])? == name,
            "there is more in {name}'s"
        );
    }
    // The companion asks for the application, and so does whoever asks in the application.
    for (container, own, secret, other) in [
        (&orders, "orders-key", &secrets[0], "reports-key"),
        (&companion, "reports-key", &secrets[1], "orders-key"),
    ] {
        ensure!(ask(container, own)? == format!("200\n{secret}"));
        let refusal = ask(container, other)?;
        ensure!(
            refusal.starts_with("403\n") && refusal.contains("\"denied\""),
            "{refusal}"
        );
        let event = denial(&broker, other)?;
        ensure!(
            event["policies"] == json!([]) && event["who"]["assurance"] == "inspected",
            "{event}"
        );
    }
    evidence(&broker, &orders, "orders", &digest, limits)?;
    let joined = evidence(&broker, &reports, "reports", &digest, limits)?;
    ensure!(
        joined["companion"]["container"]["id"] == companion.id(),
        "{joined}"
    );
    Ok(())
}

/// Whether this engine, on pure v2, has controllers to limit with.
fn has_limits(docker: &Docker) -> Result<bool> {
    let controllers =
        std::fs::read_to_string(docker.realm().cgroup_v2()?.join("cgroup.controllers"))?;
    Ok(["memory", "pids"]
        .iter()
        .all(|name| controllers.contains(name)))
}

fn ask(container: &Container<'_>, credential: &str) -> Result<String> {
    let path = format!("/v1/credentials/{credential}/value");
    let words = [
        "/bin/mayfly-probe",
        "http",
        mayfly_wire::session::SOCKET,
        "GET",
        &path,
    ];
    wait_until(SOON, "an answer", || {
        let answer = container.exec(&words)?;
        // While the engine is slow, everybody is told to come again.
        ensure!(!answer.starts_with("503\n"), "{answer}");
        Ok(Some(answer))
    })
}

fn denial(broker: &Broker, credential: &str) -> Result<Value> {
    let what = format!("a record that {credential} was denied");
    wait_until(SOON, &what, || {
        let audit = broker.cli(&["--output", "json", "audit", "tail", "-n", "100"])?;
        let mut events = audit
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|record| record["event"].clone());
        let is_it = |event: &Value| event["type"] == "denied" && event["credential"] == credential;
        Ok(Some(events.find(is_it).with_context(|| audit.clone())?))
    })
}

/// What the broker knows of a container, which must be the whole truth.
fn evidence(
    broker: &Broker,
    container: &Container<'_>,
    service: &str,
    digest: &str,
    limits: bool,
) -> Result<Value> {
    let all = broker.cli_json(&["workloads"])?;
    let all = all.as_array().context("no list")?;
    let one = all
        .iter()
        .find(|one| one["evidence"]["container"]["id"] == container.id());
    let evidence = one.with_context(|| format!("{all:#?}"))?["evidence"].clone();
    let (path, _) = container.cgroup()?;
    let expected = [
        ("/assurance", json!("inspected")),
        ("/own_namespaces", json!(true)),
        ("/cgroup_path", json!(path)),
        ("/container/engine", json!("docker")),
        ("/container/image/config_digest", json!(digest)),
        ("/container/compose_service", json!(service)),
        (
            "/container/labels/com.docker.compose.service",
            json!(service),
        ),
        ("/init_pid", json!(container.pid()?)),
    ];
    for (pointer, expected) in expected {
        let found = evidence.pointer(pointer);
        ensure!(
            found == Some(&expected),
            "{pointer}: expected {expected}, found {found:?}"
        );
    }
    for process in ["peer", "init"] {
        let posture = &evidence[process];
        let expected = [
            ("uid", json!(1000)),
            ("gid", json!(1000)),
            ("no_new_privs", json!(true)),
            ("seccomp_mode", json!(2)),
            ("effective_capabilities", json!([])),
            ("permitted_capabilities", json!([])),
            ("bounding_capabilities", json!([])),
            ("read_only_root", json!(true)),
            ("engine_sockets", json!([])),
            ("secrets_filesystem", json!("tmpfs")),
            ("host_pid_namespace", json!(false)),
            ("host_mount_namespace", json!(false)),
            ("host_network_namespace", json!(false)),
        ];
        for (field, expected) in expected {
            ensure!(posture[field] == expected, "{process}.{field}: {posture}");
        }
        if limits {
            ensure!(
                posture["memory_limit"] == 64 << 20 && posture["pids_limit"] == 32,
                "{posture}"
            );
        }
    }
    Ok(evidence)
}

#[test]
fn a_container_that_no_engine_knows_is_attested_by_the_kernel() -> Result<()> {
    for realm in [Realm::host(), Realm::pure_v2()?] {
        bare(realm).with_context(|| format!("on {}", realm.name()))?;
    }
    Ok(())
}

fn bare(realm: &'static Realm) -> Result<()> {
    let broker = Broker::start(realm, BrokerOptions::default())?;
    let cgroup = format!("mayfly-service-{}", random_text(6)?);
    let access = format!(
        "@id(\"bare\") permit (principal is Mayfly::Workload, action == Mayfly::Action::\"issue\", \
         resource == Mayfly::Credential::\"orders-key\") when {{ principal has cgroup_path && \
         principal.cgroup_path == \"/{cgroup}\" && principal.assurance == \"kernel\" }};"
    );
    let credentials = CREDENTIALS.replace("hardened = true", "hardened = false");
    broker.apply(&[
        ("access.cedar", &access),
        ("credentials.toml", &credentials),
    ])?;
    let secret = random_text(24)?;
    broker.cli_with_input(&["kv", "put", "services/orders", "-"], &secret)?;

    let script = "cat /run/secrets/orders-key; echo; ls /run/secrets; \
        /opt/mayfly-probe http /run/mayfly/workload.sock GET /v1/credentials/reports-key; \
        echo asked; exec sleep 60";
    let mut options = BareOptions {
        cgroup: cgroup.clone(),
        ..BareOptions::default()
    };
    options = options.bind(&broker.workload_dir(), "run/mayfly");
    for name in ["mayfly-shim", "mayfly-sidecar", "mayfly-probe"] {
        options = options.bind(&binary(name)?, &format!("opt/{name}"));
    }
    let shim = [
        "/opt/mayfly-shim",
        "run",
        "--sidecar",
        "--wait",
        "orders-key",
        "--",
    ];
    let bare = Bare::run(
        realm,
        &options,
        &[&shim[..], &["sh", "-c", script]].concat(),
    )?;
    let logs = bare.wait_for_log("asked\n", SOON)?;
    ensure!(
        logs.contains(&format!("{secret}\norders-key\n403\n")),
        "{logs}"
    );

    let workloads = broker.cli_json(&["workloads"])?;
    let evidence = &workloads[0]["evidence"];
    ensure!(
        evidence["assurance"] == "kernel" && evidence["container"].is_null(),
        "{evidence}"
    );
    ensure!(
        evidence["workload"]["cgroup_id"] == bare.cgroup().id()?,
        "{evidence}"
    );
    ensure!(
        evidence["init_pid"] == bare.pid() && evidence["own_namespaces"] == true,
        "{evidence}"
    );
    ensure!(
        evidence["init"]["seccomp_mode"] == 2 && evidence["init"]["uid"] == 1000,
        "{evidence}"
    );
    let event = denial(&broker, "reports-key")?;
    ensure!(event["who"]["assurance"] == "kernel", "{event}");
    Ok(())
}
