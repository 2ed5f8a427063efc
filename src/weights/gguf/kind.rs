//! Tensor types by their number in a GGUF file.
//!
//! Knows which of them Lantern computes with, and the names of the others, so that they are refused by name.
//!
//! Source: `enum ggml_type` of ggml.

use crate::ops::Format;
use crate::weights::StoredFormat;

/// The format that tensor type `number` stands for.
pub fn format(number: u32) -> StoredFormat {
    StoredFormat::Known(match number {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        30 => Format::Bf16,
        _ => return StoredFormat::Other(other_name(number)),
    })
}

/// Name of a type that we do not compute with.
fn other_name(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("GGML type {number}"),
    };
    name.to_owned()
}
