//! `/v1/models` in Anthropic's form, for clients whose headers say that they read it.

use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use serde_json::{Value, json};

use crate::server::models::Served;
use crate::server::state::App;

/// All models, on one page.
pub(in crate::server) fn list(app: &App) -> Json<Value> {
    let data: Vec<_> = app.models.names().map(|name| model(name, app.models.main())).collect();
    Json(json!({
        "data": data,
        "first_id": data.first().map(|first| &first["id"]),
        "last_id": data.last().map(|last| &last["id"]),
        "has_more": false,
    }))
}

/// One model.
pub(in crate::server) fn model(name: &str, served: &Served) -> Value {
    let loaded_at = UNIX_EPOCH + Duration::from_secs(served.llm.info().loaded_at_unix_s);
    json!({
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": humantime::format_rfc3339_seconds(loaded_at).to_string(),
    })
}
