//! What every handler shares.
//!
//! Knows no routes.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};

use axum::extract::Request;

use crate::engine::SubmitError;
use crate::request::Tenant;

use super::error::ApiError;
use super::models::{Models, ServedModels};
use super::openai::ResponseStore;
use super::{body, tenant};
use crate::server::ServerConfig;

/// Cheap to clone.
pub(super) type App = Arc<AppState>;

pub(super) struct AppState {
    pub(super) models: Arc<Models>,
    pub(super) config: ServerConfig,
    /// Responses that later ones may refer to.
    pub(super) responses: ResponseStore,
    /// Permits to bring a model.
    pub(super) pulls: Arc<Semaphore>,
    encoding: Turns,
    compiling: Turns,
    /// Turns true when running requests must end at once.
    pub(super) cut: watch::Sender<bool>,
    ids: RandomState,
    next_id: AtomicU64,
}

/// Work of one kind: so much runs at once, so much waits for it.
struct Turns {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Turns {
    fn new(config: &ServerConfig) -> Self {
        Self {
            running: Arc::new(Semaphore::new(config.max_encoding.max(1))),
            waiting: Arc::new(Semaphore::new(config.max_encoding_waiting.max(1))),
        }
    }
}

impl AppState {
    pub(super) fn new(models: ServedModels, config: ServerConfig) -> App {
        Arc::new(Self {
            models: Models::new(models, &config),
            responses: ResponseStore::new(config.max_stored_responses, config.stored_response_bytes),
            pulls: Arc::new(Semaphore::new(config.max_pulls.clamp(1, Semaphore::MAX_PERMITS))),
            encoding: Turns::new(&config),
            compiling: Turns::new(&config),
            cut: watch::Sender::new(false),
            ids: RandomState::new(),
            next_id: AtomicU64::new(0),
            config,
        })
    }

    /// Whose request it is, and its body.
    ///
    /// # Errors
    /// As [`body::read`].
    pub(super) async fn receive(&self, request: Request) -> Result<(Tenant, Vec<u8>), ApiError> {
        let tenant = tenant::tenant(request.headers(), request.extensions());
        Ok((tenant, body::read(&self.config, request).await?))
    }

    /// Runs `work`, which encodes a prompt, on a thread that may block, when it is its turn.
    ///
    /// # Errors
    /// 429: too many wait. 500: `work` met a defect.
    pub(super) async fn encode<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.take_turn(&self.encoding, work).await
    }

    /// As [`Self::encode`], for `work` that compiles a grammar too, which may take a thousand times as long: who brings none
    /// does not wait for it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) async fn compile<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.take_turn(&self.compiling, work).await
    }

    async fn take_turn<T: Send + 'static>(
        &self,
        turns: &Turns,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = turns.waiting.clone().try_acquire_owned().map_err(|_| {
            let max_waiting = u32::try_from(self.config.max_encoding_waiting).unwrap_or(u32::MAX);
            ApiError::from(SubmitError::Busy { max_waiting, retry_after_s: 1 })
        })?;
        let permit = turns.running.clone().acquire_owned().await;
        drop(place);
        let work = move || {
            let _permit = permit;
            work()
        };
        self.block(work).await
    }

    /// Runs `work` on a thread that may block.
    ///
    /// # Errors
    /// 500: `work` met a defect.
    pub(super) async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| ApiError::internal("the work for this request met a defect of the server's"))
    }

    /// 32 hexadecimal digits that nobody else has.
    pub(super) fn unique_id(&self) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", self.ids.hash_one((number, 0)), self.ids.hash_one((number, 1)))
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
