//! Anthropic's API: messages, whole and streamed, and the count of their tokens.
//!
//! Knows no engine: it translates to [`crate::llm::GenerateRequest`] and back.
//! Source: Anthropic's API reference, version 2023-06-01.

mod answer;
mod blocks;
mod create;
pub(super) mod models;
mod request;

use axum::Router;
use axum::routing::post;

use super::state::App;

/// The routes below `/v1`; the server has them at the root too.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/messages", post(create::create)).route("/messages/count_tokens", post(create::count_tokens))
}
