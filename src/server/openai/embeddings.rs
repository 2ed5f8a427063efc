//! `/v1/embeddings`: texts as vectors.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::llm::EmbedRequest;
use crate::request::Pooling;
use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::state::App;
use crate::server::{body, embed};

use super::prompt::Prompts;

#[derive(Debug, Deserialize)]
struct EmbeddingsBody {
    model: String,
    input: Option<Prompts>,
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<usize>,
    pooling: Option<PoolingName>,
    normalize: Option<bool>,
    add_special_tokens: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PoolingName {
    Mean,
    Last,
}

impl From<PoolingName> for Pooling {
    fn from(name: PoolingName) -> Self {
        match name {
            PoolingName::Mean => Self::Mean,
            PoolingName::Last => Self::Last,
        }
    }
}

#[derive(Serialize)]
struct Answer {
    object: &'static str,
    data: Vec<Vector>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Vector {
    object: &'static str,
    index: usize,
    embedding: Values,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Numbers(Vec<f32>),
    /// Floats of 4 bytes, the lowest byte first.
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl Values {
    fn new(vector: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Numbers(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let body: EmbeddingsBody = body::parse(&bytes)?;
    drop(bytes);
    let prompts = body.input.ok_or_else(|| ApiError::invalid("input", "it is missing"))?;
    let prompts = prompts.with_special_tokens(body.add_special_tokens);
    embed::check_count(&app, "input", prompts.len())?;
    let model = app.models.get(&body.model).await?;
    let one = |prompt| EmbedRequest {
        pooling: body.pooling.map(Pooling::from),
        dimensions: body.dimensions,
        normalize: body.normalize.unwrap_or(true),
        tenant: tenant.clone(),
        ..EmbedRequest::new(prompt)
    };
    let requests = prompts.into_iter().map(one).collect();
    let embedded = embed::embed(&app, &model, &record, requests).await;
    let embedded = embedded.map_err(|error| error.naming_prompt("input"))?;
    let format = body.encoding_format.unwrap_or(EncodingFormat::Float);
    let vector = |(index, vector)| Vector { object: "embedding", index, embedding: Values::new(vector, format) };
    let data = embedded.vectors.into_iter().enumerate().map(vector).collect();
    let usage = Usage { prompt_tokens: embedded.prompt_tokens, total_tokens: embedded.prompt_tokens };
    Ok(Json(Answer { object: "list", data, model: body.model, usage }).into_response())
}
