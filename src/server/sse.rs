//! A running request as server-sent events.
//!
//! Knows no API's form: a [`Chunks`] makes the JSON.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream;

use super::error::ApiError;
use super::run::{Run, RunEvent, Usage};
use super::state::App;

/// How one API writes a running request.
pub(super) trait Chunks: Send + 'static {
    /// Appends the JSON of what `event` has to tell, if anything.
    fn chunks(&mut self, event: RunEvent, usage: &Usage, out: &mut VecDeque<String>);

    /// Appends what follows the last event.
    fn end(&mut self, usage: &Usage, out: &mut VecDeque<String>);
}

struct Streaming<C> {
    /// `None` once it has ended; the generations are dropped with it.
    run: Option<Run>,
    form: C,
    ready: VecDeque<String>,
}

impl<C: Chunks> Streaming<C> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            let run = self.run.as_mut()?;
            match run.next().await {
                Some(Ok(event)) => self.form.chunks(event, &run.usage(), &mut self.ready),
                Some(Err(error)) => {
                    self.ready.push_back(error_json(&error));
                    self.run = None;
                }
                None => {
                    self.form.end(&run.usage(), &mut self.ready);
                    self.ready.push_back("[DONE]".into());
                    self.run = None;
                }
            }
        }
    }
}

/// The answer: status 200 at once, then one event a chunk, comments while nothing comes, and `[DONE]` where it went
/// well; an error ends the stream without it.
pub(super) fn respond(app: &App, run: Run, form: impl Chunks) -> Response {
    let streaming = Streaming { run: Some(run), form, ready: VecDeque::new() };
    let events = stream::unfold(streaming, |mut streaming| async {
        let data = streaming.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), streaming))
    });
    let keep_alive = KeepAlive::new().interval(app.config.sse_keep_alive).text("waiting");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would hold the events back until its buffer is full.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// `value` as JSON; what cannot be written becomes an error of the same stream.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error_json(&ApiError::internal(error.to_string())))
}

fn error_json(error: &ApiError) -> String {
    serde_json::to_string(&error.body()).unwrap_or_default()
}
