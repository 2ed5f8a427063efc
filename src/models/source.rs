//! Everything that a loader needs of a model, from a folder in Hugging Face's form or from a GGUF file.
//!
//! Knows no tokenizer: it says where the tokenizer is or hands over its raw vocabulary.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fields::Fields;
use super::generation::{BoundaryTokens, GenerationDefaults};
use super::registry;
use super::spec::{DecoderSpec, LatentSpec};
use super::vocab::{GgufVocab, SpecialTokens};
use crate::config::{RandomFormat, WeightFormat};
use crate::ops::Format;
use crate::request::{Pooling, TokenId};
use crate::weights::{LoadError, Metadata, WeightName, Weights, read_json, read_text};

/// Longest config.json and generation_config.json, bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Longest tokenizer_config.json, bytes: it may list every added token.
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 64 << 20;
/// Longest chat template, bytes.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// A tokenizer.json.
    File(PathBuf),
    /// The vocabulary in a GGUF file.
    Gguf(GgufVocab),
}

/// A model on disk: its headers are read, its weights mapped.
pub struct ModelSource {
    /// The model's own name: the folder's, or what the GGUF file says of itself.
    pub name: String,
    /// What its decoder looks like.
    pub spec: DecoderSpec,
    /// Its weights.
    pub weights: Weights,
    /// Where its tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// Its chat template, in Jinja.
    pub chat_template: Option<String>,
    /// The texts of its special tokens, for the template.
    pub special_tokens: SpecialTokens,
    /// The tokens that end an answer; all below `spec.vocab`.
    pub eos_token_ids: Vec<TokenId>,
    /// What its makers recommend for sampling.
    pub defaults: GenerationDefaults,
    /// How its makers pool prompts to vectors, if it is made for that.
    pub pooling: Option<Pooling>,
}

impl ModelSource {
    /// Opens a folder (config.json, safetensors, tokenizer.json) or a GGUF file (or a folder with exactly one).
    ///
    /// # Errors
    /// A file is missing, or one holds something else than it must.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let config = path.join("config.json");
        // Read before the weights are opened: an unknown architecture is the better reason than an unknown file.
        let json = if config.is_file() { Some(read_json(&config, MAX_CONFIG_BYTES)?) } else { None };
        let spec = match &json {
            Some(json) => Some(registry::from_config(Fields::root(&config, json)?)?),
            None => None,
        };
        let weights = Weights::open(path)?;
        let source = match (weights.metadata().is_some(), json, spec) {
            (true, ..) => Self::from_gguf(weights)?,
            (false, Some(json), Some(spec)) => Self::from_folder(path, spec, weights, &config, &json)?,
            (false, ..) => return Err(missing(config, "config.json beside the weights")),
        };
        source.check_formats()?;
        Ok(source)
    }

    /// Refuses formats that we do not compute with, before anything is planned or read.
    pub(super) fn check_formats(&self) -> Result<(), LoadError> {
        let layers = (0..self.spec.layers as u32).flat_map(WeightName::of_layer);
        // A GGUF file has those of a layer in one tensor.
        let are_stacked = self.weights.metadata().is_some();
        let experts = self.expert_matrices().map(|(name, _, _)| name);
        let experts = experts.filter(|name| !are_stacked || name.expert() == Some(0));
        WeightName::OUTSIDE_LAYERS
            .into_iter()
            .chain(layers)
            .chain(experts)
            .try_for_each(|name| self.weights.check_format(name))
    }

    /// The same model, whose weights become `format` when they are read.
    ///
    /// # Errors
    /// They are quantised already.
    pub fn quantized(self, format: WeightFormat) -> Result<Self, LoadError> {
        let weights = self.weights.quantized(format, self.spec.layers, self.spec.tied_embeddings)?;
        Ok(Self { weights, ..self })
    }

    /// Bytes of all weights, as they are held.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes_of(|_| true, 1.0)
    }

    /// Bytes of the embedding and of the layers before `first`, as they are held.
    pub fn weight_bytes_before(&self, first: usize) -> u64 {
        let is_before = |name: WeightName| match name.layer() {
            Some(layer) => (layer as usize) < first,
            None => name == WeightName::TokenEmbedding,
        };
        let layers = self.spec.layers;
        let share = self.spec.layer_parameters(0..first) as f64 / self.spec.layer_parameters(0..layers).max(1) as f64;
        self.weight_bytes_of(is_before, share)
    }

    /// Bytes of the matrices that `is_in`, and a share of what else there is: norms, biases and up-projections of latents.
    fn weight_bytes_of(&self, is_in: impl Fn(WeightName) -> bool, share: f64) -> u64 {
        let stacks = self.spec.stacks().into_iter();
        let stacked =
            stacks.flat_map(|stack| stack.parts.into_iter().map(move |(name, rows)| (name, rows, stack.columns)));
        let (mut stored, mut held) = (0, 0);
        for (name, rows, columns) in stacked.chain(self.expert_matrices()) {
            let bytes = |format: Option<Format>| {
                (rows * format.and_then(|format| format.row_bytes(columns)).unwrap_or(0)) as u64
            };
            stored += bytes(self.weights.stored_format(name, columns));
            if is_in(name) {
                held += bytes(self.weights.format(name, columns));
            }
        }
        held + (self.weights.total_bytes().saturating_sub(stored) as f64 * share) as u64
    }

    /// Bytes of all weights as a CPU holds them: what it has besides counted.
    pub fn cpu_weight_bytes(&self) -> u64 {
        self.weight_bytes() + self.transposed_bytes(0..self.spec.layers)
    }

    /// Bytes of the up-projections of a latent's keys in `layers` where they lie in one matrix with those of values: a CPU
    /// has them transposed besides, in two bytes a weight where they are dense and in four where they are in blocks.
    pub fn transposed_bytes(&self, layers: Range<usize>) -> u64 {
        let Some(LatentSpec { shape, .. }) = &self.spec.latent else { return 0 };
        let layer_bytes = |layer: u32| match self.weights.format(WeightName::LatentUp(layer), shape.rank) {
            _ if self.weights.has(WeightName::LatentKeys(layer)) => 0,
            None => 0,
            Some(Format::Bf16 | Format::F16) => 2 * shape.heads * shape.nope * shape.rank,
            Some(_) => 4 * shape.heads * shape.nope * shape.rank,
        };
        layers.map(|layer| layer_bytes(layer as u32) as u64).sum()
    }

    /// Names, rows and columns of all experts' matrices.
    fn expert_matrices(&self) -> impl Iterator<Item = (WeightName, usize, usize)> {
        use WeightName::{ExpertDown, ExpertGate, ExpertUp};
        let hidden = self.spec.hidden;
        let layers = (0..self.spec.layers as u32).filter_map(|layer| Some((layer, self.spec.experts_of(layer)?)));
        let experts = layers
            .flat_map(|(layer, experts)| (0..experts.count as u32).map(move |expert| (layer, expert, experts.ffn)));
        experts.flat_map(move |(layer, expert, ffn)| {
            let (gate, up) = (ExpertGate(layer, expert), ExpertUp(layer, expert));
            [(gate, ffn, hidden), (up, ffn, hidden), (ExpertDown(layer, expert), hidden, ffn)]
        })
    }

    /// A model of the shapes that a config.json says, with random bf16 weights and numbers for words: to measure with.
    ///
    /// # Errors
    /// The file is missing, or it holds something else than it must.
    #[cfg(test)]
    pub fn random(config: &Path) -> Result<Self, LoadError> {
        Self::random_in(config, RandomFormat::Bf16)
    }

    /// A model of the shapes that a config.json says, with random weights in `format` and numbers for words: to measure
    /// with.
    ///
    /// # Errors
    /// The file is missing, or it holds something else than it must.
    pub fn random_in(config: &Path, format: RandomFormat) -> Result<Self, LoadError> {
        let json = read_json(config, MAX_CONFIG_BYTES)?;
        let spec = registry::from_config(Fields::root(config, &json)?)?;
        let vocab = GgufVocab::numbers(spec.vocab);
        Ok(Self {
            name: file_name(config.parent().unwrap_or(config)),
            weights: Weights::random(config, format, spec.layers, spec.parameters()),
            special_tokens: vocab.special_tokens(),
            tokenizer: TokenizerSource::Gguf(vocab),
            chat_template: None,
            eos_token_ids: Vec::new(),
            defaults: GenerationDefaults::default(),
            pooling: None,
            spec,
        })
    }

    fn from_folder(
        folder: &Path,
        spec: DecoderSpec,
        weights: Weights,
        config: &Path,
        json: &Value,
    ) -> Result<Self, LoadError> {
        let tokenizer = folder.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(missing(tokenizer, "a tokenizer"));
        }
        let generation_file = folder.join("generation_config.json");
        let generation_json = optional_json(&generation_file, MAX_CONFIG_BYTES)?;
        let generation = generation_json.as_ref().map(|json| Fields::root(&generation_file, json)).transpose()?;
        let defaults = generation.map(GenerationDefaults::read).transpose()?.unwrap_or_default();
        let boundary = BoundaryTokens::from_configs(Fields::root(config, json)?, generation, spec.vocab)?;

        let tokenizer_file = folder.join("tokenizer_config.json");
        let tokenizer_json = optional_json(&tokenizer_file, MAX_TOKENIZER_CONFIG_BYTES)?;
        let tokenizer_config = tokenizer_json.as_ref().map(|json| Fields::root(&tokenizer_file, json)).transpose()?;
        let special_tokens = tokenizer_config.map(SpecialTokens::read).transpose()?.unwrap_or_default();
        let template_file = folder.join("chat_template.jinja");
        let chat_template = match tokenizer_config {
            _ if template_file.is_file() => Some(read_text(&template_file, MAX_TEMPLATE_BYTES)?),
            Some(config) => chat_template(config)?,
            None => None,
        };
        Ok(Self {
            name: file_name(folder),
            weights: weights.first_layers(spec.layers),
            spec,
            tokenizer: TokenizerSource::File(tokenizer),
            chat_template,
            special_tokens,
            eos_token_ids: boundary.eos,
            defaults,
            pooling: pooling_of_folder(folder)?,
        })
    }

    pub(super) fn from_gguf(weights: Weights) -> Result<Self, LoadError> {
        let Some(metadata) = weights.metadata() else {
            return Err(missing(weights.files().next().unwrap_or(Path::new("")).to_owned(), "GGUF metadata"));
        };
        let spec = registry::from_gguf(&weights, metadata)?;
        let vocab = GgufVocab::read(metadata)?;
        let boundary = BoundaryTokens::from_gguf(metadata, &vocab.tokens, &vocab.token_types)?;
        let layers = spec.layers;
        Ok(Self {
            name: gguf_name(metadata)?,
            pooling: pooling_of_gguf(metadata)?,
            spec,
            chat_template: metadata.get("tokenizer.chat_template")?,
            special_tokens: vocab.special_tokens(),
            tokenizer: TokenizerSource::Gguf(vocab),
            eos_token_ids: boundary.eos,
            defaults: GenerationDefaults::default(),
            weights: weights.first_layers(layers),
        })
    }
}

/// What the pooling module of sentence-transformers says, where the folder has one: `1_Pooling/config.json`. A way that is
/// not there is refused, as its vectors would be others.
fn pooling_of_folder(folder: &Path) -> Result<Option<Pooling>, LoadError> {
    let file = folder.join("1_Pooling").join("config.json");
    let Some(json) = optional_json(&file, MAX_CONFIG_BYTES)? else { return Ok(None) };
    let config = Fields::root(&file, &json)?;
    let is_set = |key: &str| config.value(key) == Some(&Value::Bool(true));
    match (is_set("pooling_mode_mean_tokens"), is_set("pooling_mode_lasttoken")) {
        (true, false) => Ok(Some(Pooling::Mean)),
        (false, true) => Ok(Some(Pooling::Last)),
        _ => Err(config.unexpected(
            "pooling_mode_mean_tokens",
            "it or pooling_mode_lasttoken true, and not both",
            "another way",
        )),
    }
}

/// What a GGUF file says: `ARCHITECTURE.pooling_type`, 1 for the mean and 3 for the last token.
/// Source: `enum llama_pooling_type` of llama.cpp.
fn pooling_of_gguf(metadata: &Metadata) -> Result<Option<Pooling>, LoadError> {
    let architecture = metadata.get::<String>("general.architecture")?.unwrap_or_default();
    Ok(match metadata.get::<u32>(&format!("{architecture}.pooling_type"))? {
        Some(1) => Some(Pooling::Mean),
        Some(3) => Some(Pooling::Last),
        _ => None,
    })
}

/// What a GGUF file calls its model, else the file's name.
fn gguf_name(metadata: &Metadata) -> Result<String, LoadError> {
    let stated = metadata.get::<String>("general.name")?.filter(|name| !name.trim().is_empty());
    Ok(stated.unwrap_or_else(|| file_name(metadata.file())))
}

/// The template of a tokenizer_config.json: a text, or a list of named ones of which `default` is meant.
fn chat_template(config: Fields) -> Result<Option<String>, LoadError> {
    let key = "chat_template";
    let list = match config.value(key) {
        None => return Ok(None),
        Some(Value::String(template)) => return Ok(Some(template.clone())),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(config.unexpected(key, "a text, or a list of {name, template}", "something else")),
    };
    let default = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
    let template = default.or_else(|| list.first().filter(|_| list.len() == 1)).and_then(|entry| entry.get("template"));
    match template.and_then(Value::as_str) {
        Some(template) => Ok(Some(template.to_owned())),
        None => {
            Err(config.unexpected(key, "a template named default", format_args!("a list of {} without it", list.len())))
        }
    }
}

/// The JSON of a file that need not be there.
fn optional_json(file: &Path, limit_bytes: u64) -> Result<Option<Value>, LoadError> {
    if file.is_file() { read_json(file, limit_bytes).map(Some) } else { Ok(None) }
}

fn missing(file: PathBuf, expected: &str) -> LoadError {
    LoadError::MissingFile { file, expected: expected.to_owned() }
}

/// The last part of a path, without the ending of a GGUF file.
fn file_name(path: &Path) -> String {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if resolved.is_dir() { resolved.file_name() } else { resolved.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
