//! A model's KV cache gives memory back while nobody uses the model, for others, and takes it again.
//!
//! Knows no other models: who needs memory, and when there is some again, is the server's affair.

use super::handle::Llm;
use super::info::ModelInfo;
use crate::device::Hardware;
use crate::engine::{BLOCK_TOKENS, MetricsSnapshot, blocks_for};

impl Llm {
    /// [`Self::info`] as it is now: without what the KV cache has given back.
    pub fn present(&self) -> ModelInfo {
        let (info, MetricsSnapshot { blocks_total, kv_given_back_bytes, .. }) = (self.info().clone(), self.counted());
        if kv_given_back_bytes == 0 {
            return info;
        }
        let less = |bytes: u64| bytes.saturating_sub(kv_given_back_bytes);
        let kv_tokens = blocks_total * u64::from(BLOCK_TOKENS);
        ModelInfo {
            kv_bytes: less(info.kv_bytes),
            planned_bytes: less(info.planned_bytes),
            used_bytes: info.used_bytes.map(less),
            kv_tokens,
            full_contexts: (kv_tokens / u64::from(info.context_length)) as u32,
            ..info
        }
    }

    /// Whether the KV cache holds more than one whole context.
    pub fn kv_can_shrink(&self) -> bool {
        self.counted().blocks_total > blocks_for(self.info().context_length, BLOCK_TOKENS).into()
    }

    /// Bytes that the KV cache has given back.
    pub fn kv_given_back_bytes(&self) -> u64 {
        self.counted().kv_given_back_bytes
    }

    /// Gives back what the KV cache holds beyond one whole context; how many bytes. `None` where requests live.
    pub async fn shrink_kv(&self) -> Option<u64> {
        let before = self.kv_given_back_bytes();
        self.engine().resize_kv(0, 0).await?;
        Some(self.kv_given_back_bytes().saturating_sub(before))
    }

    /// Takes again what the KV cache has given back, as far as there is memory besides `reserved_bytes` that are promised to
    /// others; how many bytes. `None` where requests live.
    pub async fn grow_kv(&self, reserved_bytes: u64) -> Option<u64> {
        let before = self.kv_given_back_bytes();
        // As when it was loaded: where the system does not say what is free, nothing is held back.
        let main_bytes = Hardware::detect().memory.map_or(u64::MAX / 2, |memory| memory.available_bytes);
        self.engine().resize_kv(u32::MAX, main_bytes.saturating_sub(reserved_bytes)).await?;
        Some(before.saturating_sub(self.kv_given_back_bytes()))
    }

    fn counted(&self) -> MetricsSnapshot {
        self.engine().metrics().snapshot()
    }
}
