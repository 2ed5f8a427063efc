//! The models that are served, by name: those that are loaded, and those that are loaded when somebody asks for them.
//!
//! Knows no API. Invariants: one model is loaded at a time, and none twice; one that is in use does not leave; one that
//! leaves has given its memory back before the next takes it. Where memory is short, the KV caches of idle models become smaller before any
//! model leaves.

mod lease;
mod leave;
mod names;
mod source;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::StatusCode;
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::KeepAlive;
use crate::engine::EngineHandle;
use crate::llm::{Beside, Llm, LoadError, LocalModel, ModelInfo};

use super::error::ApiError;
use super::limits::ServerConfig;
use super::metrics::Metrics;

pub(super) use lease::Served;
pub use source::ModelSource;

use lease::Uses;

/// What a server serves: one model, or several, and those that it may load when they are asked for.
#[derive(Clone)]
pub struct ServedModels {
    loaded: Vec<Given>,
    pinned: bool,
    source: Option<Arc<dyn ModelSource>>,
}

/// A model that is loaded when the server starts.
#[derive(Clone)]
struct Given {
    llm: Llm,
    /// What its requests may call it besides its own name.
    further_names: Vec<String>,
    /// The digest of the source's model of that name.
    digest: Option<String>,
    /// Those of all its names by which the source has it.
    stored_names: Vec<String>,
}

impl Given {
    /// A model by its own name, and what the source has of that name.
    fn new(llm: Llm, stored: Option<&LocalModel>) -> Self {
        let digest = stored.map(|stored| stored.digest.clone());
        let stored_names = stored.map(|stored| stored.name.clone()).into_iter().collect();
        Self { llm, further_names: Vec::new(), digest, stored_names }
    }
}

impl From<Llm> for ServedModels {
    /// This model alone.
    fn from(llm: Llm) -> Self {
        Self { loaded: vec![Given::new(llm, None)], pinned: true, source: None }
    }
}

impl ServedModels {
    /// These models, which are loaded, and what `source` has besides, when it is asked for. Loaded models leave when
    /// others need their memory and nobody uses them, and when they are removed from `source`.
    pub fn new(loaded: Vec<Llm>, source: impl ModelSource) -> Self {
        let listed = source.list();
        let given = |llm: Llm| {
            let stored = listed.iter().find(|stored| stored.name == llm.info().name);
            Given::new(llm, stored)
        };
        Self { loaded: loaded.into_iter().map(given).collect(), pinned: false, source: Some(Arc::new(source)) }
    }

    /// The loaded model `model` is served by the name `further`, too.
    pub fn with_further_name(mut self, model: &str, further: impl Into<String>) -> Self {
        let further = further.into();
        if let Some(given) = self.loaded.iter_mut().find(|given| given.llm.info().name == model) {
            if self.source.as_ref().is_some_and(|source| source.has(&further)) {
                given.stored_names.push(further.clone());
            }
            given.further_names.push(further);
        }
        self
    }

    /// The models that are loaded now never leave.
    pub fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }
}

/// A loaded model as lists show it: looking at it is no use of it.
pub(super) struct Listed {
    /// Its own name first, then its aliases.
    pub(super) names: Vec<String>,
    pub(super) llm: Llm,
    pub(super) metrics: Arc<Metrics>,
    /// How long it stays if nobody uses it; `None`: for ever.
    pub(super) left: Option<std::time::Duration>,
}

/// One name under which a model is served, loaded or not.
pub(super) struct Summary {
    pub(super) name: String,
    /// The model's own name.
    pub(super) root: String,
    /// When it was loaded, or came to this machine, in seconds since 1970.
    pub(super) created_unix_s: u64,
    /// Tokens of prompt and answer; `None` while it is not loaded.
    pub(super) context_length: Option<u32>,
}

/// A model that is loaded.
struct Loaded {
    llm: Llm,
    metrics: Arc<Metrics>,
    aliases: Vec<String>,
    pinned: bool,
    /// The digest of the source's model that it is; `None`: its files are elsewhere.
    digest: Option<String>,
    /// Those of its names by which the source has it.
    stored_names: Vec<String>,
    /// Whether it was removed from the source: it is there for the requests that hold it and for no others.
    removed: bool,
    uses: Arc<Uses>,
}

impl From<LocalModel> for Summary {
    fn from(model: LocalModel) -> Self {
        let (root, created_unix_s) = (model.name.clone(), model.modified_at_unix_s);
        Self { name: model.name, root, created_unix_s, context_length: None }
    }
}

impl Listed {
    fn summaries(&self) -> impl Iterator<Item = Summary> {
        let info = self.llm.info();
        self.names.iter().map(|name| Summary {
            name: name.clone(),
            root: info.name.clone(),
            created_unix_s: info.loaded_at_unix_s,
            context_length: Some(info.context_length),
        })
    }
}

impl Loaded {
    fn name(&self) -> &str {
        &self.llm.info().name
    }

    fn serve(&self) -> Served {
        Served::new(self.llm.clone(), self.metrics.clone(), self.uses.clone())
    }

    /// Whether it is not there to stay.
    fn may_leave(&self) -> bool {
        !self.pinned || self.removed
    }

    fn listed(&self) -> Listed {
        let own = self.name();
        let aliases = self.aliases.iter().map(String::as_str).filter(|alias| *alias != own);
        Listed {
            names: std::iter::once(own).chain(aliases).map(str::to_owned).collect(),
            llm: self.llm.clone(),
            metrics: self.metrics.clone(),
            left: if self.pinned { None } else { self.uses.left() },
        }
    }
}

/// All models that are served.
pub(super) struct Models {
    loaded: Mutex<Vec<Loaded>>,
    source: Option<Arc<dyn ModelSource>>,
    /// Held by whoever loads models, or unloads any.
    loading: tokio::sync::Mutex<()>,
    /// Loads that have begun, by the model's name: all who ask for it wait for the same.
    loads: Mutex<HashMap<String, watch::Receiver<Option<Outcome>>>>,
    /// Permits to wait for a model.
    waiting: Semaphore,
    /// Rings when a model is no longer in use.
    returned: Arc<Notify>,
    /// Whether memory came free that no model was loaded for: caches that became smaller may have it.
    freed: AtomicBool,
    /// Whether no further model is to be loaded, since the server ends.
    closing: watch::Sender<bool>,
    limits: Limits,
}

/// What became of a load.
type Outcome = Result<Served, ApiError>;

/// What bounds the loading of models.
struct Limits {
    keep_alive: KeepAlive,
    max_waiting: usize,
    timeout: std::time::Duration,
}

impl Models {
    pub(super) fn new(models: ServedModels, config: &ServerConfig) -> Arc<Self> {
        let all = Arc::new(Self {
            loaded: Mutex::default(),
            source: models.source,
            loading: tokio::sync::Mutex::default(),
            loads: Mutex::default(),
            waiting: Semaphore::new(config.max_load_waiting.clamp(1, Semaphore::MAX_PERMITS)),
            returned: Arc::default(),
            freed: AtomicBool::new(false),
            closing: watch::Sender::new(false),
            limits: Limits {
                keep_alive: config.keep_alive,
                max_waiting: config.max_load_waiting,
                timeout: config.load_timeout,
            },
        });
        let mut aliases = config.model_aliases.clone();
        for mut given in models.loaded {
            // Aliases are the first model's.
            given.further_names.append(&mut aliases);
            all.insert(given, models.pinned);
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a model in, and gives it out once.
    fn insert(self: &Arc<Self>, given: Given, pinned: bool) -> Served {
        let Given { llm, further_names: aliases, digest, stored_names } = given;
        let metrics = Arc::new(Metrics::new(&llm.info().name));
        let uses = Uses::new(self.limits.keep_alive, self.returned.clone());
        let loaded = Loaded { llm, metrics, aliases, pinned, digest, stored_names, removed: false, uses };
        let served = loaded.serve();
        self.lock().push(loaded);
        served
    }

    /// Models that are loaded, the oldest first, and with them those that only await the end of their last requests.
    pub(super) fn loaded(&self) -> Vec<Listed> {
        self.lock().iter().map(Loaded::listed).collect()
    }

    /// Models that are loaded and may be asked for, the oldest first.
    pub(super) fn offered(&self) -> Vec<Listed> {
        self.lock().iter().filter(|loaded| !loaded.removed).map(Loaded::listed).collect()
    }

    /// Models that are on this machine, loaded or not.
    pub(super) async fn local(&self) -> Vec<LocalModel> {
        let Some(source) = self.source.clone() else { return Vec::new() };
        self.look_for_removed().await;
        // A store that cannot be read has nothing to offer.
        tokio::task::spawn_blocking(move || source.list()).await.unwrap_or_default()
    }

    /// Models that are on this machine and not loaded, by that name or another.
    pub(super) async fn available(&self) -> Vec<LocalModel> {
        let mut all = self.local().await;
        let offered: HashSet<String> = self.offered().into_iter().flat_map(|offered| offered.names).collect();
        all.retain(|model| !offered.contains(&model.name));
        all
    }

    /// Every name under which a model is served, those of loaded models first.
    pub(super) async fn summaries(&self) -> Vec<Summary> {
        // First, since to look for those is to find out which of the loaded ones were removed.
        let available = self.available().await;
        let mut all: Vec<_> = self.offered().iter().flat_map(Listed::summaries).collect();
        all.extend(available.into_iter().map(Summary::from));
        all
    }

    /// What is said of the model of one name.
    ///
    /// # Errors
    /// 404: nothing is called so.
    pub(super) async fn summary(&self, name: &str) -> Result<Summary, ApiError> {
        self.look_for_removed().await;
        let mut offered = self.offered().into_iter().flat_map(|offered| offered.summaries().collect::<Vec<_>>());
        match offered.find(|summary| names::is_same(&summary.name, name)) {
            Some(summary) => Ok(summary),
            None => Ok(self.find_available(name).await?.into()),
        }
    }

    /// Where models that are not loaded come from.
    ///
    /// # Errors
    /// 400: this server has the models that it was given and no others.
    pub(super) fn source(&self) -> Result<Arc<dyn ModelSource>, ApiError> {
        let why = "this server serves the models that it was started with; it does not bring or remove any";
        self.source.clone().ok_or_else(|| ApiError::client(StatusCode::BAD_REQUEST, Some("fixed_models"), why))
    }

    /// The model of that name, for as long as what is returned is held. One that is not loaded is loaded first.
    ///
    /// # Errors
    /// 404: nothing is called so; near names are told. 503: too many wait, it takes too long, it cannot be loaded, or the
    /// server ends.
    pub(super) async fn get(self: &Arc<Self>, name: &str) -> Result<Served, ApiError> {
        if let Some(served) = self.find(name) {
            return Ok(served);
        }
        let wanted = match self.find_available(name).await {
            Ok(model) => model,
            // Its loading may just have ended.
            Err(error) => return self.find(name).ok_or(error),
        };
        if let Some(served) = self.find_same(&wanted) {
            return Ok(served);
        }
        let _place = self.waiting.try_acquire().map_err(|_| self.too_many_wait())?;
        let mut load = self.begin_or_join(wanted);
        let mut closing = self.closing.subscribe();
        let loaded = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return Err(ApiError::cut_off()),
            loaded = tokio::time::timeout(self.limits.timeout, load.wait_for(Option::is_some)) => loaded,
        };
        match loaded {
            Ok(outcome) => {
                let outcome = outcome.ok().and_then(|outcome| outcome.clone());
                outcome.unwrap_or_else(|| Err(ApiError::internal("loading the model met a defect of the server's")))
            }
            Err(_) => {
                let seconds = self.limits.timeout.as_secs();
                let message = format!("`{name}` was not loaded within {seconds} s (load_timeout); try again");
                Err(unavailable("load_timeout", message))
            }
        }
    }

    /// What will have become of the one load of the model `wanted`, which begins now unless it has. It has a task of its
    /// own: whoever asked may go away, the model is loaded all the same.
    fn begin_or_join(self: &Arc<Self>, wanted: LocalModel) -> watch::Receiver<Option<Outcome>> {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        // Of one that met a defect nothing more will be heard.
        if let Some(load) = loads.get(&wanted.name).filter(|load| load.has_changed().is_ok()) {
            return load.clone();
        }
        let (sender, receiver) = watch::channel(None);
        loads.insert(wanted.name.clone(), receiver.clone());
        drop(loads);
        let models = self.clone();
        tokio::spawn(async move {
            let outcome = models.load(&wanted).await;
            if outcome.is_err() {
                models.freed.store(true, Ordering::Relaxed);
            }
            // Before it is told: who asks from now on finds the model, or tries again.
            models.loads.lock().unwrap_or_else(PoisonError::into_inner).remove(&wanted.name);
            // Perhaps nobody waits any more.
            let _ = sender.send(Some(outcome));
        });
        receiver
    }

    /// The model of that name among those that are not loaded.
    ///
    /// # Errors
    /// 404: nothing is called so; near names are told.
    pub(super) async fn find_available(&self, name: &str) -> Result<LocalModel, ApiError> {
        let mut available = self.available().await;
        if let Some(at) = available.iter().position(|model| names::is_same(&model.name, name)) {
            return Ok(available.swap_remove(at));
        }
        let offered: Vec<_> = self.offered().into_iter().flat_map(|offered| offered.names).collect();
        let known = offered.iter().map(String::as_str).chain(available.iter().map(|model| model.name.as_str()));
        Err(names::unknown(name, &known.collect::<Vec<_>>()))
    }

    /// A loaded model of that name.
    pub(super) fn find(&self, name: &str) -> Option<Served> {
        let loaded = self.lock();
        let names = |loaded: &Loaded, name: &str| {
            names::is_same(loaded.name(), name) || loaded.aliases.iter().any(|alias| alias == name)
        };
        loaded.iter().find(|loaded| !loaded.removed && names(loaded, name)).map(Loaded::serve)
    }

    /// A loaded model that is this one by its name or, where it has a second one, by its files.
    fn find_same(&self, wanted: &LocalModel) -> Option<Served> {
        self.find(&wanted.name).or_else(|| {
            let loaded = self.lock();
            let is_same = |loaded: &&Loaded| !loaded.removed && loaded.digest.as_ref() == Some(&wanted.digest);
            loaded.iter().find(is_same).map(Loaded::serve)
        })
    }

    fn too_many_wait(&self) -> ApiError {
        let message = format!(
            "{} requests wait for models to be loaded already (max_load_waiting); try again later",
            self.limits.max_waiting
        );
        unavailable("too_many_wait", message)
    }

    /// Loads a model of the source's, in its turn; where that is needed the caches of idle ones become smaller for it, then
    /// idle ones leave. While it waits for one that is in use, others have their turn.
    async fn load(self: &Arc<Self>, wanted: &LocalModel) -> Result<Served, ApiError> {
        let (started, name) = (Instant::now(), wanted.name.as_str());
        let mut caches_shrink = true;
        loop {
            let turn = self.loading.lock().await;
            if let Some(served) = self.find_same(wanted) {
                return Ok(served);
            }
            caches_shrink = caches_shrink && !self.idle_caches().is_empty();
            let beside = self.beside(if caches_shrink { USEFUL_CONTEXT } else { 0 });
            let (source, asked) = (self.source()?, name.to_owned());
            let returned = self.returned.notified();
            let outcome = tokio::task::spawn_blocking(move || source.load(&asked, beside)).await;
            match outcome.map_err(|_| ApiError::internal("loading the model met a defect of the server's"))? {
                Ok(llm) => {
                    tracing::info!(model = name, seconds = started.elapsed().as_secs_f32(), "loaded");
                    self.freed.store(false, Ordering::Relaxed);
                    return Ok(self.insert(Given::new(llm, Some(wanted)), false));
                }
                Err(error) if error.does_not_fit() && caches_shrink => caches_shrink = self.shrink_a_cache(name).await,
                Err(error) if error.does_not_fit() && self.may_become_free() => {
                    if !self.unload_longest_idle().await {
                        tracing::info!(model = name, "waits until another model is no longer in use");
                        drop(turn);
                        returned.await;
                        caches_shrink = true;
                    }
                }
                Err(error) => return Err(load_failed(name, &error)),
            }
        }
    }

    /// What those that are loaded hold.
    fn beside(&self, least_context: u32) -> Beside {
        let infos: Vec<ModelInfo> = self.lock().iter().map(|loaded| loaded.llm.present()).collect();
        Beside {
            gpu_or_nothing: infos.iter().any(ModelInfo::is_on_gpu),
            // Their memory is taken as it is used: what looks free may be promised.
            reserved_bytes: infos.iter().filter(|info| !info.is_on_gpu()).map(|info| info.planned_bytes).sum(),
            least_context,
        }
    }

    /// The idle models whose KV caches may become smaller, the longest idle first: those on the GPU, if any model is there,
    /// for the next is to be there too.
    fn idle_caches(&self) -> Vec<Llm> {
        let loaded = self.lock();
        let is_on_gpu = |loaded: &Loaded| loaded.llm.info().is_on_gpu();
        let on_gpu = loaded.iter().any(is_on_gpu);
        let here = loaded.iter().filter(|loaded| is_on_gpu(loaded) == on_gpu && loaded.llm.kv_can_shrink());
        let mut idle: Vec<_> =
            here.filter_map(|loaded| Some((loaded.uses.idle_since()?, loaded.llm.clone()))).collect();
        idle.sort_by_key(|(since, _)| *since);
        idle.into_iter().map(|(_, llm)| llm).collect()
    }

    /// Makes the KV cache of the model that nobody has used for the longest time as small as it may be; whether there was one.
    async fn shrink_a_cache(&self, newcomer: &str) -> bool {
        for llm in self.idle_caches() {
            // Of one that is in use again, or whose memory is of one piece, nothing comes.
            if let Some(bytes @ 1..) = llm.shrink_kv().await {
                tracing::info!(model = llm.info().name, bytes, newcomer, "its KV cache has become smaller");
                return true;
            }
        }
        false
    }

    /// Whether any model is loaded that is not there to stay.
    fn may_become_free(&self) -> bool {
        self.lock().iter().any(Loaded::may_leave)
    }

    /// Waits until the engine of a loaded model stops by itself; why it did.
    pub(super) async fn died(&self) -> Arc<str> {
        loop {
            let engines: Vec<EngineHandle> = self.lock().iter().map(|loaded| loaded.llm.engine().clone()).collect();
            if engines.is_empty() {
                tokio::time::sleep(WATCH_INTERVAL).await;
                continue;
            }
            let dead = futures::future::select_all(engines.iter().map(|engine| Box::pin(engine.dead())));
            // A model that comes or leaves changes what is watched.
            let died = tokio::time::timeout(WATCH_INTERVAL, dead).await;
            if let Ok((reason, at, _)) = died
                && self.lock().iter().any(|loaded| loaded.llm.engine().is_same(&engines[at]))
            {
                return reason;
            }
        }
    }

    /// From now on no model is loaded: requests that wait for one are told that the server ends.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// The engines of all loaded models.
    pub(super) fn engines(&self) -> Vec<EngineHandle> {
        self.lock().iter().map(|loaded| loaded.llm.engine().clone()).collect()
    }
}

/// Context, in tokens, that a model is to have before the KV caches of idle ones stay as they are: with less nobody is served.
const USEFUL_CONTEXT: u32 = 8192;

/// How often it is looked which engines there are to be watched.
const WATCH_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

fn unavailable(code: &'static str, message: String) -> ApiError {
    ApiError { retry_after_s: Some(1), ..ApiError::server(StatusCode::SERVICE_UNAVAILABLE, code, message) }
}

fn load_failed(name: &str, error: &LoadError) -> ApiError {
    let mut message = format!("`{name}` cannot be loaded: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message.push_str(&format!(": {error}"));
        source = error.source();
    }
    ApiError::server(StatusCode::SERVICE_UNAVAILABLE, "model_not_loaded", message)
}
