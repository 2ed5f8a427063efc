//! HTTP: routes, limits and the translation of each API to `Request`. Knows no tensors.
//!
//! [`serve`] is a whole server; [`router`] is what it serves, for programs that have a server of their own:
//!
//! ```no_run
//! # async fn example(llm: lantern::Llm) {
//! use lantern::server::{ServerConfig, router};
//! let app = axum::Router::<()>::new().nest("/llm", router(llm, ServerConfig::default()));
//! # }
//! ```

mod anthropic;
mod body;
mod chats;
mod dialect;
mod embed;
mod error;
mod grammars;
mod guard;
mod health;
mod limits;
mod loading;
mod metrics;
mod models;
mod ollama;
mod openai;
mod openapi;
mod origins;
mod parts;
mod run;
mod serve;
mod state;
mod stream;
mod tenant;
mod unread;

#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::get;

pub use limits::{Origins, ServerConfig};
pub use loading::{Loading, answer_while_loading};
pub use models::{ModelSource, ServedModels};
pub use serve::{ServeError, serve};

use error::ApiError;
use state::{App, AppState};

/// All routes over `models`, which may be one [`crate::Llm`]. Nest it in another program's router, rather than merge it: it has fallbacks of its own.
///
/// Requests are told apart by address only where the program serves with
/// `into_make_service_with_connect_info::<SocketAddr>()`; else all that bring no key are one tenant.
pub fn router(models: impl Into<ServedModels>, config: ServerConfig) -> Router {
    routes(AppState::new(models.into(), config))
}

fn routes(app: App) -> Router {
    let below_v1 = openai::routes().merge(anthropic::routes());
    let cors = origins::layer(&app.config.origins);
    Router::new()
        .route("/", get(health::root))
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/version", get(health::version))
        .route("/openapi.json", get(openapi::openapi))
        .merge(below_v1.clone())
        .nest("/v1", below_v1)
        .nest("/api", ollama::routes())
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(from_fn_with_state(app.clone(), origins::refuse_others))
        .layer(cors)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

async fn unknown_path(State(app): State<App>, request: Request) -> ApiError {
    let message = format!("there is nothing at `{} {}`", request.method(), request.uri().path());
    pass_over_body(&app, request).await;
    ApiError::client(StatusCode::NOT_FOUND, Some("unknown_url"), message)
}

async fn wrong_method(State(app): State<App>, request: Request) -> ApiError {
    let message = format!("`{}` does not take {}", request.uri().path(), request.method());
    pass_over_body(&app, request).await;
    ApiError::client(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
}

/// Reads what a client sends although nobody wants it: one that is cut off in the middle hears of that, and not of the answer.
async fn pass_over_body(app: &App, request: Request) {
    // A body that breaks off or is too large is nobody's loss here.
    let _ = body::read(&app.config, request).await;
}
