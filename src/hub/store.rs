//! The models on this disk: one folder each, and a manifest that says the folder is whole.
//! Does not know where files come from.
//!
//! ```text
//! ROOT/smollm2%3A135m/manifest.json    written last: without it, the folder is no model
//! ROOT/smollm2%3A135m/FILE ...         each checked before it was moved here
//! ROOT/partial/smollm2%3A135m/         what is still arriving
//! ROOT/partial/smollm2%3A135m.lock     held by the process that brings or removes the model
//! ROOT/.libraries/FILE ...             what `lantern cuda install` has fetched; no model's folder begins with a dot
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Progress;
use super::error::{HubError, io};
use super::lock::{Logged, lock};
use super::name::new_name;
use super::pull::LocatedKind;
use super::selection::entry_of;

const MANIFEST: &str = "manifest.json";
const PARTIAL: &str = "partial";
const LIBRARIES: &str = ".libraries";

/// What a stored model is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name it was pulled by.
    pub name: String,
    /// Where it is from: `organisation/name` on the hub, or the package that carried it.
    pub repository: String,
    /// The commit, or the package's version.
    pub revision: String,
    /// Every file of the model.
    pub files: Vec<ManifestFile>,
    /// When it was pulled, in seconds since 1970.
    pub pulled_at_unix: u64,
}

impl Manifest {
    /// SHA-256, in hexadecimal: of the one file, or of the digests of all.
    pub fn digest(&self) -> String {
        if let [file] = self.files.as_slice() {
            return file.sha256.clone();
        }
        let mut hasher = Sha256::new();
        for file in &self.files {
            hasher.update(format!("{} {}\n", file.sha256, file.path));
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// One file of a stored model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path below the model's folder, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
}

/// A model of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// The name it was pulled by.
    pub name: String,
    /// Size of all its files, in bytes.
    pub bytes: u64,
    /// Where it is from.
    pub source: String,
    /// Where its files are.
    pub kind: LocatedKind,
    /// All that is known of it.
    pub manifest: Manifest,
}

/// A folder of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A model that is being brought: its lock is held until this is dropped, and folders in which nothing has arrived go then.
pub(super) struct Arrival {
    name: String,
    folder: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl Store {
    /// The store in the folder `root`, which is made where it is missing.
    ///
    /// # Errors
    /// [`HubError::Io`] where that cannot be done.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, HubError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io("create", &root))?;
        Ok(Self { root })
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of libraries that are kept beside the models; it need not be there.
    pub fn libraries(&self) -> PathBuf {
        Self::libraries_below(&self.root)
    }

    /// The same for a store that is not opened, and may not be there.
    pub fn libraries_below(root: &Path) -> PathBuf {
        root.join(LIBRARIES)
    }

    /// Every complete model, sorted by name. A folder without a sound manifest is none; the log says so.
    ///
    /// # Errors
    /// [`HubError::Io`] where the store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, HubError> {
        let mut models = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io("read", &self.root))? {
            let folder = entry.map_err(io("read", &self.root))?.path();
            match read_model(&folder) {
                Ok(Some(model)) => models.push(model),
                Ok(None) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// The model of a name; `None` where it is not here, or not all of it.
    ///
    /// # Errors
    /// [`HubError::Manifest`] where its manifest makes no sense.
    pub fn get(&self, name: &str) -> Result<Option<StoredModel>, HubError> {
        read_model(&self.folder(name))
    }

    /// Whether a model of this name is here, by its manifest's being there; one that cannot be looked at counts as here.
    pub fn has(&self, name: &str) -> bool {
        self.folder(name).join(MANIFEST).try_exists().unwrap_or(true)
    }

    /// Removes a model, or what an interrupted pull left of it.
    ///
    /// # Errors
    /// [`HubError::NotStored`] where nothing of it is here; [`HubError::Io`] where the disk refuses.
    pub fn remove(&self, name: &str) -> Result<(), HubError> {
        let (folder, partial) = (self.folder(name), self.partial(name));
        if !folder.exists() && !partial.exists() {
            return Err(HubError::NotStored { name: name.to_owned() });
        }
        let _lock = self.lock(name, &mut Logged)?;
        // The manifest first: from here on the model is not present, whatever happens to its files.
        let manifest = folder.join(MANIFEST);
        allow_missing(fs::remove_file(&manifest)).map_err(io("delete", &manifest))?;
        allow_missing(fs::remove_dir_all(&folder)).map_err(io("delete", &folder))?;
        allow_missing(fs::remove_dir_all(&partial)).map_err(io("delete", &partial))
    }

    /// Gives a model of the store a second name. The files are shared by hard links, so that a copy takes no room and
    /// either name can be removed without the other. What had the name before is replaced.
    ///
    /// # Errors
    /// [`HubError::NotStored`] where there is no such model; [`HubError::Name`] where `destination` cannot be a name;
    /// [`HubError::Io`] where the disk knows no hard links.
    pub fn copy(&self, source: &str, destination: &str) -> Result<(), HubError> {
        let model = self.get(source)?.ok_or_else(|| HubError::NotStored { name: source.to_owned() })?;
        let (folder, manifest) = (self.folder(source), model.manifest);
        let files: Vec<_> = manifest.files.into_iter().map(|file| (folder.join(&file.path), file)).collect();
        self.link(|file, link| fs::hard_link(file, link), destination, &manifest.repository, &manifest.revision, files)
    }

    /// Gives a file that another program keeps a name in this store: by a hard link, and where the file is on another disk
    /// or somebody else's, by a symbolic one, which lives as long as the file.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn adopt(&self, path: &Path, file: ManifestFile, source: &str, destination: &str) -> Result<(), HubError> {
        let path = fs::canonicalize(path).map_err(io("read", path))?;
        let revision = file.sha256.clone();
        self.link(hard_or_symbolic_link, destination, source, &revision, vec![(path, file)])
    }

    fn link(
        &self,
        link_file: fn(&Path, &Path) -> std::io::Result<()>,
        destination: &str,
        repository: &str,
        revision: &str,
        files: Vec<(PathBuf, ManifestFile)>,
    ) -> Result<(), HubError> {
        let name = new_name(destination)?;
        // A model under its own name is there already.
        if files.iter().any(|(path, file)| *path == self.folder(name).join(&file.path)) {
            return Ok(());
        }
        let arrival = self.begin(name, &mut Logged)?;
        // Not where downloads arrive: one would write into a file that is shared.
        let links = arrival.fresh_folder("copy")?;
        for (path, file) in &files {
            let link = links.join(escape(&file.path));
            link_file(path, &link).map_err(io("link", path))?;
            arrival.accept(&link, &file.path)?;
        }
        arrival.complete(repository, revision, files.into_iter().map(|(_, file)| file).collect()).map(|_| ())
    }

    /// Begins to bring a model: waits for another process that is doing the same, and says so.
    pub(super) fn begin(&self, name: &str, progress: &mut dyn Progress) -> Result<Arrival, HubError> {
        let lock = self.lock(name, progress)?;
        let (folder, partial) = (self.folder(name), self.partial(name));
        for path in [&folder, &partial] {
            fs::create_dir_all(path).map_err(io("create", path))?;
        }
        Ok(Arrival { name: name.to_owned(), folder, partial, _lock: lock })
    }

    /// The lock of a name.
    fn lock(&self, name: &str, progress: &mut dyn Progress) -> Result<File, HubError> {
        let partials = self.root.join(PARTIAL);
        fs::create_dir_all(&partials).map_err(io("create", &partials))?;
        lock(&partials.join(format!("{}.lock", escape(name))), name, progress)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.join(escape(name))
    }

    fn partial(&self, name: &str) -> PathBuf {
        self.root.join(PARTIAL).join(escape(name))
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        for folder in [&self.folder, &self.partial] {
            // It goes only where it is empty.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Arrival {
    /// An empty folder among what is not complete yet.
    pub(super) fn fresh_folder(&self, name: &str) -> Result<PathBuf, HubError> {
        let folder = self.partial.join(name);
        allow_missing(fs::remove_dir_all(&folder)).map_err(io("delete", &folder))?;
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        Ok(folder)
    }

    /// Where a file of the model arrives until it is complete.
    pub(super) fn partial_file(&self, path: &str) -> PathBuf {
        self.partial.join(format!("{}.part", escape(path)))
    }

    /// Where a file of the model goes once it is checked.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Moves a checked file to its place.
    pub(super) fn accept(&self, from: &Path, path: &str) -> Result<(), HubError> {
        let place = self.place(path);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        fs::rename(from, &place).map_err(io("rename", from))
    }

    /// Declares the model complete, with exactly these files, all of which are in their places.
    pub(super) fn complete(
        self,
        repository: &str,
        revision: &str,
        files: Vec<ManifestFile>,
    ) -> Result<LocatedKind, HubError> {
        let manifest = Manifest {
            name: self.name.clone(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            files,
            pulled_at_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        };
        remove_others(&self.folder, "", &manifest.files)?;
        let kind = kind(&self.folder, &manifest);
        write_durably(&self.folder, &manifest)?;
        // The model is here; what is left of its way must not make that fail.
        if let Err(error) = fs::remove_dir_all(&self.partial) {
            tracing::warn!(path = %self.partial.display(), "cannot delete what a download left: {error}");
        }
        Ok(kind)
    }
}

/// A model's folder as a model; `None` where it has no manifest, or a file is missing or of another size.
fn read_model(folder: &Path) -> Result<Option<StoredModel>, HubError> {
    let path = folder.join(MANIFEST);
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(io("read", &path)(error)),
    };
    let bad = |reason: String| HubError::Manifest { path: path.clone(), reason };
    let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
    if manifest.files.is_empty() {
        return Err(bad("it lists no files".into()));
    }
    if let Some(file) = manifest.files.iter().find(|file| !stays_below(&file.path)) {
        return Err(bad(format!("{:?} leads out of the model's folder", file.path)));
    }
    let is_whole = |file: &ManifestFile| {
        fs::metadata(folder.join(&file.path)).is_ok_and(|found| found.is_file() && found.len() == file.bytes)
    };
    if let Some(file) = manifest.files.iter().find(|file| !is_whole(file)) {
        tracing::warn!(model = manifest.name, file = file.path, "a file is missing or of another size");
        return Ok(None);
    }
    Ok(Some(StoredModel {
        name: manifest.name.clone(),
        bytes: manifest.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes)),
        source: manifest.repository.clone(),
        kind: kind(folder, &manifest),
        manifest,
    }))
}

/// A model with one GGUF file, or with the parts of one, is that file or the first part, whatever texts lie beside it;
/// every other one is its folder.
fn kind(folder: &Path, manifest: &Manifest) -> LocatedKind {
    let files: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    match entry_of(&files) {
        Some(file) => LocatedKind::Gguf(folder.join(file)),
        None => LocatedKind::Folder(folder.to_owned()),
    }
}

/// Removes what an interrupted pull of another version left: a loader must not find it.
fn remove_others(folder: &Path, prefix: &str, files: &[ManifestFile]) -> Result<(), HubError> {
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let path = entry.map_err(io("read", folder))?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        let below = format!("{name}/");
        if path.is_dir() && files.iter().any(|file| file.path.starts_with(&below)) {
            remove_others(&path, &below, files)?;
        } else if path.is_dir() {
            fs::remove_dir_all(&path).map_err(io("delete", &path))?;
        } else if files.iter().all(|file| file.path != name) {
            fs::remove_file(&path).map_err(io("delete", &path))?;
        }
    }
    Ok(())
}

/// Writes the manifest so that it is there whole or not at all, after a power cut too.
fn write_durably(folder: &Path, manifest: &Manifest) -> Result<(), HubError> {
    let (new, path) = (folder.join("manifest.json.new"), folder.join(MANIFEST));
    let json = serde_json::to_vec_pretty(manifest)
        .map_err(|error| HubError::Manifest { path: path.clone(), reason: error.to_string() })?;
    let mut file = File::create(&new).map_err(io("create", &new))?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(io("write", &new))?;
    fs::rename(&new, &path).map_err(io("rename", &new))?;
    sync_folder(folder)
}

fn hard_or_symbolic_link(file: &Path, link: &Path) -> std::io::Result<()> {
    let hard = fs::hard_link(file, link);
    #[cfg(unix)]
    let hard = hard.or_else(|_| std::os::unix::fs::symlink(file, link));
    hard
}

/// Makes a folder's renames last.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<(), HubError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("write", folder))
}

/// Other systems do not open folders.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<(), HubError> {
    Ok(())
}

/// A name as one part of a path: reversible, the same on every system, and never empty, hidden, `..` or the folder of
/// partial files.
fn escape(name: &str) -> String {
    if name.is_empty() {
        // An empty part would be the store's own folder. No other name escapes to this.
        return "%".to_owned();
    }
    let is_reserved = name.eq_ignore_ascii_case(PARTIAL);
    let mut escaped = String::with_capacity(name.len());
    for (position, byte) in name.bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if is_plain && (position > 0 || byte != b'.' && !is_reserved) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Whether a path of a manifest is a relative one that climbs nowhere.
fn stays_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// What should be gone may be gone already.
fn allow_missing(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
