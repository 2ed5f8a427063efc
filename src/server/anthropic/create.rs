//! `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::llm::Prompt;
use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;
use crate::server::{body, stream};

use super::answer::{Events, Form};
use super::request::Body;

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let mut fields: Body = body::parse(&bytes)?;
    drop(bytes);
    let model = app.models.get(&fields.model).await?;
    let chat = fields.chat()?;
    let generate = fields.request(chat, tenant, &model.llm)?;
    let run = Run::start(&app, &model, record, vec![generate], true)
        .await
        .map_err(|error| error.naming_prompt("messages"))?;
    let is_stream = fields.is_stream();
    let taken_apart = if is_stream { Parts::in_pieces } else { Parts::new };
    let parts = taken_apart(run.answer_parser(), fields.one_call());
    let mut form = Form { app: app.clone(), model: fields.model, parts };
    if is_stream {
        return Ok(stream::respond(&app, run, Events::new(form)));
    }
    let all = run.whole(std::slice::from_mut(&mut form.parts)).await?;
    Ok(form.whole(all))
}

/// Tokens of what [`create`] would send to the model.
pub(super) async fn count_tokens(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let mut fields: Body = body::parse(&bytes)?;
    drop(bytes);
    let model = app.models.get(&fields.model).await?;
    let prompt = Prompt::Chat(fields.chat()?);
    let tokens = app.encode(move || model.llm.prompt_tokens(&prompt)).await??;
    Ok(Json(json!({ "input_tokens": tokens.len() })))
}
