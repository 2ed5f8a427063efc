//! The weights of one model, wherever they lie: asked for by name and shape, handed out as mapped bytes.
//!
//! Knows no layers: the decoder decides which weights there are.

#[cfg(test)]
pub mod fuzz;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::mix::Mix;
use super::names::{Naming, layer_of};
use super::quantize::quantize;
use super::quantized::{self, Packed, Scheme};
use super::random::{self, RandomWeights};
use super::safetensors::Index;
use super::{LoadError, Metadata, StoredFormat, Tensor, WeightName, gguf, mmap, safetensors};
use crate::config::{RandomFormat, WeightFormat};
use crate::ops::{Bytes, Format, Matrix};

/// One open file.
struct OpenFile {
    path: PathBuf,
    data: Bytes,
}

/// All tensors of a model, mapped.
pub struct Weights {
    /// What was opened: a file, or the folder of several.
    path: PathBuf,
    naming: Naming,
    files: Vec<OpenFile>,
    /// The files' contents where they are mapped.
    mappings: Vec<Arc<Mmap>>,
    tensors: HashMap<String, Tensor>,
    /// Matrices that another program has quantised, by the name that their `weight` would have.
    packed: HashMap<String, Packed>,
    /// How those were quantised.
    scheme: Option<Scheme>,
    metadata: Option<Metadata>,
    /// Where there are no files and every tensor is random.
    random: Option<RandomWeights>,
    /// What matrices are turned into when they are read.
    quantized: Option<Mix>,
}

impl Weights {
    /// Opens a `.gguf` file (any part of a model in several), a `.safetensors` file, or a folder with `model.safetensors`,
    /// with an index of shards, or with exactly one model in `.gguf`. Reads headers only.
    ///
    /// # Errors
    /// There is no such file, or its header is not valid.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if !path.is_dir() {
            return Self::open_file(path);
        }
        let scheme = quantized::read(path)?;
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if single.is_file() {
            Self::open_file(&single)?.gathered(scheme)
        } else if index.is_file() {
            Self::open_shards(path, &index)?.gathered(scheme)
        } else {
            Self::open_file(&only_gguf(path)?)
        }
    }

    /// The same, with the tensors of quantised layers as matrices.
    fn gathered(mut self, scheme: Option<Scheme>) -> Result<Self, LoadError> {
        if let Some(scheme) = scheme {
            self.packed = quantized::gather(&self.path, scheme, &mut self.tensors)?;
            self.scheme = Some(scheme);
        }
        Ok(self)
    }

    fn open_file(path: &Path) -> Result<Self, LoadError> {
        let mapping = mmap::map(path)?;
        let mut weights = match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("safetensors") => {
                Self::from_safetensors(path, mapping.clone())?
            }
            _ => Self::from_gguf(path, mapping.clone())?,
        };
        weights.mappings.push(mapping);
        Ok(weights)
    }

    /// A GGUF file, whose content is `data`.
    pub(crate) fn from_gguf(path: &Path, data: Bytes) -> Result<Self, LoadError> {
        let (metadata, tensors) = gguf::read(path, &data, 0)?;
        if let Some(parts) = gguf::split::parts(path, &metadata)? {
            return Self::open_parts(&parts);
        }
        let files = vec![OpenFile { path: path.to_owned(), data }];
        Ok(Self { metadata: Some(metadata), ..Self::new(path, Naming::Gguf, files, tensors) })
    }

    /// A model in several GGUF files.
    fn open_parts(parts: &[PathBuf]) -> Result<Self, LoadError> {
        let (mut files, mut tensors, mut first) = (Vec::new(), HashMap::new(), None);
        let mut mappings = Vec::new();
        for (index, path) in parts.iter().enumerate() {
            let mapping = mmap::map(path)?;
            let data: Bytes = mapping.clone();
            let (metadata, own) = gguf::read(path, &data, index)?;
            gguf::split::check(&metadata, index, parts.len())?;
            files.push(OpenFile { path: path.clone(), data });
            mappings.push(mapping);
            merge(&mut tensors, own, &files)?;
            first.get_or_insert(metadata);
        }
        let path = parts.first().cloned().unwrap_or_default();
        Ok(Self { metadata: first, mappings, ..Self::new(&path, Naming::Gguf, files, tensors) })
    }

    /// One safetensors file, whose content is `data`.
    pub(super) fn from_safetensors(path: &Path, data: Bytes) -> Result<Self, LoadError> {
        let tensors = safetensors::read(path, &data, 0)?;
        let files = vec![OpenFile { path: path.to_owned(), data }];
        Ok(Self::new(path, Naming::HuggingFace, files, tensors))
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self, LoadError> {
        let index = Index::read(index)?;
        let (mut files, mut mappings) = (Vec::new(), Vec::new());
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for path in index.shards() {
            let mapping = mmap::map(path)?;
            let data: Bytes = mapping.clone();
            let shard = safetensors::read(path, &data, files.len())?;
            index.check(path, &shard)?;
            files.push(OpenFile { path: path.to_owned(), data });
            mappings.push(mapping);
            merge(&mut tensors, shard, &files)?;
        }
        Ok(Self { mappings, ..Self::new(folder, Naming::HuggingFace, files, tensors) })
    }

    /// Random weights of whatever shapes are asked for, of a model of `layers` layers and together `parameters` elements;
    /// `path` names them in errors.
    pub fn random(path: &Path, format: RandomFormat, layers: usize, parameters: u64) -> Self {
        let random = RandomWeights { mix: Mix { format, layers, tied: false }, parameters };
        Self { random: Some(random), ..Self::new(path, Naming::HuggingFace, Vec::new(), HashMap::new()) }
    }

    fn new(path: &Path, naming: Naming, files: Vec<OpenFile>, tensors: HashMap<String, Tensor>) -> Self {
        Self {
            path: path.to_owned(),
            naming,
            files,
            mappings: Vec::new(),
            tensors,
            packed: HashMap::new(),
            scheme: None,
            metadata: None,
            random: None,
            quantized: None,
        }
    }

    /// The same weights, whose matrices become blocks of `format` when they are read. `layers`: of the model, and whether
    /// its embedding is its output layer: `tied`.
    ///
    /// # Errors
    /// They are in blocks already, or `format` is none that weights are turned into.
    pub fn quantized(self, format: WeightFormat, layers: usize, tied: bool) -> Result<Self, LoadError> {
        let wanted = format!("weights of bf16, f16 or f32 to turn into {}", format.name());
        let refuse = |item: &str, found: &str| Err(LoadError::unexpected(&self.path, item, &wanted, found));
        let Some(mix) = format.mix() else { return refuse("quantize", "a format that is not made on loading") };
        if let Some(stored) = self.quantized_as() {
            return refuse("its weights", &format!("{stored}, quantised already"));
        }
        Ok(Self { quantized: Some(Mix { format: mix, layers, tied }), ..self })
    }

    /// Whether matrices become another format when they are read.
    pub fn is_turned(&self) -> bool {
        self.quantized.is_some()
    }

    /// The format that weights are in which somebody else has quantised; `None`: there are no such.
    pub fn quantized_as(&self) -> Option<String> {
        if !self.packed.is_empty() {
            return Some(self.format_name());
        }
        let in_blocks =
            |tensor: &Tensor| matches!(&tensor.format, StoredFormat::Known(format) if format.block_len() > 1);
        if self.tensors.values().any(in_blocks) {
            return Some(self.main_format().to_owned());
        }
        let random = self.random.as_ref().filter(|random| random.mix.format != RandomFormat::Bf16)?;
        Some(format!("{:?}", random.mix.format))
    }

    /// A matrix of [rows, columns], row-major, in its stored format; the bytes stay mapped.
    ///
    /// # Errors
    /// It is missing, has another shape, or a format that we do not compute with.
    pub fn matrix(&self, name: WeightName, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let matrix = match &self.random {
            Some(random) => random.matrix(name, rows, columns),
            None => self.stored(name, &[rows, columns], rows, columns)?,
        };
        self.turned(name, matrix)
    }

    /// A matrix as it is to be held. What has been read of it no longer takes memory where it became another one.
    fn turned(&self, name: WeightName, matrix: Matrix) -> Result<Matrix, LoadError> {
        let Some(format) = self.blocks_of(name, matrix.columns()) else { return Ok(matrix) };
        let release = |bytes: &[u8]| self.mappings.iter().for_each(|mapping| mmap::release(mapping, bytes));
        quantize(&matrix, format, &release).map_err(|error| {
            let expected = format!("weights to turn into {format}");
            LoadError::unexpected(&self.path, format_args!("tensor {}", self.stored_name(name)), expected, error)
        })
    }

    /// The block format that a matrix is turned into when it is read.
    fn blocks_of(&self, name: WeightName, columns: usize) -> Option<Format> {
        self.quantized.as_ref()?.on_load(name, columns)
    }

    /// A vector of [length], widened to f32.
    ///
    /// # Errors
    /// It is missing, has another length, or a format that we do not compute with.
    pub fn vector(&self, name: WeightName, length: usize) -> Result<Vec<f32>, LoadError> {
        if self.random.is_some() {
            return Ok(random::vector(name, length));
        }
        Ok(self.stored(name, &[length], 1, length)?.dequantize())
    }

    /// The format of a matrix whose rows have `columns` elements, if it is there and its format one that we compute with.
    pub fn format(&self, name: WeightName, columns: usize) -> Option<Format> {
        self.blocks_of(name, columns).or_else(|| self.stored_format(name, columns))
    }

    /// The format that a matrix is in where it lies.
    pub fn stored_format(&self, name: WeightName, columns: usize) -> Option<Format> {
        if let Some(random) = &self.random {
            return Some(random.format_of(name, columns));
        }
        let name = self.stored_name(name);
        if let Some(packed) = self.packed.get(&name) {
            return Some(packed.format);
        }
        match &self.tensors.get(&name)?.format {
            StoredFormat::Known(format) => Some(*format),
            StoredFormat::Other(_) => None,
        }
    }

    /// Whether a matrix whose rows have `columns` elements is of fp8 with one scale in each row, as far as that can be told
    /// before it is read.
    pub fn has_row_scales(&self, name: WeightName, columns: usize) -> bool {
        match (self.blocks_of(name, columns), &self.random) {
            (Some(format), _) => format.is_fp8(),
            (None, Some(random)) => random.format_of(name, columns).is_fp8(),
            (None, None) => self.packed.get(&self.stored_name(name)).is_some_and(Packed::has_row_scales),
        }
    }

    /// What the columns of a matrix are sorted by when it is read, as bytes, where that moves them: if it is the same for two
    /// matrices, so is the order of their columns.
    pub fn sorted_by(&self, name: WeightName) -> Option<&[u8]> {
        self.packed.get(&self.stored_name(name))?.sorted_by(|tensor| self.bytes(tensor))
    }

    /// A vector of [length] as a matrix of one row, in its stored format.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn vector_as_row(&self, name: WeightName, length: usize) -> Result<Matrix, LoadError> {
        self.stored(name, &[length], 1, length)
    }

    /// Whether the file has this weight.
    pub fn has(&self, name: WeightName) -> bool {
        let name = self.stored_name(name);
        self.holds(&name)
    }

    /// Checks that a weight, where it is there, is in a format that we compute with.
    ///
    /// # Errors
    /// [`LoadError::Format`].
    pub fn check_format(&self, name: WeightName) -> Result<(), LoadError> {
        let name = self.stored_name(name);
        self.tensors.get(&name).map_or(Ok(()), |tensor| self.known_format(tensor, &name).map(drop))
    }

    /// The same weights without those of the layers from `layers` on, which predict further tokens and are not read.
    pub fn first_layers(mut self, layers: usize) -> Self {
        let is_here = |name: &String| layer_of(name, self.naming).is_none_or(|layer| layer < layers);
        self.tensors.retain(|name, _| is_here(name));
        self.packed.retain(|name, _| is_here(name));
        self
    }

    fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.packed.contains_key(name)
    }

    /// What the file calls a weight.
    fn stored_name(&self, name: WeightName) -> String {
        let own = name.in_file(self.naming);
        let alias = name.alias().filter(|alias| self.naming == Naming::HuggingFace && self.holds(alias));
        alias.unwrap_or(own)
    }

    /// One expert's matrix `[rows, columns]`, where the file may stack those of all `experts`.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn expert_matrix(
        &self,
        name: WeightName,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, LoadError> {
        match name.expert() {
            Some(expert) if self.naming == Naming::Gguf && self.random.is_none() => {
                let stack = self.stack(name, experts, rows, columns)?;
                self.turned(name, stack.slice(expert as usize * rows, rows))
            }
            _ => self.matrix(name, rows, columns),
        }
    }

    /// Matrices `[rows, columns]` that the file keeps in one tensor `[count, rows, columns]`, one above the other.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn stack(&self, name: WeightName, count: usize, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        self.stored(name, &[count, rows, columns], count * rows, columns)
    }

    /// Bytes of all tensors, as they are stored.
    pub fn total_bytes(&self) -> u64 {
        if let Some(random) = &self.random {
            let format = random.format_of(WeightName::Gate(0), 256);
            return random.parameters * format.block_bytes() as u64 / format.block_len() as u64;
        }
        let packed: u64 = self.packed.values().map(|packed| packed.bytes() as u64).sum();
        packed + self.tensors.values().map(|tensor| tensor.range.len() as u64).sum::<u64>()
    }

    /// Elements of all tensors, at most `u64::MAX`.
    pub fn parameters(&self) -> u64 {
        if let Some(random) = &self.random {
            return random.parameters;
        }
        // Readers have checked each product; a sum of hostile shapes may still overflow.
        let elements =
            self.tensors.values().map(|tensor| tensor.shape.iter().map(|size| *size as u64).product::<u64>());
        let packed: u64 = self.packed.values().map(|packed| (packed.rows * packed.columns) as u64).sum();
        elements.fold(packed, u64::saturating_add)
    }

    /// The format that most bytes are in; "mixed" where a file holds none that we compute with. Where they are quantised
    /// when they are read, what most matrices become.
    pub fn main_format(&self) -> &'static str {
        if let Some(mix) = &self.quantized {
            let gate = self.tensors.get(&self.stored_name(WeightName::Gate(0))).and_then(|gate| gate.shape.last());
            let columns = gate.copied().unwrap_or(256);
            return mix.on_load(WeightName::Gate(0), columns).map_or("mixed", Format::name);
        }
        if let Some(random) = &self.random {
            return random.format_of(WeightName::Gate(0), 256).name();
        }
        let mut bytes: HashMap<&'static str, usize> = HashMap::new();
        for tensor in self.tensors.values() {
            if let StoredFormat::Known(format) = &tensor.format {
                *bytes.entry(format.name()).or_default() += tensor.range.len();
            }
        }
        for packed in self.packed.values() {
            *bytes.entry(packed.format.name()).or_default() += packed.bytes();
        }
        bytes.into_iter().max_by_key(|(name, bytes)| (*bytes, *name)).map_or("mixed", |(name, _)| name)
    }

    /// What lists call the weights: how another program has quantised them, whatever it has left as it was, else
    /// [`Self::main_format`].
    pub fn format_name(&self) -> String {
        match (self.scheme, self.packed.values().next()) {
            (Some(scheme), Some(packed)) => scheme.name(packed.format.is_fp8()),
            _ => self.main_format().to_owned(),
        }
    }

    /// The files that hold the weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Metadata of a GGUF file; `None` for safetensors.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The tensor of this name, whose shape in the file must be `shape`, as a matrix of [rows, columns].
    fn stored(&self, name: WeightName, shape: &[usize], rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        let stored_name = self.stored_name(name);
        if let Some(packed) = self.packed.get(&stored_name) {
            return self.repacked(packed, stored_name, shape);
        }
        let Some(tensor) = self.tensors.get(&stored_name) else {
            let expected = format!("shape {shape:?}");
            return Err(LoadError::MissingTensor { file: self.path.clone(), tensor: stored_name, expected });
        };
        let file = &self.files[tensor.file];
        if tensor.shape != shape {
            let (expected, found) = (shape.to_vec(), tensor.shape.clone());
            return Err(LoadError::Shape { file: file.path.clone(), tensor: stored_name, expected, found });
        }
        let format = self.known_format(tensor, &stored_name)?;
        Matrix::new(format, rows, columns, file.data.clone(), tensor.range.clone()).map_err(|error| {
            let expected = format!("{rows} x {columns} of {format}");
            LoadError::unexpected(&file.path, format_args!("tensor {stored_name}"), expected, error)
        })
    }

    /// The format of a tensor, which must be one that we compute with.
    fn known_format(&self, tensor: &Tensor, name: &str) -> Result<Format, LoadError> {
        match &tensor.format {
            StoredFormat::Known(format) => Ok(*format),
            StoredFormat::Other(found) => {
                let unscaled = found.starts_with("F8_") && self.packed.is_empty();
                let why = if unscaled { ", and no quantization_config in config.json" } else { "" };
                Err(LoadError::Format {
                    file: self.files[tensor.file].path.clone(),
                    tensor: name.to_owned(),
                    expected: Format::ALL.map(Format::name).join(", "),
                    found: format!("{found}{why}"),
                })
            }
        }
    }

    /// What stands in a tensor.
    fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &(*self.files[tensor.file].data).as_ref()[tensor.range.clone()]
    }

    /// A matrix that another program has quantised, in memory of its own.
    fn repacked(&self, packed: &Packed, name: String, shape: &[usize]) -> Result<Matrix, LoadError> {
        let Packed { format, rows, columns, .. } = *packed;
        if shape != [rows, columns] {
            let (expected, found) = (shape.to_vec(), vec![rows, columns]);
            return Err(LoadError::Shape { file: self.path.clone(), tensor: name, expected, found });
        }
        let refuse = |error: &dyn std::fmt::Display| {
            LoadError::unexpected(&self.path, format_args!("tensor {name}"), "quantised weights", error)
        };
        let repacked = packed.repack(|tensor| self.bytes(tensor));
        let quantized::Repacked { bytes, input_order } = repacked.map_err(|error| refuse(&error))?;
        let range = 0..bytes.len();
        let matrix = Matrix::new(format, rows, columns, Arc::new(bytes), range);
        let matrix = matrix.map_err(|error| refuse(&error))?;
        match input_order {
            None => Ok(matrix),
            Some(order) => matrix.with_input_order(order).map_err(|error| refuse(&error)),
        }
    }
}

/// Adds the tensors of the last of `files` to those of the others.
fn merge(all: &mut HashMap<String, Tensor>, own: HashMap<String, Tensor>, files: &[OpenFile]) -> Result<(), LoadError> {
    for (name, tensor) in own {
        let path = &files[tensor.file].path;
        if let Some(other) = all.insert(name.clone(), tensor) {
            let found = format!("it in {} as well", files[other.file].path.display());
            return Err(LoadError::unexpected(path, format_args!("tensor {name}"), "each tensor once", found));
        }
    }
    Ok(())
}

/// The one `.gguf` file of a folder.
fn only_gguf(folder: &Path) -> Result<PathBuf, LoadError> {
    let read_error = |source| LoadError::Read { file: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            found.push(path);
        }
    }
    // The parts of one model count as one.
    found.sort();
    found.dedup_by(|next, kept| gguf::split::stem(next).is_some_and(|stem| gguf::split::stem(kept) == Some(stem)));
    match (found.pop(), found.len()) {
        (Some(file), 0) => Ok(file),
        (Some(_), others) => {
            let found = format!("{} .gguf files: name one of them", others + 1);
            Err(LoadError::unexpected(folder, "the folder", "one model", found))
        }
        (None, _) => Err(LoadError::MissingFile {
            file: folder.to_owned(),
            expected: "model.safetensors, model.safetensors.index.json or one .gguf file".to_owned(),
        }),
    }
}
