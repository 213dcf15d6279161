//! A POST to a server on this host. The body is empty: what changed is in the files.

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

const MAX_ANSWER: usize = 64 * 1024;

/// Asks, and takes any 2xx for success. Redirections are not followed.
///
/// # Errors
/// What went wrong; of the answer only its status.
pub async fn post(address: SocketAddr, path: &str) -> Result<(), String> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let broken = |error: hyper::Error| format!("no HTTP answer from {address}: {error}");
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(16 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = Request::post(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "mayfly-sidecar")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        // Read to its end, so that the server is not cut off; what it says does not matter.
        let _ = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        Ok::<StatusCode, String>(status)
    };
    let mut connection = std::pin::pin!(connection);
    let mut ask = std::pin::pin!(ask);
    let status = tokio::select! {
        status = &mut ask => status?,
        _ = &mut connection => ask.await?,
    };
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("{address} answered {}", status.as_u16())),
    }
}
