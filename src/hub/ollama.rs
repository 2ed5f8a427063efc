//! Models that an Ollama on this machine has pulled: its manifests and blobs, used in place.
//! Does not write to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

/// The registry and the namespace that Ollama leaves out of a model's name.
pub(super) const REGISTRY: &str = "registry.ollama.ai";
pub(super) const NAMESPACE: &str = "library";
/// The layer that holds the weights, a GGUF file.
pub(super) const MODEL_LAYER: &str = "application/vnd.ollama.image.model";
/// A manifest is a list of a few layers; a file that is larger is none.
pub(super) const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// One model of Ollama's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaModel {
    /// Its name, as Ollama writes it: `llama3.2:3b`.
    pub name: String,
    /// Its GGUF file.
    pub gguf: PathBuf,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The file's SHA-256 in hexadecimal.
    pub sha256: String,
    /// When it was pulled, in seconds since 1970.
    pub modified_at_unix: u64,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layer {
    pub(super) media_type: String,
    /// `sha256:` and 64 digits, if it is sound.
    pub(super) digest: String,
    /// Size in bytes.
    pub(super) size: u64,
}

impl Layer {
    /// The digest's digits; `None` of any other text: they become a part of a path.
    pub(super) fn sha256(&self) -> Option<&str> {
        let digits = self.digest.strip_prefix("sha256:")?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        (digits.len() == 64 && digits.bytes().all(is_digit)).then_some(digits)
    }
}

/// The layers of a manifest.
///
/// # Errors
/// What is wrong with it.
pub(super) fn layers(json: &[u8]) -> Result<Vec<Layer>, String> {
    serde_json::from_slice(json).map(|manifest: Manifest| manifest.layers).map_err(|error| error.to_string())
}

/// Every model below `root`, the folder that OLLAMA_MODELS names, sorted by name. What is incomplete or makes no sense is
/// left out.
pub fn ollama_models(root: &Path) -> Vec<OllamaModel> {
    let mut models = Vec::new();
    // manifests/HOST/NAMESPACE/MODEL/TAG
    for host in folders(&root.join("manifests")) {
        for namespace in folders(&host) {
            for model in folders(&namespace) {
                for tag in entries(&model) {
                    let parts = [&host, &namespace, &model, &tag];
                    let Some(name) = name(parts.map(|path| path.file_name().and_then(|name| name.to_str()))) else {
                        continue;
                    };
                    models.extend(read(root, &tag, name));
                }
            }
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

/// Whether a model of the list is still below `root`, by its manifest's being there; nothing is read. Where the disk does not
/// say, it is.
pub fn has_ollama_model(root: &Path, name: &str) -> bool {
    let Some((path, tag)) = name.rsplit_once(':') else { return false };
    let [host, namespace, model] = match path.split('/').collect::<Vec<_>>().as_slice() {
        [model] => [REGISTRY, NAMESPACE, *model],
        [namespace, model] => [REGISTRY, *namespace, *model],
        [host, namespace, model] => [*host, *namespace, *model],
        _ => return false,
    };
    let manifest =
        ["manifests", host, namespace, model, tag].iter().fold(root.to_owned(), |path, part| path.join(part));
    manifest.try_exists().unwrap_or(true)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_dir()).collect()
}

fn name(parts: [Option<&str>; 4]) -> Option<String> {
    let [Some(host), Some(namespace), Some(model), Some(tag)] = parts else { return None };
    Some(shown_name(host, namespace, model, tag))
}

/// A model's name as Ollama writes it: its own registry and namespace are left out.
pub(super) fn shown_name(host: &str, namespace: &str, model: &str, tag: &str) -> String {
    match (host, namespace) {
        (REGISTRY, NAMESPACE) => format!("{model}:{tag}"),
        (REGISTRY, namespace) => format!("{namespace}/{model}:{tag}"),
        (host, namespace) => format!("{host}/{namespace}/{model}:{tag}"),
    }
}

fn read(root: &Path, manifest: &Path, name: String) -> Option<OllamaModel> {
    let facts = fs::metadata(manifest).ok().filter(|facts| facts.is_file() && facts.len() <= MAX_MANIFEST_BYTES)?;
    let layers = layers(&fs::read(manifest).ok()?).ok()?;
    let layer = layers.into_iter().find(|layer| layer.media_type == MODEL_LAYER)?;
    let sha256 = layer.sha256()?.to_owned();
    let gguf = root.join("blobs").join(format!("sha256-{sha256}"));
    let is_whole = fs::metadata(&gguf).is_ok_and(|blob| blob.is_file() && blob.len() == layer.size);
    let modified = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let modified_at_unix = modified.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    is_whole.then_some(OllamaModel { name, gguf, bytes: layer.size, sha256, modified_at_unix })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as Ollama lays it out: `manifests` of (path, digest, size) and `blobs` of (digest, bytes).
    fn folder(manifests: &[(&str, &str, u64)], blobs: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, digest, size) in manifests {
            let path = root.path().join("manifests").join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            let template = r#"{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:00","size":1}"#;
            let layer = format!(r#"{{"mediaType":"{MODEL_LAYER}","digest":"{digest}","size":{size}}}"#);
            fs::write(path, format!(r#"{{"schemaVersion":2,"layers":[{template},{layer}]}}"#)).expect("a manifest");
        }
        fs::create_dir_all(root.path().join("blobs")).expect("a folder");
        for (digest, bytes) in blobs {
            fs::write(root.path().join("blobs").join(digest.replace(':', "-")), bytes).expect("a blob");
        }
        root
    }

    #[test]
    fn complete_models_are_listed_by_the_names_ollama_gives_them() {
        let (one, two) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        let root = folder(
            &[
                ("registry.ollama.ai/library/llama3.2/3b", &one, 4),
                ("registry.ollama.ai/someone/tiny/latest", &two, 2),
                ("hf.co/org/model/q4_k_m", &one, 4),
                ("registry.ollama.ai/library/half/1b", &two, 9),
                ("registry.ollama.ai/library/gone/1b", &format!("sha256:{}", "c".repeat(64)), 1),
                ("registry.ollama.ai/library/outside/1b", "sha256:../../etc/passwd", 1),
            ],
            &[(&one, b"GGUF"), (&two, b"GG")],
        );
        let models = ollama_models(root.path());
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["hf.co/org/model:q4_k_m", "llama3.2:3b", "someone/tiny:latest"]);
        assert_eq!((models[1].bytes, fs::read(&models[1].gguf).ok()), (4, Some(b"GGUF".to_vec())));
        assert_eq!(models[1].sha256, "a".repeat(64));
        assert!(models[1].modified_at_unix > 0);
        assert!(names.iter().all(|name| has_ollama_model(root.path(), name)));
        fs::remove_file(root.path().join("manifests/registry.ollama.ai/library/llama3.2/3b")).expect("it is there");
        let still: Vec<_> = names.iter().map(|name| has_ollama_model(root.path(), name)).collect();
        assert_eq!(still, [true, false, true]);
    }

    #[test]
    fn no_ollama_has_no_models() {
        assert_eq!(ollama_models(Path::new("/nowhere/at/all")), []);
    }
}
