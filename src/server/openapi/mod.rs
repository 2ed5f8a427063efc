//! `/openapi.json`: what the server takes and answers, as an OpenAPI 3.1 document.
//!
//! Written by hand, a piece an API. A test compares the document with the routes and with the fields that bodies are
//! read into, so a route or a field that is not written down does not pass. Knows no engine.

use axum::Json;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The first is the document's frame; the others add paths and components.
const PIECES: [&str; 5] = [
    include_str!("base.json"),
    include_str!("openai.json"),
    include_str!("responses.json"),
    include_str!("anthropic.json"),
    include_str!("ollama.json"),
];

pub(super) async fn openapi() -> Result<Json<Value>, ApiError> {
    let document = document().map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(Value::Object(document)))
}

/// The whole document.
///
/// # Errors
/// A piece is no JSON object, which a test excludes.
pub(super) fn document() -> serde_json::Result<Map<String, Value>> {
    let mut document = Map::new();
    for piece in PIECES {
        merge(&mut document, serde_json::from_str(piece)?);
    }
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    Ok(document)
}

fn merge(into: &mut Map<String, Value>, piece: Map<String, Value>) {
    for (name, value) in piece {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(into)), Value::Object(more)) => merge(into, more),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}
