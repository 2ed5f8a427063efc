//! Models of an Ollama registry: what their names mean, and which files a manifest of one asks for.
//! Downloads nothing itself: a layer is a [`RemoteFile`] like any other.
//!
//! Source: the distribution specification (manifests and blobs below `/v2`), with the layers' media types of Ollama.

use std::fmt;

use super::checksum::{Checksum, Hasher};
use super::client::{Client, Subject};
use super::error::HubError;
use super::name::{NameError, is_plain};
use super::ollama::{Layer, MAX_MANIFEST_BYTES, MODEL_LAYER, NAMESPACE, REGISTRY, layers, shown_name};
use super::options::HubOptions;
use super::remote::RemoteFile;

/// What stands before a name that is the registry's, whatever the catalog says.
const SCHEME: &str = "ollama://";
/// The tag that is meant where none is named.
const LATEST: &str = "latest";
/// The form of manifest that is asked for.
const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media types of a text that is kept beside the weights begin so.
const IMAGE: &str = "application/vnd.ollama.image.";
/// The texts that are kept beside the weights.
const TEXTS: [&str; 4] = ["template", "params", "license", "system"];
/// A longer text is none, in bytes.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// More layers are no model's.
const MAX_LAYERS: usize = 64;
/// The file that holds the weights in the store.
const MODEL_FILE: &str = "model.gguf";

/// A model of a registry, by its whole name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryName {
    /// The registry's address, as `https://host`; `None` is the configured one, or Ollama's where none is.
    endpoint: Option<String>,
    namespace: String,
    model: String,
    tag: String,
}

impl RegistryName {
    /// Understands a name that says by itself that it is a registry's: `ollama://NAME`, `http(s)://HOST/NAMESPACE/MODEL`
    /// and `HOST/NAMESPACE/MODEL`, each with a tag or without; `None` of any other text.
    ///
    /// # Errors
    /// [`NameError::Malformed`] where such a beginning is followed by no name.
    pub(super) fn explicit(text: &str) -> Result<Option<Self>, NameError> {
        let malformed = |reason| NameError::Malformed { text: text.to_owned(), reason };
        let (scheme, rest) = if let Some(rest) = text.strip_prefix(SCHEME) {
            match Self::bare(rest).or_else(|| Self::hosted("https://", rest)) {
                Some(name) => return Ok(Some(name)),
                None => return Err(malformed("after `ollama://` stands `model:tag` or `namespace/model:tag`")),
            }
        } else if let Some(rest) = text.strip_prefix("https://") {
            ("https://", rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            ("http://", rest)
        } else {
            let has_host = text.split('/').next().is_some_and(looks_like_host);
            return Ok(Self::hosted("https://", text).filter(|_| has_host));
        };
        let name = Self::hosted(scheme, rest);
        name.map(Some).ok_or_else(|| malformed("a model of a registry is `host/namespace/model:tag`"))
    }

    /// Reads `model:tag` or `namespace/model:tag` of the configured registry; `None` where it is neither.
    pub(super) fn bare(text: &str) -> Option<Self> {
        let (namespace, rest) = text.split_once('/').unwrap_or((NAMESPACE, text));
        Self::new(None, namespace, rest)
    }

    fn hosted(scheme: &str, text: &str) -> Option<Self> {
        let (host, rest) = text.split_once('/')?;
        let (namespace, rest) = rest.split_once('/')?;
        let (name, port) = host.split_once(':').unwrap_or((host, "443"));
        let is_host = is_plain(name) && port.parse::<u16>().is_ok();
        let endpoint = format!("{scheme}{}", host.to_ascii_lowercase());
        is_host.then(|| Self::new(Some(endpoint), namespace, rest))?
    }

    fn new(endpoint: Option<String>, namespace: &str, rest: &str) -> Option<Self> {
        let (model, tag) = rest.split_once(':').unwrap_or((rest, LATEST));
        let is_sound = [namespace, model, tag].into_iter().all(is_plain);
        let (namespace, model, tag) = (namespace.to_owned(), model.to_owned(), tag.to_owned());
        is_sound.then_some(Self { endpoint, namespace, model, tag })
    }

    /// The address of its registry.
    pub(super) fn endpoint(&self, options: &HubOptions) -> String {
        self.endpoint.clone().unwrap_or_else(|| configured_endpoint(options))
    }

    /// Whether its registry is the configured one or Ollama's: the only ones that a name from the network may choose.
    pub(crate) fn is_of_a_known_registry(&self, options: &HubOptions) -> bool {
        self.endpoint
            .as_ref()
            .is_none_or(|endpoint| *endpoint == default_endpoint() || *endpoint == configured_endpoint(options))
    }

    /// `host/namespace/model`: where a stored model says it is from.
    pub(super) fn repository(&self, options: &HubOptions) -> String {
        let endpoint = self.endpoint(options);
        format!("{}/{}/{}", authority(&endpoint), self.namespace, self.model)
    }

    /// The files that the registry's manifest asks for, the weights first.
    ///
    /// # Errors
    /// [`HubError::BadAnswer`] where the manifest is none, or not of a model that can be served; as [`HubError`] says.
    pub(super) fn look_up(&self, client: &Client, options: &HubOptions) -> Result<Vec<RemoteFile>, HubError> {
        let repository = self.repository(options);
        let tagged = format!("{repository}:{}", self.tag);
        let base = format!("{}/v2/{}/{}", self.endpoint(options), self.namespace, self.model);
        let subject = Subject { repository: &tagged, file: None };
        let url = format!("{base}/manifests/{}", self.tag);
        let json = client.small(&url, &[("accept", MANIFEST_TYPE)], MAX_MANIFEST_BYTES, subject)?;
        let bad = |reason: String| HubError::BadAnswer { what: format!("the manifest of {tagged}"), reason };
        let layers = layers(&json).map_err(bad)?;
        let mut hasher = Hasher::new(None, 0);
        hasher.update(&json);
        let revision = hasher.finish().sha256;
        let files = files(&layers).map_err(bad)?;
        let remote = |(path, sha256, bytes): (String, String, u64)| RemoteFile {
            repository: repository.clone(),
            path,
            url: format!("{base}/blobs/sha256:{sha256}"),
            commit: revision.clone(),
            checksum: Some(Checksum::Sha256(sha256.clone())),
            etag: sha256,
            bytes,
        };
        Ok(files.into_iter().map(remote).collect())
    }
}

impl fmt::Display for RegistryName {
    /// As Ollama writes it: without its own registry and namespace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.endpoint.as_deref().map_or(REGISTRY, authority);
        f.write_str(&shown_name(host, &self.namespace, &self.model, &self.tag))
    }
}

/// The registry that is asked for names without a host.
fn configured_endpoint(options: &HubOptions) -> String {
    match options.ollama_registry.as_deref().map(|registry| registry.trim_end_matches('/')) {
        None => default_endpoint(),
        Some(url) if url.contains("://") => url.to_ascii_lowercase(),
        Some(host) => format!("https://{}", host.to_ascii_lowercase()),
    }
}

fn default_endpoint() -> String {
    format!("https://{REGISTRY}")
}

/// Host and port of an address.
fn authority(endpoint: &str) -> &str {
    endpoint.split_once("://").map_or(endpoint, |(_, authority)| authority)
}

/// Whether the first part of a path is a host and no organisation: it has a dot or a port.
fn looks_like_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

/// Path in the store, SHA-256 and size of each layer that is kept.
fn files(layers: &[Layer]) -> Result<Vec<(String, String, u64)>, String> {
    if layers.len() > MAX_LAYERS {
        return Err(format!("it has {} layers, and at most {MAX_LAYERS} are a model's", layers.len()));
    }
    let (mut files, mut texts): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for layer in layers {
        let digest = || layer.sha256().ok_or_else(|| format!("the digest {:?} of a layer is no SHA-256", layer.digest));
        let kind = layer.media_type.strip_prefix(IMAGE).unwrap_or_default();
        if layer.media_type == MODEL_LAYER {
            files.push((MODEL_FILE.to_owned(), digest()?.to_owned(), layer.size));
        } else if kind == "adapter" {
            return Err("it is a model with an adapter, which is not supported".into());
        } else if TEXTS.contains(&kind) {
            if layer.size > MAX_TEXT_BYTES {
                return Err(format!("its {kind} has {} bytes; at most {MAX_TEXT_BYTES} are a text's", layer.size));
            }
            let earlier = texts.iter().filter(|text| **text == kind).count();
            texts.push(kind);
            let path = if earlier == 0 { kind.to_owned() } else { format!("{kind}-{}", earlier + 1) };
            files.push((path, digest()?.to_owned(), layer.size));
        } else {
            tracing::info!(media_type = layer.media_type, "a layer that is not used is left there");
        }
    }
    // The weights first: without them nothing else is worth bringing.
    files.sort_by_key(|(path, _, _)| path != MODEL_FILE);
    match files.iter().filter(|(path, _, _)| path == MODEL_FILE).count() {
        1 if files[0].2 > 0 => Ok(files),
        1 => Err("its weights have no bytes".into()),
        0 => Err("it has no layer of weights in GGUF".into()),
        several => Err(format!("its weights are split into {several} files, which is not supported")),
    }
}
