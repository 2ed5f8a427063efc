//! Which format each matrix of a model gets, where weights are drawn or turned into another format.
//!
//! Knows names and lengths of rows, no numbers.

use super::WeightName;
use crate::config::RandomFormat;
use crate::ops::Format;

/// Formats for all matrices of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub(super) format: RandomFormat,
    /// Layers of the model.
    pub(super) layers: usize,
    /// Whether its embedding is its output layer as well: it then has that one's bits, as llama.cpp gives it.
    pub(super) tied: bool,
}

impl Mix {
    /// The format of a matrix whose rows have `columns` elements; `None`: it is dense.
    ///
    /// Source: llama.cpp, `llama_tensor_get_type` of `llama-quant.cpp`, for Q4_K_M, and what it takes for rows that are no
    /// whole blocks of 256.
    pub(super) fn format_of(&self, name: WeightName, columns: usize) -> Option<Format> {
        let (four, six) = (Format::Q4K, Format::Q6K);
        let wished = match (self.format, name) {
            (RandomFormat::Bf16, _) | (_, WeightName::Router(_)) => return None,
            (RandomFormat::Q4_0, _) => Format::Q4_0,
            (RandomFormat::Q4_1, _) => Format::Q4_1,
            (RandomFormat::Q8_0, _) => Format::Q8_0,
            (RandomFormat::Int4 | RandomFormat::Fp8, WeightName::Output) => return None,
            (RandomFormat::Fp8, WeightName::TokenEmbedding) => return None,
            (RandomFormat::Fp8, _) => Format::Fp8x128,
            (RandomFormat::Int4, _) => Format::Int4x128,
            (RandomFormat::Q6K, _) | (RandomFormat::Q4KM, WeightName::Output) => six,
            (RandomFormat::Q4KM, WeightName::V(layer) | WeightName::Down(layer) | WeightName::ExpertDown(layer, _))
                if self.has_more_bits(layer) =>
            {
                six
            }
            (RandomFormat::Q4K | RandomFormat::Q4KM, _) => four,
        };
        match wished {
            format if columns.is_multiple_of(format.block_len()) => Some(format),
            _ if !columns.is_multiple_of(32) => None,
            Format::Q6K => Some(Format::Q8_0),
            Format::Fp8x128 if columns.is_multiple_of(64) => Some(Format::Fp8x64),
            Format::Fp8x128 => Some(Format::Fp8x32),
            _ => Some(Format::Q5_0),
        }
    }

    /// As [`Self::format_of`], for a matrix that is turned into it when it is read. What is taken apart or made dense
    /// afterwards stays as it is: the up-projections of latents, and the row that a shared block is weighed by.
    pub(super) fn on_load(&self, name: WeightName, columns: usize) -> Option<Format> {
        use WeightName::{LatentKeys, LatentUp, LatentValues, SharedWeight};
        match name {
            LatentUp(_) | LatentKeys(_) | LatentValues(_) | SharedWeight(_) => None,
            WeightName::TokenEmbedding if self.tied => self.format_of(WeightName::Output, columns),
            name => self.format_of(name, columns),
        }
    }

    /// The first and the last eighth of the layers, and every third between.
    fn has_more_bits(&self, layer: u32) -> bool {
        let (layer, eighth) = (layer as usize, self.layers / 8);
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_layers_have_more_bits_for_v_and_down() {
        let mix = Mix { format: RandomFormat::Q4KM, layers: 32, tied: true };
        let six = |name: fn(u32) -> WeightName| {
            (0..32).filter(|layer| mix.format_of(name(*layer), 4096) == Some(Format::Q6K)).count()
        };
        assert_eq!((six(WeightName::V), six(WeightName::Down), six(WeightName::Gate)), (16, 16, 0));
        assert_eq!(mix.format_of(WeightName::Output, 4096), Some(Format::Q6K));
        assert_eq!(mix.format_of(WeightName::Output, 4096 + 32), Some(Format::Q8_0));
        assert_eq!(mix.format_of(WeightName::Q(0), 896), Some(Format::Q5_0));
        assert_eq!(mix.format_of(WeightName::Q(0), 100), None);
    }

    #[test]
    fn what_is_taken_apart_stays_dense_on_loading() {
        let mix = Mix { format: RandomFormat::Q8_0, layers: 4, tied: false };
        assert_eq!(mix.on_load(WeightName::Q(0), 64), Some(Format::Q8_0));
        for name in [WeightName::LatentUp(0), WeightName::Router(0), WeightName::SharedWeight(1)] {
            assert_eq!(mix.on_load(name, 64), None, "{name:?}");
        }
        let mix = Mix { format: RandomFormat::Fp8, layers: 4, tied: true };
        for name in [WeightName::TokenEmbedding, WeightName::Output, WeightName::Router(0)] {
            assert_eq!(mix.on_load(name, 128), None, "{name:?}");
        }
        for (columns, format) in [(256, Format::Fp8x128), (576, Format::Fp8x64), (96, Format::Fp8x32)] {
            assert_eq!(mix.on_load(WeightName::Q(0), columns), Some(format));
        }
        for (tied, format) in [(true, Format::Q6K), (false, Format::Q4K)] {
            let mix = Mix { format: RandomFormat::Q4KM, layers: 4, tied };
            assert_eq!(mix.on_load(WeightName::TokenEmbedding, 256), Some(format));
        }
    }
}
