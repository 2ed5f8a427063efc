//! Model names, the catalog, downloads and the local store, of models and of one library: from what a person types to files on this disk.
//! Knows nothing of tensors or HTTP serving, reads no environment variable and draws no progress bar.
//!
//! [`understand`] says what a name means, [`resolve`] finds it on this machine without the network, and [`pull`]
//! brings it here. A model is in the [`Store`] once its manifest is, and the manifest is written after every file has
//! passed its size and checksum: a half file is never taken for a model.
//!
//! Everything here blocks; asynchronous callers use a blocking thread.

mod backoff;
mod catalog;
mod challenge;
mod checksum;
mod client;
mod download;
mod error;
mod hub_cache;
mod library;
mod lock;
mod name;
mod ollama;
mod options;
mod package;
mod progress;
mod pull;
mod registry;
mod remote;
mod same_files;
mod selection;
mod store;

#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;

pub use catalog::{Catalog, CheckOutcome, CheckResult, Entry, Package, fits_memory, gpu_free_bytes};
pub use error::{HubError, Service};
pub use library::{Library, install, install_with};
pub use name::{ModelName, NameError};
pub use ollama::{OllamaModel, has_ollama_model, ollama_models};
pub use options::{HubOptions, Proxy};
pub use package::{PackageSource, Pip};
pub use progress::Progress;
pub use pull::{Located, LocatedKind, pull, pull_with, resolve, understand};
pub use registry::RegistryName;
pub use store::{Manifest, ManifestFile, Store, StoredModel};
