//! The fastest that some requests could run, from what a model asks for and what a device reaches.
//!
//! Pure arithmetic: measures nothing.

use crate::device::Ceilings;
use crate::llm::TokenCost;

/// Requests that run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of each prompt.
    pub prompt: u32,
    /// Tokens of each answer.
    pub answer: u32,
    /// Requests.
    pub sequences: u32,
}

impl Workload {
    /// The tokens that its rate counts: those of answers, or of prompts where each is answered by one token.
    pub fn rated_tokens(&self) -> u64 {
        let tokens = if self.answer > 1 { self.answer } else { self.prompt };
        u64::from(tokens) * u64::from(self.sequences)
    }

    /// Seconds that it takes at least: every prompt at the rate of matrix products, attention left out; then for each
    /// further token of the answers the weights once and the keys and values of all sequences, at the rate of copies.
    ///
    /// Two things are counted for more than the least there could be, so that these are the floors that peers are
    /// compared by: the output layer for every token of a prompt, and every step at the length at which its answer ends.
    /// At 256 sequences of an 8B model that is 10 % of the time.
    pub fn floor_seconds(&self, cost: &TokenCost, ceilings: &Ceilings) -> f64 {
        let [prompt, answer, sequences] = [self.prompt, self.answer, self.sequences].map(f64::from);
        let prompts = sequences * prompt * 2.0 * cost.parameters as f64 / ceilings.flops_per_second;
        let kv_bytes = sequences * (prompt + answer) * cost.kv_bytes as f64;
        let step = (cost.weight_bytes as f64 + kv_bytes) / ceilings.copy_bytes_per_second;
        prompts + (answer - 1.0) * step
    }

    /// Tokens per second at that floor.
    pub fn floor_rate(&self, cost: &TokenCost, ceilings: &Ceilings) -> f64 {
        self.rated_tokens() as f64 / self.floor_seconds(cost, ceilings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Ceilings = Ceilings { copy_bytes_per_second: 2979e9, flops_per_second: 771e12 };

    fn rate(cost: &TokenCost, sequences: u32) -> f64 {
        Workload { prompt: 512, answer: 256, sequences }.floor_rate(cost, &H100)
    }

    #[test]
    fn the_floors_are_those_that_peers_were_compared_by() {
        // All but the 128,256 x 4,096 embedding table; 32 layers of 8 heads of 128, K and V, 2 bytes.
        let parameters = 8_030_261_248 - 128_256 * 4096;
        let llama = TokenCost { parameters, weight_bytes: 2 * parameters, kv_bytes: 32 * 8 * 128 * 2 * 2 };
        for (sequences, expected) in [(1, 196.0), (8, 1425.0), (32, 4370.0), (128, 8850.0), (256, 10_650.0)] {
            let found = rate(&llama, sequences);
            assert!((found / expected - 1.0).abs() < 0.02, "{sequences}: {found}, not {expected}");
        }
        // Its output layer is the embedding table, which each token so reads. These figures were rounded to 2 digits.
        let parameters = 1_543_714_304;
        let qwen = TokenCost { parameters, weight_bytes: 2 * parameters, kv_bytes: 28 * 2 * 128 * 2 * 2 };
        for (sequences, expected) in [(1, 930.0), (32, 21_000.0), (256, 50_000.0)] {
            let found = rate(&qwen, sequences);
            assert!((found / expected - 1.0).abs() < 0.035, "{sequences}: {found}, not {expected}");
        }
    }

    #[test]
    fn prompts_alone_are_bound_by_products() {
        let cost = TokenCost { parameters: 1000, weight_bytes: 1 << 40, kv_bytes: 1 << 40 };
        let workload = Workload { prompt: 4096, answer: 1, sequences: 16 };
        let ceilings = Ceilings { copy_bytes_per_second: 1.0, flops_per_second: 1e6 };
        assert_eq!(workload.rated_tokens(), 16 * 4096);
        assert_eq!(workload.floor_rate(&cost, &ceilings), 500.0);
    }
}
