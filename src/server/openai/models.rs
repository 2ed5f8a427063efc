//! `/v1/models`: what is served.
//!
//! Knows no store: models that are not loaded are not listed.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

use crate::server::anthropic;
use crate::server::dialect::speaks_anthropic;
use crate::server::error::ApiError;
use crate::server::state::App;

/// One model, with vLLM's `max_model_len`.
#[derive(Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    max_model_len: u32,
}

#[derive(Serialize)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

fn model(app: &App, id: &str) -> Model {
    let info = app.models.main().llm.info();
    Model {
        id: id.to_owned(),
        object: "model",
        created: info.loaded_at_unix_s,
        owned_by: "lantern",
        root: info.name.clone(),
        max_model_len: info.context_length,
    }
}

/// In the form that the client's headers ask for: Anthropic's clients read the same path.
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    if speaks_anthropic(&headers) {
        return anthropic::models::list(&app).into_response();
    }
    let data = app.models.names().map(|id| model(&app, id)).collect();
    Json(ModelList { object: "list", data }).into_response()
}

pub(super) async fn retrieve(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let served = app.models.get(&id).await?;
    if speaks_anthropic(&headers) {
        return Ok(Json(anthropic::models::model(&id, &served)).into_response());
    }
    Ok(Json(model(&app, &id)).into_response())
}
