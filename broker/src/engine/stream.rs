//! Byte streams to targets whose protocols we speak ourselves: TCP, a unix socket, or TLS over TCP.

use super::tls;
use mayfly_wire::ConnectionConfig;
use mayfly_wire::connection::Tls;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// What can be read from and written to.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// An open stream.
pub(super) type Stream = Box<dyn Bytes>;

/// Opens one to where the settings say, with TLS from the first byte if they say so. `port` is what such
/// servers usually have.
///
/// # Errors
/// Why not, for operators.
pub(super) async fn open(config: &ConnectionConfig, port: u16) -> Result<Stream, String> {
    let stream = plain(config, port).await?;
    match config.tls {
        _ if is_socket(config) => Ok(stream),
        Tls::Off => Ok(stream),
        Tls::Verify => secure(config, stream).await,
    }
}

/// Whether it is a unix socket, on which nobody can listen and TLS is not spoken.
pub(super) fn is_socket(config: &ConnectionConfig) -> bool {
    config.host.starts_with('/')
}

/// Opens one without TLS.
///
/// # Errors
/// Why not, for operators.
pub(super) async fn plain(config: &ConnectionConfig, port: u16) -> Result<Stream, String> {
    to(&config.host, config.port.unwrap_or(port)).await
}

/// The same; `host` may be the path of a unix socket.
///
/// # Errors
/// Why not, for operators.
pub(super) async fn to(host: &str, port: u16) -> Result<Stream, String> {
    if host.starts_with('/') {
        let stream = UnixStream::connect(host).await;
        return Ok(Box::new(stream.map_err(|error| error.to_string())?));
    }
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    // Requests are small and wait for their answers.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}

/// Speaks TLS on it from here on.
///
/// # Errors
/// Why not, for operators.
pub(super) async fn secure(config: &ConnectionConfig, stream: Stream) -> Result<Stream, String> {
    let settings = tls::client(config.ca_pem.as_deref())?;
    let name = tls::server_name(&config.host)?;
    let stream = TlsConnector::from(settings).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| format!("TLS: {error}"))?))
}

/// Whether the other side has closed it, or says something that nobody asked for.
pub(super) fn is_closed(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let mut context = Context::from_waker(Waker::noop());
    let read = Pin::new(stream).poll_read(&mut context, &mut buffer);
    !matches!(read, Poll::Pending)
}
