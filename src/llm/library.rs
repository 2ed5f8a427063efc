//! The models on this machine by name: listed, loaded, brought and removed.
//!
//! Knows no server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{DeviceWish, EngineConfig, GpuLayers, HubConfig};
use crate::engine::{self, ModelFacts};
use crate::hub::{self, Catalog, HubError, HubOptions, Located, LocatedKind, ManifestFile, ModelName, Progress, Store};

use crate::tokenizer::{CHATML_TEMPLATE, ChatTemplate};

use super::handle::Llm;
use super::load::{LoadError, describe_path};

/// What a copy of an Ollama's model calls its file, which has no name there.
const ADOPTED_FILE: &str = "model.gguf";

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalModel {
    /// The name it is loaded by.
    pub name: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it came here, in seconds since 1970.
    pub modified_at_unix_s: u64,
    /// SHA-256, in hexadecimal, of its file, or of the digests of its files: what tells it from other versions.
    pub digest: String,
}

/// What a model that is loaded beside others must leave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Others hold the GPU: rather not loaded than on the CPU, so that they can leave it first.
    pub gpu_or_nothing: bool,
    /// Bytes of main memory that were planned for others, whether or not they use them yet.
    pub reserved_bytes: u64,
    /// Tokens of context, or all that are wanted if those are fewer, with less than which it is rather not loaded where those
    /// others are: they can give memory back first.
    pub least_context: u32,
}

/// What is known of a model without loading it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// What its headers say.
    pub facts: ModelFacts,
    /// Whether its chat template has a place for tools.
    pub knows_tools: bool,
    /// Whether it thinks before it answers.
    pub thinks: bool,
}

/// The models in the store, and those that an Ollama on this machine has pulled, which are used in place.
#[derive(Clone, Debug)]
pub struct ModelLibrary {
    hub: HubConfig,
    options: HubOptions,
    engine: EngineConfig,
    /// By digest: a model's headers are read once.
    described: Arc<Mutex<HashMap<String, ModelDescription>>>,
}

impl ModelLibrary {
    /// The models of this store, loaded with these settings.
    pub fn new(hub: HubConfig, options: HubOptions, engine: EngineConfig) -> Self {
        let options = configured(options, &hub);
        Self { hub, options, engine, described: Arc::default() }
    }

    /// What is here, sorted by name. Of two models with one name the store's counts.
    ///
    /// # Errors
    /// [`HubError::Io`] where the store cannot be read.
    pub fn list(&self) -> Result<Vec<LocalModel>, HubError> {
        Ok(self.all()?.into_iter().map(|(model, _)| model).collect())
    }

    fn all(&self) -> Result<Vec<(LocalModel, LocatedKind)>, HubError> {
        let stored = self.store()?.list()?.into_iter().map(|stored| {
            let model = LocalModel {
                digest: stored.manifest.digest(),
                name: stored.name,
                bytes: stored.bytes,
                modified_at_unix_s: stored.manifest.pulled_at_unix,
            };
            (model, stored.kind)
        });
        let mut all: Vec<_> = stored.collect();
        let folder = self.options.ollama_models.as_deref();
        for theirs in folder.map(hub::ollama_models).unwrap_or_default() {
            if all.iter().all(|(model, _)| model.name != theirs.name) {
                let model = LocalModel {
                    name: theirs.name,
                    bytes: theirs.bytes,
                    modified_at_unix_s: theirs.modified_at_unix,
                    digest: theirs.sha256,
                };
                all.push((model, LocatedKind::Gguf(theirs.gguf)));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Whether a model of this name in the list is still there. One whose next version is arriving is, and so is one of
    /// which the disk does not say.
    pub fn has(&self, name: &str) -> bool {
        let of_ollama =
            || self.options.ollama_models.as_deref().is_some_and(|folder| hub::has_ollama_model(folder, name));
        self.store().map_or(true, |store| store.has(name)) || of_ollama()
    }

    /// The digest of a model of this name in the store; `None` where there is none, or it is an Ollama's.
    pub fn digest(&self, name: &str) -> Option<String> {
        Some(self.store().ok()?.get(name).ok()??.manifest.digest())
    }

    fn find(&self, name: &str) -> Result<(LocalModel, LocatedKind), HubError> {
        let mut all = self.all()?;
        let plain = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
        let place = all.iter().position(|(model, _)| model.name == name);
        let place = place.or_else(|| all.iter().position(|(model, _)| plain(&model.name) == plain(name)));
        place.map(|place| all.swap_remove(place)).ok_or_else(|| HubError::NotPresent { name: name.to_owned() })
    }

    /// What is known of a model of the list without loading it.
    ///
    /// # Errors
    /// [`LoadError`]: it is not in the list, or its headers make no sense.
    pub fn describe(&self, name: &str) -> Result<ModelDescription, LoadError> {
        let (model, kind) = self.find(name)?;
        let described = || self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = described().get(&model.digest) {
            return Ok(known.clone());
        }
        let facts = describe_path(kind.path())?;
        let template = ChatTemplate::new(facts.chat_template.as_deref().unwrap_or(CHATML_TEMPLATE), None, None)
            .map_err(|source| LoadError::Template { model: model.name, source })?;
        let known = ModelDescription { facts, knows_tools: template.knows_tools(), thinks: template.thinks() };
        described().insert(model.digest, known.clone());
        Ok(known)
    }

    /// Loads a model of the list, beside others. Never downloads, and never opens a path: names come from the network.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&self, name: &str, beside: Beside) -> Result<Llm, LoadError> {
        let (model, kind) = self.find(name)?;
        let Beside { reserved_bytes, least_context, .. } = beside;
        let mut engine = EngineConfig { reserved_bytes, least_context, ..self.engine.clone() };
        if beside.gpu_or_nothing && engine.device == DeviceWish::Auto {
            engine.device = DeviceWish::Cuda(None);
        }
        if beside.gpu_or_nothing && engine.gpu_layers == GpuLayers::Auto {
            engine.gpu_layers = GpuLayers::All;
        }
        let wished_bytes = engine.kv_cache_most_bytes;
        let llm = Llm::builder()
            .located(Located { kind, display_name: model.name })
            .hub_config(self.hub.clone())
            .engine_config(engine)
            .load_blocking()?;
        let info = llm.info();
        // Less by no more than a block of it is as asked.
        let block_bytes = info.kv_bytes * u64::from(engine::BLOCK_TOKENS) / info.kv_tokens.max(1);
        if let Some(wished_bytes) = wished_bytes.filter(|wished| info.kv_bytes + block_bytes < *wished) {
            tracing::warn!(
                model = info.name,
                wished_bytes,
                bytes = info.kv_bytes,
                "its KV cache is smaller than was asked for"
            );
        }
        Ok(llm)
    }

    /// Brings a model of the catalog, the hub or a registry to this machine.
    ///
    /// # Errors
    /// [`HubError`]: the name is none of these, or it cannot be had; [`HubError::ForeignRegistry`] where it names a registry
    /// that is neither the configured one nor Ollama's.
    pub fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        let (store, options) = (self.store()?, &self.options);
        let text = name.strip_suffix(":latest").unwrap_or(name);
        let name = match hub::understand(text, &Catalog::embedded(), &store, options)? {
            ModelName::Folder(path) | ModelName::File(path) => {
                return Err(HubError::NotPresent { name: path.display().to_string() });
            }
            // Names come from the network: they do not choose whom this machine speaks to.
            ModelName::Registry(name) if !name.is_of_a_known_registry(options) => {
                return Err(HubError::ForeignRegistry { name: text.to_owned() });
            }
            name => name,
        };
        hub::pull(&name, &store, options, progress).map(|_| ())
    }

    /// Gives a model of the list a second name in the store, which shares its files.
    ///
    /// # Errors
    /// [`HubError::NotPresent`] where there is none of that name; as [`Store::copy`].
    pub fn copy(&self, source: &str, destination: &str) -> Result<(), HubError> {
        let (model, kind) = self.find(source)?;
        let store = self.store()?;
        if store.get(&model.name)?.is_some() {
            return store.copy(&model.name, destination);
        }
        let file = ManifestFile { path: ADOPTED_FILE.into(), bytes: model.bytes, sha256: model.digest };
        store.adopt(kind.path(), file, &format!("Ollama's {}", model.name), destination)
    }

    /// Removes a model from the store. Those of Ollama's are its own to remove.
    ///
    /// # Errors
    /// [`HubError::NotStored`].
    pub fn remove(&self, name: &str) -> Result<(), HubError> {
        let store = self.store()?;
        match store.remove(name) {
            // With or without `:latest`.
            Err(HubError::NotStored { .. }) => match self.find(name) {
                Ok((model, _)) => store.remove(&model.name),
                Err(_) => Err(HubError::NotStored { name: name.to_owned() }),
            },
            outcome => outcome,
        }
    }

    fn store(&self) -> Result<Store, HubError> {
        Store::open(&self.hub.models_dir)
    }
}

/// These options, with what the configuration says over them.
pub(crate) fn configured(options: HubOptions, hub: &HubConfig) -> HubOptions {
    let ollama_registry = hub.ollama_registry.clone().or(options.ollama_registry);
    HubOptions { offline: options.offline || hub.offline, ollama_registry, ..options }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_network_choose_no_registry() {
        let folder = tempfile::tempdir().expect("a folder");
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        server.set_nonblocking(true).expect("a setting");
        let address = server.local_addr().expect("an address");
        let hub = HubConfig { models_dir: folder.path().to_owned(), offline: false, ollama_registry: None };
        let library = ModelLibrary::new(hub, HubOptions::default(), EngineConfig::default());
        for name in [format!("http://{address}/library/x:1"), format!("{address}/library/x"), "a.example/b/c".into()] {
            let refused = library.pull(&name, &mut ());
            assert!(matches!(refused, Err(HubError::ForeignRegistry { .. })), "{name}: {refused:?}");
        }
        assert!(server.accept().is_err(), "nobody was asked");
    }

    #[test]
    fn a_copy_is_found_removed_and_copied_by_its_name() {
        let (folder, ollama) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let digest = "a".repeat(64);
        let manifests = ollama.path().join("manifests/registry.ollama.ai/library/theirs");
        std::fs::create_dir_all(&manifests).expect("folders");
        std::fs::create_dir_all(ollama.path().join("blobs")).expect("a folder");
        let layer = format!(
            r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{digest}","size":4}}]}}"#
        );
        std::fs::write(manifests.join("latest"), layer).expect("a manifest");
        std::fs::write(ollama.path().join(format!("blobs/sha256-{digest}")), "GGUF").expect("a blob");
        let hub = HubConfig { models_dir: folder.path().to_owned(), offline: true, ollama_registry: None };
        let options = HubOptions { ollama_models: Some(ollama.path().to_owned()), ..HubOptions::default() };
        let library = ModelLibrary::new(hub, options, EngineConfig::default());
        let names = || library.list().expect("a list").into_iter().map(|model| model.name).collect::<Vec<_>>();
        library.copy("theirs", "mine").expect("a copy");
        library.copy("mine:latest", "org/second:latest").expect("a copy");
        assert_eq!(names(), ["mine", "org/second", "theirs:latest"]);
        assert!(["mine", "org/second", "theirs:latest"].iter().all(|name| library.has(name)));
        library.remove("mine:latest").expect("it is there");
        assert_eq!(names(), ["org/second", "theirs:latest"]);
        assert!(!library.has("mine") && library.has("theirs:latest"));
        assert!(matches!(library.remove("theirs"), Err(HubError::NotStored { .. })));
        assert!(matches!(library.copy("mine", "third"), Err(HubError::NotPresent { .. })));
        let (_, kind) = library.find("org/second").expect("a model");
        assert_eq!(std::fs::read(kind.path()).expect("its file"), b"GGUF");
    }
}
