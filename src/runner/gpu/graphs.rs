//! Recorded steps: one graph for each of some batch sizes; a smaller batch runs padded.
//!
//! A graph holds the forward pass and the logits of a step in which every row has one token. Padding tokens write no keys
//! and values, and rows without work items are skipped.

use crate::cuda::{CudaError, Graph};

/// Batch sizes that are recorded, up to `most`: each of the small ones, then in steps that cost at most a fourth more.
pub(super) fn batch_sizes(most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        (1..=8).chain((16..=128).step_by(8)).chain((144..).step_by(16).take_while(|s| *s < most)).collect();
    sizes.retain(|size| *size < most);
    sizes.push(most);
    sizes
}

/// Graphs by batch size, smallest first.
#[derive(Default)]
pub(super) struct DecodeGraphs {
    graphs: Vec<(usize, Graph)>,
}

impl DecodeGraphs {
    /// Records a graph for each of `sizes`, ascending, by `record`.
    ///
    /// # Errors
    /// What `record` says.
    pub(super) fn record<E: From<CudaError>>(
        sizes: &[usize],
        mut record: impl FnMut(usize) -> Result<Graph, E>,
    ) -> Result<Self, E> {
        let graphs = sizes.iter().map(|size| Ok((*size, record(*size)?))).collect::<Result<_, E>>()?;
        Ok(Self { graphs })
    }

    /// The smallest graph that holds `tokens` rows.
    pub(super) fn for_tokens(&self, tokens: usize) -> Option<&Graph> {
        let at = self.graphs.partition_point(|(size, _)| *size < tokens);
        self.graphs.get(at).map(|(_, graph)| graph)
    }
}

#[cfg(test)]
mod tests {
    use super::batch_sizes;

    #[test]
    fn sizes_ascend_to_the_largest_batch() {
        for most in [1, 5, 8, 9, 64, 100, 129, 256, 1000] {
            let sizes = batch_sizes(most);
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            assert_eq!((sizes[0], *sizes.last().expect("some")), (1, most));
        }
        assert_eq!(batch_sizes(12), [1, 2, 3, 4, 5, 6, 7, 8, 12]);
    }
}
