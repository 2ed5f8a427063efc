//! `/api/embed` and the older `/api/embeddings`: texts as vectors.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;

use crate::llm::{EmbedRequest, Prompt};
use crate::request::Tenant;
use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::state::App;
use crate::server::{body, embed};

use super::load::{LoadedFor, load, tell_context};
use super::options::Fields;

#[derive(Debug, Deserialize)]
struct EmbedBody {
    input: Option<Input>,
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct OneBody {
    #[serde(default)]
    prompt: String,
}

/// Several texts, each vector of length 1.
pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (tenant, bytes) = app.receive(request).await?;
    let (fields, body): (Fields, EmbedBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    drop(bytes);
    let texts = match body.input {
        Some(Input::One(text)) => vec![text],
        Some(Input::Many(texts)) => texts,
        None => return Err(ApiError::invalid("input", "it is missing")),
    };
    if !texts.is_empty() {
        embed::check_count(&app, "input", texts.len())?;
    }
    let LoadedFor { model, load_ns } = load(&app, &fields).await?;
    let one =
        |text| Ok::<_, ApiError>(EmbedRequest { dimensions: body.dimensions, ..request_for(&fields, text, &tenant)? });
    let requests = texts.into_iter().map(one).collect::<Result<_, ApiError>>()?;
    // Ollama answers an empty list with one, which is how some clients load a model.
    let embedded = embed::embed(&app, &model, &record, requests).await;
    let embedded = embedded.map_err(|error| error.naming_prompt("input"))?;
    let answer = Json(json!({
        "model": fields.model,
        "embeddings": embedded.vectors,
        "total_duration": u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        "load_duration": load_ns,
        "prompt_eval_count": embedded.prompt_tokens,
    }));
    tell_context(&model, &fields, answer.into_response())
}

/// One text, its vector as the model gives it.
pub(super) async fn create_one(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let (fields, body): (Fields, OneBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    drop(bytes);
    let LoadedFor { model, .. } = load(&app, &fields).await?;
    if body.prompt.is_empty() {
        return Ok(Json(json!({ "embedding": [] })).into_response());
    }
    let one = EmbedRequest { normalize: false, ..request_for(&fields, body.prompt, &tenant)? };
    let mut embedded = embed::embed(&app, &model, &record, vec![one]).await?;
    tell_context(&model, &fields, Json(json!({ "embedding": embedded.vectors.pop() })).into_response())
}

fn request_for(fields: &Fields, text: String, tenant: &Tenant) -> Result<EmbedRequest, ApiError> {
    let (truncate, max_context) = (fields.may_truncate(), fields.max_context()?);
    Ok(EmbedRequest { truncate, max_context, tenant: tenant.clone(), ..EmbedRequest::new(Prompt::Text(text)) })
}
