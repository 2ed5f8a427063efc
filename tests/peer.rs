//! Candle's own Llama beside ours, on the same GGUF: two programs that share no kernel and no loader must agree on what
//! comes next. Candle turns activations to 8 bits before each product, so its logits are near ours, not equal.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use lantern::{GenerateRequest, Prompt};

use crate::real_model::{default_model, default_model_file};

/// Differences of logits that 8-bit activations explain; the logits span some 30.
const TOLERANCE: f32 = 1.0;

#[test]
fn candle_s_own_model_gives_near_logits() {
    let llm = default_model();
    let ids = llm.encode("The capital of France is Paris. The capital of Italy is").expect("encoded");
    let mut request = GenerateRequest::new(Prompt::Tokens(ids.clone())).max_tokens(1).temperature(0.0);
    request.sampling.logprobs = Some(20);
    let answer = llm.generate(request).expect("taken").collect_blocking().expect("answered").remove(0);
    let found = &answer.tokens[0].logprobs.as_ref().expect("asked for").top;

    let mut file = std::fs::File::open(default_model_file()).expect("the model's file");
    let content = gguf_file::Content::read(&mut file).expect("a GGUF file");
    let mut peer = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a Llama");
    let input = Tensor::new(ids.as_slice(), &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("ids");
    let logits = peer.forward(&input, 0).and_then(|logits| logits.squeeze(0)).expect("logits");
    let logits: Vec<f32> = logits.to_vec1().expect("f32");

    let (best, best_logprob) = found[0];
    let peer_best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary");
    assert_eq!(best as usize, peer_best);
    for (token, logprob) in found {
        let (ours, theirs) = (logprob - best_logprob, logits[*token as usize] - logits[best as usize]);
        assert!((ours - theirs).abs() < TOLERANCE, "token {token}: {ours} is far from {theirs}");
    }
}
