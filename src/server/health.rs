//! How the server is: `/health`, `/metrics`, `/version` and `/`.
//!
//! Knows no API.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::EngineStatus;

use super::error::ApiError;
use super::state::App;

/// 200 while requests are taken, else 503; the body says why, and where the model runs.
pub(super) async fn health(State(app): State<App>) -> Response {
    let (code, status, reason) = match app.models.main().llm.engine().status() {
        EngineStatus::Ready => (StatusCode::OK, "ok", None),
        EngineStatus::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", None),
        EngineStatus::Dead(reason) => (StatusCode::SERVICE_UNAVAILABLE, "dead", Some(reason)),
    };
    let llm = &app.models.main().llm;
    let (info, engine) = (llm.info(), llm.engine().metrics().snapshot());
    let body = json!({
        "status": status,
        "reason": reason.as_deref(),
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
        "queue": {
            "running": engine.running,
            "waiting": engine.waiting,
            "max_waiting": llm.engine().limits().max_waiting,
        },
    });
    (code, Json(body)).into_response()
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let served = app.models.main();
    let text = served.metrics.render(&served.llm).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

pub(super) async fn root() -> &'static str {
    "Lantern is running"
}
