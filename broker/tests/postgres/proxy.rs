//! A network that can hold back what is on its way.

use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on to a port. While it holds, what is sent on connections that were open before
/// waits, even if who sent it is gone; new ones pass.
pub struct Proxy {
    pub port: u16,
    requests: Arc<watch::Sender<bool>>,
    answers: Arc<watch::Sender<bool>>,
    waits: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(watch::Sender::new(false));
        let answers = Arc::new(watch::Sender::new(false));
        let waits = Arc::new(watch::Sender::new(false));
        let gates = (Arc::clone(&requests), Arc::clone(&answers));
        let noted = Arc::clone(&waits);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(
                    from_client,
                    to_server,
                    gate(&gates.0),
                    Arc::clone(&noted),
                ));
                tokio::spawn(pass(
                    from_server,
                    to_client,
                    gate(&gates.1),
                    Arc::clone(&noted),
                ));
            }
        });
        Self {
            port,
            requests,
            answers,
            waits,
        }
    }

    pub fn hold(&self) {
        self.waits.send_replace(false);
        self.requests.send_replace(true);
    }

    pub fn hold_answers(&self) {
        self.answers.send_replace(true);
    }

    /// Comes back when something waits that was sent since.
    pub async fn holds_something(&self) {
        let _ = self.waits.subscribe().wait_for(|waits| *waits).await;
    }

    pub fn let_go(&self) {
        self.requests.send_replace(false);
    }
}

fn gate(held: &watch::Sender<bool>) -> Option<watch::Receiver<bool>> {
    let open = !*held.borrow();
    open.then(|| held.subscribe())
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut gate: Option<watch::Receiver<bool>>,
    waits: Arc<watch::Sender<bool>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer).await {
        if let Some(gate) = &mut gate {
            if *gate.borrow() && length > 0 {
                waits.send_replace(true);
            }
            let _ = gate.wait_for(|held| !held).await;
        }
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
