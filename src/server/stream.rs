//! A running request as a stream: server-sent events, or JSON line by line.
//!
//! Knows no API's form: a [`Chunks`] writes it.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use futures::{FutureExt as _, stream};
use serde::Serialize;

use super::error::ApiError;
use super::run::{Run, RunEvent, Usage};
use super::state::App;

/// How the pieces of a stream are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events.
    Events,
    /// One JSON value a line.
    Lines,
}

impl Framing {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        })
    }
}

/// What is written and not sent yet.
#[derive(Default)]
pub(super) struct Out(String);

impl Out {
    /// An event that has no name.
    pub(super) fn data(&mut self, value: &impl Serialize) {
        self.piece("data: ", value, "\n\n");
    }

    /// An event with a name.
    pub(super) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.piece(&format!("event: {name}\ndata: "), value, "\n\n");
    }

    /// A line.
    pub(super) fn line(&mut self, value: &impl Serialize) {
        self.piece("", value, "\n");
    }

    /// What readers of events pass over.
    fn comment(&mut self, text: &str) {
        self.0.extend([": ", text, "\n\n"]);
    }

    /// What ends OpenAI's streams.
    pub(super) fn done(&mut self) {
        self.0.push_str("data: [DONE]\n\n");
    }

    fn piece(&mut self, before: &str, value: &impl Serialize, after: &str) {
        match serde_json::to_string(value) {
            Ok(json) => self.0.extend([before, &json, after]),
            // Of our own types none fails; a piece that did would be missed by its reader, so the log tells.
            Err(error) => tracing::error!(%error, "a piece of a stream cannot be written"),
        }
    }
}

/// How one API writes a running request.
pub(super) trait Chunks: Send + 'static {
    /// How its pieces are told apart.
    const FRAMING: Framing;

    /// Writes that the client is to go on waiting, in a stream of events.
    fn waiting(out: &mut Out) {
        out.comment("waiting");
    }

    /// Writes what `event` has to tell, if anything.
    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut Out);

    /// Writes what follows the last event.
    fn end(&mut self, usage: &Usage, out: &mut Out);

    /// Writes that the request has failed; nothing follows.
    fn failed(&mut self, error: &ApiError, out: &mut Out);
}

struct Streaming<C> {
    /// `None` once it has ended; the generations are dropped with it.
    run: Option<Run>,
    form: C,
    keep_alive: std::time::Duration,
}

impl<C: Chunks> Streaming<C> {
    /// The next bytes: of one event, and of those that are there already, so that a reader behind is caught up with in
    /// one write.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Out::default();
        while out.0.is_empty() {
            let run = self.run.as_mut()?;
            match tokio::time::timeout(self.keep_alive, run.next()).await {
                Ok(event) => self.take(event, &mut out),
                Err(_) if C::FRAMING == Framing::Events => C::waiting(&mut out),
                Err(_) => {}
            }
        }
        while let Some(event) = self.run.as_mut().and_then(|run| run.next().now_or_never()) {
            self.take(event, &mut out);
        }
        Some(out.0.into())
    }

    fn take(&mut self, event: Option<Result<RunEvent, ApiError>>, out: &mut Out) {
        let Some(run) = &self.run else { return };
        match event {
            Some(Ok(event)) => return self.form.chunks(event, &run.usage(), out),
            Some(Err(error)) => self.form.failed(&error, out),
            None => self.form.end(&run.usage(), out),
        }
        self.run = None;
    }
}

/// The answer: status 200 at once, then what `form` writes; comments while nothing comes, where there is room for them.
pub(super) fn respond<C: Chunks>(app: &App, run: Run, form: C) -> Response {
    let streaming = Streaming { run: Some(run), form, keep_alive: app.config.sse_keep_alive };
    let pieces = stream::unfold(streaming, |mut streaming| async {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(bytes), streaming))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, C::FRAMING.content_type());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold the events back until its buffer is full.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
