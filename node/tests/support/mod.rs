//! What the tests of the workload socket stand on: a broker that says what a test tells it to,
//! containers of bare namespaces, and a running node.

pub mod broker;
pub mod container;

use broker::Broker;
use mayfly_node::config::{Limits, NodeConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Long enough for anything that is not a matter of time limits, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A directory that is removed when dropped.
pub struct Temporary(pub PathBuf);

impl Temporary {
    pub fn new() -> Self {
        let random = getrandom::u64().unwrap();
        let path = std::env::temp_dir().join(format!("mayfly-node-{random:016x}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A node that runs in this process.
pub struct Node {
    pub broker: Arc<Broker>,
    pub socket: PathBuf,
    pub directory: Temporary,
    config: NodeConfig,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Node {
    pub async fn start(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let directory = Temporary::new();
        let socket = directory.0.join("own/workload.sock");
        let mut config = NodeConfig {
            name: "node-1".into(),
            workload_socket: socket.clone(),
            engine_sockets: Vec::new(),
            limits: Limits {
                refusal_seconds: 1,
                ..Limits::default()
            },
            ..NodeConfig::default()
        };
        change(&mut config);
        let mut node = Self {
            broker: Arc::default(),
            socket,
            directory,
            config,
            running: None,
        };
        node.restart().await;
        node
    }

    pub async fn restart(&mut self) {
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (config, broker) = (self.config.clone(), Arc::clone(&self.broker));
        let running = tokio::spawn(async move {
            let ready = || ready.send(()).unwrap();
            let stopped = async { stopped.await.unwrap_or(()) };
            mayfly_node::run(config, broker, ready, stopped)
                .await
                .unwrap();
        });
        is_ready.await.unwrap();
        self.running = Some((stop, running));
    }

    pub async fn stop(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        stop.send(()).unwrap();
        running.await.unwrap();
    }

    pub fn path(&self) -> &str {
        self.socket.to_str().unwrap()
    }
}

/// Asks again until there is an answer.
pub async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(start.elapsed() < SOON, "waited {SOON:?} for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
