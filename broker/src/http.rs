//! What the broker's HTTP servers share: bodies read within limits, answers whole or line by line.

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use mayfly_wire::{Code, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

/// How long a request's body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The body of an answer.
pub enum Answer {
    /// All at once.
    Whole(Option<Bytes>),
    /// As it comes.
    Lines(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines(lines) => lines
                .poll_recv(context)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Lines(_) => SizeHint::default(),
        }
    }
}

/// An answer in JSON.
///
/// # Errors
/// [`Code::Internal`] if it cannot be written as JSON.
pub fn json(value: &impl Serialize) -> Result<Response<Answer>, Refusal> {
    match serde_json::to_vec(value) {
        Ok(body) => Ok(answer(
            StatusCode::OK,
            "application/json",
            Answer::Whole(Some(body.into())),
        )),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            Err(Code::Internal.into())
        }
    }
}

/// An answer that ends when its sender does.
#[must_use]
pub fn lines(lines: mpsc::Receiver<Bytes>) -> Response<Answer> {
    answer(StatusCode::OK, "application/x-ndjson", Answer::Lines(lines))
}

/// An answer in JSON that comes bit by bit.
#[must_use]
pub fn list(bits: mpsc::Receiver<Bytes>) -> Response<Answer> {
    answer(StatusCode::OK, "application/json", Answer::Lines(bits))
}

/// A refusal in JSON with its code's status.
#[must_use]
pub fn refused(refusal: &Refusal) -> Response<Answer> {
    let status = StatusCode::from_u16(refusal.code.http_status());
    let body = serde_json::to_vec(refusal).unwrap_or_default();
    answer(
        status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        "application/json",
        Answer::Whole(Some(body.into())),
    )
}

fn answer(status: StatusCode, kind: &'static str, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Reads a whole body of JSON. Its bytes are zeroed when this returns.
///
/// # Errors
/// [`Code::BadRequest`] for one that is too large or not as expected, [`Code::TooSlow`].
pub async fn read<T: DeserializeOwned>(body: Incoming, most: usize) -> Result<T, Refusal> {
    let bytes = tokio::time::timeout(BODY_TIME, collect(body, most)).await;
    let bytes = bytes.map_err(|_| Refusal::from(Code::TooSlow))??;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The message of an error about a value could hold the value: its place is enough.
        let (line, column) = (error.line(), error.column());
        let what = match error.classify() {
            serde_json::error::Category::Data => "it is not what this request takes",
            _ => "it is not JSON",
        };
        Refusal::because(
            Code::BadRequest,
            format!("the body, line {line}, column {column}: {what}"),
        )
    })
}

async fn collect(mut body: Incoming, most: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let too_large = || {
        Refusal::because(
            Code::BadRequest,
            format!("expected a body of at most {most} bytes"),
        )
    };
    let announced = body.size_hint().exact().unwrap_or(0);
    let announced = usize::try_from(announced).ok().filter(|&size| size <= most);
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced.ok_or_else(too_large)?));
    while let Some(frame) = body.frame().await {
        let broken = |_| Refusal::because(Code::BadRequest, "the body broke off");
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
