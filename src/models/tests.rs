//! Configurations and whole model folders: both forms of config.json, GGUF metadata, and what is refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fields::Fields;
use super::spec::LatentSpec;
use super::*;
use crate::ops::{LatentShape, RouteGroups, Scoring};
use crate::weights::{GgufBuilder, LoadError};

const FILE: &str = "folder/config.json";

fn spec(config: &Value) -> Result<DecoderSpec, LoadError> {
    registry::from_config(Fields::root(Path::new(FILE), config)?)
}

/// A small config.json of this architecture with `changes` over it; null stays written.
fn config(architecture: &str, changes: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96,
        "max_position_embeddings": 256, "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "vocab_size": 320,
    });
    for (key, value) in changes.as_object().expect("changes are an object") {
        config[key] = value.clone();
    }
    config
}

#[test]
fn llama_in_both_forms() {
    let classic =
        json!({"rope_theta": 500_000.0, "torch_dtype": "bfloat16", "rope_scaling": null, "tie_word_embeddings": true});
    let modern = json!({"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}, "dtype": "bfloat16",
        "head_dim": 16, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false});
    let expected = DecoderSpec {
        architecture: "LlamaForCausalLM".to_owned(),
        hidden: 64,
        layers: 3,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        vocab: 320,
        max_context: 256,
        norm_eps: 1e-5,
        rope: RopeSpec { theta: 500_000.0, rotary_dim: 16, layout: RopeLayout::Halves, scaling: RopeScaling::None },
        qk_norm: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        tied_embeddings: true,
        sliding_window: vec![None; 3],
        attention_scale: 0.25,
        experts: None,
        latent: None,
    };
    for form in [classic, modern] {
        assert_eq!(spec(&config("LlamaForCausalLM", form)).expect("it is right"), expected);
    }
}

#[test]
fn families_differ_in_flags() {
    let flags = |config: Value| {
        let spec = spec(&config).expect("it is right");
        (spec.qk_norm, spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.head_dim)
    };
    assert_eq!(flags(config("LlamaForCausalLM", json!({"attention_bias": true}))), (false, true, true, false, 16));
    assert_eq!(
        flags(config("LlamaForCausalLM", json!({"mlp_bias": true, "head_dim": 32}))),
        (false, false, false, true, 32)
    );
    assert_eq!(flags(config("Qwen2ForCausalLM", json!({}))), (false, true, false, false, 16));
    assert_eq!(flags(config("Qwen3ForCausalLM", json!({}))), (true, false, false, false, 128));
    assert_eq!(
        flags(config("Qwen3ForCausalLM", json!({"head_dim": 32, "attention_bias": true}))),
        (true, true, true, false, 32)
    );
    assert_eq!(flags(config("MistralForCausalLM", json!({}))), (false, false, false, false, 16));
}

#[test]
fn windows_are_where_the_file_says() {
    let cases = [
        ("Qwen2ForCausalLM", json!({"sliding_window": 16, "max_window_layers": 1}), [None; 3]),
        (
            "Qwen2ForCausalLM",
            json!({"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": false}),
            [None; 3],
        ),
        (
            "Qwen2ForCausalLM",
            json!({"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": true}),
            [None, Some(16), Some(16)],
        ),
        (
            "Qwen3ForCausalLM",
            json!({"sliding_window": 8, "use_sliding_window": true,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
            [Some(8), None, Some(8)],
        ),
        (
            "Qwen2MoeForCausalLM",
            json!({"sliding_window": 16, "max_window_layers": 3, "use_sliding_window": true}),
            [Some(16), None, Some(16)],
        ),
        (
            "Qwen2MoeForCausalLM",
            json!({"sliding_window": 16, "max_window_layers": 2, "use_sliding_window": true}),
            [Some(16), None, None],
        ),
        ("Qwen2MoeForCausalLM", json!({"sliding_window": 16, "max_window_layers": 2}), [None; 3]),
        ("MistralForCausalLM", json!({"sliding_window": 16}), [Some(16); 3]),
        ("MistralForCausalLM", json!({"sliding_window": null}), [None; 3]),
        ("MistralForCausalLM", json!({}), [Some(4096); 3]),
        ("LlamaForCausalLM", json!({"sliding_window": 16}), [None; 3]),
    ];
    for (architecture, changes, expected) in cases {
        let mut config = config(architecture, changes.clone());
        if architecture.contains("Moe") {
            let sizes = [("num_experts", 4), ("num_experts_per_tok", 2), ("moe_intermediate_size", 32)];
            sizes.into_iter().for_each(|(key, size)| config[key] = size.into());
            config["shared_expert_intermediate_size"] = 32.into();
        }
        let spec = spec(&config).expect("it is right");
        assert_eq!(spec.sliding_window, expected, "{architecture} {changes}");
    }
}

#[test]
fn wrong_configurations_are_refused_by_key() {
    let llama = |changes| config("LlamaForCausalLM", changes);
    let cases = [
        (
            config("GPT2LMHeadModel", json!({})),
            "architecture GPT2LMHeadModel is not supported: expected one of LlamaForCausalLM, Mistral",
        ),
        (config("DeepseekV32ForCausalLM", json!({})), "architecture DeepseekV32ForCausalLM is not supported yet"),
        (config("Qwen3NextForCausalLM", json!({})), "architecture Qwen3NextForCausalLM is not supported yet"),
        (config("Qwen3_5MoeForCausalLM", json!({})), "is not supported yet"),
        (config("Qwen3_5ForConditionalGeneration", json!({})), "Qwen3_5ForConditionalGeneration is not supported yet"),
        (config("Llama4ForConditionalGeneration", json!({})), "Llama4ForConditionalGeneration is not supported yet"),
        (llama(json!({"architectures": []})), "architectures: expected a list of one architecture"),
        (llama(json!({"architectures": null})), "architectures is missing"),
        (llama(json!({"hidden_size": null})), "hidden_size is missing"),
        (
            llama(json!({"hidden_size": 1u64 << 40})),
            "hidden_size: expected a whole number from 1 to 65536, found 1099511627776",
        ),
        (llama(json!({"hidden_size": -64})), "hidden_size: expected a whole number"),
        (llama(json!({"hidden_size": 64.5})), "hidden_size: expected a whole number"),
        (
            llama(json!({"num_hidden_layers": 4_000_000_000u64})),
            "num_hidden_layers: expected a whole number from 1 to 1024",
        ),
        (llama(json!({"num_attention_heads": 5})), "num_attention_heads: expected a divisor of hidden_size"),
        (llama(json!({"num_attention_heads": 0})), "num_attention_heads: expected a whole number from 1"),
        (llama(json!({"num_key_value_heads": 3})), "number of key heads: expected a divisor of the 4"),
        (llama(json!({"head_dim": 15})), "head size: expected an even number, found 15"),
        (llama(json!({"vocab_size": "many"})), "vocab_size: expected a whole number"),
        (llama(json!({"max_position_embeddings": 1e30})), "max_position_embeddings: expected a whole number"),
        (llama(json!({"rms_norm_eps": -1.0})), "rms_norm_eps: expected a number from"),
        (llama(json!({"hidden_act": "gelu"})), "hidden_act: expected silu"),
        (llama(json!({"tie_word_embeddings": "yes"})), "tie_word_embeddings: expected true or false"),
        (
            config("Qwen2ForCausalLM", json!({"use_sliding_window": true, "layer_types": ["full_attention"]})),
            "layer_types: expected 3 entries",
        ),
        (json!("text"), "the root: expected an object"),
    ];
    for (config, expected) in cases {
        let error = spec(&config).expect_err("it is wrong").to_string();
        assert!(error.starts_with(FILE) && error.contains(expected), "{error} should say: {expected}");
    }
}

fn gguf(arch: &str) -> GgufBuilder {
    let key = |name: &str| format!("{arch}.{name}");
    GgufBuilder::new(3)
        .text("general.architecture", arch)
        .u32(&key("embedding_length"), 64)
        .u32(&key("block_count"), 2)
        .u32(&key("attention.head_count"), 4)
        .u32(&key("attention.head_count_kv"), 2)
        .u32(&key("feed_forward_length"), 96)
        .u32(&key("context_length"), 256)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &["<s>", "<|im_end|>", "a", "</s>"])
        .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 3])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 3)
}

/// Six experts of 32, of which a token goes to two.
fn experts(builder: GgufBuilder, arch: &str) -> GgufBuilder {
    let key = |name: &str| format!("{arch}.{name}");
    builder.u32(&key("expert_count"), 6).u32(&key("expert_used_count"), 2).u32(&key("expert_feed_forward_length"), 32)
}

/// A latent of 32 for keys and values, as files of 2024 describe it.
fn latent(builder: GgufBuilder) -> GgufBuilder {
    builder
        .u32("deepseek2.attention.key_length", 48)
        .u32("deepseek2.attention.value_length", 24)
        .u32("deepseek2.attention.kv_lora_rank", 32)
}

fn open_gguf(builder: &GgufBuilder) -> Result<ModelSource, LoadError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, builder.build()).expect("it can be written");
    ModelSource::open(&path)
}

#[test]
fn gguf_models_of_each_architecture() {
    let model =
        open_gguf(&gguf("llama").text("tokenizer.chat_template", "{{ x }}").flag("tokenizer.ggml.add_bos_token", true))
            .expect("it is right");
    assert_eq!((model.name.as_str(), model.chat_template.as_deref()), ("tiny", Some("{{ x }}")));
    assert_eq!(
        (model.spec.rope.layout, model.spec.rope.theta, model.spec.vocab),
        (RopeLayout::Interleaved, 10_000.0, 4)
    );
    assert_eq!(model.eos_token_ids, [1, 3]);
    assert_eq!(model.special_tokens.eos.as_deref(), Some("</s>"));
    assert!(model.spec.tied_embeddings && !model.spec.qkv_bias);
    match model.tokenizer {
        TokenizerSource::Gguf(vocab) => {
            assert_eq!((vocab.tokens.len(), vocab.add_bos, vocab.add_eos), (4, Some(true), None))
        }
        other => panic!("{other:?} is not in the file"),
    }

    let biased =
        gguf("qwen2").f32_tensor("blk.0.attn_q.bias", &[64], &[0.0; 64]).f32_tensor("output.weight", &[1], &[0.0]);
    let model = open_gguf(&biased.text("general.name", "Tiny Qwen")).expect("it is right");
    assert_eq!((model.spec.rope.layout, model.name.as_str()), (RopeLayout::Halves, "Tiny Qwen"));
    assert!(model.spec.qkv_bias && !model.spec.tied_embeddings && !model.spec.qk_norm);

    let model = open_gguf(&gguf("qwen3").u32("qwen3.attention.key_length", 32)).expect("it is right");
    assert_eq!((model.spec.head_dim, model.spec.rope.rotary_dim, model.spec.qk_norm), (32, 32, true));
}

#[test]
fn gguf_models_of_experts() {
    let spec = |builder: GgufBuilder| open_gguf(&builder).expect("it is right").spec;
    let dense_before = |spec: &DecoderSpec| spec.experts.as_ref().map(|experts| experts.layers.clone());

    let qwen2 = spec(experts(gguf("qwen2moe"), "qwen2moe").u32("qwen2moe.expert_shared_feed_forward_length", 80));
    let of_qwen2 = qwen2.experts.as_ref().expect("experts");
    assert_eq!((of_qwen2.count, of_qwen2.ffn, of_qwen2.shared_ffn, of_qwen2.shared_gate), (6, 32, Some(80), true));
    assert_eq!((of_qwen2.routing.top_k, of_qwen2.routing.normalize, of_qwen2.routing.scale), (2, false, 1.0));
    assert_eq!(dense_before(&qwen2), Some(vec![true, true]));

    let qwen3 = spec(experts(gguf("qwen3moe"), "qwen3moe"));
    let of_qwen3 = qwen3.experts.as_ref().expect("experts");
    assert!(qwen3.qk_norm && of_qwen3.routing.normalize && of_qwen3.shared_ffn.is_none());

    let old = latent(experts(gguf("deepseek2"), "deepseek2"))
        .u32("deepseek2.rope.dimension_count", 16)
        .u32("deepseek2.leading_dense_block_count", 1)
        .u32("deepseek2.expert_shared_count", 2);
    let old = spec(old);
    let shape = LatentShape { heads: 4, rank: 32, rope: 16, nope: 32, value: 24 };
    assert_eq!(old.latent, Some(LatentSpec { shape, query_rank: None }));
    assert_eq!((old.rope.layout, old.rope.rotary_dim), (RopeLayout::Interleaved, 16));
    assert_eq!(dense_before(&old), Some(vec![false, true]));
    let of_old = old.experts.as_ref().expect("experts");
    assert_eq!((of_old.shared_ffn, of_old.correction, of_old.routing.groups), (Some(64), false, None));

    // Sizes of the latent where those of a head were; yarn; a layer behind the others that predicts further tokens.
    let new = latent(experts(gguf("deepseek2"), "deepseek2"))
        .u32("deepseek2.rope.dimension_count", 16)
        .u32("deepseek2.attention.key_length_mla", 40)
        .u32("deepseek2.attention.value_length_mla", 8)
        .u32("deepseek2.attention.q_lora_rank", 20)
        .u32("deepseek2.expert_gating_func", 2)
        .u32("deepseek2.expert_group_count", 3)
        .u32("deepseek2.expert_group_used_count", 2)
        .f32("deepseek2.expert_weights_scale", 2.5)
        .u32("deepseek2.nextn_predict_layers", 1)
        .text("deepseek2.rope.scaling.type", "yarn")
        .f32("deepseek2.rope.scaling.factor", 40.0)
        .f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1);
    let new = spec(new);
    let shape = LatentShape { nope: 24, value: 8, ..shape };
    assert_eq!((new.latent, new.layers), (Some(LatentSpec { shape, query_rank: Some(20) }), 1));
    let routing = new.experts.as_ref().expect("experts").routing;
    let groups = RouteGroups { groups: 3, top_groups: 2, best: 2 };
    assert_eq!((routing.scoring, routing.groups, routing.scale), (Scoring::Sigmoid, Some(groups), 2.5));
    let magnitude = 0.1 * 40_f32.ln() + 1.0;
    assert!((new.attention_scale * 40_f32.sqrt() / (magnitude * magnitude) - 1.0).abs() < 1e-6);
    assert!(matches!(new.rope.scaling, RopeScaling::Yarn { attention_factor: 1.0, .. }));
}

#[test]
fn gguf_scalings() {
    let factors = [1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0];
    let scaling =
        |builder: GgufBuilder| open_gguf(&builder).map(|model| (model.spec.rope.scaling, model.spec.max_context));
    assert_eq!(
        scaling(gguf("llama").f32_tensor("rope_freqs.weight", &[8], &factors)).ok(),
        Some((RopeScaling::PerFrequency { factors: factors.to_vec() }, 256))
    );
    let linear = gguf("llama").text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(scaling(linear).ok(), Some((RopeScaling::Linear { factor: 4.0 }, 256)));
    let yarn = gguf("qwen2").text("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 4.0);
    let (yarn, context) = scaling(yarn.u32("qwen2.rope.scaling.original_context_length", 128)).expect("it is right");
    assert_eq!(context, 512);
    let RopeScaling::Yarn { original: 128, attention_factor, .. } = yarn else {
        panic!("{yarn:?} is not YaRN over 128")
    };
    assert!((attention_factor - 1.138_629_436).abs() < 1e-9);
}

#[test]
fn wrong_gguf_models_are_refused_by_key() {
    let cases = [
        (gguf("mamba"), "architecture mamba is not supported: expected one of llama, qwen2, qwen3"),
        (gguf("qwen3next"), "architecture qwen3next is not supported yet"),
        (gguf("deepseek2"), "deepseek2.attention.key_length is missing: expected 1 to 1024"),
        (
            experts(gguf("qwen3moe"), "qwen3moe").u32("qwen3moe.expert_group_count", 3),
            "expert_group_used_count is missing",
        ),
        (
            experts(gguf("qwen2moe"), "qwen2moe").u32("qwen2moe.expert_gating_func", 3),
            "qwen2moe.expert_gating_func: expected up to 2, found 3",
        ),
        (gguf("qwen2moe").u32("qwen2moe.expert_count", 1 << 20), "qwen2moe.expert_count: expected 1 to 4096"),
        (
            latent(gguf("deepseek2")).u32("deepseek2.rope.dimension_count", 48),
            "deepseek2.rope.dimension_count: expected less than the head's 48, found 48",
        ),
        (
            latent(gguf("deepseek2"))
                .u32("deepseek2.rope.dimension_count", 16)
                .u32("deepseek2.nextn_predict_layers", 2),
            "deepseek2.nextn_predict_layers: expected up to 1, found 2",
        ),
        (gguf("llama").u32("llama.expert_count", 8), "llama.expert_count: expected a dense model, found 8"),
        (
            gguf("llama").u32("llama.attention.key_length", 4_000_000_000),
            "llama.attention.key_length: expected 1 to 1024",
        ),
        (gguf("llama").u32("llama.rope.dimension_count", 17), "number of rotated dimensions: expected an even number"),
        (
            gguf("llama").u32("llama.rope.dimension_count", u32::MAX),
            "number of rotated dimensions: expected an even number",
        ),
        (
            gguf("llama").text("llama.rope.scaling.type", "longrope"),
            "scaling.type: expected none, linear or yarn, found longrope",
        ),
        (gguf("llama").text("llama.rope.scaling.type", "linear"), "llama.rope.scaling.factor is missing"),
        (
            gguf("llama").f32_tensor("rope_freqs.weight", &[8], &[0.0; 8]),
            "tensor rope_freqs.weight: expected numbers above 0",
        ),
        (
            gguf("llama").f32_tensor("rope_freqs.weight", &[4], &[1.0; 4]),
            "tensor rope_freqs.weight: expected shape [8], found [4]",
        ),
        (gguf("llama").u32("tokenizer.ggml.unknown_token_id", 4), "unknown_token_id: expected an id below 4, found 4"),
        (
            gguf("llama").raw("tokenizer.ggml.scores", 9, &[6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "scores: expected one for each of the 4 tokens",
        ),
        (GgufBuilder::new(3), "general.architecture is missing"),
        (GgufBuilder::new(3).text("general.architecture", "llama"), "llama.embedding_length is missing"),
    ];
    for (builder, expected) in cases {
        let error = open_gguf(&builder).err().expect("it is wrong").to_string();
        assert!(error.contains("tiny.gguf") && error.contains(expected), "{error} should say: {expected}");
    }
}

/// A folder of a model without weights' values: one tensor is enough to open it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        let header = r#"{"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        std::fs::write(folder.0.path().join("model.safetensors"), weights).expect("it can be written");
        folder
            .with("config.json", &config("LlamaForCausalLM", json!({"eos_token_id": 7, "bos_token_id": 1})).to_string())
            .with("tokenizer.json", "{}")
    }

    fn with(self, name: &str, text: &str) -> Self {
        std::fs::write(self.0.path().join(name), text).expect("it can be written");
        self
    }

    fn open(&self) -> Result<ModelSource, LoadError> {
        ModelSource::open(self.0.path())
    }
}

#[test]
fn folders_with_little_in_them() {
    let folder = Folder::new();
    let model = folder.open().expect("it is right");
    assert_eq!(model.tokenizer, TokenizerSource::File(folder.0.path().join("tokenizer.json")));
    assert_eq!((model.eos_token_ids, model.chat_template), (vec![7], None));
    assert_eq!((model.defaults, model.special_tokens), (GenerationDefaults::default(), SpecialTokens::default()));
}

#[test]
fn folders_with_everything() {
    let folder = Folder::new()
        .with("generation_config.json", r#"{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": [5, 6, 9999]}"#)
        .with("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null,
            "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#);
    let model = folder.open().expect("it is right");
    assert_eq!(model.eos_token_ids, [5, 6]);
    let defaults = GenerationDefaults {
        temperature: Some(0.6),
        top_p: Some(0.9),
        top_k: Some(20),
        min_p: None,
        repetition_penalty: Some(1.05),
    };
    assert_eq!(model.defaults, defaults);
    assert_eq!((model.special_tokens.bos.as_deref(), model.special_tokens.eos.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!(model.chat_template.as_deref(), Some("d"));

    let folder = folder.with("chat_template.jinja", "from the file");
    assert_eq!(folder.open().expect("it is right").chat_template.as_deref(), Some("from the file"));
    let folder = Folder::new().with("tokenizer_config.json", r#"{"chat_template": "inline"}"#);
    assert_eq!(folder.open().expect("it is right").chat_template.as_deref(), Some("inline"));
}

#[test]
fn wrong_folders_are_refused_by_file() {
    let cases = [
        (Folder::new().with("config.json", "{"), "config.json: expected JSON"),
        (Folder::new().with("config.json", &"[".repeat(100_000)), "config.json: expected JSON"),
        (Folder::new().with("config.json", &" ".repeat(5 << 20)), "config.json: its length: expected at most"),
        (
            Folder::new().with("generation_config.json", r#"{"temperature": -1}"#),
            "generation_config.json: temperature: expected a number from 0",
        ),
        (
            Folder::new().with("generation_config.json", r#"{"eos_token_id": "x"}"#),
            "generation_config.json: eos_token_id: expected a token id",
        ),
        (
            Folder::new().with("tokenizer_config.json", r#"{"chat_template": 7}"#),
            "tokenizer_config.json: chat_template: expected a text",
        ),
        (
            Folder::new().with("tokenizer_config.json", r#"{"bos_token": 7}"#),
            "tokenizer_config.json: bos_token: expected a text",
        ),
    ];
    for (folder, expected) in cases {
        let error = folder.open().err().expect("it is wrong").to_string();
        assert!(error.contains(expected), "{error} should say: {expected}");
    }
    for name in ["tokenizer.json", "config.json", "model.safetensors"] {
        let folder = Folder::new();
        std::fs::remove_file(folder.0.path().join(name)).expect("it is there");
        let error = folder.open().err().expect("a file is missing").to_string();
        assert!(error.contains(name) && error.contains("expected"), "{error}");
    }
}

/// The committed golden models, in both forms of their configuration.
#[test]
fn golden_models_say_the_same_in_both_forms() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(&golden).expect("the fixtures are there") {
        let folder = entry.expect("it can be listed").path();
        let Ok(model) = ModelSource::open(&folder) else {
            panic!("{}: {}", folder.display(), ModelSource::open(&folder).err().expect("it failed"))
        };
        let file = folder.join("config.classic.json");
        let classic = crate::weights::read_json(&file, 1 << 20).expect("it is JSON");
        let classic = registry::from_config(Fields::root(&file, &classic).expect("an object")).expect("it is right");
        assert_eq!(model.spec, classic, "{}", folder.display());
        let (spec, weights) = (&model.spec, &model.weights);
        for layer in 0..spec.layers as u32 {
            if let Some(LatentSpec { shape, .. }) = spec.latent {
                let down = crate::weights::WeightName::LatentDown(layer);
                assert!(weights.matrix(down, shape.width(), spec.hidden).is_ok(), "{}", folder.display());
                continue;
            }
            let q = weights.matrix(crate::weights::WeightName::Q(layer), spec.q_heads * spec.head_dim, spec.hidden);
            let bias = weights.has(crate::weights::WeightName::QBias(layer));
            assert!(q.is_ok() && bias == spec.qkv_bias, "{}", folder.display());
        }
        seen += 1;
    }
    assert_eq!(seen, 26, "a golden model is lost, or was not counted here");
}

/// A small DeepSeek's config.json with `changes` over it.
fn deepseek(architecture: &str, changes: Value) -> Value {
    let mut all = json!({
        "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1, "num_hidden_layers": 5,
    });
    for (key, value) in changes.as_object().expect("changes are an object") {
        all[key] = value.clone();
    }
    config(architecture, all)
}

#[test]
fn the_first_layers_of_a_deepseek_are_dense_as_its_file_or_its_family_says() {
    let dense = |architecture, changes| {
        let spec = spec(&deepseek(architecture, changes)).expect("it is right");
        spec.experts.expect("experts").layers.iter().filter(|has_experts| !**has_experts).count()
    };
    assert_eq!(dense("DeepseekV2ForCausalLM", json!({})), 0);
    assert_eq!(dense("DeepseekV3ForCausalLM", json!({})), 3);
    assert_eq!(dense("DeepseekV3ForCausalLM", json!({"first_k_dense_replace": 1, "moe_layer_freq": 1})), 1);
    let error = spec(&deepseek("DeepseekV3ForCausalLM", json!({"moe_layer_freq": 2}))).expect_err("it is not known");
    assert!(error.to_string().ends_with("moe_layer_freq: expected 1, found 2"), "{error}");
}
