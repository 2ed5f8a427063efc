//! Weights as an owned handle: format, shape, and a range of bytes that somebody keeps alive, mapped or in memory.
//!
//! Does not know where the bytes came from.

use crate::cpu::{Cpu, CpuError, Format, MatrixRef};
use half::{bf16, f16};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that live as long as the handle.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Why a matrix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// The bytes do not fit the shape.
    #[error(transparent)]
    Shape(#[from] CpuError),
    /// An order of inputs that does not name each once.
    #[error("an order of inputs that does not name each of {0} once")]
    Order(usize),
    /// The range lies outside the bytes.
    #[error("bytes {start}..{end} are outside the {len} that are there")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Bytes that are there.
        len: usize,
    },
}

/// Weights `[rows = outputs, columns = inputs]`, row-major, in a [`Format`]. Cloning shares the bytes.
#[derive(Clone)]
pub struct Matrix {
    format: Format,
    rows: usize,
    columns: usize,
    data: Bytes,
    range: Range<usize>,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // the CPU reads the bytes
    random: Option<Random>,
    /// The input that each column is multiplied with; `None`: its own.
    input_order: Option<Arc<[u32]>>,
}

/// What random weights are drawn from, so that a GPU can draw them itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Random {
    /// Another seed for each matrix.
    pub seed: u64,
    /// Standard deviation.
    pub deviation: f32,
    /// Of a block format: offsets in a block, and the f16 that stands there, whose bits these are. All else is random bits.
    pub scales: [(usize, u16); 2],
    /// Bits of each random byte of a block format that stay.
    pub mask: u8,
}

impl Matrix {
    /// A matrix over `range` of `data`.
    ///
    /// # Errors
    /// If the range is outside the data, or its length is not what format and shape take.
    pub fn new(
        format: Format,
        rows: usize,
        columns: usize,
        data: Bytes,
        range: Range<usize>,
    ) -> Result<Self, MatrixError> {
        let bytes = (*data).as_ref();
        let outside = MatrixError::Range { start: range.start, end: range.end, len: bytes.len() };
        MatrixRef::new(format, rows, columns, bytes.get(range.clone()).ok_or(outside)?)?;
        Ok(Self { format, rows, columns, data, range, random: None, input_order: None })
    }

    /// A matrix of random numbers in `format`, whose bytes `data` draws when they are read.
    ///
    /// # Panics
    /// If the columns are no whole blocks.
    pub fn random(format: Format, rows: usize, columns: usize, data: Bytes, random: Random) -> Self {
        let row_bytes = format.row_bytes(columns).expect("whole blocks");
        Self { format, rows, columns, data, range: 0..rows * row_bytes, random: Some(random), input_order: None }
    }

    /// The same matrix, whose column `j` is multiplied with input `order[j]`.
    ///
    /// # Errors
    /// If `order` does not name each input once.
    pub fn with_input_order(self, order: Vec<u32>) -> Result<Self, MatrixError> {
        let mut seen = vec![false; self.columns];
        let once = |input: &u32| seen.get_mut(*input as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if order.len() != self.columns || !order.iter().all(once) {
            return Err(MatrixError::Order(self.columns));
        }
        Ok(Self { input_order: Some(order.into()), ..self })
    }

    /// The input that each column is multiplied with, where that is not its own.
    #[cfg(feature = "cuda")]
    pub fn input_order(&self) -> Option<&[u32]> {
        self.input_order.as_deref()
    }

    /// Rows `from..from + count`, which share the bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn slice(&self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.rows, "rows {from}..{} of {self:?}", from + count);
        let row_bytes = self.range.len() / self.rows;
        let start = self.range.start + from * row_bytes;
        Self { rows: count, range: start..start + count * row_bytes, random: None, ..self.clone() }
    }

    /// Its transpose, dense: in the matrix's own format where that is dense, else in f32.
    pub fn transposed(&self) -> Self {
        let values = self.dequantize();
        let (rows, columns) = (self.rows, self.columns);
        let at = |index: usize| values[index % rows * columns + index / rows];
        let count = rows * columns;
        let (format, bytes): (Format, Vec<u8>) = match self.format {
            Format::Bf16 => (Format::Bf16, (0..count).flat_map(|i| bf16::from_f32(at(i)).to_le_bytes()).collect()),
            Format::F16 => (Format::F16, (0..count).flat_map(|i| f16::from_f32(at(i)).to_le_bytes()).collect()),
            _ => (Format::F32, (0..count).flat_map(|i| at(i).to_le_bytes()).collect()),
        };
        let range = 0..bytes.len();
        Self { format, rows: columns, columns: rows, data: Arc::new(bytes), range, random: None, input_order: None }
    }

    /// What its numbers are drawn from, where they are random.
    #[cfg(feature = "cuda")]
    pub fn drawn_from(&self) -> Option<Random> {
        self.random
    }

    /// A matrix that owns a copy of `values [rows, columns]`.
    ///
    /// # Errors
    /// If their number is not `rows * columns`.
    #[cfg(test)]
    pub fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Result<Self, MatrixError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let range = 0..bytes.len();
        Self::new(Format::F32, rows, columns, Arc::new(bytes), range)
    }

    /// Element format.
    #[cfg(any(test, feature = "cuda"))]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: outputs of a linear layer, entries of an embedding table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a linear layer, width of an embedding.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The matrix's bytes.
    pub fn bytes(&self) -> &[u8] {
        &(*self.data).as_ref()[self.range.clone()]
    }

    /// The matrix as the kernels take it.
    ///
    /// # Panics
    /// If the owner of the bytes has given others than when the matrix was made.
    pub fn as_matrix_ref(&self) -> MatrixRef<'_> {
        let matrix = MatrixRef::new(self.format, self.rows, self.columns, self.bytes());
        matrix.expect("checked when it was made").with_input_order(self.input_order.as_deref())
    }

    /// All elements as f32 `[rows, columns]`. For vectors and tests: matrices are computed with as they are stored.
    pub fn dequantize(&self) -> Vec<f32> {
        self.dequantize_rows(0, self.rows)
    }

    /// The elements of `count` rows from `from` on as f32 `[count, columns]`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn dequantize_rows(&self, from: usize, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count * self.columns];
        let rows: Vec<u32> = (from..from + count).map(|row| row as u32).collect();
        let read = Cpu::new(Some(NonZeroUsize::MIN)).embed(self.as_matrix_ref(), &rows, &mut values);
        read.expect("every row is inside the matrix");
        values
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} [{}, {}])", self.format, self.rows, self.columns)
    }
}
