//! One GET over a unix socket.

use std::path::Path;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Most bytes of an answer. A container's labels and mounts have some kilobytes; a list of hundreds
/// of containers has a megabyte.
const MOST_BYTES: usize = 8 << 20;

/// An engine gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// Its socket cannot be connected to.
    #[error("cannot connect: {0}")]
    Down(std::io::Error),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Slow,
    /// It failed a moment ago, and is left alone.
    #[error("it did not answer a moment ago")]
    Paused,
    /// It failed over this question a moment ago.
    #[error("it failed over the same question a moment ago")]
    Resting,
    /// Too many other questions were first.
    #[error("too many questions were to be asked before this one")]
    Busy,
    /// It was not there a moment ago.
    #[error("nobody listened a moment ago")]
    Absent,
    /// The exchange broke off.
    #[error("the exchange broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// It answered, but not with what was asked for.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// The answer is too large, or broke off.
    #[error("its answer cannot be read: {0}")]
    Body(String),
    /// The answer is no JSON of the expected form.
    #[error("its answer is not understood: {0}")]
    NotUnderstood(serde_json::Error),
}

impl EngineError {
    /// Whether there is no engine: nothing at its path, or nobody who listens.
    pub(crate) fn is_absent(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        match self {
            Self::Absent => true,
            Self::Down(error) => matches!(error.kind(), NotFound | ConnectionRefused),
            _ => false,
        }
    }

    /// Whether it is not worth asking the engine anything else now.
    pub(crate) fn is_of_all(&self) -> bool {
        matches!(
            self,
            Self::Absent | Self::Down(_) | Self::Paused | Self::Busy
        )
    }
}

/// Asks for a path; `None` is 404.
pub(super) async fn get(socket: &Path, path: &str) -> Result<Option<Bytes>, EngineError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(EngineError::Down)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, "engine")
        .body(Empty::<Bytes>::new())
        .map_err(|error| EngineError::Body(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            other => return Err(EngineError::Status(other)),
        }
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| EngineError::Body(error.to_string()))?;
        Ok(Some(body.to_bytes()))
    };
    // The connection is driven here, and ends with the exchange.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            // What has come in by then can still be read.
            exchange.await
        }
    }
}
