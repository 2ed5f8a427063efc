//! The catalog: names as people know them, and where each one's file is.
//! Does not know what is on this machine; its data is `catalog.toml`, in the binary.

use std::collections::HashSet;

use serde::Deserialize;

use super::HubOptions;
use super::checksum::Checksum;
use super::client::Client;
use super::error::HubError;

/// Bytes of one cached key or value element: float32, the largest that the cache uses.
const KV_BYTES_PER_ELEMENT: u64 = 4;
/// What a process needs beside weights and KV blocks.
const OVERHEAD_BYTES: u64 = 150 << 20;
/// Bytes of a cached key or value element on a GPU: bf16.
const GPU_KV_BYTES_PER_ELEMENT: u64 = 2;
/// What a GPU holds of any model beside weights and KV blocks: buffers of the smallest steps, graphs, cuBLAS's workspace.
const GPU_OVERHEAD_BYTES: u64 = 200 << 20;
/// What weights lose to pages of 2 MiB that are not full, a layer: half of one for each of four matrices.
const GPU_PAGE_BYTES: u64 = 4 << 20;
/// What a GPU's driver takes for a process before a model is there.
const GPU_DRIVER_BYTES: u64 = 384 << 20;
/// The part of free memory that a model may take, in percent.
const USABLE_PERCENT: u64 = 92;
/// A file may differ from the catalog's size by this part of it, in percent, before the check complains.
const SIZE_TOLERANCE_PERCENT: u64 = 3;

/// All that the catalog says of one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `family:tag`, lower case.
    pub name: String,
    /// Whether the family's name alone means this entry.
    #[serde(default)]
    pub default: bool,
    /// `organisation/name` on the hub.
    pub repository: String,
    /// The revision to take; a commit where the file's checksum is pinned.
    #[serde(default = "main_revision")]
    pub revision: String,
    /// The GGUF file, or `None` for a folder of safetensors.
    #[serde(default)]
    pub file: Option<String>,
    /// The file's SHA-256 in hex, where it is pinned.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Size of the weights in bytes, rounded where the exact size is not known.
    pub bytes: u64,
    /// Number of parameters, rounded.
    pub parameters: u64,
    /// The context the model was trained for, in tokens.
    pub context_tokens: u32,
    /// Number of decoder layers.
    pub layers: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Whether the repository asks for an account and accepted terms.
    #[serde(default)]
    pub gated: bool,
    /// Where the repository's and the file's names are from, and what is not sure.
    pub source: String,
    /// The Python package that carries the same file, for machines that reach a package index and no hub.
    #[serde(default)]
    pub package: Option<Package>,
}

/// A Python package that holds a model file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// SHA-256 of the wheel, in hex.
    pub wheel_sha256: String,
    /// The model file's path in the wheel.
    pub member: String,
    /// SHA-256 of that file, in hex.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Every model that has a short name.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    entries: Vec<Entry>,
}

/// What the hub says of one entry.
#[derive(Debug)]
pub struct CheckResult {
    /// The entry's name.
    pub name: String,
    /// The outcome.
    pub outcome: CheckOutcome,
}

/// How an entry and the hub agree.
#[derive(Debug)]
pub enum CheckOutcome {
    /// The file is there and as described.
    Good {
        /// Its exact size in bytes; 0 for a folder, whose files are only looked for.
        bytes: u64,
    },
    /// The file is there, and the catalog is wrong about it.
    Differs(String),
    /// The hub wants access to be asked for; the entry says so too.
    Gated,
    /// The file could not be looked at, or is not there.
    Failed(HubError),
}

impl Entry {
    /// Memory that serving this model takes with `context_tokens` of cached context: weights, KV blocks in float32, and
    /// the process.
    pub fn memory_bytes(&self, context_tokens: u32) -> u64 {
        let kv = self.kv_elements(context_tokens).saturating_mul(KV_BYTES_PER_ELEMENT);
        self.bytes.saturating_add(kv).saturating_add(OVERHEAD_BYTES)
    }

    /// Memory of a GPU that serving this model takes with `context_tokens` of cached context, beside what the driver takes by
    /// itself: weights as they are stored, room to make the largest of them dense, KV blocks in bf16, and the steps.
    pub fn gpu_memory_bytes(&self, context_tokens: u32) -> u64 {
        let kv = self.kv_elements(context_tokens).saturating_mul(GPU_KV_BYTES_PER_ELEMENT);
        // Gate and up, the largest, have half of a layer's weights; dense, each takes two bytes.
        let dense = self.parameters / u64::from(self.layers);
        let pages = u64::from(self.layers) * GPU_PAGE_BYTES;
        [kv, dense, pages, GPU_OVERHEAD_BYTES].into_iter().fold(self.bytes, u64::saturating_add)
    }

    /// Elements of all keys and values.
    fn kv_elements(&self, context_tokens: u32) -> u64 {
        let per_token = 2 * u64::from(self.layers) * u64::from(self.kv_heads) * u64::from(self.head_dim);
        per_token.saturating_mul(u64::from(context_tokens))
    }
}

/// Whether what takes `needed_bytes` may be put where `free_bytes` are free: other programs want some as well.
pub fn fits_memory(needed_bytes: u64, free_bytes: u64) -> bool {
    u128::from(needed_bytes) * 100 <= u128::from(free_bytes) * u128::from(USABLE_PERCENT)
}

/// What is left of a GPU's memory once its driver has taken its own.
pub fn gpu_free_bytes(total_bytes: u64) -> u64 {
    total_bytes.saturating_sub(GPU_DRIVER_BYTES)
}

impl Catalog {
    /// The catalog that comes with the program.
    ///
    /// # Panics
    /// Never in a released build: a test parses the same text.
    pub fn embedded() -> Self {
        Self::from_toml(include_str!("catalog.toml")).expect("catalog.toml is checked by a test")
    }

    /// A catalog from the text of a file like `catalog.toml`.
    ///
    /// # Errors
    /// A sentence about the first thing that is wrong.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            model: Vec<Entry>,
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let catalog = Self { entries: file.model };
        catalog.validate()?;
        Ok(catalog)
    }

    /// All entries, in the file's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a name: `family:tag`, or the family alone or with `:latest` for its default.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let name = name.to_ascii_lowercase();
        let (family, tag) = name.split_once(':').unwrap_or((&name, "latest"));
        self.entries.iter().find(|entry| {
            entry.name.split_once(':').is_some_and(|(entry_family, entry_tag)| {
                entry_family == family && (entry_tag == tag || entry.default && tag == "latest")
            })
        })
    }

    /// The model with the most parameters that fits into `free_bytes` of main memory with `context_tokens` of context, or
    /// with its own longest context where that is shorter.
    pub fn largest_that_fits(&self, free_bytes: u64, context_tokens: u32) -> Option<&Entry> {
        self.largest_where(context_tokens, |entry, context| fits_memory(entry.memory_bytes(context), free_bytes))
    }

    /// The same of a GPU of which `free_bytes` are free once the driver has taken its own.
    pub fn largest_that_fits_gpu(&self, free_bytes: u64, context_tokens: u32) -> Option<&Entry> {
        self.largest_where(context_tokens, |entry, context| fits_memory(entry.gpu_memory_bytes(context), free_bytes))
    }

    fn largest_where(&self, context_tokens: u32, fits: impl Fn(&Entry, u32) -> bool) -> Option<&Entry> {
        self.entries
            .iter()
            .filter(|entry| fits(entry, context_tokens.min(entry.context_tokens)))
            // The first of equals: the file lists the better known one first.
            .rev()
            .max_by_key(|entry| entry.parameters)
    }

    /// Looks every entry up on the hub, without downloading.
    ///
    /// # Errors
    /// [`HubError::Unreachable`] where there is no hub to ask, [`HubError::Offline`] where asking is switched off.
    pub fn check(&self, options: &HubOptions) -> Result<Vec<CheckResult>, HubError> {
        if options.offline {
            return Err(HubError::Offline { name: "the catalog's check".into() });
        }
        let client = Client::new(options)?;
        let mut results = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let outcome = match check_entry(entry, &client) {
                Ok(outcome) => outcome,
                Err(error @ HubError::Unreachable { .. }) => return Err(error),
                Err(HubError::Gated { .. }) if entry.gated => CheckOutcome::Gated,
                Err(error) => CheckOutcome::Failed(error),
            };
            results.push(CheckResult { name: entry.name.clone(), outcome });
        }
        Ok(results)
    }

    fn validate(&self) -> Result<(), String> {
        let mut names = HashSet::new();
        let mut defaults = HashSet::new();
        for entry in &self.entries {
            let fail = |what: &str| Err(format!("{}: {what}", entry.name));
            let Some((family, tag)) = entry.name.split_once(':') else { return fail("the name is family:tag") };
            if family.is_empty() || tag.is_empty() || entry.name != entry.name.to_ascii_lowercase() {
                return fail("the name is family:tag in lower case");
            }
            if !names.insert(&entry.name) {
                return fail("the name stands twice");
            }
            if entry.default && !defaults.insert(family) {
                return fail("the family has two defaults");
            }
            if entry.repository.split('/').filter(|part| !part.is_empty()).count() != 2 {
                return fail("the repository is org/name");
            }
            if entry.source.trim().is_empty() {
                return fail("the source is missing");
            }
            if [entry.layers, entry.kv_heads, entry.head_dim, entry.context_tokens].contains(&0) {
                return fail("a number of the architecture is zero");
            }
            let hashes = entry
                .sha256
                .iter()
                .chain(entry.package.iter().flat_map(|package| [&package.sha256, &package.wheel_sha256]));
            for hash in hashes {
                if !matches!(Checksum::from_etag(hash), Some(Checksum::Sha256(plain)) if plain == *hash) {
                    return fail("a SHA-256 is 64 lower-case hex digits");
                }
            }
        }
        let families: HashSet<&str> =
            names.iter().filter_map(|name| name.split_once(':')).map(|(family, _)| family).collect();
        match families.iter().find(|family| !defaults.contains(*family)) {
            Some(family) => Err(format!("{family}: the family has no default")),
            None => Ok(()),
        }
    }
}

/// Asks the hub for one entry's file, or for a folder's list of files.
fn check_entry(entry: &Entry, client: &Client) -> Result<CheckOutcome, HubError> {
    let Some(file) = &entry.file else {
        client.list(&entry.repository, &entry.revision)?;
        return Ok(CheckOutcome::Good { bytes: 0 });
    };
    let remote = client.metadata(&entry.repository, &entry.revision, file)?;
    if remote.bytes.abs_diff(entry.bytes) > entry.bytes / 100 * SIZE_TOLERANCE_PERCENT {
        return Ok(CheckOutcome::Differs(format!("{} bytes on the hub, {} in the catalog", remote.bytes, entry.bytes)));
    }
    match (&entry.sha256, &remote.checksum) {
        (Some(pinned), Some(Checksum::Sha256(found))) if pinned != found => {
            Ok(CheckOutcome::Differs(format!("SHA-256 {found} on the hub, {pinned} in the catalog")))
        }
        _ if entry.gated && !client.has_token() => {
            Ok(CheckOutcome::Differs("called gated, and anybody can read it".into()))
        }
        _ => Ok(CheckOutcome::Good { bytes: remote.bytes }),
    }
}

fn main_revision() -> String {
    "main".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_file_is_sane() {
        let catalog = Catalog::from_toml(include_str!("catalog.toml")).unwrap();
        for entry in catalog.entries() {
            // Quantised weights take between 4 and 9 bits a parameter; an embedding kept twice costs small models more.
            let bits = entry.bytes as f64 * 8.0 / entry.parameters as f64;
            assert!((4.0..10.0).contains(&bits), "{}: {bits:.1} bits a parameter", entry.name);
            assert!((2_048..=131_072).contains(&entry.context_tokens), "{}", entry.name);
            assert!(
                entry.layers <= 128 && entry.kv_heads <= 64 && [64, 128].contains(&entry.head_dim),
                "{}",
                entry.name
            );
            assert!(
                entry.file.as_ref().is_none_or(|file| file.ends_with(".gguf") && !file.contains("-of-")),
                "{}",
                entry.name
            );
            assert!(entry.source.len() > 20, "{}: a source names a page", entry.name);
        }
    }

    #[test]
    fn every_name_that_people_know_is_there() {
        let catalog = Catalog::embedded();
        let families = [
            ("llama3.1", vec!["8b"]),
            ("llama3.2", vec!["1b", "3b"]),
            ("llama3.3", vec!["70b"]),
            ("qwen2.5", vec!["0.5b", "1.5b", "3b", "7b", "14b", "32b"]),
            ("qwen3", vec!["0.6b", "1.7b", "4b", "8b", "14b", "32b"]),
            ("deepseek-r1", vec!["1.5b", "7b", "8b", "14b", "32b"]),
            ("smollm2", vec!["135m", "360m", "1.7b"]),
        ];
        for (family, tags) in families {
            for tag in tags {
                assert!(catalog.find(&format!("{family}:{tag}")).is_some(), "{family}:{tag}");
            }
            assert!(catalog.find(family).is_some_and(|entry| entry.default), "{family}");
        }
        assert!(catalog.find("llama3.1:405b").is_none());
    }

    #[test]
    fn the_default_model_is_pinned_in_both_of_its_sources() {
        let catalog = Catalog::embedded();
        let entry = catalog.find("smollm2:135m").unwrap();
        let package = entry.package.as_ref().unwrap();
        assert_eq!(entry.sha256.as_ref(), Some(&package.sha256));
        assert_eq!(entry.bytes, package.bytes);
        assert_eq!(entry.file.as_deref(), package.member.rsplit('/').next());
    }

    #[test]
    fn what_fits_grows_with_memory_and_shrinks_with_context() {
        let catalog = Catalog::embedded();
        let fits =
            |free_bytes, context| catalog.largest_that_fits(free_bytes, context).map(|entry| entry.name.as_str());
        assert_eq!(fits(100 << 20, 2_048), None);
        assert_eq!(fits(512 << 20, 2_048), Some("smollm2:135m"));
        assert_eq!(fits(1 << 40, 8_192), Some("llama3.3:70b"));
        assert_eq!(fits(u64::MAX, u32::MAX), Some("llama3.3:70b"));
        let mut last = 0;
        for gib in 1..64_u64 {
            let parameters = catalog.largest_that_fits(gib << 30, 4_096).map_or(0, |entry| entry.parameters);
            assert!(parameters >= last);
            last = parameters;
        }
        let short = catalog.largest_that_fits(16 << 30, 4_096).unwrap().parameters;
        let long = catalog.largest_that_fits(16 << 30, 131_072).unwrap().parameters;
        assert!(long < short);
    }

    #[test]
    fn memory_is_weights_cache_and_process() {
        let catalog = Catalog::embedded();
        let entry = catalog.find("llama3.1:8b").unwrap();
        // 2 x 32 layers x 8 heads x 128 elements x 4 bytes = 256 KiB a token.
        assert_eq!(entry.memory_bytes(4_096), entry.bytes + (1 << 30) + OVERHEAD_BYTES);
        // On a GPU half of that a token, whole pages for 32 layers, and a matrix of 2 x 14336 x 4096 made dense.
        let dense = entry.gpu_memory_bytes(4_096) - entry.bytes - (1 << 29) - (128 << 20) - GPU_OVERHEAD_BYTES;
        assert!(dense.abs_diff(2 * 2 * 14_336 * 4096) < dense / 10, "{dense}");
        assert!((6_200_000_000..6_700_000_000).contains(&entry.gpu_memory_bytes(8_192)));
    }

    #[test]
    fn the_cards_that_people_have_hold_the_models_that_they_are_told_of() {
        let catalog = Catalog::embedded();
        let fits_card = |name: &str, gib: u64, context| {
            fits_memory(catalog.find(name).unwrap().gpu_memory_bytes(context), gpu_free_bytes(gib << 30))
        };
        for (name, gib) in [
            ("qwen2.5:1.5b", 3),
            ("qwen2.5:7b", 8),
            ("llama3.1:8b", 8),
            ("qwen2.5:14b", 16),
            ("qwen2.5:32b", 24),
            ("qwen3:32b", 24),
        ] {
            assert!(fits_card(name, gib, 8_192), "{name} in {gib} GiB");
        }
        assert!(!fits_card("llama3.1:8b", 6, 8_192) && !fits_card("qwen2.5:32b", 16, 2_048));
        assert!(!fits_card("llama3.3:70b", 40, 2_048) && !fits_card("qwen2.5:7b", 8, 131_072));
        let largest = |gib: u64| catalog.largest_that_fits_gpu(gpu_free_bytes(gib << 30), 8_192).unwrap().name.as_str();
        assert_eq!((largest(8), largest(24)), ("qwen3:8b", "qwen2.5:32b"));
        assert_eq!(gpu_free_bytes(0), 0);
    }

    #[test]
    fn a_broken_catalog_is_refused_with_its_reason() {
        let entry = |name: &str, more: &str| {
            format!(
                "[[model]]\nname = \"{name}\"\nrepository = \"a/b\"\nbytes = 1\nparameters = 1\ncontext_tokens = 1\nlayers = 1\n\
                 kv_heads = 1\nhead_dim = 1\nsource = \"a page\"\n{more}\n"
            )
        };
        let reason = |text: &str| Catalog::from_toml(text).unwrap_err();
        assert!(Catalog::from_toml(&entry("a:1", "default = true")).is_ok());
        assert!(reason(&(entry("a:1", "default = true") + &entry("a:1", ""))).contains("twice"));
        assert!(reason(&(entry("a:1", "default = true") + &entry("a:2", "default = true"))).contains("two defaults"));
        assert!(reason(&entry("a:1", "")).contains("no default"));
        assert!(reason(&entry("a", "")).contains("family:tag"));
        assert!(reason(&entry("a:1", "sha256 = \"xyz\"")).contains("SHA-256"));
        assert!(reason(&entry("a:1", "colour = 3")).contains("colour"));
    }
}
