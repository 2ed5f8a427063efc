//! Whose API a request speaks: its errors take that API's form, wherever in the server they come from.
//!
//! Knows no routes but their beginnings.

use axum::Json;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::error::ApiError;

/// One of the APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Ollama,
    Anthropic,
}

impl Dialect {
    /// The API of a request to `uri` with these headers.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let path = uri.path();
        let below_v1 = path.strip_prefix("/v1").unwrap_or(path);
        let is_anthropic = |path: &str| path == "/messages" || path.starts_with("/messages/");
        if path.starts_with("/api/") {
            Self::Ollama
        } else if is_anthropic(below_v1) || below_v1.starts_with("/models") && speaks_anthropic(headers) {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// An error as this API writes it.
    pub(super) fn error(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi => json!(error.body()),
            Self::Ollama => json!({ "error": error.message }),
            Self::Anthropic => {
                json!({ "type": "error", "error": { "type": anthropic_kind(error), "message": error.message } })
            }
        }
    }

    /// `response`, in this API's form where it is an error.
    pub(super) fn speak(self, mut response: Response) -> Response {
        let Some(error) = response.extensions_mut().remove::<ApiError>().filter(|_| self != Self::OpenAi) else {
            return response;
        };
        let headers = std::mem::take(response.headers_mut());
        let mut spoken = (error.status, Json(self.error(&error))).into_response();
        for (name, value) in &headers {
            // The old body's length and type are not the new one's.
            if !spoken.headers().contains_key(name) && name != axum::http::header::CONTENT_LENGTH {
                spoken.headers_mut().insert(name, value.clone());
            }
        }
        spoken
    }
}

/// Whether a client says that it reads Anthropic's forms.
pub(super) fn speaks_anthropic(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Source: the error types of Anthropic's API reference.
fn anthropic_kind(error: &ApiError) -> &'static str {
    match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_headers_say_whose_form_is_read() {
        let dialect = |path: &str, version: bool| {
            let mut headers = HeaderMap::new();
            if version {
                headers.insert("anthropic-version", axum::http::HeaderValue::from_static("2023-06-01"));
            }
            Dialect::of(&path.parse().expect("a path"), &headers)
        };
        for (path, version, expected) in [
            ("/v1/chat/completions", false, Dialect::OpenAi),
            ("/v1/chat/completions", true, Dialect::OpenAi),
            ("/api/chat", false, Dialect::Ollama),
            ("/api/nothing", true, Dialect::Ollama),
            ("/v1/messages", false, Dialect::Anthropic),
            ("/messages/count_tokens", false, Dialect::Anthropic),
            ("/v1/messages-of-mine", false, Dialect::OpenAi),
            ("/v1/models", false, Dialect::OpenAi),
            ("/v1/models/x", true, Dialect::Anthropic),
        ] {
            assert_eq!(dialect(path, version), expected, "{path} {version}");
        }
    }
}
