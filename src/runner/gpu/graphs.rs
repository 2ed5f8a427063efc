//! Recorded steps: a graph for each of some sizes; a smaller step runs padded.
//!
//! Two kinds. Where every row has one token, a graph holds the forward pass and the logits. Where prompts are computed
//! too, it holds the forward pass of so many tokens. Larger steps are queued kernel by kernel: they take the GPU longer
//! than the host.

use crate::cuda::{CudaError, Graph};

use super::buffers::Padding;

/// Most tokens of a recorded step that computes prompts: 256 that decode, with eight prompt tokens for each.
const MOST_MIXED_TOKENS: usize = 2304;

/// Tiles of prompts in a recorded step beyond those that its tokens fill: rows whose last tile is short.
const SPARE_TILES: usize = 16;

/// Batch sizes that are recorded, up to `most`: each of the small ones, then in steps that cost at most a fourth more.
pub(super) fn batch_sizes(most: usize) -> Vec<usize> {
    let small = (1..=8).chain((16..=128).step_by(8));
    let mut sizes: Vec<usize> = small.chain((144..).step_by(16).take_while(|size| *size < most)).collect();
    sizes.retain(|size| *size < most);
    sizes.push(most);
    sizes
}

/// Numbers of tokens of steps with prompts that are recorded, up to `most`.
pub(super) fn mixed_sizes(most: usize) -> Vec<usize> {
    let small = [16, 32, 48].into_iter().chain((64..256).step_by(32));
    let sizes = small.chain((256..1280).step_by(64)).chain((1280..=MOST_MIXED_TOKENS).step_by(128));
    sizes.filter(|size| *size <= most).collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_ascend_to_the_largest_batch() {
        for most in [1, 5, 8, 9, 64, 100, 129, 256, 1000] {
            let sizes = batch_sizes(most);
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            assert_eq!((sizes[0], *sizes.last().expect("some")), (1, most));
        }
        assert_eq!(batch_sizes(12), [1, 2, 3, 4, 5, 6, 7, 8, 12]);
        assert_eq!(mixed_sizes(100), [16, 32, 48, 64, 96]);
        assert!(mixed_sizes(1 << 20).is_sorted_by(|a, b| a < b));
    }
}
