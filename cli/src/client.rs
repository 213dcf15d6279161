//! The admin socket, as a client: HTTP/1.1 with JSON over a unix socket.

use crate::failure::Failure;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use mayfly_wire::{Code, Refusal, admin};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long the broker may take over one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of one answer that is read whole: a list of 10,000 values is about 2 MB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// Most bytes of one line of a followed stream.
const MAX_LINE: usize = 1024 * 1024;

/// Where a `mayfly dev` listens unless it is told otherwise.
const DEV_SOCKET: &str = "/run/mayfly-dev/admin.sock";

/// Speaks to one broker. Each request has a connection of its own.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the broker behind this socket. Nothing is connected yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks without a body.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    /// Asks for a deletion.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::DELETE, path, Vec::new()).await
    }

    /// Posts a body.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, to_json(body)?).await
    }

    /// Puts a body.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.ask(Method::PUT, path, to_json(body)?).await
    }

    /// Reads an answer of lines, and gives each to `take` as it comes, until the broker ends it.
    pub async fn lines(
        &self,
        path: &str,
        take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.each_line(Method::GET, path, Vec::new(), take).await
    }

    /// Reads a list, which may be long, and gives each element to `take` as it comes.
    pub async fn each<T: DeserializeOwned>(
        &self,
        path: &str,
        mut take: impl FnMut(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut is_whole = false;
        let read = self.lines(path, |line| {
            // An array, each element on a line of its own.
            match line.trim_end_matches(',') {
                "" | "[" => Ok(()),
                "]" => {
                    is_whole = true;
                    Ok(())
                }
                element => take(serde_json::from_str(element).map_err(|e| strange(path, &e))?),
            }
        });
        read.await?;
        if is_whole {
            return Ok(());
        }
        Err(Failure::Unreachable(format!(
            "the broker's answer to {path} has no end: its log says why"
        )))
    }

    /// Posts a body and reads an answer of lines as [`lines`](Self::lines) does.
    pub async fn post_lines(
        &self,
        path: &str,
        body: &impl Serialize,
        take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.each_line(Method::POST, path, to_json(body)?, take)
            .await
    }

    async fn each_line(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut body = self.send(method, path, body).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            let whole = (rest.iter().rposition(|byte| *byte == b'\n')).map_or(0, |end| end + 1);
            for line in rest[..whole].split_inclusive(|byte| *byte == b'\n') {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                take(&String::from_utf8_lossy(line))?;
            }
            rest.drain(..whole);
            if rest.len() > MAX_LINE {
                return Err(Failure::Failed(format!(
                    "the broker's answer has a line of more than {MAX_LINE} bytes"
                )));
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            take(&String::from_utf8_lossy(&rest))
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER);
            let collected = body.collect().await;
            collected.map_err(|error| self.broken(&error))
        };
        let Ok(answer) = tokio::time::timeout(PATIENCE, answer).await else {
            return Err(Failure::Unreachable(format!(
                "the broker at {} did not answer within {} s",
                self.socket.display(),
                PATIENCE.as_secs()
            )));
        };
        serde_json::from_slice(&answer?.to_bytes()).map_err(|error| strange(path, &error))
    }

    /// Sends one request and gives the answer, unless it is a refusal.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable_at(&self.socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mayfly")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::Failed(format!("{path} is not a request path: {error}")))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_LINE).collect().await;
        let refusal = body
            .ok()
            .and_then(|body| serde_json::from_slice::<Refusal>(&body.to_bytes()).ok());
        Err(Failure::Refused(refusal.unwrap_or_else(|| {
            Refusal::because(
                Code::Internal,
                format!("the broker answered {status} without saying why"),
            )
        })))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::Unreachable(format!(
            "the connection to the broker at {} broke: {error}",
            self.socket.display()
        ))
    }
}

fn strange(path: &str, error: &serde_json::Error) -> Failure {
    Failure::Failed(format!(
        "the broker's answer to {path} is not understood ({error}): are `mayfly` and \
         `mayfly-broker` of one version?"
    ))
}

fn to_json(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let body = serde_json::to_vec(body)
        .map_err(|error| Failure::Failed(format!("the request is not JSON: {error}")))?;
    if body.len() > admin::MAX_BODY {
        return Err(Failure::Usage(format!(
            "the request has {} bytes; a broker takes up to {}",
            body.len(),
            admin::MAX_BODY
        )));
    }
    Ok(body)
}

/// Says which socket, and what to do about it.
fn unreachable_at(socket: &Path, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::NotFound if Path::new(DEV_SOCKET).exists() => {
            "there is no such socket. A `mayfly dev` runs: --socket /run/mayfly-dev/admin.sock"
        }
        io::ErrorKind::NotFound => {
            "there is no such socket. Start a broker (`mayfly-broker`, or `mayfly dev` to try \
             things), or name its socket with --socket or MAYFLY_ADMIN_SOCKET"
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens on it: the broker has stopped. Its log says why"
        }
        io::ErrorKind::PermissionDenied => "only root may connect to it: try with sudo",
        _ => "is this the broker's admin socket?",
    };
    Failure::Unreachable(format!(
        "no answer from a broker at {}: {error}; {advice}",
        socket.display()
    ))
}

/// Text as one value of a query (RFC 3986, section 2.1).
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_value_cannot_become_another_parameter() {
        assert_eq!(encode("a-b.c_d~0"), "a-b.c_d~0");
        assert_eq!(encode("a&b=c d/é"), "a%26b%3Dc%20d%2F%C3%A9");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_socket_is_told_with_what_to_do() {
        let client = Client::new("/nowhere/admin.sock".into());
        let failure = client.get::<admin::Status>("/v1/status").await.unwrap_err();
        let text = failure.to_string();
        assert!(
            text.contains("/nowhere/admin.sock") && text.contains("--socket"),
            "{text}"
        );
        assert!(matches!(failure, Failure::Unreachable(_)));
    }
}
