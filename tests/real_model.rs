//! The default model against Hugging Face transformers: fixed chats, greedy, in float32 on the same weights
//! (`tests/fixtures/smollm2`). Tokens are compared up to where the reference itself is less than [`SURE`] sure.

use std::path::{Path, PathBuf};

#[cfg(feature = "cuda")]
use lantern::GenerationEvent;
use lantern::config::{DeviceWish, EngineConfig, HubConfig, environment};
use lantern::hub::{self, Catalog, HubOptions, ModelName, Store};
use lantern::{Chat, DEFAULT_MODEL, GenerateRequest, Llm, Message, Prompt};
use serde::Deserialize;

/// Least distance of the reference's two best logits at which the best one must be ours.
const SURE: f32 = 0.02;

/// The same in bf16, whose numbers have 8 bits: logits of 20 are a tenth apart.
#[cfg(feature = "cuda")]
const SURE_BF16: f32 = 0.4;

#[derive(Deserialize)]
struct Reference {
    chats: Vec<ReferenceChat>,
}

#[derive(Deserialize)]
struct ReferenceChat {
    name: String,
    messages: Vec<ReferenceMessage>,
    prompt: String,
    prompt_ids: Vec<u32>,
    tokens: Vec<u32>,
    margins: Vec<f32>,
    finish: String,
    text: String,
    top_logits: Vec<(u32, f32)>,
}

#[derive(Deserialize)]
struct ReferenceMessage {
    role: String,
    content: String,
}

fn reference(file: &str) -> Reference {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2").join(file);
    serde_json::from_str(&std::fs::read_to_string(path).expect("the fixture")).expect("valid JSON")
}

/// Where models are kept; tests fetch nothing.
fn store() -> HubConfig {
    let hub = HubConfig::from_environment(&environment).expect("a store");
    HubConfig { offline: true, ..hub }
}

/// The default model's GGUF.
pub fn default_model_file() -> PathBuf {
    let catalog = Catalog::embedded();
    let name = ModelName::parse(DEFAULT_MODEL, &catalog).expect("a name");
    let options = HubOptions { offline: true, ..HubOptions::from_lookup(environment) };
    let store = Store::open(store().models_dir).expect("a store");
    hub::resolve(&name, &store, &options).expect("the default model is here").kind.path().to_owned()
}

fn on_the_cpu() -> EngineConfig {
    EngineConfig { device: DeviceWish::Cpu, ..EngineConfig::default() }
}

/// The default model from the local store, on the CPU.
pub fn default_model() -> Llm {
    let hub = store();
    match Llm::builder().hub_config(hub).engine_config(on_the_cpu()).load_blocking() {
        Ok(llm) => llm,
        Err(error) => {
            panic!("the default model is not here; `cargo run --release -- pull smollm2:135m` brings it: {error}")
        }
    }
}

fn compare(llm: &Llm, file: &str) {
    for chat in reference(file).chats {
        let messages = chat.messages.iter().map(|message| Message::new(&message.role, &message.content)).collect();
        let prompt = Chat { messages, ..Chat::default() };
        assert_eq!(llm.render(&prompt).expect("rendered"), chat.prompt, "{}", chat.name);
        let mut request = GenerateRequest::new(Prompt::Chat(prompt)).max_tokens(64).temperature(0.0);
        request.sampling.logprobs = Some(20);
        let generation = llm.generate(request).expect("taken");
        assert_eq!(generation.prompt_tokens(), chat.prompt_ids, "{}", chat.name);
        let answer = generation.collect_blocking().expect("answered").remove(0);
        let tokens: Vec<u32> = answer.tokens.iter().map(|token| token.token).collect();
        let sure = chat.margins.iter().take_while(|margin| **margin > SURE).count();
        assert!(sure >= chat.tokens.len().min(8), "{}: the reference is unsure from token {sure} on", chat.name);
        assert_eq!(tokens[..sure.min(tokens.len())], chat.tokens[..sure], "{}", chat.name);
        if sure == chat.tokens.len() {
            assert_eq!((answer.text.as_str(), answer.reason.as_str()), (chat.text.as_str(), chat.finish.as_str()));
        }
        compare_logits(&chat, &answer.tokens[0].logprobs.as_ref().expect("asked for").top);
    }
}

/// Differences of log-probabilities are differences of logits.
fn compare_logits(chat: &ReferenceChat, found: &[(u32, f32)]) {
    let (best, best_logit) = chat.top_logits[0];
    let (found_best, found_logprob) = found[0];
    assert_eq!(found_best, best, "{}", chat.name);
    for (token, logprob) in found {
        if let Some((_, logit)) = chat.top_logits.iter().find(|(wanted, _)| wanted == token) {
            let (found, wanted) = (logprob - found_logprob, logit - best_logit);
            assert!((found - wanted).abs() < 5e-3, "{} token {token}: {found} is not {wanted}", chat.name);
        }
    }
}

#[test]
fn the_gguf_answers_as_transformers() {
    compare(&default_model(), "chats.json");
}

#[cfg(feature = "cuda")]
fn default_model_on_the_gpu() -> Llm {
    let engine = EngineConfig { device: DeviceWish::Cuda(None), ..EngineConfig::default() };
    let llm = Llm::builder().hub_config(store()).engine_config(engine).load_blocking().expect("it loads to the GPU");
    assert!(llm.info().device.contains("cuda:"), "{}", llm.info().device);
    llm
}

/// On a GPU, in bf16: given the reference's answer so far, its next token is the likeliest wherever it is sure.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_the_gguf_answers_as_transformers() {
    let llm = default_model_on_the_gpu();
    let mut compared = 0;
    for chat in reference("chats.json").chats {
        let ids: Vec<u32> = chat.prompt_ids.iter().chain(&chat.tokens).copied().collect();
        let mut request = GenerateRequest::new(Prompt::Tokens(ids)).max_tokens(1).temperature(0.0);
        request.sampling.prompt_logprobs = Some(1);
        let mut generation = llm.generate(request).expect("taken");
        let Some(Ok(GenerationEvent::Started { prompt_logprobs: found, .. })) = generation.blocking_next() else {
            panic!("{}: the prompt comes first", chat.name)
        };
        let answer = &found[chat.prompt_ids.len() - 1..];
        for (position, (found, margin)) in answer.iter().zip(&chat.margins).enumerate() {
            if *margin > SURE_BF16 {
                assert_eq!(found.rank, 1, "{} at {position}, where the reference leads by {margin}", chat.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared} tokens were compared");
}

/// On a GPU, in bf16, all chats at once and greedy, so by recorded steps and draws on the GPU: every token that the reference
/// is sure of is the same. Past one that it is not sure of, where answers part, the next request goes on from the reference's.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_greedy_chats_are_those_of_transformers() {
    let llm = default_model_on_the_gpu();
    let chats = reference("chats.json").chats;
    let sure: usize = chats.iter().map(|chat| chat.margins.iter().filter(|margin| **margin > SURE_BF16).count()).sum();
    let mut reached = vec![0; chats.len()];
    let (mut decoded, mut parted) = (0, 0);
    loop {
        let open: Vec<usize> = (0..chats.len()).filter(|index| reached[*index] < chats[*index].tokens.len()).collect();
        if open.is_empty() {
            break;
        }
        let generate = |index: &usize| {
            let (chat, from) = (&chats[*index], reached[*index]);
            let ids = [&chat.prompt_ids[..], &chat.tokens[..from]].concat();
            let most = (chat.tokens.len() - from) as u32;
            llm.generate(GenerateRequest::new(Prompt::Tokens(ids)).max_tokens(most).temperature(0.0)).expect("taken")
        };
        let running: Vec<_> = open.iter().map(generate).collect();
        for (index, generation) in open.into_iter().zip(running) {
            let (chat, from) = (&chats[index], reached[index]);
            let answer = generation.collect_blocking().expect("answered").remove(0);
            for (at, wanted) in chat.tokens.iter().enumerate().skip(from) {
                reached[index] = at + 1;
                let (found, margin) = (answer.tokens.get(at - from).map(|token| token.token), chat.margins[at]);
                if margin > SURE_BF16 {
                    assert_eq!(found, Some(*wanted), "{} at {at}, where the reference leads by {margin}", chat.name);
                    // The first token of a request is its prompt's.
                    decoded += usize::from(at > from);
                } else if found != Some(*wanted) {
                    parted += 1;
                    break;
                }
            }
        }
    }
    println!("{decoded} of {sure} sure tokens were decoded; {parted} others parted");
    assert!(10 * decoded >= 8 * sure, "{decoded} of {sure} sure tokens were decoded");
}

/// Needs the folder that `tests/scripts/make_smollm2_folder.py` makes of the GGUF, named by LANTERN_TEST_FOLDER.
#[test]
#[ignore = "needs a folder made by a script; .ci/run makes it and runs this"]
fn the_sharded_bf16_folder_answers_as_transformers() {
    let folder = PathBuf::from(std::env::var("LANTERN_TEST_FOLDER").expect("LANTERN_TEST_FOLDER names the folder"));
    let llm = Llm::builder()
        .model(folder.to_string_lossy())
        .engine_config(on_the_cpu())
        .load_blocking()
        .expect("the folder loads");
    compare(&llm, "chats_bf16.json");
}
