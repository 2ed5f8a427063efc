//! How the server is: `/health`, `/metrics`, `/version` and `/`.
//!
//! Knows no API.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::EngineStatus;
use crate::llm::Llm;

use super::error::ApiError;
use super::metrics;
use super::state::App;

/// 200 while requests are taken, else 503; the body says why, and where the models run.
pub(super) async fn health(State(app): State<App>) -> Response {
    let loaded = app.models.loaded();
    let worst = loaded.iter().map(|model| model.llm.engine().status()).max_by_key(|status| match status {
        EngineStatus::Ready => 0,
        EngineStatus::Draining => 1,
        EngineStatus::Dead(_) => 2,
    });
    // A server without a loaded model loads the one that is asked for.
    let (code, status, reason) = match worst.unwrap_or(EngineStatus::Ready) {
        EngineStatus::Ready => (StatusCode::OK, "ok", None),
        EngineStatus::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", None),
        EngineStatus::Dead(reason) => (StatusCode::SERVICE_UNAVAILABLE, "dead", Some(reason)),
    };
    let mut body = json!({ "status": status, "reason": reason.as_deref() });
    let mut models = loaded.iter().map(|model| facts(&model.llm));
    // Of the first model at once, since most servers have one.
    if let (Some(body), Some(Value::Object(first))) = (body.as_object_mut(), models.next()) {
        body.extend(first);
    }
    let further: Vec<Value> = models.collect();
    if !further.is_empty() {
        body["further_models"] = further.into();
    }
    (code, Json(body)).into_response()
}

fn facts(llm: &Llm) -> Value {
    let (info, engine) = (llm.present(), llm.engine().metrics().snapshot());
    json!({
        "model": info.name,
        "device": info.device,
        "device_reason": info.device_reason,
        "context_length": info.context_length,
        "memory": {
            "planned_bytes": info.planned_bytes,
            "used_bytes": info.used_bytes,
            "kv_cache_bytes": info.kv_bytes,
            "kv_cache_dtype": info.kv_dtype,
        },
        "offload": info.offload.map(|offload| json!({
            "gpu_layers": offload.gpu_layers,
            "cpu_layers": offload.cpu_layers,
            "cpu_bytes": offload.cpu_bytes,
            "expected_tokens_per_second": offload.expected_tokens_per_second(),
        })),
        "queue": {
            "running": engine.running,
            "waiting": engine.waiting,
            "max_waiting": llm.engine().limits().max_waiting,
        },
    })
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let loaded = app.models.loaded();
    let text = metrics::render(loaded.iter().map(|model| (&*model.metrics, &model.llm)));
    let text = text.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The greeting of Ollama's API, which its clients compare with exactly this; `server` says who speaks it. Browsers are
/// told in words.
pub(super) fn greeting(headers: &HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let is_browser = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    let greeting =
        if is_browser { "Lantern is running; /openapi.json says what it takes" } else { "Ollama is running" };
    ([(header::SERVER, concat!("lantern/", env!("CARGO_PKG_VERSION")))], greeting).into_response()
}

pub(super) async fn root(headers: HeaderMap) -> Response {
    greeting(&headers)
}
