//! Checkpoints that other programs have quantised, in safetensors: found by their tensors' names, checked by their headers,
//! and brought into our own block formats when they are asked for.
//!
//! Knows layouts, no models. Layers that a checkpoint left as they were keep their `weight` and are none of this room's.

mod config;
mod repack;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use super::{LoadError, StoredFormat, Tensor};
use crate::ops::Format;
pub use config::{Scheme, read};
pub use repack::Repacked;

/// A matrix `[rows, columns]` whose parts lie in several tensors.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The block format that it is brought into.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    layout: Layout,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    quants: Tensor,
    scales: Tensor,
    zeros: Option<Tensor>,
    /// The group of each column, where columns of a group need not be neighbours.
    groups: Option<Tensor>,
    /// Whether sorting columns by their groups moves them, once that was asked.
    moves: OnceLock<bool>,
}

/// Where a quant lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Words along the inputs; zeros along the outputs, less a number.
    Gptq { bits: u32, zero_less: u32 },
    /// Words of interleaved nibbles along the outputs.
    Awq,
    /// Words along the inputs of a row; zeros along the outputs of a group.
    Packed { bits: u32 },
    /// Signed bytes.
    Signed,
    /// Floats of 8 bits.
    Float,
}

impl Packed {
    /// A matrix `[rows, columns]` whose zeros are the middle and whose groups are neighbours.
    fn new(
        format: Format,
        [rows, columns]: [usize; 2],
        layout: Layout,
        block: [usize; 2],
        quants: Tensor,
        scales: Tensor,
    ) -> Self {
        let (zeros, groups, moves) = (None, None, OnceLock::new());
        Self { format, rows, columns, layout, block, quants, scales, zeros, groups, moves }
    }

    /// Whether it is of fp8 with one scale in each row.
    pub fn has_row_scales(&self) -> bool {
        self.format.is_fp8() && self.block[1] >= self.columns
    }

    /// The groups of its columns, where sorting columns by them moves some; `data` gives the bytes of a tensor.
    pub fn sorted_by<'a>(&self, data: impl Fn(&Tensor) -> &'a [u8]) -> Option<&'a [u8]> {
        let groups = data(self.groups.as_ref()?);
        self.moves.get_or_init(|| !repack::are_in_order(groups)).then_some(groups)
    }

    /// Bytes that it takes once it is repacked.
    pub fn bytes(&self) -> usize {
        self.format.row_bytes(self.columns).map_or(0, |bytes| bytes * self.rows)
    }
}

/// Takes the tensors of quantised layers out of `tensors`, as matrices by the name of their `weight`. `path` is for errors.
///
/// # Errors
/// A tensor that belongs to another is missing, or their shapes or types do not fit.
pub fn gather(
    path: &Path,
    scheme: Scheme,
    tensors: &mut HashMap<String, Tensor>,
) -> Result<HashMap<String, Packed>, LoadError> {
    let suffix = match scheme {
        Scheme::Gptq { .. } | Scheme::Awq { .. } => "qweight",
        Scheme::Packed { .. } => "weight_packed",
        Scheme::Bytes { .. } => "weight",
    };
    let is_quantized = |name: &str, tensor: &Tensor| {
        let rest = name.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
        rest.filter(|_| suffix != "weight" || ["I8", "F8_E4M3"].contains(&dtype(tensor))).map(str::to_owned)
    };
    let mut modules: Vec<String> = tensors.iter().filter_map(|(name, tensor)| is_quantized(name, tensor)).collect();
    modules.sort();
    let mut found = HashMap::new();
    for module in modules {
        let mut parts = Parts { path, module: &module, tensors };
        let packed = match scheme {
            Scheme::Gptq { bits, group, zero_less } => parts.gptq(bits, group, zero_less),
            Scheme::Awq { group } => parts.awq(group),
            Scheme::Packed { bits } => parts.packed(bits),
            Scheme::Bytes { block } => parts.bytes(block),
        }?;
        found.insert(format!("{module}.weight"), packed);
    }
    Ok(found)
}

/// The type of a tensor as safetensors names it.
fn dtype(tensor: &Tensor) -> &str {
    match &tensor.format {
        StoredFormat::Known(format) => format.name(),
        StoredFormat::Other(name) => name,
    }
}

/// The largest group of our formats that divides `size`.
fn group_of(size: usize) -> Option<usize> {
    [128, 64, 32].into_iter().find(|group| size.is_multiple_of(*group))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The tensors of one module.
struct Parts<'a> {
    path: &'a Path,
    module: &'a str,
    tensors: &'a mut HashMap<String, Tensor>,
}

const WORDS: &[&str] = &["I32", "U32"];
const FLOATS: &[&str] = &["F16", "BF16", "F32"];

impl Parts<'_> {
    fn unexpected(&self, part: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> LoadError {
        LoadError::unexpected(self.path, format_args!("tensor {}.{part}", self.module), expected, found)
    }

    fn optional(&mut self, part: &str) -> Option<Tensor> {
        self.tensors.remove(&format!("{}.{part}", self.module))
    }

    /// The module's tensor of this name, which must be of one of `types`.
    fn take(&mut self, part: &str, types: &[&str]) -> Result<Tensor, LoadError> {
        let Some(tensor) = self.optional(part) else {
            return Err(LoadError::MissingTensor {
                file: self.path.to_owned(),
                tensor: format!("{}.{part}", self.module),
                expected: "it beside the others of its layer".to_owned(),
            });
        };
        self.of_type(part, tensor, types)
    }

    fn of_type(&self, part: &str, tensor: Tensor, types: &[&str]) -> Result<Tensor, LoadError> {
        if !types.contains(&dtype(&tensor)) {
            return Err(self.unexpected(part, format_args!("one of {types:?}"), dtype(&tensor)));
        }
        Ok(tensor)
    }

    /// Rows and columns of a matrix.
    fn shape(&self, part: &str, tensor: &Tensor) -> Result<[usize; 2], LoadError> {
        match tensor.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(self.unexpected(part, "a matrix", format_args!("shape {:?}", tensor.shape))),
        }
    }

    fn expect(&self, part: &str, tensor: &Tensor, shape: &[usize]) -> Result<(), LoadError> {
        if tensor.shape != shape {
            return Err(self.unexpected(part, format_args!("shape {shape:?}"), format_args!("{:?}", tensor.shape)));
        }
        Ok(())
    }

    /// `factor * size`, of sizes that a file states.
    fn times(&self, part: &str, size: usize, factor: u32) -> Result<usize, LoadError> {
        size.checked_mul(factor as usize).ok_or_else(|| self.unexpected(part, "a size that fits in memory", size))
    }

    /// The format for columns of which `group` share a scale.
    fn format(&self, part: &str, kind: u32, group: usize, columns: usize) -> Result<Format, LoadError> {
        let Some(size) = group_of(gcd(group, columns)) else {
            let found = format!("groups of {group} in rows of {columns}");
            return Err(self.unexpected(part, "groups that multiples of 32 inputs share", found));
        };
        Ok(match (kind, size) {
            (4, 32) => Format::Int4x32,
            (4, 64) => Format::Int4x64,
            (4, _) => Format::Int4x128,
            (8, 32) => Format::Int8x32,
            (8, 64) => Format::Int8x64,
            (8, _) => Format::Int8x128,
            (_, 32) => Format::Fp8x32,
            (_, 64) => Format::Fp8x64,
            (_, _) => Format::Fp8x128,
        })
    }

    fn gptq(&mut self, bits: u32, group: Option<usize>, zero_less: u32) -> Result<Packed, LoadError> {
        let quants = self.take("qweight", WORDS)?;
        let [words, rows] = self.shape("qweight", &quants)?;
        let per_word = 32 / bits;
        let columns = self.times("qweight", words, per_word)?;
        let group = group.unwrap_or(columns);
        let count = columns.div_ceil(group);
        let scales = self.take("scales", FLOATS)?;
        self.expect("scales", &scales, &[count, rows])?;
        let zeros = self.take("qzeros", WORDS)?;
        self.expect("qzeros", &zeros, &[count, rows.div_ceil(per_word as usize)])?;
        let groups = match self.optional("g_idx") {
            None => None,
            Some(groups) => {
                self.expect("g_idx", &groups, &[columns])?;
                Some(self.of_type("g_idx", groups, &["I32"])?)
            }
        };
        let format = self.format("qweight", bits, group, columns)?;
        let layout = Layout::Gptq { bits, zero_less };
        let packed = Packed::new(format, [rows, columns], layout, [1, group], quants, scales);
        Ok(Packed { zeros: Some(zeros), groups, ..packed })
    }

    fn awq(&mut self, group: Option<usize>) -> Result<Packed, LoadError> {
        let quants = self.take("qweight", WORDS)?;
        let [columns, words] = self.shape("qweight", &quants)?;
        let rows = self.times("qweight", words, 8)?;
        let group = group.unwrap_or(columns);
        let count = columns.div_ceil(group);
        let (scales, zeros) = (self.take("scales", FLOATS)?, self.take("qzeros", WORDS)?);
        self.expect("scales", &scales, &[count, rows])?;
        self.expect("qzeros", &zeros, &[count, words])?;
        let format = self.format("qweight", 4, group, columns)?;
        let packed = Packed::new(format, [rows, columns], Layout::Awq, [1, group], quants, scales);
        Ok(Packed { zeros: Some(zeros), ..packed })
    }

    fn packed(&mut self, bits: u32) -> Result<Packed, LoadError> {
        let quants = self.take("weight_packed", WORDS)?;
        let [rows, words] = self.shape("weight_packed", &quants)?;
        let columns = self.times("weight_packed", words, 32 / bits)?;
        self.optional("weight_shape");
        let scales = self.take("weight_scale", FLOATS)?;
        let block = self.block("weight_scale", &scales, rows, columns, None)?;
        let count = columns.div_ceil(block[1]);
        let zeros = match self.optional("weight_zero_point") {
            None => None,
            Some(zeros) => {
                let packed_rows = if dtype(&zeros) == "I8" { rows } else { rows.div_ceil(32 / bits as usize) };
                self.expect("weight_zero_point", &zeros, &[packed_rows, count])?;
                Some(self.of_type("weight_zero_point", zeros, &["I32", "I8"])?)
            }
        };
        let groups = match self.optional("weight_g_idx") {
            None => None,
            Some(groups) => {
                self.expect("weight_g_idx", &groups, &[columns])?;
                Some(self.of_type("weight_g_idx", groups, &["I32"])?)
            }
        };
        if block[0] != 1 {
            return Err(self.unexpected("weight_scale", "a scale for each row", format_args!("{:?}", scales.shape)));
        }
        let format = self.format("weight_scale", bits, block[1], columns)?;
        let packed = Packed::new(format, [rows, columns], Layout::Packed { bits }, block, quants, scales);
        Ok(Packed { zeros, groups, ..packed })
    }

    fn bytes(&mut self, stated: Option<[usize; 2]>) -> Result<Packed, LoadError> {
        let quants = self.take("weight", &["I8", "F8_E4M3"])?;
        let [rows, columns] = self.shape("weight", &quants)?;
        let inverse = self.tensors.contains_key(&format!("{}.weight_scale_inv", self.module));
        let name = if inverse { "weight_scale_inv" } else { "weight_scale" };
        let scales = self.take(name, FLOATS)?;
        let block = self.block(name, &scales, rows, columns, stated)?;
        // What activations were quantised with.
        for part in ["input_scale", "input_zero_point", "activation_scale", "input_scale_ub"] {
            self.optional(part);
        }
        if self.optional("weight_zero_point").is_some() {
            return Err(self.unexpected("weight_zero_point", "bytes around 0", "another zero"));
        }
        let (layout, kind) = if dtype(&quants) == "I8" { (Layout::Signed, 8) } else { (Layout::Float, 0) };
        let format = self.format("weight", kind, block[1], columns)?;
        Ok(Packed::new(format, [rows, columns], layout, block, quants, scales))
    }

    /// Rows and columns that share one of `scales`.
    fn block(
        &self,
        part: &str,
        scales: &Tensor,
        rows: usize,
        columns: usize,
        stated: Option<[usize; 2]>,
    ) -> Result<[usize; 2], LoadError> {
        if let Some([high, wide]) = stated {
            self.expect(part, scales, &[rows.div_ceil(high), columns.div_ceil(wide)])?;
            return Ok([high, wide]);
        }
        match scales.shape[..] {
            [] | [1] | [1, 1] => Ok([rows, columns]),
            [count] if count == rows => Ok([1, columns]),
            [count, groups] if count == rows && groups > 0 && columns.is_multiple_of(groups) => {
                Ok([1, columns / groups])
            }
            _ => {
                let expected = format!("one scale, or for each of {rows} rows as many as divide {columns}");
                Err(self.unexpected(part, expected, format_args!("shape {:?}", scales.shape)))
            }
        }
    }
}
