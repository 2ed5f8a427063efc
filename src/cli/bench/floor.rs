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
    ///
    /// Where the rate of products is not known the prompts are left out, which is a floor too, and a lower one. `None`: then
    /// nothing is left, or the rate of copies is missing.
    pub fn floor(&self, cost: &TokenCost, ceilings: &Ceilings) -> Option<Floor> {
        let [prompt, answer, sequences] = [self.prompt, self.answer, self.sequences].map(f64::from);
        let flops = sequences * prompt * 2.0 * cost.parameters as f64;
        let prompts = ceilings.flops_per_second.map(|rate| flops / rate);
        let kv_bytes = sequences * (prompt + answer) * cost.kv_bytes as f64;
        let bytes = (answer - 1.0) * (cost.weight_bytes as f64 + kv_bytes);
        let answers = if self.answer > 1 { bytes / ceilings.copy_bytes_per_second? } else { 0.0 };
        if self.answer <= 1 && prompts.is_none() {
            return None;
        }
        let seconds = prompts.unwrap_or(0.0) + answers;
        Some(Floor { tokens_per_second: self.rated_tokens() as f64 / seconds, has_prompts: prompts.is_some() })
    }
}

/// The fastest that a workload could run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Whether the time of prompts is in it.
    pub has_prompts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Ceilings = Ceilings { copy_bytes_per_second: Some(2979e9), flops_per_second: Some(771e12) };

    fn rate(cost: &TokenCost, sequences: u32) -> f64 {
        let floor = Workload { prompt: 512, answer: 256, sequences }.floor(cost, &H100).expect("both rates are known");
        assert!(floor.has_prompts);
        floor.tokens_per_second
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
        let ceilings = Ceilings { copy_bytes_per_second: None, flops_per_second: Some(1e6) };
        assert_eq!(workload.rated_tokens(), 16 * 4096);
        assert_eq!(workload.floor(&cost, &ceilings), Some(Floor { tokens_per_second: 500.0, has_prompts: true }));
    }

    #[test]
    fn without_a_rate_of_products_answers_have_the_floor_of_copies() {
        let cost = TokenCost { parameters: 1 << 40, weight_bytes: 1000, kv_bytes: 10 };
        let copies = Ceilings { copy_bytes_per_second: Some(1e6), flops_per_second: None };
        // Two further tokens, each of 1,000 bytes and the 10 of 7 tokens.
        let answers = Workload { prompt: 4, answer: 3, sequences: 1 };
        let floor = Floor { tokens_per_second: 3.0 / (2.0 * 1070.0 / 1e6), has_prompts: false };
        assert_eq!(answers.floor(&cost, &copies), Some(floor));
        assert_eq!(Workload { answer: 1, ..answers }.floor(&cost, &copies), None);
        let products = Ceilings { copy_bytes_per_second: None, flops_per_second: Some(1e12) };
        assert_eq!(answers.floor(&cost, &products), None);
    }
}
