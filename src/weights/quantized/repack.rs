//! Brings a quantised matrix into a block format: some rows at a time, on all cores, into memory of its own.
//!
//! Knows bytes, no files: shapes have been checked by `gather`. Integers keep their values. Their scales become f16: those
//! held as f16 exactly, others with a relative error of at most 2^-11, or an absolute one of 2^-25 below 2^-14 (bf16 is
//! exact above that, having fewer digits).

use std::num::NonZeroUsize;

use half::{bf16, f16};

use super::{Layout, Packed, dtype};
use crate::ops::Format;
use crate::weights::Tensor;

/// Rows that are unpacked together: a line of memory holds as many words.
const ROWS: usize = 16;

/// Which output each nibble of a word of AWQ stands for.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// A matrix in a block format.
pub struct Repacked {
    /// Its blocks.
    pub bytes: Vec<u8>,
    /// The input that each column is multiplied with, where columns were sorted.
    pub input_order: Option<Vec<u32>>,
}

/// Why a matrix cannot be repacked.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RepackError {
    /// A column's group does not exist.
    #[error("column {column} in group {group} of {count}")]
    Group { column: usize, group: i32, count: usize },
    /// Groups that are no whole blocks.
    #[error("groups that are no multiples of {0} columns")]
    Uneven(usize),
    /// A scale that the format cannot hold.
    #[error("a scale of {0}")]
    Scale(f32),
    /// A weight that is no number.
    #[error("a weight that is not a number")]
    NotANumber,
}

/// A matrix's tensors, as bytes.
struct Source<'a> {
    packed: &'a Packed,
    quants: &'a [u8],
    /// `[scale rows, scale columns]`.
    scales: Vec<f32>,
    /// As `scales`; empty for floats.
    zeros: Vec<f32>,
    /// The group of each column; empty where columns of a group are neighbours.
    groups: Vec<usize>,
    order: Option<Vec<u32>>,
}

impl Packed {
    /// The matrix in its block format; `data` gives the bytes of a tensor.
    ///
    /// # Errors
    /// A value that no checkpoint should hold.
    pub fn repack<'a>(&'a self, data: impl Fn(&Tensor) -> &'a [u8]) -> Result<Repacked, RepackError> {
        let mut source = Source::new(self, data)?;
        let row_bytes = self.format.row_bytes(self.columns).unwrap_or(0);
        let mut bytes = vec![0; self.bytes()];
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let share = self.rows.div_ceil(threads).next_multiple_of(ROWS);
        let shared = &source;
        std::thread::scope(|scope| {
            let tasks = bytes.chunks_mut(share * row_bytes).enumerate().map(|(task, bytes)| {
                scope.spawn(move || {
                    bytes
                        .chunks_mut(ROWS * row_bytes)
                        .enumerate()
                        .try_for_each(|(block, bytes)| shared.write_rows(task * share + block * ROWS, row_bytes, bytes))
                })
            });
            let tasks: Vec<_> = tasks.collect();
            tasks.into_iter().try_for_each(|task| task.join().expect("repacking does not panic"))
        })?;
        Ok(Repacked { bytes, input_order: source.order.take() })
    }

    /// Scales of a row.
    fn scale_columns(&self) -> usize {
        self.columns.div_ceil(self.block[1])
    }
}

impl<'a> Source<'a> {
    fn new(packed: &'a Packed, data: impl Fn(&Tensor) -> &'a [u8]) -> Result<Self, RepackError> {
        let mut scales = floats(dtype(&packed.scales), data(&packed.scales));
        let (rows, count) = (packed.rows, packed.scale_columns());
        if matches!(packed.layout, Layout::Gptq { .. } | Layout::Awq) {
            scales = (0..rows * count).map(|at| scales[at % count * rows + at / count]).collect();
        }
        let float = packed.layout == Layout::Float;
        for scale in &scales {
            let held = if float { *scale } else { f16::from_f32(*scale).to_f32() };
            if !held.is_finite() {
                return Err(RepackError::Scale(*scale));
            }
        }
        let zeros = if float { Vec::new() } else { zeros(packed, packed.zeros.as_ref().map(&data)) };
        let groups = packed.groups.as_ref().map(&data);
        let (groups, order) = match groups {
            None => (Vec::new(), None),
            Some(bytes) => sorted(packed, bytes)?,
        };
        Ok(Self { packed, quants: data(&packed.quants), scales, zeros, groups, order })
    }

    /// Writes the rows from `first` on that `out` has room for.
    fn write_rows(&self, first: usize, row_bytes: usize, out: &mut [u8]) -> Result<(), RepackError> {
        let Packed { format, columns, block, .. } = *self.packed;
        let count = out.len() / row_bytes;
        let mut quants = vec![0_u8; count * columns];
        self.unpack(first, &mut quants);
        let len = format.block_len();
        let four = matches!(format, Format::Int4x32 | Format::Int4x64 | Format::Int4x128);
        let float = self.packed.layout == Layout::Float;
        if float && quants.iter().any(|byte| byte & 0x7f == 0x7f) {
            return Err(RepackError::NotANumber);
        }
        let mut own = [0_u8; 128];
        for (row, (out, quants)) in out.chunks_mut(row_bytes).zip(quants.chunks(columns)).enumerate() {
            for (at, out) in out.chunks_mut(format.block_bytes()).enumerate() {
                let from = at * len;
                match &self.order {
                    None => own[..len].copy_from_slice(&quants[from..from + len]),
                    Some(order) => {
                        let places = &order[from..from + len];
                        own.iter_mut().zip(places).for_each(|(own, place)| *own = quants[*place as usize]);
                    }
                }
                let group = self.groups.get(from).copied().unwrap_or(from / block[1]);
                let at = (first + row) / block[0] * self.packed.scale_columns() + group;
                let (head, body) = out.split_at_mut(4);
                if float {
                    head.copy_from_slice(&self.scales[at].to_le_bytes());
                } else {
                    head[..2].copy_from_slice(&f16::from_f32(self.scales[at]).to_le_bytes());
                    head[2..].copy_from_slice(&f16::from_f32(self.zeros[at]).to_le_bytes());
                }
                if four {
                    for (body, own) in body.chunks_mut(16).zip(own.chunks(32)) {
                        (0..16).for_each(|j| body[j] = own[j] | own[j + 16] << 4);
                    }
                } else {
                    body.copy_from_slice(&own[..len]);
                }
            }
        }
        Ok(())
    }

    /// The quants of rows from `first` on, a byte each, `[rows, columns]`.
    fn unpack(&self, first: usize, out: &mut [u8]) {
        let Packed { rows, columns, layout, .. } = *self.packed;
        let count = out.len() / columns;
        match layout {
            Layout::Gptq { bits, .. } => {
                let (per_word, mask) = ((32 / bits) as usize, (1_u32 << bits) - 1);
                for word in 0..columns / per_word {
                    for row in 0..count {
                        let value = word_at(self.quants, word * rows + first + row);
                        for k in 0..per_word {
                            out[row * columns + word * per_word + k] = (value >> (k as u32 * bits) & mask) as u8;
                        }
                    }
                }
            }
            Layout::Awq => {
                for column in 0..columns {
                    for row in 0..count {
                        let place = first + row;
                        let value = word_at(self.quants, column * (rows / 8) + place / 8);
                        out[row * columns + column] = awq_nibble(value, place % 8);
                    }
                }
            }
            Layout::Packed { bits } => {
                let (per_word, mask) = ((32 / bits) as usize, (1_u32 << bits) - 1);
                let words = columns / per_word;
                for (at, out) in out.chunks_mut(per_word).enumerate() {
                    let value = word_at(self.quants, first * words + at);
                    out.iter_mut().enumerate().for_each(|(k, out)| *out = (value >> (k as u32 * bits) & mask) as u8);
                }
            }
            Layout::Signed => {
                let bytes = &self.quants[first * columns..first * columns + out.len()];
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte ^ 0x80);
            }
            Layout::Float => out.copy_from_slice(&self.quants[first * columns..first * columns + out.len()]),
        }
    }
}

/// The zero of each scale, `[rows, groups]`.
fn zeros(packed: &Packed, data: Option<&[u8]>) -> Vec<f32> {
    let (rows, count) = (packed.rows, packed.scale_columns());
    let places = (0..rows * count).map(|at| (at / count, at % count));
    match (packed.layout, data) {
        (Layout::Gptq { bits, zero_less }, Some(data)) => {
            let (per_word, mask) = ((32 / bits) as usize, (1_u32 << bits) - 1);
            let words = rows.div_ceil(per_word);
            let zero = |(row, group): (usize, usize)| {
                let value = word_at(data, group * words + row / per_word);
                ((value >> ((row % per_word) as u32 * bits) & mask) + zero_less) as f32
            };
            places.map(zero).collect()
        }
        (Layout::Awq, Some(data)) => {
            let zero = |(row, group): (usize, usize)| awq_nibble(word_at(data, group * (rows / 8) + row / 8), row % 8);
            places.map(|place| f32::from(zero(place))).collect()
        }
        (Layout::Packed { bits }, Some(data)) if data.len() == rows * count && packed.zeros_are_bytes() => {
            let middle = (1_u32 << (bits - 1)) as f32;
            places.map(|(row, group)| f32::from(data[row * count + group].cast_signed()) + middle).collect()
        }
        (Layout::Packed { bits }, Some(data)) => {
            let (per_word, mask) = ((32 / bits) as usize, (1_u32 << bits) - 1);
            let zero = |(row, group): (usize, usize)| {
                let value = word_at(data, row / per_word * count + group);
                (value >> ((row % per_word) as u32 * bits) & mask) as f32
            };
            places.map(zero).collect()
        }
        (Layout::Packed { bits } | Layout::Gptq { bits, .. }, None) => {
            vec![(1_u32 << (bits - 1)) as f32; rows * count]
        }
        // One scale may serve many rows: as many zeros as scales are enough.
        _ => vec![128.0; rows * count],
    }
}

impl Packed {
    /// Whether zeros are a byte each, not packed.
    fn zeros_are_bytes(&self) -> bool {
        self.zeros.as_ref().is_some_and(|zeros| dtype(zeros) == "I8")
    }
}

/// Whether columns of these groups stay where they are when they are sorted by them.
pub(super) fn are_in_order(groups: &[u8]) -> bool {
    groups.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).is_sorted()
}

/// The group of each column after sorting, and the columns in that order; neither where they are in order.
#[allow(clippy::type_complexity)]
fn sorted(packed: &Packed, bytes: &[u8]) -> Result<(Vec<usize>, Option<Vec<u32>>), RepackError> {
    let count = packed.scale_columns();
    let groups: Vec<i32> = bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
    let outside = groups.iter().position(|group| usize::try_from(*group).map_or(true, |group| group >= count));
    if let Some(column) = outside {
        return Err(RepackError::Group { column, group: groups[column], count });
    }
    if groups.iter().enumerate().all(|(column, group)| *group as usize == column / packed.block[1]) {
        return Ok((Vec::new(), None));
    }
    let mut order: Vec<u32> = (0..groups.len() as u32).collect();
    order.sort_by_key(|column| groups[*column as usize]);
    let sorted: Vec<usize> = order.iter().map(|column| groups[*column as usize] as usize).collect();
    let len = packed.format.block_len();
    if sorted.chunks(len).any(|block| block.iter().any(|group| *group != block[0])) {
        return Err(RepackError::Uneven(len));
    }
    Ok((sorted, (!are_in_order(bytes)).then_some(order)))
}

fn word_at(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The nibble of output `place` of eight.
fn awq_nibble(word: u32, place: usize) -> u8 {
    let k = AWQ_ORDER.iter().position(|output| *output == place).unwrap_or(0);
    (word >> (4 * k) & 15) as u8
}

fn floats(dtype: &str, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        "F32" => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        "F16" => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
    }
}
