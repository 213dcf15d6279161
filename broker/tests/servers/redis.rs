//! The `redis` engine against Redis.

use crate::server::{Kind, Server};
use crate::support::{Place, connection, credential, give, issue, revoke, silent, with_tls};
use mayfly_broker::engine::Engine;
use mayfly_broker::engine::redis::Redis;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::engine::RedisSettings;
use mayfly_wire::{EngineConfig, EngineKind};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn cli(server: &Server, user: &str, password: &str, command: &str) -> String {
    server.ask(user, password, command).unwrap()
}

fn root(server: &Server, command: &str) -> String {
    server.ask_as_root(command).unwrap()
}

fn credential_with(rules: &[&str]) -> CredentialConfig {
    credential(EngineConfig::Redis(RedisSettings {
        connection: "shop".parse().unwrap(),
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
    }))
}

fn orders() -> CredentialConfig {
    credential_with(&[
        "~orders:*",
        "&news",
        "+@read",
        "+@write",
        "+subscribe",
        "+acl|setuser",
    ])
}

fn engine(place: &Place) -> Redis {
    let (store, keys, connections, clock) = place.parts();
    Redis::new(store, keys, connections, clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let mut server = Server::start(Kind::Redis).unwrap();
    let place = Place::new(connection(EngineKind::Redis, server.port(0))).await;
    a_user_lives_from_create_to_revoke(&server, &engine(&place)).await;
    no_password_reaches_the_server(&server, &engine(&place)).await;
    what_was_given_up_has_no_effect_afterwards(&server, &place).await;
    what_an_earlier_process_left_has_no_effect_afterwards(&server, &place).await;
    no_name_of_a_connection_keeps_the_broker_out(&server, &place).await;
    no_holder_administers_the_server(&server, &engine(&place)).await;
    a_server_that_keeps_no_users_keeps_the_brokers_password().await;
    rules_that_the_server_refuses_leave_nothing(&server, &engine(&place)).await;
    the_brokers_own_password_is_rotated(&server, &place).await;
    over_tls(&server).await;
    users_survive_a_restart_of_the_server_and_removed_ones_stay_removed(&mut server).await;
    a_server_that_never_answers_is_told_of_in_time().await;
}

async fn a_user_lives_from_create_to_revoke(server: &Server, engine: &Redis) {
    let credential = orders();
    engine.check(&credential).unwrap();
    let held = issue(engine, &credential).await;
    let (name, password) = (held.field("username"), held.field("password"));
    assert!(
        cli(server, name, password, "PING").contains("WRONGPASS"),
        "before it is made"
    );
    engine.create(&credential, &held.lease).await.unwrap();
    assert_eq!(cli(server, name, password, "SET orders:1 x"), "OK");
    assert_eq!(cli(server, name, password, "GET orders:1"), "x");
    for forbidden in ["GET other:1", "ACL SETUSER mole on nopass"] {
        assert!(
            cli(server, name, password, forbidden).contains("NOPERM"),
            "{forbidden:?}"
        );
    }
    let port = server.port(0);
    assert_eq!(
        held.field("uri"),
        format!("redis://{name}:{password}@127.0.0.1:{port}")
    );
    let again = engine.reissue(&credential, &held.lease).await.unwrap();
    assert_eq!(
        again.fields["password".parse().as_ref().unwrap()].expose(),
        password.as_bytes()
    );

    let mut subscriber = subscribe(server, name, password);
    engine.revoke(&held.lease).await.unwrap();
    assert!(cli(server, name, password, "PING").contains("WRONGPASS"));
    let limit = Instant::now() + Duration::from_secs(30);
    while subscriber.try_wait().unwrap().is_none() {
        assert!(Instant::now() < limit, "its connection goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    engine.revoke(&held.lease).await.unwrap();
}

/// A connection that only waits.
fn subscribe(server: &Server, name: &str, password: &str) -> Child {
    let (port, url) = (server.port(0), "SUBSCRIBE news\r\n");
    let script = "import socket,sys\n\
        s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n\
        s.sendall(f'AUTH {sys.argv[2]} {sys.argv[3]}\\r\\n{sys.argv[4]}'.encode())\n\
        while True:\n\
        \x20b=s.recv(100)\n\
        \x20if not b: break\n\
        \x20if b'subscribe' in b: print('in',flush=True)\n";
    let mut child = Command::new("python3")
        .args(["-c", script, &port.to_string(), name, password, url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    assert_eq!(line.trim(), "in");
    child
}

async fn no_password_reaches_the_server(server: &Server, engine: &Redis) {
    // It is the first of its process, and ends all that is open as its user.
    revoke(engine, &give(engine, &orders()).await.lease).await;
    let mut monitor = Command::new("redis-cli")
        .args([
            "-p",
            &server.port(0).to_string(),
            "--no-auth-warning",
            "--user",
            "broker",
        ])
        .args(["-a", Server::PASSWORD, "MONITOR"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let held = give(engine, &orders()).await;
    engine.revoke(&held.lease).await.unwrap();
    let _ = monitor.kill();
    let seen = String::from_utf8(monitor.wait_with_output().unwrap().stdout).unwrap();
    assert!(!seen.contains(held.field("password")), "{seen}");
    let slow = root(server, "SLOWLOG GET 128");
    assert!(!slow.contains(held.field("password")), "{slow}");
}

async fn what_was_given_up_has_no_effect_afterwards(server: &Server, place: &Place) {
    let (engine, credential) = (engine(place), orders());
    revoke(&engine, &give(&engine, &credential).await.lease).await;
    let held = issue(&engine, &credential).await;
    server.signal("STOP").unwrap();
    let given_up = engine.create(&credential, &held.lease);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), given_up)
            .await
            .is_err()
    );
    let ((), ()) = tokio::join!(revoke(&engine, &held.lease), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal("CONT").unwrap();
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!root(server, "ACL USERS").contains(held.field("username")));
}

async fn what_an_earlier_process_left_has_no_effect_afterwards(server: &Server, place: &Place) {
    let credential = orders();
    let earlier = engine(place);
    revoke(&earlier, &give(&earlier, &credential).await.lease).await;
    let held = issue(&earlier, &credential).await;
    server.signal("STOP").unwrap();
    let given_up = earlier.create(&credential, &held.lease);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), given_up)
            .await
            .is_err()
    );
    // As a process that was killed: it knows nothing, and its sockets are closed.
    drop(earlier);
    let later = engine(place);
    let (_, ()) = tokio::join!(revoke(&later, &held.lease), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal("CONT").unwrap();
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!root(server, "ACL USERS").contains(held.field("username")));
}

/// A list of connections would hold it.
async fn no_name_of_a_connection_keeps_the_broker_out(server: &Server, place: &Place) {
    use std::io::{Read as _, Write as _};
    let held = give(&engine(place), &credential_with(&["+@connection"])).await;
    let (name, password) = (held.field("username"), held.field("password"));
    let mut holder = std::net::TcpStream::connect(("127.0.0.1", server.port(0))).unwrap();
    let length = 20 * 1024 * 1024;
    write!(
        holder,
        "AUTH {name} {password}\r\n*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n${length}\r\n{}\r\n",
        "x".repeat(length)
    )
    .unwrap();
    let mut said = [0; 10];
    holder.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"+OK\r\n+OK\r\n");
    let later = engine(place);
    later.revoke(&held.lease).await.unwrap();
    assert_eq!(holder.read(&mut said).unwrap(), 0, "its connection goes on");
}

async fn no_holder_administers_the_server(server: &Server, engine: &Redis) {
    let all = [
        "allkeys",
        "allchannels",
        "+@all",
        "+config|set",
        "+client|list",
    ];
    let held = give(engine, &credential_with(&all)).await;
    let (name, password) = (held.field("username"), held.field("password"));
    for command in [
        "CONFIG SET requirepass mole",
        "CONFIG GET requirepass",
        "ACL LIST",
        "MODULE LIST",
        "REPLICAOF 127.0.0.1 1",
        "SLAVEOF 127.0.0.1 1",
        "FAILOVER ABORT",
        "SHUTDOWN ABORT",
        "MONITOR",
        "CLIENT KILL ID 1",
    ] {
        let said = cli(server, name, password, command);
        assert!(said.contains("NOPERM"), "{command}: {said}");
    }
    assert_eq!(cli(server, name, password, "SET orders:1 y"), "OK");
    assert!(cli(server, name, password, "CLIENT LIST").contains("user="));
    revoke(engine, &held.lease).await;
}

/// A server of which the users stand in its configuration. It ends when this is dropped.
struct Forgetful {
    conf: std::path::PathBuf,
    process: Child,
    port: u16,
}

impl Forgetful {
    fn start(dir: &crate::support::Dir) -> Self {
        let port = crate::server::free_port().unwrap();
        let conf = dir.0.join("redis.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsave \"\"\ndir {}\nuser broker on >{} ~* &* +@all\n",
            dir.0.display(),
            Server::PASSWORD
        );
        std::fs::write(&conf, text).unwrap();
        let process = Self::run(&conf, port);
        Self {
            conf,
            process,
            port,
        }
    }

    fn run(conf: &std::path::Path, port: u16) -> Child {
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .arg(conf)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < limit, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    fn restart(&mut self) {
        self.end();
        self.process = Self::run(&self.conf, self.port);
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        self.end();
    }
}

async fn a_server_that_keeps_no_users_keeps_the_brokers_password() {
    let dir = crate::support::Dir::new();
    let mut server = Forgetful::start(&dir);
    let place = Place::new(connection(EngineKind::Redis, server.port)).await;
    let engine = engine(&place);
    revoke(&engine, &give(&engine, &orders()).await.lease).await;
    let refused = engine.rotate_root(&"shop".parse().unwrap(), 0).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("aclfile"), "{refused}");
    revoke(&engine, &give(&engine, &orders()).await.lease).await;
    server.restart();
    let again = self::engine(&place);
    revoke(&again, &give(&again, &orders()).await.lease).await;
}

async fn rules_that_the_server_refuses_leave_nothing(server: &Server, engine: &Redis) {
    let credential = credential_with(&["+@read", "+@nonsense"]);
    engine.check(&credential).unwrap();
    let held = issue(engine, &credential).await;
    let refused = engine
        .create(&credential, &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("ACL SETUSER"), "{refused}");
    engine.revoke(&held.lease).await.unwrap();
    assert!(!root(server, "ACL USERS").contains(held.field("username")));
}

async fn the_brokers_own_password_is_rotated(server: &Server, place: &Place) {
    let (engine, name) = (engine(place), "shop".parse().unwrap());
    engine.rotate_root(&name, 0).await.unwrap();
    assert!(root(server, "PING").contains("WRONGPASS"));
    let held = give(&engine, &orders()).await;
    revoke(&engine, &held.lease).await;
    // Back, for what follows.
    let known = mayfly_wire::Secret::from(Server::PASSWORD.to_owned());
    use mayfly_broker::engine::fixed::SetPassword as _;
    engine.set_password(&name, "broker", &known).await.unwrap();
    place
        .connections
        .set_password(&name, &known, crate::support::now())
        .await
        .unwrap();
    assert_eq!(root(server, "PING"), "PONG");
}

async fn over_tls(server: &Server) {
    let config = connection(EngineKind::Redis, server.port(1));
    let place = Place::new(with_tls(config.clone(), server)).await;
    let engine = engine(&place);
    let held = give(&engine, &orders()).await;
    assert!(held.field("uri").starts_with("rediss://"));
    assert_eq!(
        cli(
            server,
            held.field("username"),
            held.field("password"),
            "GET orders:2"
        ),
        ""
    );
    revoke(&engine, &held.lease).await;

    // An authority that nobody here knows.
    let mut stranger = with_tls(config, server);
    stranger.ca_pem = None;
    let place = Place::new(stranger).await;
    let engine = self::engine(&place);
    let held = issue(&engine, &orders()).await;
    let refused = engine
        .create(&orders(), &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("TLS"), "{refused}");
}

async fn users_survive_a_restart_of_the_server_and_removed_ones_stay_removed(server: &mut Server) {
    let place = Place::new(connection(EngineKind::Redis, server.port(0))).await;
    let engine = engine(&place);
    let stays = give(&engine, &orders()).await;
    let goes = give(&engine, &orders()).await;
    revoke(&engine, &goes.lease).await;
    server.restart().unwrap();
    let login = |held: &crate::support::Held| {
        cli(
            server,
            held.field("username"),
            held.field("password"),
            "GET orders:2",
        )
    };
    assert_eq!(login(&stays), "");
    assert!(login(&goes).contains("WRONGPASS"));
    revoke(&engine, &stays.lease).await;
    assert!(login(&stays).contains("WRONGPASS"));
}

async fn a_server_that_never_answers_is_told_of_in_time() {
    let (_listener, port) = silent();
    let place = Place::new(connection(EngineKind::Redis, port)).await;
    let engine = engine(&place);
    let held = issue(&engine, &orders()).await;
    let began = Instant::now();
    let late = engine
        .create(&orders(), &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(late.contains("no connection within 5 s"), "{late}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
