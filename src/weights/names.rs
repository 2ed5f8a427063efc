//! One table of tensor names: what the decoder calls a weight, what GGUF calls it, what Hugging Face calls it.
//!
//! Knows no shapes and no files.
//!
//! Source: the GGUF specification, "Standardized tensor names"; names in the checkpoints that
//! transformers' Llama, Qwen and DeepSeek models read.

/// One weight of a decoder; the number is the layer, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightName {
    /// Embedding of tokens: [vocab, hidden].
    TokenEmbedding,
    /// Norm before the output layer: [hidden].
    OutputNorm,
    /// Output layer: [vocab, hidden]; absent where it is tied to the embedding.
    Output,
    /// Divisors of the rotary frequencies: [rotary_dim / 2]; GGUF only.
    RopeFactors,
    /// Norm before attention: [hidden].
    AttentionNorm(u32),
    /// Query projection: [q_heads * head_dim, hidden].
    Q(u32),
    /// Key projection: [kv_heads * head_dim, hidden].
    K(u32),
    /// Value projection: [kv_heads * head_dim, hidden].
    V(u32),
    /// Projection after attention: [hidden, q_heads * head_dim].
    O(u32),
    /// Bias of [`Self::Q`]: [q_heads * head_dim].
    QBias(u32),
    /// Bias of [`Self::K`]: [kv_heads * head_dim].
    KBias(u32),
    /// Bias of [`Self::V`]: [kv_heads * head_dim].
    VBias(u32),
    /// Bias of [`Self::O`]: [hidden].
    OBias(u32),
    /// Norm of each query head: [head_dim].
    QNorm(u32),
    /// Norm of each key head: [head_dim].
    KNorm(u32),
    /// Norm before the feed-forward block: [hidden].
    FfnNorm(u32),
    /// Gate projection: [ffn, hidden].
    Gate(u32),
    /// Up projection: [ffn, hidden].
    Up(u32),
    /// Down projection: [hidden, ffn].
    Down(u32),
    /// Bias of [`Self::Gate`]: [ffn].
    GateBias(u32),
    /// Bias of [`Self::Up`]: [ffn].
    UpBias(u32),
    /// Bias of [`Self::Down`]: [hidden].
    DownBias(u32),
    /// Router of a mixture of experts: [experts, hidden].
    Router(u32),
    /// Correction of the router's choice: [experts].
    RouterCorrection(u32),
    /// Gate projection of an expert, the second number: [ffn, hidden]. GGUF stacks those of all experts.
    ExpertGate(u32, u32),
    /// Up projection of an expert: [ffn, hidden].
    ExpertUp(u32, u32),
    /// Down projection of an expert: [hidden, ffn].
    ExpertDown(u32, u32),
    /// Gate projection of the block that all tokens go through: [ffn, hidden].
    SharedGate(u32),
    /// Its up projection: [ffn, hidden].
    SharedUp(u32),
    /// Its down projection: [hidden, ffn].
    SharedDown(u32),
    /// What its output is weighed by: [1, hidden].
    SharedWeight(u32),
    /// Projection to the latent of q: [query_rank, hidden].
    QueryDown(u32),
    /// Norm of the latent of q: [query_rank].
    QueryNorm(u32),
    /// From the latent of q to its heads: [q_heads * (nope + rope), query_rank].
    QueryUp(u32),
    /// Projection to the latent of keys and values, and to the rotated part of keys: [rank + rope, hidden].
    LatentDown(u32),
    /// Norm of the latent: [rank].
    LatentNorm(u32),
    /// From the latent to the heads of keys and values: [q_heads * (nope + value), rank].
    LatentUp(u32),
    /// The part of keys of [`Self::LatentUp`], transposed: [q_heads, rank, nope]; newer GGUF files only.
    LatentKeys(u32),
    /// The part of values of [`Self::LatentUp`]: [q_heads, value, rank]; newer GGUF files only.
    LatentValues(u32),
}

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `blk.0.attn_q.weight`.
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
}

/// The layer that a tensor of this name belongs to, whether or not we know what it is.
pub fn layer_of(name: &str, naming: Naming) -> Option<usize> {
    let prefix = match naming {
        Naming::Gguf => "blk.",
        Naming::HuggingFace => "model.layers.",
    };
    name.strip_prefix(prefix)?.split_once('.')?.0.parse().ok()
}

impl WeightName {
    /// The weights that are no layer's.
    pub const OUTSIDE_LAYERS: [Self; 4] = [Self::TokenEmbedding, Self::OutputNorm, Self::Output, Self::RopeFactors];

    /// All that a layer may have but its experts.
    pub fn of_layer(layer: u32) -> impl Iterator<Item = Self> {
        const KINDS: [fn(u32) -> WeightName; 32] = [
            WeightName::AttentionNorm,
            WeightName::Q,
            WeightName::K,
            WeightName::V,
            WeightName::O,
            WeightName::QBias,
            WeightName::KBias,
            WeightName::VBias,
            WeightName::OBias,
            WeightName::QNorm,
            WeightName::KNorm,
            WeightName::FfnNorm,
            WeightName::Gate,
            WeightName::Up,
            WeightName::Down,
            WeightName::GateBias,
            WeightName::UpBias,
            WeightName::DownBias,
            WeightName::Router,
            WeightName::RouterCorrection,
            WeightName::SharedGate,
            WeightName::SharedUp,
            WeightName::SharedDown,
            WeightName::SharedWeight,
            WeightName::QueryDown,
            WeightName::QueryNorm,
            WeightName::QueryUp,
            WeightName::LatentDown,
            WeightName::LatentNorm,
            WeightName::LatentUp,
            WeightName::LatentKeys,
            WeightName::LatentValues,
        ];
        KINDS.into_iter().map(move |kind| kind(layer))
    }

    /// The name that a file of this naming uses.
    pub fn in_file(self, naming: Naming) -> String {
        let (layer, gguf, hugging_face) = self.row();
        if let (Naming::HuggingFace, Some(layer), Some(expert)) = (naming, layer, self.expert()) {
            return format!("model.layers.{layer}.mlp.experts.{expert}.{hugging_face}");
        }
        match (naming, layer) {
            (Naming::Gguf, None) => gguf.to_owned(),
            (Naming::Gguf, Some(layer)) => format!("blk.{layer}.{gguf}"),
            (Naming::HuggingFace, None) => hugging_face.to_owned(),
            (Naming::HuggingFace, Some(layer)) => format!("model.layers.{layer}.{hugging_face}"),
        }
    }

    /// Another name under which Hugging Face's files may have it.
    pub fn alias(self) -> Option<String> {
        match self {
            Self::SharedGate(l) => Some(format!("model.layers.{l}.mlp.shared_expert.gate_proj.weight")),
            Self::SharedUp(l) => Some(format!("model.layers.{l}.mlp.shared_expert.up_proj.weight")),
            Self::SharedDown(l) => Some(format!("model.layers.{l}.mlp.shared_expert.down_proj.weight")),
            _ => None,
        }
    }

    /// Which layer's it is.
    pub fn layer(self) -> Option<u32> {
        self.row().0
    }

    /// Which expert's it is.
    pub fn expert(self) -> Option<u32> {
        match self {
            Self::ExpertGate(_, expert) | Self::ExpertUp(_, expert) | Self::ExpertDown(_, expert) => Some(expert),
            _ => None,
        }
    }

    /// (layer, GGUF name, Hugging Face name), both names without the layer's prefix.
    fn row(self) -> (Option<u32>, &'static str, &'static str) {
        match self {
            Self::TokenEmbedding => (None, "token_embd.weight", "model.embed_tokens.weight"),
            Self::OutputNorm => (None, "output_norm.weight", "model.norm.weight"),
            Self::Output => (None, "output.weight", "lm_head.weight"),
            Self::RopeFactors => (None, "rope_freqs.weight", "rope_freqs.weight"),
            Self::AttentionNorm(l) => (Some(l), "attn_norm.weight", "input_layernorm.weight"),
            Self::Q(l) => (Some(l), "attn_q.weight", "self_attn.q_proj.weight"),
            Self::K(l) => (Some(l), "attn_k.weight", "self_attn.k_proj.weight"),
            Self::V(l) => (Some(l), "attn_v.weight", "self_attn.v_proj.weight"),
            Self::O(l) => (Some(l), "attn_output.weight", "self_attn.o_proj.weight"),
            Self::QBias(l) => (Some(l), "attn_q.bias", "self_attn.q_proj.bias"),
            Self::KBias(l) => (Some(l), "attn_k.bias", "self_attn.k_proj.bias"),
            Self::VBias(l) => (Some(l), "attn_v.bias", "self_attn.v_proj.bias"),
            Self::OBias(l) => (Some(l), "attn_output.bias", "self_attn.o_proj.bias"),
            Self::QNorm(l) => (Some(l), "attn_q_norm.weight", "self_attn.q_norm.weight"),
            Self::KNorm(l) => (Some(l), "attn_k_norm.weight", "self_attn.k_norm.weight"),
            Self::FfnNorm(l) => (Some(l), "ffn_norm.weight", "post_attention_layernorm.weight"),
            Self::Gate(l) => (Some(l), "ffn_gate.weight", "mlp.gate_proj.weight"),
            Self::Up(l) => (Some(l), "ffn_up.weight", "mlp.up_proj.weight"),
            Self::Down(l) => (Some(l), "ffn_down.weight", "mlp.down_proj.weight"),
            Self::GateBias(l) => (Some(l), "ffn_gate.bias", "mlp.gate_proj.bias"),
            Self::UpBias(l) => (Some(l), "ffn_up.bias", "mlp.up_proj.bias"),
            Self::DownBias(l) => (Some(l), "ffn_down.bias", "mlp.down_proj.bias"),
            Self::Router(l) => (Some(l), "ffn_gate_inp.weight", "mlp.gate.weight"),
            Self::RouterCorrection(l) => (Some(l), "exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
            Self::ExpertGate(l, _) => (Some(l), "ffn_gate_exps.weight", "gate_proj.weight"),
            Self::ExpertUp(l, _) => (Some(l), "ffn_up_exps.weight", "up_proj.weight"),
            Self::ExpertDown(l, _) => (Some(l), "ffn_down_exps.weight", "down_proj.weight"),
            Self::SharedGate(l) => (Some(l), "ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"),
            Self::SharedUp(l) => (Some(l), "ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"),
            Self::SharedDown(l) => (Some(l), "ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"),
            Self::SharedWeight(l) => (Some(l), "ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"),
            Self::QueryDown(l) => (Some(l), "attn_q_a.weight", "self_attn.q_a_proj.weight"),
            Self::QueryNorm(l) => (Some(l), "attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"),
            Self::QueryUp(l) => (Some(l), "attn_q_b.weight", "self_attn.q_b_proj.weight"),
            Self::LatentDown(l) => (Some(l), "attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"),
            Self::LatentNorm(l) => (Some(l), "attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"),
            Self::LatentUp(l) => (Some(l), "attn_kv_b.weight", "self_attn.kv_b_proj.weight"),
            Self::LatentKeys(l) => (Some(l), "attn_k_b.weight", "self_attn.k_b_proj.weight"),
            Self::LatentValues(l) => (Some(l), "attn_v_b.weight", "self_attn.v_b_proj.weight"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_each_of_its_weights_once() {
        let names: Vec<String> = WeightName::of_layer(7).map(|name| name.in_file(Naming::Gguf)).collect();
        let distinct: std::collections::HashSet<&String> = names.iter().collect();
        assert_eq!((names.len(), distinct.len()), (32, 32));
        assert!(names.iter().all(|name| layer_of(name, Naming::Gguf) == Some(7)), "{names:?}");
        let layer = |name: &str| layer_of(name, Naming::HuggingFace);
        assert_eq!(layer("model.layers.61.shared_head.head.weight"), Some(61));
        assert_eq!([layer("model.norm.weight"), layer("blk.1.attn_q.weight"), layer("model.layers.x.y")], [None; 3]);
    }

    #[test]
    fn both_namings_of_one_weight() {
        let cases = [
            (WeightName::TokenEmbedding, "token_embd.weight", "model.embed_tokens.weight"),
            (WeightName::Output, "output.weight", "lm_head.weight"),
            (WeightName::Q(0), "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
            (WeightName::KNorm(31), "blk.31.attn_k_norm.weight", "model.layers.31.self_attn.k_norm.weight"),
            (WeightName::FfnNorm(7), "blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
            (WeightName::VBias(2), "blk.2.attn_v.bias", "model.layers.2.self_attn.v_proj.bias"),
            (WeightName::ExpertUp(3, 9), "blk.3.ffn_up_exps.weight", "model.layers.3.mlp.experts.9.up_proj.weight"),
            (
                WeightName::RouterCorrection(1),
                "blk.1.exp_probs_b.bias",
                "model.layers.1.mlp.gate.e_score_correction_bias",
            ),
            (
                WeightName::SharedDown(1),
                "blk.1.ffn_down_shexp.weight",
                "model.layers.1.mlp.shared_experts.down_proj.weight",
            ),
            (
                WeightName::LatentDown(0),
                "blk.0.attn_kv_a_mqa.weight",
                "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
            ),
        ];
        for (name, gguf, hugging_face) in cases {
            assert_eq!(name.in_file(Naming::Gguf), gguf);
            assert_eq!(name.in_file(Naming::HuggingFace), hugging_face);
        }
    }
}
