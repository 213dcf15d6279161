//! What goes back to the caller: JSON, or a refusal with its code's status.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE,
};
use hyper::{Response, StatusCode};
use mayfly_wire::session::{NONCE_HEADER, UPGRADE as PROTOCOL_NAME};
use mayfly_wire::{Code, Refusal, Secret};
use serde::Serialize;
use std::time::Duration;

pub(super) type Answer = Response<Full<Bytes>>;

/// What a connection over its limits gets before anything is read from it.
pub(super) const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\n\
connection: close\r\nretry-after: 1\r\ncontent-type: application/json\r\ncontent-length: 89\r\n\r\n\
{\"code\":\"too_many\",\"message\":\"too many connections or requests at once; try again later\"}";

fn answer(status: u16, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn with(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

/// 200 with a value that is not secret.
pub(super) fn json<T: Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(200, "application/json", body.into()),
        Err(_) => refusal(Code::Internal.into()),
    }
}

/// 200 with bytes that are zeroed once they are written, on a connection that then ends, so that no
/// buffer of it keeps a copy.
pub(super) fn secret(kind: &'static str, secret: Secret) -> Answer {
    struct Owner(Secret);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.expose()
        }
    }
    closing(answer(200, kind, Bytes::from_owner(Owner(secret))))
}

pub(super) fn refusal(refusal: Refusal) -> Answer {
    refusal_as(refusal.code.http_status(), &refusal)
}

fn refusal_as(status: u16, refusal: &Refusal) -> Answer {
    let body = serde_json::to_vec(refusal).unwrap_or_default();
    answer(status, "application/json", body.into())
}

/// 429 with the whole seconds after which to come again (RFC 9110 section 10.2.3). The connection goes on:
/// who had to make another one for each answer would soon be turned away without any.
pub(super) fn too_many(wait: Duration) -> Answer {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let answer = refusal(Code::TooMany.into());
    with(answer, RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

/// 204.
pub(super) fn noted() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// 405 (RFC 9110 section 15.5.6).
pub(super) fn wrong_method(allowed: &'static str) -> Answer {
    let answer = refusal_as(405, &Code::BadRequest.into());
    with(answer, ALLOW, HeaderValue::from_static(allowed))
}

/// 413, on a connection that ends, because the rest of the body is not read.
pub(super) fn too_large() -> Answer {
    closing(refusal_as(413, &Code::BadRequest.into()))
}

/// 401 with the nonce to repeat the request with.
pub(super) fn nonce_required(nonce: &str) -> Answer {
    let answer = refusal(Code::NonceRequired.into());
    match (
        HeaderName::from_bytes(NONCE_HEADER.as_bytes()),
        HeaderValue::from_str(nonce),
    ) {
        (Ok(name), Ok(value)) => with(answer, name, value),
        _ => refusal(Code::Internal.into()),
    }
}

/// 101: from here on the connection speaks the session protocol.
pub(super) fn switching() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = with(answer, UPGRADE, HeaderValue::from_static(PROTOCOL_NAME));
    with(answer, CONNECTION, HeaderValue::from_static("upgrade"))
}

/// The same, on a connection that then ends.
pub(super) fn closing(answer: Answer) -> Answer {
    with(answer, CONNECTION, HeaderValue::from_static("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_made_beforehand_is_what_would_be_made() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let refusal: Refusal = serde_json::from_str(body).unwrap();
        assert_eq!(refusal, Refusal::from(Code::TooMany));
        assert!(head.starts_with("HTTP/1.1 429 "));
        assert!(
            head.ends_with(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
