use super::*;
use crate::store::SqliteStore;
use crate::testing::TempDir;
use crate::unseal::KeyFile;
use mayfly_wire::connection::Tls;
use mayfly_wire::{ConnectionConfig, EngineKind, Secret};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Opens a TCP connection, and waits for a byte of greeting.
#[derive(Default)]
struct Tcp {
    cut: AtomicUsize,
}

impl Connector for Tcp {
    type Connection = TcpStream;

    fn connect<'a>(&'a self, _: &'a ConnectionName, target: &'a Target) -> Opening<'a, TcpStream> {
        Box::pin(async move {
            let address = (target.config.host.as_str(), target.config.port.unwrap());
            let opened = TcpStream::connect(address).await;
            let mut stream = opened.map_err(|error| error.to_string())?;
            let greeting = stream.read_u8().await;
            greeting.map_err(|error| error.to_string())?;
            Ok(stream)
        })
    }

    fn is_closed(&self, connection: &TcpStream) -> bool {
        let mut byte = [0];
        !matches!(connection.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn cut_off(&self, _: &ConnectionName, connection: TcpStream) {
        self.cut.fetch_add(1, Ordering::SeqCst);
        drop(connection);
    }
}

/// How many connections a server has accepted, and how many of those are closed.
#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    closed: AtomicUsize,
}

impl Seen {
    fn open(&self) -> usize {
        self.accepted.load(Ordering::SeqCst) - self.closed.load(Ordering::SeqCst)
    }
}

async fn serve(greets: bool) -> (u16, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Seen::default());
    let theirs = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            theirs.accepted.fetch_add(1, Ordering::SeqCst);
            let theirs = Arc::clone(&theirs);
            tokio::spawn(async move {
                if greets {
                    stream.write_u8(1).await.unwrap();
                }
                while stream.read_u8().await.is_ok() {}
                theirs.closed.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (port, seen)
}

struct Place {
    pool: Arc<Pool<Tcp>>,
    connections: Arc<Connections>,
    _dir: TempDir,
}

impl Place {
    fn new(port: u16, most: u16) -> Self {
        Self::limited(port, most, Limits::default())
    }

    fn limited(port: u16, most: u16, limits: Limits) -> Self {
        let dir = TempDir::new();
        let key = KeyFile::new(dir.path().join("root.key"));
        let store = SqliteStore::open(&dir.path().join("state"), &key).unwrap();
        let keys = store.keys();
        let connections = Arc::new(Connections::new(Arc::new(store), keys));
        connections.configure(&[config(port, most)]);
        let pool = Pool::new(Arc::new(Tcp::default()), Arc::clone(&connections), limits);
        Self {
            pool: Arc::new(pool),
            connections,
            _dir: dir,
        }
    }

    async fn lend(&self) -> Result<Lent<Tcp>, EngineError> {
        self.pool.lend(&name()).await
    }
}

fn name() -> ConnectionName {
    "shop".parse().unwrap()
}

fn config(port: u16, most: u16) -> ConnectionConfig {
    ConnectionConfig {
        name: name(),
        engine: EngineKind::Postgres,
        host: "127.0.0.1".to_owned(),
        port: Some(port),
        username: "root".to_owned(),
        database: None,
        tls: Tls::Off,
        ca_pem: None,
        public_host: None,
        max_connections: Some(most),
        scram_iterations: None,
    }
}

async fn until(what: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < limit, "it did not come to pass");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn connections_are_reused_and_never_more_than_allowed() {
    let (port, seen) = serve(true).await;
    let place = Place::new(port, 2);
    for _ in 0..10 {
        let mut lent = place.lend().await.unwrap();
        lent.connection().unwrap();
        lent.done(Ok(())).unwrap();
    }
    assert_eq!(seen.accepted.load(Ordering::SeqCst), 1);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let pool = Arc::clone(&place.pool);
            tokio::spawn(async move {
                let mut lent = pool.lend(&name()).await.unwrap();
                lent.connection().unwrap();
                tokio::task::yield_now().await;
                lent.done(Ok(())).unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(seen.accepted.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn what_is_cut_off_is_closed_and_what_was_refused_is_kept() {
    let (port, seen) = serve(true).await;
    let place = Place::new(port, 1);
    let mut lent = place.lend().await.unwrap();
    lent.connection().unwrap();
    let refused = lent.done::<()>(Err(Failure::Refused("no".into()))).err();
    assert!(
        refused
            .unwrap()
            .to_string()
            .contains("shop (127.0.0.1): no")
    );
    assert_eq!(seen.open(), 1);

    let mut lent = place.lend().await.unwrap();
    lent.connection().unwrap();
    assert!(lent.done::<()>(Err(Failure::Broken("?".into()))).is_err());
    until(|| seen.open() == 0).await;

    // Given up by its caller, in the middle.
    let pool = Arc::clone(&place.pool);
    let task = tokio::spawn(async move {
        let mut lent = pool.lend(&name()).await.unwrap();
        lent.connection().unwrap();
        std::future::pending::<()>().await;
    });
    until(|| seen.open() == 1).await;
    task.abort();
    until(|| seen.open() == 0).await;
    assert_eq!(place.pool.connector().cut.load(Ordering::SeqCst), 2);
    // The place that it had is free again.
    place.lend().await.unwrap();
}

#[tokio::test]
async fn another_password_or_other_settings_open_new_connections() {
    let (port, seen) = serve(true).await;
    let place = Place::new(port, 2);
    drop(place.lend().await.unwrap());
    let lent = place.lend().await.unwrap();
    let password = Secret::from("other".to_owned());
    place
        .connections
        .set_password(&name(), &password, 1)
        .await
        .unwrap();
    let after = place.lend().await.unwrap();
    assert_eq!(seen.open(), 2);
    drop(lent);
    until(|| seen.open() == 1).await;
    drop(after);
    // Taken out of the configuration, and put back in.
    place.connections.configure(&[]);
    assert!(place.lend().await.is_err());
    place.connections.configure(&[config(port, 2)]);
    let _again = place.lend().await.unwrap();
    until(|| seen.open() == 1).await;
    assert_eq!(seen.accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn one_that_the_server_closed_is_not_lent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = Place::new(listener.local_addr().unwrap().port(), 1);
    let accept = async || {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_u8(1).await.unwrap();
        stream
    };
    let (lent, stream) = tokio::join!(place.lend(), accept());
    drop(lent.unwrap());
    drop(stream);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (lent, _stream) = tokio::join!(place.lend(), accept());
    lent.unwrap();
}

#[tokio::test]
async fn those_that_nobody_uses_are_closed() {
    let (port, seen) = serve(true).await;
    let limits = Limits {
        idle: Duration::from_millis(400),
        ..Limits::default()
    };
    let place = Place::limited(port, 4, limits);
    let lent = (place.lend().await.unwrap(), place.lend().await.unwrap());
    drop(lent);
    tokio::time::sleep(limits.idle / 2).await;
    drop(place.lend().await.unwrap());
    let began = Instant::now();
    // The one that nobody has used since; both at once for who is kept from running.
    until(|| seen.open() <= 1).await;
    until(|| seen.open() == 0).await;
    assert!(began.elapsed() >= limits.idle);
}

/// Nothing is left after a thousand attempts against a server that accepts and never answers.
#[tokio::test]
async fn a_server_that_never_answers_costs_nothing_but_the_wait() {
    const ATTEMPTS: usize = 1000;
    let (port, seen) = serve(false).await;
    let limits = Limits {
        connect: Duration::from_millis(5),
        backoff: (Duration::from_millis(1), Duration::from_millis(5)),
        ..Limits::default()
    };
    let place = Place::limited(port, 8, limits);
    let mut refused_at_once = 0;
    while seen.accepted.load(Ordering::SeqCst) < ATTEMPTS {
        let refused = place.lend().await.err().unwrap().to_string();
        assert!(refused.contains("no connection within"), "{refused}");
        // After each that had to wait, one comes at once.
        if refused.contains("next try") {
            refused_at_once += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(refused_at_once > ATTEMPTS / 2, "{refused_at_once}");
    until(|| seen.open() == 0).await;
    let server = place.pool.server(&name()).unwrap();
    assert_eq!(server.permits.available_permits(), 8);
    assert_eq!(server.state().waiting, 0);
}

#[tokio::test]
async fn who_waits_for_too_long_is_told_and_so_is_who_comes_when_too_many_wait() {
    let (port, _) = serve(true).await;
    let limits = Limits {
        wait: Duration::from_secs(3),
        ..Limits::default()
    };
    let place = Place::limited(port, 1, limits);
    let _held = place.lend().await.unwrap();
    let tasks: Vec<_> = (0..MAX_WAITING)
        .map(|_| {
            let pool = Arc::clone(&place.pool);
            tokio::spawn(async move { pool.lend(&name()).await.err().map(|e| e.to_string()) })
        })
        .collect();
    let server = place.pool.server(&name()).unwrap();
    until(|| server.state().waiting == MAX_WAITING).await;
    let refused = place.lend().await.err().unwrap().to_string();
    assert!(refused.contains("1024 wait"), "{refused}");
    for task in tasks {
        let late = task.await.unwrap().unwrap();
        assert!(late.contains("in use for 3 s"), "{late}");
    }
    assert_eq!(server.state().waiting, 0);
}

#[test]
fn what_a_server_says_is_short_and_nothing_that_a_terminal_obeys() {
    assert_eq!(words("no\u{1b}[2J\r\nway\u{9b}"), "no [2J  way ");
    assert_eq!(words(&"é".repeat(5000)), "é".repeat(MAX_WORDS));
}
