//! `/v1/responses`: answers made of items, whole, streamed and stored.
//!
//! Knows no engine: it translates to [`crate::llm::GenerateRequest`] and back.
//! Source: the OpenAI API reference, "Responses".

mod answer;
mod events;
mod input;
mod items;
mod request;
mod store;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;
use crate::server::{body, stream, tenant};

pub(in crate::server) use store::ResponseStore;

use answer::{Form, ToStore};
use events::Events;
use request::Body;

/// Tools that were passed over since this server does not run them, by type.
const PASSED_OVER: &str = "x-lantern-tools-passed-over";

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let mut fields: Body = body::parse(&bytes)?;
    drop(bytes);
    let earlier = match &fields.previous_response_id {
        Some(id) => app.responses.conversation(&tenant, id).ok_or_else(|| not_stored("previous_response_id", id))?,
        None => Vec::new(),
    };
    let model = app.models.get(&fields.model).await?;
    fields.check_metadata()?;
    fields.resolve(app.config.body_bytes, |id| app.responses.item(&tenant, id))?;
    let input = if fields.is_stored() { fields.input_items(|| app.unique_id()) } else { Vec::new() };
    let asked = fields.conversation(earlier)?;
    let generate = fields.request(&asked, tenant.clone(), &model.llm)?;
    let sampling = model.llm.sampling(&generate.sampling);
    let run = Run::start(&app, &model, record, vec![generate], true)
        .await
        .map_err(|error| error.naming_prompt("input").renaming("logprobs", "top_logprobs"))?;
    let taken_apart = if fields.is_stream() { Parts::in_pieces } else { Parts::new };
    let parts = taken_apart(run.answer_parser(), fields.parallel_tool_calls == Some(false));
    let to_store = ToStore { tenant, input, conversation: asked.conversation };
    let stored = fields.is_stored().then_some(to_store);
    let events = Events::new(Form::new(&app, &model.llm, &fields, &sampling, parts, stored));
    let mut response = if fields.is_stream() { stream::respond(&app, run, events) } else { events.whole(run).await? };
    if let Ok(passed_over) = HeaderValue::from_str(&asked.passed_over.join(", "))
        && !passed_over.is_empty()
    {
        response.headers_mut().insert(PASSED_OVER, passed_over);
    }
    Ok(response)
}

/// A stored response.
pub(super) async fn retrieve(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let tenant = tenant::tenant(request.headers(), request.extensions());
    app.responses.response(&tenant, &id).map(Json).ok_or_else(|| not_stored("response_id", &id))
}

/// What a stored response was asked with, in pages; what was said in earlier responses is theirs.
pub(super) async fn input_items(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let tenant = tenant::tenant(request.headers(), request.extensions());
    let items = app.responses.input(&tenant, &id).ok_or_else(|| not_stored("response_id", &id))?;
    input::page(items, &query).map(Json)
}

/// Forgets a stored response.
pub(super) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let tenant = tenant::tenant(request.headers(), request.extensions());
    if !app.responses.remove(&tenant, &id) {
        return Err(not_stored("response_id", &id));
    }
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })))
}

fn not_stored(param: &str, id: &str) -> ApiError {
    let message = format!(
        "no response `{id}` is stored here: it was not to be stored, is another client's, or was too long ago \
         (max_stored_responses)"
    );
    let error = ApiError::client(StatusCode::NOT_FOUND, Some("response_not_found"), message);
    ApiError { param: Some(param.into()), ..error }
}
