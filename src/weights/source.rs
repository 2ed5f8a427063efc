//! The weights of one model, wherever they lie: asked for by name and shape, handed out as mapped bytes.
//!
//! Knows no layers: the decoder decides which weights there are.

#[cfg(test)]
mod fuzz;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::names::Naming;
use super::quantized::{self, Packed, Scheme};
use super::random::{self, RandomWeights};
use super::safetensors::Index;
use super::{LoadError, Metadata, StoredFormat, Tensor, WeightName, gguf, mmap, safetensors};
use crate::config::RandomFormat;
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
    tensors: HashMap<String, Tensor>,
    /// Matrices that another program has quantised, by the name that their `weight` would have.
    packed: HashMap<String, Packed>,
    metadata: Option<Metadata>,
    /// Where there are no files and every tensor is random.
    random: Option<RandomWeights>,
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
        }
        Ok(self)
    }

    fn open_file(path: &Path) -> Result<Self, LoadError> {
        let data: Bytes = mmap::map(path)?;
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")) {
            Self::from_safetensors(path, data)
        } else {
            Self::from_gguf(path, data)
        }
    }

    /// A GGUF file, whose content is `data`.
    pub(super) fn from_gguf(path: &Path, data: Bytes) -> Result<Self, LoadError> {
        let (metadata, tensors) = gguf::read(path, &data, 0)?;
        if let Some(parts) = gguf::split::parts(path, &metadata)? {
            return Self::open_parts(&parts);
        }
        let files = vec![OpenFile { path: path.to_owned(), data }];
        Ok(Self {
            path: path.to_owned(),
            naming: Naming::Gguf,
            files,
            tensors,
            packed: HashMap::new(),
            metadata: Some(metadata),
            random: None,
        })
    }

    /// A model in several GGUF files.
    fn open_parts(parts: &[PathBuf]) -> Result<Self, LoadError> {
        let (mut files, mut tensors, mut first) = (Vec::new(), HashMap::new(), None);
        for (index, path) in parts.iter().enumerate() {
            let data: Bytes = mmap::map(path)?;
            let (metadata, own) = gguf::read(path, &data, index)?;
            gguf::split::check(&metadata, index, parts.len())?;
            files.push(OpenFile { path: path.clone(), data });
            merge(&mut tensors, own, &files)?;
            first.get_or_insert(metadata);
        }
        let path = parts.first().cloned().unwrap_or_default();
        Ok(Self { path, naming: Naming::Gguf, files, tensors, packed: HashMap::new(), metadata: first, random: None })
    }

    /// One safetensors file, whose content is `data`.
    pub(super) fn from_safetensors(path: &Path, data: Bytes) -> Result<Self, LoadError> {
        let tensors = safetensors::read(path, &data, 0)?;
        let files = vec![OpenFile { path: path.to_owned(), data }];
        Ok(Self {
            path: path.to_owned(),
            naming: Naming::HuggingFace,
            files,
            tensors,
            packed: HashMap::new(),
            metadata: None,
            random: None,
        })
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self, LoadError> {
        let index = Index::read(index)?;
        let mut files = Vec::new();
        let mut tensors: HashMap<String, Tensor> = HashMap::new();
        for path in index.shards() {
            let data: Bytes = mmap::map(path)?;
            let shard = safetensors::read(path, &data, files.len())?;
            index.check(path, &shard)?;
            files.push(OpenFile { path: path.to_owned(), data });
            merge(&mut tensors, shard, &files)?;
        }
        Ok(Self {
            path: folder.to_owned(),
            naming: Naming::HuggingFace,
            files,
            tensors,
            packed: HashMap::new(),
            metadata: None,
            random: None,
        })
    }

    /// Random weights of whatever shapes are asked for, of a model of `layers` layers and together `parameters` elements;
    /// `path` names them in errors.
    pub fn random(path: &Path, format: RandomFormat, layers: usize, parameters: u64) -> Self {
        let (files, tensors) = (Vec::new(), HashMap::new());
        let (path, random) = (path.to_owned(), RandomWeights { format, layers, parameters });
        Self {
            path,
            naming: Naming::HuggingFace,
            files,
            tensors,
            packed: HashMap::new(),
            metadata: None,
            random: Some(random),
        }
    }

    /// A matrix of [rows, columns], row-major, in its stored format; the bytes stay mapped.
    ///
    /// # Errors
    /// It is missing, has another shape, or a format that we do not compute with.
    pub fn matrix(&self, name: WeightName, rows: usize, columns: usize) -> Result<Matrix, LoadError> {
        if let Some(random) = &self.random {
            return Ok(random.matrix(name, rows, columns));
        }
        self.stored(name, &[rows, columns], rows, columns)
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
                Ok(self.stack(name, experts, rows, columns)?.slice(expert as usize * rows, rows))
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

    /// Bytes of all tensors, as they are held.
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

    /// The format that most bytes are in; "mixed" where a file holds none that we compute with.
    pub fn main_format(&self) -> &'static str {
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
        let format = match &tensor.format {
            StoredFormat::Known(format) => *format,
            StoredFormat::Other(found) => {
                let expected = Format::ALL.map(Format::name).join(", ");
                return Err(LoadError::Format {
                    file: file.path.clone(),
                    tensor: stored_name,
                    expected,
                    found: found.clone(),
                });
            }
        };
        Matrix::new(format, rows, columns, file.data.clone(), tensor.range.clone()).map_err(|error| {
            let expected = format!("{rows} x {columns} of {format}");
            LoadError::unexpected(&file.path, format_args!("tensor {stored_name}"), expected, error)
        })
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
        let bytes = |tensor: &Tensor| &(*self.files[tensor.file].data).as_ref()[tensor.range.clone()];
        let quantized::Repacked { bytes, input_order } = packed.repack(bytes).map_err(|error| refuse(&error))?;
        let range = 0..bytes.len();
        let matrix = Matrix::new(format, rows, columns, std::sync::Arc::new(bytes), range);
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
