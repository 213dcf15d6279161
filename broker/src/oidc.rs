//! What others need to verify the tokens of the `jwt` engine: the discovery document and the key set,
//! over HTTPS, for anybody.

use crate::engine::jwt::Jwt;
use crate::places::Places;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Path of the discovery document (OpenID Connect Discovery 1.0, section 4).
pub const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
/// Path of the key set.
pub const KEY_SET_PATH: &str = "/.well-known/jwks.json";

/// Connections at the same time. Anybody may connect, so each address has its share.
const CONNECTIONS: usize = 1024;
/// For the TLS handshake, and again for the head of each request.
const PATIENCE: Duration = Duration::from_secs(5);
/// No connection lasts longer, whatever it does.
const LIFETIME: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;

/// Serves until the task is dropped. A connection that fails harms no other.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, jwt: Arc<Jwt>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Places::new(CONNECTIONS);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: that passes.
                tracing::warn!(%error, "the OpenID server cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = places.take(address.ip()) else {
            continue;
        };
        let (acceptor, jwt) = (acceptor.clone(), jwt.clone());
        tokio::spawn(async move {
            let served = timeout(LIFETIME, connection(stream, acceptor, jwt)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(error, "a connection to the OpenID server ended");
            }
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    jwt: Arc<Jwt>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = timeout(PATIENCE, acceptor.accept(stream)).await??;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(16 * 1024)
        .max_concurrent_streams(16)
        .keep_alive_interval(Some(PATIENCE))
        .keep_alive_timeout(PATIENCE);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &jwt);
        async { Ok::<_, Infallible>(answer) }
    });
    builder
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, jwt: &Jwt) -> Response<Full<Bytes>> {
    let (content_type, body) = match request.uri().path() {
        DISCOVERY_PATH => ("application/json", jwt.discovery()),
        // The short form is what people try first.
        KEY_SET_PATH | "/jwks.json" => ("application/jwk-set+json", jwt.key_set()),
        _ => return empty(StatusCode::NOT_FOUND),
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let cache = format!("public, max-age={}", jwt.cacheable().as_secs());
    if let Ok(cache) = HeaderValue::from_str(&cache) {
        headers.insert(CACHE_CONTROL, cache);
    }
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
