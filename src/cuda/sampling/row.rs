//! A row's parameters and results as the kernels in `kernels/sampling/` read and write them.

use std::mem::size_of;

/// The most alternatives that a row reports.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How one token is drawn.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    /// Where the row's sequence keeps its state; `u32::MAX`: nowhere, nothing is remembered.
    pub slot: u32,
    /// [`SampleRow::PENALTIES`], [`SampleRow::BANS`] and [`SampleRow::MASK`].
    pub flags: u32,
    /// Divides the logits; 0 chooses the likeliest token.
    pub temperature: f32,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum, in (0, 1].
    pub top_p: f32,
    /// Drops tokens less likely than this share of the likeliest one, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that were seen; 1 is off.
    pub repetition_penalty: f32,
    /// Taken once from the logit of each generated token.
    pub presence_penalty: f32,
    /// Taken from the logit of each generated token as often as it came.
    pub frequency_penalty: f32,
    /// Alternatives to report, at most [`MAX_TOP_LOGPROBS`]; [`SampleRow::NO_LOGPROBS`]: no log-probabilities at all.
    pub top_logprobs: u32,
    /// Lower half of the seed.
    pub seed_low: u32,
    /// Upper half of the seed.
    pub seed_high: u32,
    /// Stream of the seed.
    pub choice: u32,
    /// Tokens drawn before this one.
    pub drawn: u32,
    /// Entries of the slot's bias.
    pub bias_count: u32,
    /// Entries of the slot's banned tokens.
    pub ban_count: u32,
}

impl SampleRow {
    /// Flag: penalties apply, and what is drawn is counted.
    pub const PENALTIES: u32 = 1;
    /// Flag: the slot's banned tokens may not come yet.
    pub const BANS: u32 = 2;
    /// Flag: only tokens of the slot's mask may come.
    pub const MASK: u32 = 4;
    /// No log-probabilities.
    pub const NO_LOGPROBS: u32 = u32::MAX;

    /// The likeliest token each time, with nothing remembered: what fills rows that nobody asked for.
    pub const IDLE: Self = Self {
        slot: u32::MAX,
        flags: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_logprobs: Self::NO_LOGPROBS,
        seed_low: 0,
        seed_high: 0,
        choice: 0,
        drawn: 0,
        bias_count: 0,
        ban_count: 0,
    };

    /// The rows as they go to the GPU.
    pub fn as_bytes(rows: &[Self]) -> &[u8] {
        // SAFETY: sixteen fields of four bytes each leave no padding; any byte may be read.
        unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
    }

    /// Whether the kernel `greedy` answers the row.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }
}

/// What came of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleOutput {
    /// The token.
    pub token: u32,
    /// Its log-probability, where the row asked.
    pub logprob: f32,
    /// Its place in the distribution from 1 on, where the row asked.
    pub rank: u32,
    /// 0; 1 where no logit was finite, and then there is no token.
    pub status: u32,
    /// The likeliest tokens, best first, as many as the row asked for.
    pub top_ids: [u32; MAX_TOP_LOGPROBS],
    /// Their log-probabilities.
    pub top_logprobs: [f32; MAX_TOP_LOGPROBS],
}

impl SampleOutput {
    /// The results in `bytes` as they came from the GPU; a rest that is no whole result is left out.
    pub fn read(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        // SAFETY: 44 fields of four bytes each, in which any bits are a value; the chunk has as many bytes.
        bytes.chunks_exact(size_of::<Self>()).map(|one| unsafe { one.as_ptr().cast::<Self>().read_unaligned() })
    }
}

/// Which kernels a step's rows need besides `greedy`, which every row needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SamplingNeeds {
    /// Some row has penalties, bias, banned tokens or a mask.
    pub edits: bool,
    /// Some row is not greedy.
    pub draws: bool,
    /// Some row reports log-probabilities.
    pub logprobs: bool,
}

impl SamplingNeeds {
    /// What `rows` need.
    pub fn of(rows: &[SampleRow]) -> Self {
        Self {
            edits: rows.iter().any(|row| row.flags != 0 || row.bias_count > 0),
            draws: rows.iter().any(|row| !row.is_greedy()),
            logprobs: rows.iter().any(|row| row.top_logprobs != SampleRow::NO_LOGPROBS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_results_are_as_large_as_the_kernels_think() {
        assert_eq!((size_of::<SampleRow>(), size_of::<SampleOutput>()), (64, 176));
        let row = SampleRow { seed_high: 0x0403_0201, ..SampleRow::IDLE };
        assert_eq!(SampleRow::as_bytes(&[row, row])[64 + 44..64 + 48], 0x0403_0201_u32.to_ne_bytes());
    }

    #[test]
    fn needs_are_those_of_any_row() {
        assert_eq!(SamplingNeeds::of(&[SampleRow::IDLE]), SamplingNeeds::default());
        let warm = SampleRow { temperature: 1.0, ..SampleRow::IDLE };
        let biased = SampleRow { bias_count: 1, top_logprobs: 0, ..SampleRow::IDLE };
        let all = SamplingNeeds { edits: true, draws: true, logprobs: true };
        assert_eq!(SamplingNeeds::of(&[warm, SampleRow::IDLE, biased]), all);
    }

    #[test]
    fn results_are_read_field_by_field() {
        let words: Vec<u32> = (0..44).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let found = SampleOutput::read(&bytes).next().expect("one result");
        assert_eq!((found.token, found.rank, found.status), (0, 2, 3));
        assert_eq!((found.top_ids[19], found.top_logprobs[0].to_bits()), (23, 24));
    }
}
