//! A broker's side of the node link, that says what a test tells it to.

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mayfly_node::remote::BrokerConfig;
use mayfly_wire::bytes::Base64;
use mayfly_wire::link::{
    EVENT_PATH, GRANTED_PATH, HEARTBEAT_PATH, Heartbeat, NodeEvent, SESSION_PATH, SessionRequest,
    SessionUpdate, Watch, Watched,
};
use mayfly_wire::session::{Bundle, Granted, PROTOCOL, ServerMessage};
use mayfly_wire::{Code, Evidence, Refusal};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A certificate authority with a directory of its own for the node's files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let random = getrandom::u64().unwrap();
        let directory = std::env::temp_dir().join(format!("mayfly-link-{random:x}"));
        std::fs::create_dir(&directory).unwrap();
        Self { issuer, directory }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes the node's files.
    pub fn node_config(&self, addresses: &[String]) -> BrokerConfig {
        let write = |name: &str, content: String| {
            let path = self.directory.join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (certificate, key) = self.issue("node-1");
        BrokerConfig {
            addresses: addresses.to_vec(),
            ca: write("ca.pem", self.issuer.pem()),
            certificate: write("node.pem", certificate.pem()),
            key: write("node.key", key.serialize_pem()),
        }
    }

    fn server_tls(&self) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (certificate, key) = self.issue("localhost");
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        tls
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    requests: AtomicUsize,
    sessions: AtomicUsize,
    events: Mutex<Vec<NodeEvent>>,
    refuse: Mutex<Option<Code>>,
    line: AtomicUsize,
}

/// One broker; it ends when dropped.
pub struct Server {
    port: u16,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = TlsAcceptor::from(Arc::new(authority.server_tls()));
        let state = Arc::new(State::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls, Arc::clone(&state)));
        Self {
            port,
            state,
            _tasks: tasks,
        }
    }

    pub fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
    pub fn open_sessions(&self) -> usize {
        self.state.sessions.load(Ordering::SeqCst)
    }
    pub fn events(&self) -> Vec<NodeEvent> {
        self.state.events.lock().unwrap().clone()
    }
    pub fn refuse_sessions(&self, code: Code) {
        *self.state.refuse.lock().unwrap() = Some(code);
    }
    /// Sessions get one line of that many bytes instead of messages.
    pub fn send_lines_of(&self, bytes: usize) {
        self.state.line.store(bytes, Ordering::SeqCst);
    }
    pub fn stop(self) {}
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            state.connections.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(|request| {
                state.requests.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(request, state).await) }
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn whole(status: u16, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status.try_into().unwrap();
    answer
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Answer {
    let path = request.uri().path().to_owned();
    if path == SESSION_PATH {
        let refusal = *state.refuse.lock().unwrap();
        return match refusal {
            Some(code) => {
                let refusal = serde_json::to_vec(&Refusal::from(code)).unwrap();
                whole(code.http_status(), refusal)
            }
            None => session(request, state),
        };
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let json = match path.as_str() {
        GRANTED_PATH => {
            let _: Evidence = serde_json::from_slice(&body).unwrap();
            let credentials = vec!["orders-db".parse().unwrap()];
            serde_json::to_vec(&Granted { credentials })
        }
        HEARTBEAT_PATH => {
            let heartbeat: Heartbeat = serde_json::from_slice(&body).unwrap();
            assert!(heartbeat.starting);
            let workloads = vec![Watched {
                workload: super::workload(),
                init_pid: 5,
                init_start_time: 6,
            }];
            serde_json::to_vec(&Watch { workloads })
        }
        EVENT_PATH => {
            let event = serde_json::from_slice(&body).unwrap();
            state.events.lock().unwrap().push(event);
            Ok(Vec::new())
        }
        _ => return whole(404, Vec::new()),
    };
    whole(200, json.unwrap())
}

/// Answers each acknowledgement with the next generation.
fn session(request: Request<Incoming>, state: Arc<State>) -> Answer {
    let (down, lines) = mpsc::channel(1);
    state.sessions.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        let _ = converse(request.into_body(), down, &state).await;
        state.sessions.fetch_sub(1, Ordering::SeqCst);
    });
    Response::new(Down(lines).boxed())
}

/// Ends with `None` when either side is gone.
async fn converse(mut body: Incoming, down: mpsc::Sender<Vec<u8>>, state: &State) -> Option<()> {
    let send = async |message: &ServerMessage| {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        down.send(line).await.ok()
    };
    let length = state.line.load(Ordering::SeqCst);
    if length > 0 {
        down.send(vec![b' '; length]).await.ok()?;
        down.closed().await;
        return None;
    }
    let mut input = Vec::new();
    let first = next_line(&mut body, &mut input).await?;
    let request: SessionRequest = serde_json::from_slice(&first).unwrap();
    send(&ServerMessage::Hello {
        protocol: PROTOCOL,
        workload: request.evidence.workload,
    })
    .await?;
    if request.once {
        // On its own, after the message.
        tokio::time::sleep(Duration::from_millis(1)).await;
        return None;
    }
    loop {
        let line = next_line(&mut body, &mut input).await?;
        let message: SessionUpdate = serde_json::from_slice(&line).unwrap();
        if let SessionUpdate::Ack { generation } = message {
            let bundle = Bundle {
                generation: generation + 1,
                now: 1,
                encapsulated: Base64(vec![0; 32]),
                credentials: Vec::new(),
                missing: Vec::new(),
            };
            send(&ServerMessage::Bundle(bundle)).await?;
        }
    }
}

async fn next_line(body: &mut Incoming, input: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = input.iter().position(|&byte| byte == b'\n') {
            return Some(input.drain(..=end).collect());
        }
        let frame = body.frame().await?.ok()?;
        input.extend_from_slice(&frame.into_data().ok()?);
    }
}

struct Down(mpsc::Receiver<Vec<u8>>);

impl Body for Down {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = self.0.poll_recv(context);
        line.map(|line| line.map(|line| Ok(Frame::data(line.into()))))
    }
}
