//! Recorded steps: a graph for each of some sizes; a smaller step runs padded.
//!
//! Two kinds. Where every row has one token, a graph holds the forward pass and the logits. Where prompts are computed
//! too, it holds the forward pass of so many tokens. Larger steps are queued kernel by kernel: they take the GPU longer
//! than the host.

use crate::cuda::{CudaError, Graph};

use super::buffers::Padding;

/// Tiles of prompts in a recorded step beyond those that its tokens fill: rows whose last tile is short.
const SPARE_TILES: usize = 16;

/// Tiles that a recorded step of `tokens` tokens has room for.
pub(super) fn mixed_padding(tokens: usize) -> Padding {
    Padding { tokens, tiles: SPARE_TILES + tokens.div_ceil(64) }
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
