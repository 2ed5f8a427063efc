//! Recorded steps: a graph for each of some sizes; a smaller step runs padded.
//!
//! Two kinds. Where every row has one token, a graph holds the forward pass and the logits. Where prompts are computed
//! too, it holds the forward pass of so many tokens. Larger steps are queued kernel by kernel: they take the GPU longer
//! than the host.

use crate::cuda::{CudaError, Graph};

use super::buffers::Padding;
use crate::runner::plan::SPARE_TILES;

/// Tiles that a recorded step of `tokens` tokens has room for: short ones, and parts of those that are divided.
pub(super) fn mixed_tiles(tokens: usize) -> usize {
    SPARE_TILES + tokens.div_ceil(64)
}

/// What a step is filled up to that runs by the graph of `tokens` tokens.
pub(super) fn mixed_padding(tokens: usize) -> Padding {
    Padding { tokens, tiles: mixed_tiles(tokens) }
}

/// A step's size and its graph.
pub(super) struct Recorded {
    pub(super) padding: Padding,
    pub(super) graph: Graph,
}

/// Graphs of both kinds, smallest first.
#[derive(Default)]
pub(super) struct StepGraphs {
    decodes: Vec<Recorded>,
    mixed: Vec<Recorded>,
}

impl StepGraphs {
    /// Records a graph for each padding, ascending, by `decode` and `mixed`.
    ///
    /// # Errors
    /// What they say.
    pub(super) fn record<E: From<CudaError>>(
        decodes: &[Padding],
        mixed: &[Padding],
        decode: impl Fn(Padding) -> Result<Graph, E>,
        mix: impl Fn(Padding) -> Result<Graph, E>,
    ) -> Result<Self, E> {
        let decodes = decodes.iter().map(|padding| Ok(Recorded { padding: *padding, graph: decode(*padding)? }));
        let mixed = mixed.iter().map(|padding| Ok(Recorded { padding: *padding, graph: mix(*padding)? }));
        Ok(Self { decodes: decodes.collect::<Result<_, E>>()?, mixed: mixed.collect::<Result<_, E>>()? })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.decodes.len() + self.mixed.len()
    }

    /// The smallest graph for `rows` rows of one token each.
    pub(super) fn for_decodes(&self, rows: usize) -> Option<&Recorded> {
        self.decodes.get(self.decodes.partition_point(|recorded| recorded.padding.tokens < rows))
    }

    /// The smallest graph for a step of so many tokens and tiles.
    pub(super) fn for_mixed(&self, tokens: usize, tiles: usize) -> Option<&Recorded> {
        let smallest = self.mixed.get(self.mixed.partition_point(|recorded| recorded.padding.tokens < tokens));
        smallest.filter(|recorded| recorded.padding.tiles >= tiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StepSizes;
    use crate::runner::plan::{StepLimits, mixed_sizes};

    #[test]
    fn every_recorded_step_fits_the_buffers_however_few_sequences_there_may_be() {
        for (max_sequences, max_step_tokens) in [(1, 16), (4, 64), (4, 512), (8, 2048), (64, 2048), (256, 8192)] {
            let limits = StepLimits::new(StepSizes { max_sequences, max_step_tokens, ..StepSizes::GPU }, 4096);
            for tokens in mixed_sizes(max_step_tokens as usize) {
                let tiles = mixed_padding(tokens).tiles;
                assert!(
                    tiles <= limits.tiles,
                    "{max_sequences} sequences: {tiles} tiles of {tokens} tokens, {limits:?}"
                );
            }
        }
    }
}
