//! A small HTTP/1.1 client over unix sockets, for the workload and the admin socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// The way to one socket. Each call makes a connection of its own.
#[derive(Debug, Clone)]
pub struct Http {
    socket: PathBuf,
    limit: Duration,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!(
                "status {}, expected JSON, found {:?}",
                self.status, self.body
            )
        })
    }
}

impl Http {
    /// A client that waits 30 seconds at most for anything.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_path_buf(),
            limit: Duration::from_secs(30),
        }
    }

    /// The same with another limit.
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no whole answer in time. A status that says no is an answer.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, &[], "")
    }

    /// POST of a JSON value.
    ///
    /// # Errors
    /// As for [`Http::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.request(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.to_string(),
        )
    }

    /// Any request.
    ///
    /// # Errors
    /// As for [`Http::get`].
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply> {
        let runtime = runtime()?;
        let all = async {
            let response = self.send(method, path, headers, body.into()).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.context("reading the body")?.to_bytes();
            Ok(Reply {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        runtime
            .block_on(async { tokio::time::timeout(self.limit, all).await })
            .map_err(|_| self.late(method, path))?
    }

    /// A request whose answer's body comes bit by bit, such as a session.
    ///
    /// # Errors
    /// When the head of the answer does not come in time.
    pub fn stream(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Result<Stream> {
        let runtime = runtime()?;
        let head = self.send(method, path, &[], body.into());
        let response = runtime
            .block_on(async { tokio::time::timeout(self.limit, head).await })
            .map_err(|_| self.late(method, path))??;
        let (head, body) = response.into_parts();
        Ok(Stream {
            status: head.status,
            body,
            rest: Vec::new(),
            runtime,
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let socket = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("connecting to {}", self.socket.display()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body))
            .context("making the request")?;
        sender
            .send_request(request)
            .await
            .with_context(|| format!("sending {method} {path}"))
    }

    fn late(&self, method: &str, path: &str) -> anyhow::Error {
        anyhow!(
            "no answer within {:?} to {method} {path} at {}",
            self.limit,
            self.socket.display()
        )
    }
}

/// An answer whose body still comes. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    /// The status of the answer.
    pub status: StatusCode,
    body: Incoming,
    rest: Vec<u8>,
    runtime: Runtime,
}

impl Stream {
    /// The next line, without its newline; `None` at the end of the body.
    ///
    /// # Errors
    /// When none comes within `limit`, or the connection breaks.
    pub fn line(&mut self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let Self {
            body,
            rest,
            runtime,
            ..
        } = self;
        let next = async {
            loop {
                if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let mut line: Vec<u8> = rest.drain(..=end).collect();
                    line.pop();
                    return Ok(Some(line));
                }
                match body.frame().await {
                    Some(frame) => {
                        if let Ok(data) = frame.context("reading the stream")?.into_data() {
                            rest.extend_from_slice(&data);
                        }
                    }
                    None if rest.is_empty() => return Ok(None),
                    None => bail!("the stream ended within a line of {} bytes", rest.len()),
                }
            }
        };
        runtime
            .block_on(async { tokio::time::timeout(limit, next).await })
            .map_err(|_| anyhow!("no line on the stream within {limit:?}"))?
    }

    /// The next line as JSON.
    ///
    /// # Errors
    /// When none comes within `limit`, the stream has ended, or it is no JSON.
    pub fn json(&mut self, limit: Duration) -> Result<Value> {
        let line = self.line(limit)?.context("the stream has ended")?;
        serde_json::from_slice(&line).context("expected a line of JSON")
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")
}
