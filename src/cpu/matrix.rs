//! A weight matrix as bytes: format, shape and data that fit together.
//!
//! Does not know who owns the bytes or what the weights are for.

use super::{CpuError, Format};

/// Weights `[rows, columns]`, row-major: a row holds the inputs of one output. The bytes need no alignment.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    format: Format,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    data: &'a [u8],
    input_order: Option<&'a [u32]>,
}

impl<'a> MatrixRef<'a> {
    /// A matrix over `data`.
    ///
    /// # Errors
    /// If rows cannot be cut into whole blocks, sizes overflow, or `data` has another length than the shape takes.
    pub fn new(format: Format, rows: usize, columns: usize, data: &'a [u8]) -> Result<Self, CpuError> {
        let shape = CpuError::MatrixShape { format, rows, columns };
        let row_bytes = format.row_bytes(columns).ok_or(shape.clone())?;
        let expected = row_bytes.checked_mul(rows).ok_or(shape)?;
        if data.len() != expected {
            return Err(CpuError::MatrixBytes { format, rows, columns, expected, found: data.len() });
        }
        Ok(Self { format, rows, columns, row_bytes, data, input_order: None })
    }

    /// The same matrix, whose column `j` is multiplied with input `order[j]`.
    ///
    /// # Panics
    /// If the order has another length than a row.
    pub fn with_input_order(self, order: Option<&'a [u32]>) -> Self {
        assert!(order.is_none_or(|order| order.len() == self.columns), "an input for each column");
        Self { input_order: order, ..self }
    }

    /// The input that each column is multiplied with; `None`: its own.
    pub fn input_order(&self) -> Option<&'a [u32]> {
        self.input_order
    }

    /// Element format.
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

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All bytes, `rows * row_bytes`.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}
