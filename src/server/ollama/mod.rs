//! Ollama's API: chat, generate, and what is said of models.
//!
//! Knows no engine: it translates to [`crate::llm::GenerateRequest`] and back.
//! Source: Ollama's API reference (docs/api.md of its repository).

mod answer;
mod chat;
mod embed;
mod generate;
mod load;
mod messages;
mod models;
mod options;
mod pull;

use axum::Router;
use axum::routing::{delete, get, post};

use super::state::App;

pub(super) use models::version_told;

/// The routes below `/api`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/chat", post(chat::create))
        .route("/generate", post(generate::create))
        .route("/embed", post(embed::create))
        .route("/embeddings", post(embed::create_one))
        .route("/tags", get(models::tags))
        .route("/ps", get(models::ps))
        .route("/show", post(models::show))
        .route("/pull", post(pull::pull))
        .route("/copy", post(pull::copy))
        .route("/delete", delete(pull::delete))
        .route("/version", get(models::version))
}
