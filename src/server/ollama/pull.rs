//! `/api/pull`, `/api/copy` and `/api/delete`: models that come to this machine, get further names and leave it.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::llm::{HubError, NameError, Progress, Service};
use crate::server::body;
use crate::server::dialect::Dialect;
use crate::server::error::ApiError;
use crate::server::state::App;

/// Lines of progress that may wait for their reader; further ones are left out.
const MAX_LINES: usize = 64;
/// Bytes between two lines of progress.
const LINE_BYTES: u64 = 4 << 20;

/// When a client that was refused a pull may ask again: models take minutes.
const PULL_RETRY_S: u32 = 30;

#[derive(Deserialize)]
struct NameBody {
    /// Older clients say `name`.
    #[serde(alias = "name")]
    model: String,
    stream: Option<bool>,
}

/// Brings a model. A pull goes on when its client goes away: what has come is kept.
pub(super) async fn pull(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let NameBody { model, stream: streams } = body::parse(&bytes)?;
    let source = app.models.source()?;
    let (lines, received) = mpsc::channel(MAX_LINES);
    let place = app.pulls.clone().try_acquire_owned().map_err(|_| too_many(app.config.max_pulls))?;
    let mut progress = Lines::new(lines.clone());
    progress.say(json!({ "status": "pulling manifest" }));
    let pulling = tokio::task::spawn_blocking(move || {
        let _place = place;
        source.pull(&model, &mut progress)
    });
    let end = async move {
        match pulling.await {
            Ok(Ok(())) => Ok(json!({ "status": "success" })),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(ApiError::internal("bringing the model met a defect of the server's")),
        }
    };
    if !streams.unwrap_or(true) {
        drop(received);
        return Ok(Json(end.await?).into_response());
    }
    tokio::spawn(async move {
        let last = end.await.unwrap_or_else(|error| Dialect::Ollama.error(&error));
        // Whoever does not read any more is not told.
        let _ = lines.send(last).await;
    });
    let body = stream::unfold(received, |mut received| async {
        let line: Value = received.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))), received))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn too_many(max_pulls: usize) -> ApiError {
    let message = format!("{max_pulls} models are being brought already (max_pulls); try again later");
    let kind = "rate_limit_error";
    let error = ApiError::client(StatusCode::TOO_MANY_REQUESTS, Some("too_many_pulls"), message);
    ApiError { kind, retry_after_s: Some(PULL_RETRY_S), ..error }
}

#[derive(Deserialize)]
struct CopyBody {
    source: String,
    destination: String,
}

/// Gives a model a second name.
pub(super) async fn copy(State(app): State<App>, request: Request) -> Result<StatusCode, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let CopyBody { source, destination } = body::parse(&bytes)?;
    let models = app.models.source()?;
    // A loaded model may have been asked for by an alias.
    let source = app.models.find(&source).map_or(source, |served| served.llm.info().name.clone());
    app.block(move || models.copy(&source, &destination)).await?.map_err(|error| failed(&error))?;
    Ok(StatusCode::OK)
}

/// Removes a model from the store; one that is loaded leaves when its last request has ended.
pub(super) async fn delete(State(app): State<App>, request: Request) -> Result<StatusCode, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let NameBody { model, .. } = body::parse(&bytes)?;
    let source = app.models.source()?;
    app.block(move || source.remove(&model)).await?.map_err(|error| failed(&error))?;
    app.models.unload_expired().await;
    Ok(StatusCode::OK)
}

fn failed(error: &HubError) -> ApiError {
    let message = error.to_string();
    match error {
        HubError::Name(NameError::Refused { .. }) => {
            ApiError::client(StatusCode::BAD_REQUEST, Some("bad_name"), message)
        }
        HubError::ForeignRegistry { .. } => {
            ApiError::client(StatusCode::BAD_REQUEST, Some("foreign_registry"), message)
        }
        HubError::Name(_)
        | HubError::NotPresent { .. }
        | HubError::NotStored { .. }
        | HubError::NotFound { service: Service::Registry, .. } => {
            ApiError::client(StatusCode::NOT_FOUND, Some("model_not_found"), message)
        }
        HubError::Io { source, .. } => ApiError::internal(format!("{message}: {source}")),
        _ => ApiError::server(StatusCode::BAD_GATEWAY, "pull_failed", message),
    }
}

/// Tells progress in lines, as many as are read.
struct Lines {
    lines: mpsc::Sender<Value>,
    status: String,
    /// Of what is brought, as Ollama writes it.
    digest: Option<String>,
    /// Of what begins next.
    promised: Option<String>,
    total: Option<u64>,
    completed: u64,
    told: u64,
}

impl Lines {
    fn new(lines: mpsc::Sender<Value>) -> Self {
        Self { lines, status: String::new(), digest: None, promised: None, total: None, completed: 0, told: 0 }
    }

    fn say(&self, line: Value) {
        // A line of progress that finds no room is followed by a later one.
        let _ = self.lines.try_send(line);
    }

    fn tell(&mut self) {
        self.told = self.completed;
        let mut line = json!({ "status": self.status, "completed": self.completed });
        if let Some(digest) = &self.digest {
            line["digest"] = digest.as_str().into();
        }
        if let Some(total) = self.total {
            line["total"] = total.into();
        }
        self.say(line);
    }
}

impl Progress for Lines {
    fn promise(&mut self, sha256: &str) {
        self.promised = Some(format!("sha256:{sha256}"));
    }

    fn start(&mut self, what: &str, total_bytes: Option<u64>) {
        (self.status, self.total) = (format!("pulling {what}"), total_bytes);
        self.digest = self.promised.take();
        (self.completed, self.told) = (0, 0);
        self.tell();
    }

    fn advance(&mut self, bytes: u64) {
        self.completed += bytes;
        if self.completed - self.told >= LINE_BYTES {
            self.tell();
        }
    }

    fn finish(&mut self) {
        self.tell();
    }
}
