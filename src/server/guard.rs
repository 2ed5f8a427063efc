//! What surrounds every request: its id, its span, the limit of its headers, and a net under panics.
//!
//! Knows no API. Neither prompts nor answers are logged.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use tracing::{Instrument as _, Span, debug, info, info_span};

use super::dialect::Dialect;
use super::error::ApiError;
use super::state::App;

const REQUEST_ID: &str = "x-request-id";
/// Longest id that is taken from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// What the log says of one request once it is over: a stream is over when its last byte is written or its reader is
/// gone, so whoever produces the answer holds on to the record.
pub(super) struct RequestRecord {
    pub(super) span: Span,
    started: Instant,
    status: AtomicU16,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
}

impl RequestRecord {
    fn new(span: Span) -> Arc<Self> {
        Arc::new(Self {
            span,
            started: Instant::now(),
            status: AtomicU16::new(0),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
        })
    }

    /// Sets the number of tokens so far.
    pub(super) fn set_tokens(&self, prompt: u64, generated: u64) {
        self.prompt_tokens.store(prompt, Relaxed);
        self.generated_tokens.store(generated, Relaxed);
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let status = self.status.load(Relaxed);
        let (prompt_tokens, tokens) = (self.prompt_tokens.load(Relaxed), self.generated_tokens.load(Relaxed));
        self.span.in_scope(|| match status {
            // The reader went away before the answer began.
            0 => info!(prompt_tokens, tokens, ms, "abandoned"),
            // Probes and pollers would fill the log.
            200..=399 if prompt_tokens == 0 => debug!(status, ms, "answered"),
            _ => info!(status, prompt_tokens, tokens, ms, "answered"),
        });
    }
}

/// The outermost layer.
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(&app, request.headers());
    let span = info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = request.method().as_str(),
        path = request.uri().path()
    );
    let record = RequestRecord::new(span.clone());
    let dialect = Dialect::of(request.uri(), request.headers());
    request.extensions_mut().insert(record.clone());
    let response = match check_headers(request.headers(), app.config.header_bytes) {
        Err(error) => error.into_response(),
        Ok(()) => AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind().await.unwrap_or_else(|_| {
            ApiError::internal("this request met a defect of the server's and was ended; others go on").into_response()
        }),
    };
    let mut response = dialect.speak(response);
    record.status.store(response.status().as_u16(), Relaxed);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's own id where it sent one that is fit to be repeated, else a new one.
fn request_id(app: &App, headers: &HeaderMap) -> HeaderValue {
    let own = headers
        .get(REQUEST_ID)
        .filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.as_bytes().iter().all(u8::is_ascii_graphic));
    match own {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(app.unique_id()).unwrap_or(HeaderValue::from_static("unknown")),
    }
}

fn check_headers(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("the headers have {bytes} bytes, more than the limit of {limit} (header_bytes)");
    Err(ApiError::client(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Some("headers_too_large"), message))
}
