//! `/v1/models`: what is served, loaded or not.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::server::anthropic;
use crate::server::dialect::speaks_anthropic;
use crate::server::error::ApiError;
use crate::server::models::Summary;
use crate::server::state::App;

/// One model, with vLLM's `max_model_len`, which is known of loaded ones.
fn model(summary: &Summary) -> Value {
    json!({
        "id": summary.name,
        "object": "model",
        "created": summary.created_unix_s,
        "owned_by": "lantern",
        "root": summary.root,
        "max_model_len": summary.context_length,
    })
}

/// In the form that the client's headers ask for: Anthropic's clients read the same path.
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    let all = app.models.summaries().await;
    if speaks_anthropic(&headers) {
        return Json(anthropic::models::list(&all)).into_response();
    }
    let data: Vec<_> = all.iter().map(model).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

pub(super) async fn retrieve(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let summary = app.models.summary(&id).await?;
    let one = if speaks_anthropic(&headers) { anthropic::models::model(&summary) } else { model(&summary) };
    Ok(Json(one).into_response())
}
