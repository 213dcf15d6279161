//! Five applications, each of another kind, through fifty rotations under load: none of their clients
//! is ever turned away.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::harness::{
    Broker, Compose, Container, Docker, PostgresServer, TempDir, free_port, wait_until,
};

use super::load::{Load, Tls, first_certificate, get, get_again};
use super::{configure, connection, debian, examples, role};

const ROTATIONS: usize = 50;
/// How long an application may take to use what is new.
const SOON: Duration = Duration::from_secs(30);
/// How long a client bears with a service that is being restarted: Python starts slowly where much else
/// runs.
const PATIENCE: Duration = Duration::from_secs(20);
const IMAGE: &str = "apps:debian";

/// An application: a service of the compose file.
struct App {
    name: &'static str,
    credential: &'static str,
    /// What the shim waits for.
    wait: &'static str,
    /// Without its port.
    command: &'static str,
    /// The port in the example, and here.
    port: (u16, u16),
}

impl App {
    const ALL: [(&str, &str, &str, &str, u16); 5] = [
        (
            "nginx",
            "web",
            "web",
            "/usr/sbin/nginx, -e, stderr, -c, /app/nginx.conf",
            8443,
        ),
        (
            "pool",
            "pool-db",
            "db.url",
            "/usr/bin/python3, /app/pool.py",
            8001,
        ),
        (
            "watch",
            "watch-db",
            "watch-db",
            "/usr/bin/python3, /app/watch.py",
            0,
        ),
        (
            "poll",
            "poll-db",
            "db.json",
            "/usr/bin/python3, /app/poll.py",
            0,
        ),
        (
            "restart",
            "restart-db",
            "restart-db",
            "/usr/bin/python3, /app/restart.py",
            0,
        ),
    ];

    fn all() -> Result<Vec<Self>> {
        let app = |(name, credential, wait, command, port)| {
            let port = (port, free_port()?);
            Ok(Self {
                name,
                credential,
                wait,
                command,
                port,
            })
        };
        Self::ALL.into_iter().map(app).collect()
    }

    /// Its service, of a modest container.
    fn service(&self) -> String {
        let Self {
            name,
            wait,
            command,
            port: (_, port),
            ..
        } = self;
        let port = if *name == "nginx" {
            String::new()
        } else {
            format!(", \"{port}\"")
        };
        format!(
            "  {name}:
    image: {IMAGE}
    user: \"1000:1000\"
    network_mode: host
    read_only: true
    cap_drop: [ALL]
    security_opt: [\"no-new-privileges:true\"]
    tmpfs: [/tmp]
    entrypoint: [/bin/mayfly-shim, run, --sidecar, --sidecar-arg, --config, --sidecar-arg, /app/{name}.toml, --wait, {wait}, --]
    command: [{command}{port}]
    volumes: [\"/usr:/usr:ro\", \"APPS:/app:ro\", \"SOCKET:/run/mayfly:ro\", \"{name}-secrets:/run/secrets\"]
"
        )
    }

    fn access(&self) -> String {
        let Self {
            name, credential, ..
        } = self;
        format!(
            "@id(\"{name}\") permit (principal is Mayfly::Workload, action == \
             Mayfly::Action::\"issue\", resource == Mayfly::Credential::\"{credential}\") when \
             {{ principal has container && principal.container has compose_service && \
             principal.container.compose_service == \"{name}\" }};\n"
        )
    }

    /// The clients that ask it.
    fn load(&self, container: &Container<'_>) -> Result<Load> {
        let port = self.port.1;
        // More would be at the cost of what is restarted.
        let often = Duration::from_millis(25);
        let seldom = Duration::from_millis(20);
        Ok(match self.name {
            "nginx" => {
                let secrets = secrets(container)?;
                let authorities = std::fs::read(format!("{secrets}/web/ca.crt"))?;
                let tls = Tls::new(&authorities, "web.e2e.internal")?;
                Load::start(2, often, move || tls.get(port))
            }
            "pool" => Load::start(4, often, move || get(port)),
            "restart" => Load::start(1, seldom, move || get_again(port, PATIENCE)),
            _ => Load::start(1, seldom, move || get(port)),
        })
    }
}

/// A container's files, seen from outside.
fn secrets(container: &Container<'_>) -> Result<String> {
    Ok(format!("/proc/{}/root/run/secrets", container.pid()?))
}

#[test]
fn five_applications_go_through_fifty_rotations_and_no_request_fails() -> Result<()> {
    let docker = Docker::host()?;
    debian(docker, IMAGE)?;
    let server = PostgresServer::start(&["fsync=off", "max_connections=200"])?;
    server.psql("CREATE ROLE turn_a LOGIN; CREATE ROLE turn_b LOGIN")?;
    let apps = App::all()?;
    let broker = Broker::beside(docker)?;
    let config = [
        connection(&server),
        role("pool-db", "1m"),
        role("watch-db", "1m"),
        role("restart-db", "1m"),
        "[credential.poll-db]\nengine = \"postgres\"\nconnection = \"shop\"\nttl = \"5m\"\n\
         static = [\"turn_a\", \"turn_b\"]\n\
         [credential.web]\nengine = \"x509\"\ndns_names = [\"web.e2e.internal\"]\nttl = \"5m\"\n"
            .to_owned(),
    ];
    let access: String = apps.iter().map(App::access).collect();
    configure(&broker, &access, &config.concat())?;

    // The examples, on ports that are free here.
    let here = TempDir::new()?;
    for file in std::fs::read_dir(examples().join("apps"))? {
        let file = file?;
        let mut text = std::fs::read_to_string(file.path())?;
        for App {
            port: (there, here),
            ..
        } in apps.iter().filter(|app| app.port.0 > 0)
        {
            text = text.replace(&format!("127.0.0.1:{there}"), &format!("127.0.0.1:{here}"));
        }
        std::fs::write(here.join(file.file_name()), text)?;
    }
    let services: String = apps.iter().map(App::service).collect();
    let services = services
        .replace("APPS", &here.path().display().to_string())
        .replace("SOCKET", &broker.workload_dir().display().to_string());
    let volumes: Vec<String> = apps
        .iter()
        .map(|app| format!("{}-secrets", app.name))
        .collect();
    let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
    let compose = Compose::up(docker, &services, &volumes)?;

    // Each at its own pace: what must be restarted takes longest.
    let faults: Vec<String> = std::thread::scope(|scope| {
        let threads = apps.iter().map(|app| {
            let container = compose.service(app.name);
            scope.spawn(|| through(app, &container?, &broker))
        });
        let threads: Vec<_> = threads.collect();
        let ended = threads.into_iter().zip(&apps).map(|(thread, app)| {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("it panicked")));
            ended.with_context(|| app.name).err()
        });
        ended.flatten().map(|error| format!("{error:#}")).collect()
    });
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    broker.cli(&["audit", "verify"]).map(drop)
}

/// Has one application's credential rotated again and again, each time once its clients have seen the
/// last one in use.
fn through(app: &App, container: &Container<'_>, broker: &Broker) -> Result<()> {
    let log = || format!("its log: {:?}", container.logs());
    wait_until(SOON, "its port", || {
        std::net::TcpStream::connect(("127.0.0.1", app.port.1))?;
        Ok(Some(()))
    })
    .with_context(log)?;
    let load = app.load(container).with_context(log)?;
    let (mut known, mut newest) = (BTreeSet::new(), String::new());
    for rotation in 0..=ROTATIONS {
        if rotation > 0 {
            broker.cli(&["rotate", app.credential])?;
        }
        let what = format!("what it got by rotation {rotation}");
        let last = wait_until(SOON, &what, || {
            let last = load.last()?;
            Ok((!last.is_empty() && !known.contains(&last)).then_some(last))
        });
        newest = last.with_context(log)?;
        known.insert(newest.clone());
        // More requests with this one, before the next.
        let so_far = load.answered()?;
        wait_until(SOON, "more requests", || {
            Ok((load.answered()? > so_far + 2).then_some(()))
        })
        .with_context(log)?;
    }
    let told = load.end()?;
    ensure!(told.failed == 0, "{told:?}; {}", log());
    container
        .exec(&["/bin/mayfly-sidecar", "health"])
        .with_context(log)?;
    if app.name == "nginx" {
        let file = std::fs::read(format!("{}/web/tls.crt", secrets(container)?))?;
        ensure!(newest == first_certificate(&file)?, "an old certificate");
    }
    Ok(())
}

#[test]
fn the_page_shows_the_recipes_as_they_are_run() -> Result<()> {
    let page = std::fs::read_to_string(examples().join("../../docs/sidecar.md"))?;
    for name in ["nginx", "pool", "watch", "restart"] {
        let recipe = std::fs::read_to_string(examples().join(format!("apps/{name}.toml")))?;
        let block = format!("```toml\n{recipe}```\n");
        ensure!(
            page.contains(&block),
            "docs/sidecar.md shows another {name}.toml"
        );
    }
    Ok(())
}
