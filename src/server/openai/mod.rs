//! OpenAI's API: chat completions, completions, responses, models.
//!
//! Knows no engine: it translates to [`crate::llm::GenerateRequest`] and back.
//! Source: the OpenAI API reference; extensions as vLLM names them.

mod calls;
mod chat;
mod chat_form;
mod completion_form;
mod completions;
mod embeddings;
mod fields;
mod logprobs;
mod messages;
mod models;
mod prompt;
mod refused;
mod responses;
mod tokens;

use axum::Router;
use axum::routing::{get, post};
use serde::Serialize;

pub(super) use responses::ResponseStore;

use crate::llm::GeneratedToken;
use crate::request::TokenId;

use super::run::Usage;
use super::state::{App, unix_now_s};
use super::unknown_path;

/// The routes below `/v1`; the server has them at the root too.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .route("/embeddings", post(embeddings::create))
        .route("/responses", post(responses::create))
        .route("/responses/{id}/input_items", get(responses::input_items))
        // What OpenAI has below a response (`/responses/compact` ...) is not here.
        .route("/responses/{id}", get(responses::retrieve).delete(responses::delete).post(unknown_path))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::retrieve))
}

/// What the answer to one request, and every chunk of it, begins with.
#[derive(Clone, Debug, Serialize)]
struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
}

impl Envelope {
    fn new(app: &App, id_prefix: &str, object: &'static str, model: String) -> Self {
        Self {
            id: format!("{id_prefix}-{}", app.unique_id()),
            object,
            created: unix_now_s(),
            model,
            system_fingerprint: concat!("lantern-", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// A whole answer, or one chunk of a stream.
#[derive(Serialize)]
struct Answer<'a, C> {
    #[serde(flatten)]
    envelope: &'a Envelope,
    choices: Vec<C>,
    /// Absent where nobody asked; `null` in the chunks before the one that tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// vLLM's `token_ids`.
fn ids(tokens: &[GeneratedToken]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.token).collect()
}

impl fields::StreamUsage {
    /// What stands as `usage` in a chunk that has choices.
    fn in_chunk(self, usage: &Usage) -> Option<Option<Usage>> {
        self.at_end.then(|| self.always.then_some(*usage))
    }
}
