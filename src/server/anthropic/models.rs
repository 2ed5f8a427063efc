//! `/v1/models` in Anthropic's form, for clients whose headers say that they read it.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::server::models::Summary;

/// All models, on one page.
pub(in crate::server) fn list(all: &[Summary]) -> Value {
    json!({
        "data": all.iter().map(model).collect::<Vec<_>>(),
        "first_id": all.first().map(|first| &first.name),
        "last_id": all.last().map(|last| &last.name),
        "has_more": false,
    })
}

/// One model.
pub(in crate::server) fn model(summary: &Summary) -> Value {
    let created_at = UNIX_EPOCH + Duration::from_secs(summary.created_unix_s);
    json!({
        "type": "model",
        "id": summary.name,
        "display_name": summary.name,
        "created_at": humantime::format_rfc3339_seconds(created_at).to_string(),
    })
}
