//! What is answered while models are being loaded: `/health` says how far that is, everything else to come back.
//!
//! Knows no models.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use super::dialect::Dialect;
use super::error::ApiError;
use super::health::greeting;
use super::ollama::version_told;

/// Connections that are answered at once; others wait.
const MAX_CONNECTIONS: usize = 64;
/// Time for a request's head, and for the last answers once models are there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after the system refused a connection for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// When who was told to wait should come back.
const RETRY_AFTER_S: u32 = 2;

/// How far the loading is: told by who loads, read by `/health`. Clones share it.
#[derive(Clone, Debug)]
pub struct Loading {
    state: Arc<Mutex<State>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct State {
    doing: String,
    done_bytes: u64,
    total_bytes: Option<u64>,
}

impl Default for Loading {
    fn default() -> Self {
        Self { state: Arc::default(), started: Instant::now() }
    }
}

impl Loading {
    /// A piece of work begins, with its size where it has one that is known.
    pub fn begin(&self, doing: impl Into<String>, total_bytes: Option<u64>) {
        *self.lock() = State { doing: doing.into(), done_bytes: 0, total_bytes };
    }

    /// So many more bytes of it are done.
    pub fn advance(&self, bytes: u64) {
        self.lock().done_bytes += bytes;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> Response {
        let state = self.lock();
        let body = json!({
            "status": "loading",
            "reason": state.doing,
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "seconds": self.started.elapsed().as_secs(),
        });
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }

    /// The answer to any request.
    fn answer(&self, request: &Request<Incoming>) -> Response {
        match request.uri().path() {
            "/" => greeting(request.headers()),
            "/api/version" => version_told().into_response(),
            "/health" => self.health(),
            _ => {
                let message = format!("the server is not ready: {}; /health tells how far it is", self.lock().doing);
                let error = ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "loading", message);
                let error = ApiError { retry_after_s: Some(RETRY_AFTER_S), ..error };
                Dialect::of(request.uri(), request.headers()).speak(error.into_response())
            }
        }
    }
}

/// Does `work`, and answers on `listener` for as long as it takes.
pub async fn answer_while_loading<T>(listener: &TcpListener, loading: &Loading, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut connections = JoinSet::new();
    let value = loop {
        tokio::select! {
            biased;
            value = &mut work => break value,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, loading.clone()))),
                Err(error) => {
                    debug!(%error, "a connection was not accepted");
                    // Whatever is wrong here, the work goes on.
                    tokio::select! {
                        value = &mut work => break value,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            },
        }
    };
    let ended = tokio::time::timeout(PATIENCE, async { while connections.join_next().await.is_some() {} });
    if ended.await.is_err() {
        debug!(connections = connections.len(), "closing connections that wait");
    }
    value
}

/// One request and its answer.
async fn connection(stream: TcpStream, loading: Loading) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = loading.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection ended early");
    }
}
