//! What went wrong with a request, as the HTTP answer it becomes: OpenAI's error shape.
//!
//! Knows no routes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::SubmitError;
use crate::llm::GenerateError;

/// One error of the API.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) kind: &'static str,
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
    pub(super) retry_after_s: Option<u32>,
}

/// OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Serialize)]
pub(super) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    /// The client's fault.
    pub(super) fn client(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind: "invalid_request_error", param: None, code, retry_after_s: None }
    }

    /// A parameter is wrong: 400.
    pub(super) fn invalid(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {problem}");
        Self { param: Some(param), ..Self::client(StatusCode::BAD_REQUEST, None, message) }
    }

    /// A parameter asks for what this server does not do: 400, since leaving it out silently would change the answer.
    pub(super) fn unsupported(param: impl Into<String>, what: impl std::fmt::Display) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, what) }
    }

    /// The server's fault.
    pub(super) fn server(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "server_error", ..Self::client(status, Some(code), message) }
    }

    /// A defect of ours.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// What running requests get when the drain timeout is over.
    pub(super) fn cut_off() -> Self {
        let message = "the server is shutting down and ended this request before it was finished";
        Self::server(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
    }

    /// The prompt is called `messages` in a chat.
    pub(super) fn naming_prompt(self, name: &str) -> Self {
        self.renaming("prompt", name)
    }

    /// What the library calls `name` is `known_as` in this API.
    pub(super) fn renaming(mut self, name: &str, known_as: &str) -> Self {
        if self.param.as_deref() == Some(name) {
            self.param = Some(known_as.to_owned());
            if let Some(problem) = self.message.strip_prefix(name).filter(|problem| problem.starts_with(": ")) {
                self.message = format!("{known_as}{problem}");
            }
        }
        self
    }

    /// The body, also for an event of a stream that has already begun.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        ErrorBody {
            error: ErrorFields {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::PromptTooLong { .. } => Self {
                param: Some("prompt".into()),
                ..Self::client(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message)
            },
            SubmitError::Invalid { field, .. } => {
                Self { param: Some(field.into()), ..Self::client(StatusCode::BAD_REQUEST, None, message) }
            }
            SubmitError::Busy { retry_after_s, .. } => Self {
                kind: "rate_limit_error",
                retry_after_s: Some(retry_after_s),
                ..Self::client(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), message)
            },
            SubmitError::Draining => Self::server(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message),
            SubmitError::Dead(_) => Self::server(StatusCode::SERVICE_UNAVAILABLE, "engine_stopped", message),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Submit(error) => error.into(),
            GenerateError::Prompt(_) => Self {
                param: Some("prompt".into()),
                ..Self::client(StatusCode::BAD_REQUEST, Some("invalid_prompt"), message)
            },
            GenerateError::FarTooLong { .. } => {
                Self::client(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message)
            }
            GenerateError::NoTools => {
                Self { param: Some("tools".into()), ..Self::client(StatusCode::BAD_REQUEST, None, message) }
            }
            GenerateError::Grammar { field, .. } | GenerateError::DeadEnd { field, .. } => Self {
                param: Some(field.into()),
                ..Self::client(StatusCode::BAD_REQUEST, Some("invalid_grammar"), message)
            },
            GenerateError::SlowGrammar { field, .. } => Self {
                param: Some(field.into()),
                ..Self::client(StatusCode::BAD_REQUEST, Some("grammar_too_slow"), message)
            },
            GenerateError::BusyWithGrammars(_) => Self {
                kind: "rate_limit_error",
                retry_after_s: Some(1),
                ..Self::client(StatusCode::TOO_MANY_REQUESTS, Some("busy_with_grammars"), message)
            },
            GenerateError::Stop(_) => {
                Self { param: Some("stop".into()), ..Self::client(StatusCode::BAD_REQUEST, None, message) }
            }
            GenerateError::Failed(_) => Self::server(StatusCode::INTERNAL_SERVER_ERROR, "generation_failed", message),
            GenerateError::TooSlow => Self::client(StatusCode::REQUEST_TIMEOUT, Some("reader_too_slow"), message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // Whose API it is knows the guard, which gives the error that API's form.
        response.extensions_mut().insert(self);
        response
    }
}
