//! The model of a request: loaded if need be, and kept for as long as the request says.

use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use axum::response::Response;

use crate::config::KeepAlive;
use crate::server::error::ApiError;
use crate::server::models::Served;
use crate::server::state::App;

use super::answer::{Place, nothing_generated};
use super::options::Fields;

/// Tokens that the context holds, where `num_ctx` asked for more.
const CONTEXT: &str = "x-lantern-context-length";

/// A model, and the nanoseconds that it took to have it.
pub(super) struct LoadedFor {
    pub(super) model: Served,
    pub(super) load_ns: u64,
}

/// The model that `fields` name.
///
/// # Errors
/// As [`crate::server::models::Models::get`]; 400: `keep_alive` is no duration.
pub(super) async fn load(app: &App, fields: &Fields) -> Result<LoadedFor, ApiError> {
    let started = Instant::now();
    let keep_alive = fields.keep_alive()?;
    let model = app.models.get(&fields.model).await?;
    if let Some(keep_alive) = keep_alive {
        model.keep_alive(keep_alive);
    }
    Ok(LoadedFor { model, load_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX) })
}

/// Says in a header how many tokens the context holds, where a request asked for more.
///
/// # Errors
/// 400: `num_ctx` is no whole number.
pub(super) fn tell_context(model: &Served, fields: &Fields, mut response: Response) -> Result<Response, ApiError> {
    let held = model.llm.engine().limits().max_context;
    if fields.max_context()?.is_some_and(|asked| asked > held) {
        response.headers_mut().insert(CONTEXT, HeaderValue::from(held));
    }
    Ok(response)
}

/// The answer to a request that asks for no text: its model is loaded, or leaves where it is to be kept no longer.
pub(super) async fn only_load(app: &App, fields: &Fields, place: Place) -> Result<Response, ApiError> {
    let leaves = fields.keep_alive()? == Some(KeepAlive::For(Duration::ZERO));
    if leaves && app.models.find(&fields.model).is_none() {
        // Nothing is loaded to be unloaded.
        return Ok(nothing_generated(&fields.model, place, "unload"));
    }
    let loaded = load(app, fields).await?;
    let response = nothing_generated(&fields.model, place, if leaves { "unload" } else { "load" });
    let response = tell_context(&loaded.model, fields, response);
    drop(loaded);
    app.models.unload_expired().await;
    response
}
