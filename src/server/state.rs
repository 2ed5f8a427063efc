//! What every handler shares.
//!
//! Knows no routes.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tokio::sync::{Semaphore, watch};

use crate::llm::Llm;

use super::error::ApiError;
use super::metrics::Metrics;
use crate::server::ServerConfig;

/// Cheap to clone.
pub(super) type App = Arc<AppState>;

pub(super) struct AppState {
    pub(super) llm: Llm,
    pub(super) config: ServerConfig,
    pub(super) metrics: Arc<Metrics>,
    /// Permits to encode a prompt.
    pub(super) encoding: Arc<Semaphore>,
    /// Permits to wait for one of those.
    pub(super) encoding_queue: Arc<Semaphore>,
    /// Turns true when running requests must end at once.
    pub(super) cut: watch::Sender<bool>,
    ids: RandomState,
    next_id: AtomicU64,
}

impl AppState {
    pub(super) fn new(llm: Llm, config: ServerConfig) -> App {
        Arc::new(Self {
            metrics: Arc::new(Metrics::new(&llm.info().name)),
            encoding: Arc::new(Semaphore::new(config.max_encoding.max(1))),
            encoding_queue: Arc::new(Semaphore::new(config.max_encoding_waiting.max(1))),
            cut: watch::Sender::new(false),
            ids: RandomState::new(),
            next_id: AtomicU64::new(0),
            llm,
            config,
        })
    }

    /// 32 hexadecimal digits that nobody else has.
    pub(super) fn unique_id(&self) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.ids.hash_one((number, 0)), self.ids.hash_one((number, 1)))
    }

    /// Every name under which the model is served; its own is the first.
    pub(super) fn model_names(&self) -> impl Iterator<Item = &str> {
        let own = self.llm.info().name.as_str();
        std::iter::once(own)
            .chain(self.config.model_aliases.iter().map(String::as_str).filter(move |name| *name != own))
    }

    /// Whether `name` is served here.
    ///
    /// # Errors
    /// 404, naming what is.
    pub(super) fn check_model(&self, name: &str) -> Result<(), ApiError> {
        if self.model_names().any(|served| served == name) {
            return Ok(());
        }
        let served: Vec<_> = self.model_names().map(|served| format!("`{served}`")).collect();
        let message = format!("the model `{name}` is not served here; served: {}", served.join(", "));
        let error = ApiError::client(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Err(ApiError { param: Some("model".into()), ..error })
    }
}

/// Seconds since 1970.
pub(super) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Waits until `signal` is true; for ever where nobody can make it so any more.
pub(super) async fn turned(signal: &mut watch::Receiver<bool>) {
    if signal.wait_for(|signal| *signal).await.is_err() {
        std::future::pending::<()>().await;
    }
}
