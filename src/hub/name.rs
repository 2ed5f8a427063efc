//! What a model's name means: a catalog entry, a repository on the hub, a registry's model, a folder or a GGUF file.
//! Does not know what is on this machine's store or on the hub.

use std::fmt;
use std::path::{Path, PathBuf};

use super::catalog::{Catalog, Entry};
use super::registry::RegistryName;

/// Names that differ from a known one by at most this many letters count as near.
const NEAR_DISTANCE: usize = 3;
/// At most this many near names are shown.
const NEAR_SHOWN: usize = 3;
/// Prefixes with which people paste a repository.
const HUB_PREFIXES: [&str; 4] = ["https://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/"];

/// A model's name, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelName {
    /// A name of the catalog, with what the catalog says of it.
    Catalog(Box<Entry>),
    /// A repository on the hub.
    Hub {
        /// `organisation/name`.
        repository: String,
        /// A file of it, or the part of a GGUF file's name that says its quantisation, such as `q4_k_m`.
        file: Option<String>,
    },
    /// A model of an Ollama registry.
    Registry(RegistryName),
    /// A model of the store, by the name that it has there.
    Stored(String),
    /// A folder with a config.json and safetensors files.
    Folder(PathBuf),
    /// A GGUF file.
    File(PathBuf),
}

/// Why a text is no model name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was typed.
    #[error(
        "a model name is missing; try `smollm2:135m`, a repository such as `Qwen/Qwen3-8B`, a folder or a .gguf file"
    )]
    Empty,
    /// Neither in the catalog nor of another known form.
    #[error(
        "no model is called {text:?}{}; other models have names like `org/name`, `ollama://name:tag`, ./folder or ./file.gguf",
        did_you_mean(near)
    )]
    Unknown {
        /// What was typed.
        text: String,
        /// Names of the catalog that are close, the closest first.
        near: Vec<String>,
    },
    /// It cannot be given to a copy.
    #[error(
        "{text:?} cannot be a model's name: it takes parts of letters, digits, `.`, `_` and `-`, between `/` and `:`"
    )]
    Refused {
        /// What was typed.
        text: String,
    },
    /// A slash, but no repository.
    #[error("{text:?} is neither a path on this machine nor a repository: {reason}")]
    Malformed {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ModelName {
    /// Understands what a person typed. Paths win where they exist or begin like one; a bare word is a catalog name.
    ///
    /// # Errors
    /// Where the text is none of them; near catalog names are named.
    pub fn parse(text: &str, catalog: &Catalog) -> Result<Self, NameError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        for prefix in HUB_PREFIXES {
            if let Some(repository) = text.strip_prefix(prefix) {
                return hub_name(repository.trim_end_matches('/'), text);
            }
        }
        if let Some(path) = as_path(text) {
            return Ok(path);
        }
        if let Some(name) = RegistryName::explicit(text)? {
            return Ok(Self::Registry(name));
        }
        if text.contains('/') {
            return hub_name(text, text);
        }
        match catalog.find(text) {
            Some(entry) => Ok(Self::Catalog(Box::new(entry.clone()))),
            None => Err(NameError::Unknown { text: text.to_owned(), near: near_names(text, catalog) }),
        }
    }
}

impl fmt::Display for ModelName {
    /// The name as the store and the APIs know it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog(entry) => f.write_str(&entry.name),
            Self::Hub { repository, file: None } => f.write_str(repository),
            Self::Hub { repository, file: Some(file) } => write!(f, "{repository}:{file}"),
            Self::Registry(name) => write!(f, "{name}"),
            Self::Stored(name) => f.write_str(name),
            Self::Folder(path) => f.write_str(&last_part(path)),
            Self::File(path) => f.write_str(last_part(path).trim_end_matches(".gguf")),
        }
    }
}

/// A path's last part, or the whole of it where it has none.
fn last_part(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The text as a path, where it can only be one or where it exists.
fn as_path(text: &str) -> Option<ModelName> {
    let path = Path::new(text);
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let begins_like_one =
        path.is_absolute() || text == "." || text == ".." || text.starts_with("./") || text.starts_with("../");
    let has_separator = text.contains(['/', '\\']);
    if is_gguf && (path.is_file() || begins_like_one || !text.contains([':', '/'])) {
        Some(ModelName::File(path.to_owned()))
    } else if begins_like_one || has_separator && path.is_dir() {
        Some(ModelName::Folder(path.to_owned()))
    } else {
        None
    }
}

/// Reads `org/name` or `org/name:file`; `typed` is what an error shows.
fn hub_name(text: &str, typed: &str) -> Result<ModelName, NameError> {
    let malformed = |reason| NameError::Malformed { text: typed.to_owned(), reason };
    let (repository, file) = match text.split_once(':') {
        Some((repository, file)) => (repository, Some(file)),
        None => (text, None),
    };
    let Some((organisation, name)) = repository.split_once('/') else {
        return Err(malformed("a repository is `org/name`"));
    };
    if !is_plain(organisation) || !is_plain(name) {
        return Err(malformed("a repository is `org/name`, of letters, digits, `.`, `_` and `-`"));
    }
    if file.is_some_and(|file| !file.split('/').all(is_plain)) {
        return Err(malformed("after the colon stands a file of the repository or a quantisation such as q4_k_m"));
    }
    // The tag that people type for "whatever there is".
    let file = file.filter(|file| *file != "latest").map(str::to_owned);
    Ok(ModelName::Hub { repository: repository.to_owned(), file })
}

/// The longest name that a copy is given, in bytes.
const LONGEST_NAME: usize = 80;

/// A name that is given to a copy, as the store knows it: without the tag that says nothing.
///
/// # Errors
/// [`NameError::Refused`] where no name that anybody could ask for comes of it.
pub(super) fn new_name(text: &str) -> Result<&str, NameError> {
    let name = text.strip_suffix(":latest").unwrap_or(text);
    let is_name = name.len() <= LONGEST_NAME && name.split(['/', ':']).all(is_plain);
    let is_name = is_name && !name.to_ascii_lowercase().ends_with(".gguf");
    if is_name { Ok(name) } else { Err(NameError::Refused { text: text.to_owned() }) }
}

/// Whether a part of a repository's path is harmless in a URL and on disk.
pub(super) fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 200
        && !part.starts_with('.')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+'))
}

/// Catalog names close to the text, or of the same family, the closest first.
fn near_names(text: &str, catalog: &Catalog) -> Vec<String> {
    let text = text.to_ascii_lowercase();
    let (family, tag) = text.split_once(':').unwrap_or((&text, ""));
    let mut near: Vec<(usize, &str)> = catalog
        .entries()
        .iter()
        .filter_map(|entry| {
            let (entry_family, entry_tag) = entry.name.split_once(':')?;
            let family_distance = strsim::osa_distance(family, entry_family);
            // A family alone is compared alone; a tag breaks ties within the family.
            (family_distance <= NEAR_DISTANCE.min(family.len() / 2))
                .then(|| (family_distance * 10 + strsim::osa_distance(tag, entry_tag), entry.name.as_str()))
        })
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().take(NEAR_SHOWN).map(|(_, name)| name.to_owned()).collect()
}

/// The end of an error about an unknown name.
fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelName, NameError> {
        ModelName::parse(text, &Catalog::embedded())
    }

    fn hub(repository: &str, file: Option<&str>) -> ModelName {
        ModelName::Hub { repository: repository.into(), file: file.map(str::to_owned) }
    }

    #[test]
    fn catalog_names_have_a_default_tag_and_no_case() {
        for (text, name) in [
            ("llama3.1:8b", "llama3.1:8b"),
            ("llama3.1", "llama3.1:8b"),
            ("llama3.1:latest", "llama3.1:8b"),
            ("SmolLM2:135M", "smollm2:135m"),
            (" qwen3 ", "qwen3:8b"),
            ("deepseek-r1", "deepseek-r1:7b"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), name, "{text}");
        }
    }

    #[test]
    fn repositories_may_name_a_file_or_a_quantisation() {
        for (text, name) in [
            ("Qwen/Qwen3-8B", hub("Qwen/Qwen3-8B", None)),
            ("hf.co/Qwen/Qwen3-8B", hub("Qwen/Qwen3-8B", None)),
            ("https://huggingface.co/Qwen/Qwen3-8B/", hub("Qwen/Qwen3-8B", None)),
            ("Qwen/Qwen2.5-7B-Instruct-GGUF:q4_k_m", hub("Qwen/Qwen2.5-7B-Instruct-GGUF", Some("q4_k_m"))),
            ("a/b:sub/file.gguf", hub("a/b", Some("sub/file.gguf"))),
            ("a/b:latest", hub("a/b", None)),
        ] {
            assert_eq!(parse(text), Ok(name), "{text}");
        }
    }

    #[test]
    fn paths_are_paths() {
        let folder = tempfile::tempdir().unwrap();
        let folder_text = folder.path().to_str().unwrap();
        assert_eq!(parse(folder_text), Ok(ModelName::Folder(folder.path().to_owned())));
        assert_eq!(parse("./model.gguf"), Ok(ModelName::File("./model.gguf".into())));
        assert_eq!(parse("model.gguf"), Ok(ModelName::File("model.gguf".into())));
        assert_eq!(parse("."), Ok(ModelName::Folder(".".into())));
        assert_eq!(parse("./model.gguf").unwrap().to_string(), "model");
    }

    #[test]
    fn hostile_repositories_are_refused() {
        for text in
            ["a/../b", "../../etc:passwd", "a/b/c", "a/", "/b:", "a/b:../../x", "a/b:", "a/b?c", "a/.b", "hf.co/ab"]
        {
            let outcome = parse(text);
            assert!(!matches!(outcome, Ok(ModelName::Hub { .. } | ModelName::Catalog(_))), "{text}: {outcome:?}");
        }
    }

    #[test]
    fn unknown_names_come_with_near_ones() {
        let NameError::Unknown { near, .. } = parse("lama3.1:8b").unwrap_err() else { panic!("known") };
        assert_eq!(near[0], "llama3.1:8b");
        let NameError::Unknown { near, .. } = parse("qwen2.5:8b").unwrap_err() else { panic!("known") };
        assert!(near[0].starts_with("qwen2.5:"), "{near:?}");
        assert!(parse("smolm2").unwrap_err().to_string().contains("did you mean smollm2:"));
        let NameError::Unknown { near, .. } = parse("zzzzzzzz").unwrap_err() else { panic!("known") };
        assert!(near.is_empty());
        assert_eq!(parse("  "), Err(NameError::Empty));
    }
}
