//! `/v1/models`: what is served.
//!
//! Knows no store: models that are not loaded are not listed.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

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
    let info = app.llm.info();
    Model {
        id: id.to_owned(),
        object: "model",
        created: info.loaded_at_unix_s,
        owned_by: "lantern",
        root: info.name.clone(),
        max_model_len: info.context_length,
    }
}

pub(super) async fn list(State(app): State<App>) -> Json<ModelList> {
    let data = app.model_names().map(|id| model(&app, id)).collect();
    Json(ModelList { object: "list", data })
}

pub(super) async fn retrieve(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    app.check_model(&id)?;
    Ok(Json(model(&app, &id)))
}
