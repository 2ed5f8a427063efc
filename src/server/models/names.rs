//! Which model a name means, and what is said where it means none.

use axum::http::StatusCode;

use crate::server::error::ApiError;

/// Names that differ by at most this many letters are near.
const NEAR_DISTANCE: usize = 3;
/// At most this many names are told.
const MAX_TOLD: usize = 5;

/// Whether `asked` means the model `full`: letter for letter, or with the tag that Ollama's clients add.
pub(super) fn is_same(full: &str, asked: &str) -> bool {
    full == asked || asked.strip_suffix(":latest") == Some(full) || full.strip_suffix(":latest") == Some(asked)
}

/// Longest name that is looked for among others, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// 404, with the names that are near, else those that there are.
pub(super) fn unknown(name: &str, known: &[&str]) -> ApiError {
    if name.len() > MAX_NAME_BYTES {
        let message = format!("no model has a name of {} bytes", name.len());
        let error = ApiError::client(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        return ApiError { param: Some("model".into()), ..error };
    }
    let family = |name: &str| name.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let mut near: Vec<_> = known
        .iter()
        .map(|known| (strsim::osa_distance(&known.to_ascii_lowercase(), &name.to_ascii_lowercase()), *known))
        .filter(|(distance, known)| *distance <= NEAR_DISTANCE || family(known) == family(name))
        .collect();
    near.sort_unstable();
    let quoted = |names: &mut dyn Iterator<Item = &str>| {
        names.take(MAX_TOLD).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let hint = if near.is_empty() {
        let more = if known.len() > MAX_TOLD { " and others" } else { "" };
        format!("served: {}{more}", quoted(&mut known.iter().copied()))
    } else {
        format!("did you mean {}?", quoted(&mut near.iter().map(|(_, name)| *name)))
    };
    let message = format!("the model `{name}` is not served here; {hint}");
    let error = ApiError::client(StatusCode::NOT_FOUND, Some("model_not_found"), message);
    ApiError { param: Some("model".into()), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_told_else_all() {
        let known = ["smollm2:135m", "qwen3:8b", "qwen3:32b"];
        let message = |name| unknown(name, &known).message;
        assert!(message("qwen3:7b").ends_with("did you mean `qwen3:8b`, `qwen3:32b`?"), "{}", message("qwen3:7b"));
        assert!(message("smolm2:135m").ends_with("did you mean `smollm2:135m`?"));
        assert!(message("gpt-4o").ends_with("served: `smollm2:135m`, `qwen3:8b`, `qwen3:32b`"));
    }

    #[test]
    fn latest_is_whatever_there_is() {
        assert!(is_same("a:1b", "a:1b") && is_same("a:1b", "a:1b:latest") && is_same("a:latest", "a"));
        assert!(!is_same("a:1b", "a") && !is_same("a:1b", "a:2b"));
    }
}
