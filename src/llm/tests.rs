//! The promise that an answer does not depend on company, on tiny models of every family through the real engine:
//! alone = batched = chunked = prefix-cached = preempted = forked, to the last bit of every reported log-probability.

use std::path::{Path, PathBuf};

use crate::config::{EngineConfig, Lag, ToolParser};

use super::load::load_path;
use super::{
    Answer, Chat, EmbedRequest, GenerateError, GenerateRequest, Generation, GenerationEvent, Grammar, Llm, Message,
    Prompt,
};
use crate::engine::SubmitError;
use crate::request::{FinishReason, Pooling};
use crate::tokenizer::{CallFormat, Part};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(family)
}

fn load(family: &str, change: impl FnOnce(&mut EngineConfig)) -> Llm {
    let mut config = EngineConfig { threads: std::num::NonZeroUsize::new(1), ..EngineConfig::default() };
    config.kv_cache_bytes = Some(8 << 20);
    change(&mut config);
    load_path(&folder(family), family, &config).expect("the fixture loads")
}

/// Prompts of 1 to 90 tokens, some of which begin alike.
fn prompts() -> Vec<Vec<u32>> {
    let shared: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 256).collect();
    (0..12_u32)
        .map(|index| {
            let own = (0..1 + index * 4).map(|i| (i * i + index * 31) % 256);
            if index % 3 == 0 { shared.iter().copied().chain(own).collect() } else { own.collect() }
        })
        .collect()
}

fn request(prompt: &[u32], seed: u64) -> GenerateRequest {
    let mut request = GenerateRequest::new(Prompt::Tokens(prompt.to_vec())).max_tokens(60).temperature(0.9).seed(seed);
    request.sampling.logprobs = Some(20);
    request.sampling.repetition_penalty = Some(1.1);
    request.ignore_eos = true;
    request
}

fn one(llm: &Llm, prompt: &[u32], seed: u64) -> Answer {
    llm.generate(request(prompt, seed)).expect("taken").collect_blocking().expect("answered").remove(0)
}

fn together(llm: &Llm) -> Vec<Answer> {
    let prompts = prompts();
    let running: Vec<_> =
        (0..).zip(&prompts).map(|(seed, prompt)| llm.generate(request(prompt, seed)).expect("there is room")).collect();
    running.into_iter().map(|generation| generation.collect_blocking().expect("answered").remove(0)).collect()
}

/// Every answer alone, in an engine that never saw the others.
fn alone(family: &str) -> Vec<Answer> {
    (0..)
        .zip(&prompts())
        .map(|(seed, prompt)| one(&load(family, |config| config.prefix_cache = false), prompt, seed))
        .collect()
}

#[test]
fn company_changes_no_bit_of_any_answer() {
    for family in ["llama3", "qwen2", "qwen3"] {
        let alone = alone(family);
        assert_eq!(together(&load(family, |_| {})), alone, "{family} batched");
        assert_eq!(together(&load(family, |config| config.lag = Some(Lag::One))), alone, "{family} batched, lag 1");
        let chunked = load(family, |config| {
            (config.max_step_tokens, config.max_sequences, config.max_prompt_chunk_while_decoding) =
                (Some(16), Some(16), Some(3));
        });
        assert_eq!(together(&chunked), alone, "{family} chunked");
        let threaded = load(family, |config| config.threads = std::num::NonZeroUsize::new(3));
        assert_eq!(together(&threaded), alone, "{family} in three threads");
    }
}

#[test]
fn the_prefix_cache_changes_no_bit_and_is_hit() {
    let llm = load("llama3", |_| {});
    let (first, again) = (together(&llm), together(&llm));
    assert_eq!(first, again);
    let counted = llm.engine().metrics().snapshot();
    assert!(counted.prefix_hits > 12 * 16, "{counted:?}");
    assert_eq!(counted.blocks_used, 0, "{counted:?}");
}

#[test]
fn a_cache_that_became_smaller_changes_no_bit_and_keeps_the_prefixes_of_what_stays() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for family in ["llama3", "deepseek_v2"] {
        let (alone, prompt) = (alone(family), &prompts()[9]);
        let llm = load(family, |config| config.lag = Some(Lag::One));
        assert_eq!(one(&llm, prompt, 9), alone[9], "{family}");
        let hits = || llm.engine().metrics().snapshot().prefix_hits;
        assert!(llm.info().full_contexts > 1 && llm.kv_can_shrink() && hits() == 0, "{:?}", llm.info());

        let given_back = runtime.block_on(llm.shrink_kv()).expect("it is idle");
        let small = llm.present();
        let (planned, kv) = (small.planned_bytes + given_back, small.kv_bytes + given_back);
        assert_eq!((planned, kv), (llm.info().planned_bytes, llm.info().kv_bytes));
        assert_eq!((small.full_contexts, llm.kv_can_shrink()), (1, false), "{small:?}");
        assert_eq!(runtime.block_on(llm.shrink_kv()), Some(0), "there is no more");
        assert_eq!(
            (one(&llm, prompt, 9), hits()),
            (alone[9].clone(), 64),
            "{family}: the first blocks are as they were"
        );
        assert_eq!(together(&llm), alone, "{family} in one context");

        assert_eq!(runtime.block_on(llm.grow_kv(u64::MAX)), Some(0), "all memory is promised to others");
        assert_eq!(runtime.block_on(llm.grow_kv(0)), Some(given_back));
        assert_eq!(&llm.present(), llm.info());
        let before = hits();
        assert_eq!(one(&llm, prompt, 9), alone[9], "{family}");
        assert_eq!(together(&llm), alone, "{family} in a cache that grew");
        assert!(hits() > before, "{family}");
    }
}

#[test]
fn a_shifted_context_goes_on_from_its_beginning_and_its_newer_half() {
    let llm = load("llama3", |config| config.context_length = Some(64));
    let greedy = |prompt: &[u32], tokens: u32| {
        let mut request = GenerateRequest::new(Prompt::Tokens(prompt.to_vec())).max_tokens(tokens).temperature(0.0);
        (request.ignore_eos, request.stop) = (true, vec!["no such text".into()]);
        request
    };
    let answer = |request| llm.generate(request).expect("taken").collect_blocking().expect("answered").remove(0);
    let tokens = |answer: &Answer| answer.tokens.iter().map(|token| token.token).collect::<Vec<_>>();
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 256).collect();
    let shifted = answer(GenerateRequest { shift_keeping: Some(8), ..greedy(&prompt, 60) });
    let (mut window, mut expected) = (prompt.clone(), Vec::new());
    for most in [24, 28, 8] {
        let part = tokens(&answer(greedy(&window, most)));
        (window, expected) = ([window, part.clone()].concat(), [expected, part].concat());
        window.drain(8..36.min(window.len()));
    }
    assert_eq!((tokens(&shifted), shifted.reason), (expected.clone(), FinishReason::Length));
    assert_eq!(shifted.text, llm.decode(&expected));
    assert_eq!(tokens(&answer(greedy(&prompt, 60))), expected[..24]);
}

#[test]
fn preemption_changes_no_bit_and_happens() {
    let alone = alone("llama3");
    for lag in [Lag::Zero, Lag::One] {
        let small = load("llama3", |config| {
            (config.kv_cache_bytes, config.lag, config.context_length) = (Some(1 << 20), Some(lag), Some(160));
            config.prefix_cache = false;
        });
        let running: Vec<_> = (0..3).map(|_| small.clone()).collect();
        // Three times the same twelve: more than the cache holds at once.
        let answers: Vec<Vec<Answer>> = std::thread::scope(|scope| {
            let threads: Vec<_> = running.iter().map(|llm| scope.spawn(|| together(llm))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for answers in answers {
            assert_eq!(answers, alone);
        }
        let counted = small.engine().metrics().snapshot();
        assert!(counted.preemptions > 0, "{counted:?}");
    }
}

#[test]
fn choices_share_a_prompt_and_each_is_as_if_alone() {
    let llm = load("qwen3", |_| {});
    let prompt = &prompts()[9];
    let mut four = request(prompt, 5);
    four.n = 4;
    let forked = llm.generate(four.clone()).expect("taken").collect_blocking().expect("answered");
    assert_eq!(forked[0], one(&llm, prompt, 5), "the first choice is the request without the others");
    assert!(forked[1..].iter().all(|answer| answer.tokens != forked[0].tokens), "each has a stream of its own");
    // The same beside others, in another engine.
    let busy = load("qwen3", |config| config.max_prompt_chunk_while_decoding = Some(5));
    let neighbour = busy.generate(request(&prompts()[3], 1)).expect("taken");
    assert_eq!(busy.generate(four).expect("taken").collect_blocking().expect("answered"), forked);
    drop(neighbour);
}

#[test]
fn embeddings_are_those_of_transformers_and_company_changes_no_bit() {
    #[derive(serde::Deserialize)]
    struct Expected {
        ids: Vec<u32>,
        mean: Vec<f32>,
        last: Vec<f32>,
    }
    for family in ["llama3", "qwen3_moe", "deepseek_v2_lite"] {
        let json = std::fs::read_to_string(folder(family).join("embeddings.json")).expect("a fixture");
        let expected: Vec<Expected> = serde_json::from_str(&json).expect("a valid fixture");
        let whole = load(family, |_| {});
        let chunked = load(family, |config| (config.max_step_tokens, config.max_sequences) = (Some(16), Some(4)));
        let embed = |llm: &Llm, ids: &[u32], pooling| {
            let prompt = Prompt::Tokens(ids.to_vec());
            let request = EmbedRequest { pooling: Some(pooling), normalize: false, ..EmbedRequest::new(prompt) };
            llm.embed(request).expect("taken")
        };
        for pooling in [Pooling::Mean, Pooling::Last] {
            // All at once, cut into steps; then each alone, the second time over what the prefix cache holds.
            let running: Vec<_> = expected.iter().map(|one| embed(&chunked, &one.ids, pooling)).collect();
            for (running, one) in running.into_iter().zip(&expected) {
                let found = running.vector_blocking().expect("a vector");
                for _ in 0..2 {
                    assert_eq!(
                        embed(&whole, &one.ids, pooling).vector_blocking().expect("a vector"),
                        found,
                        "{family}"
                    );
                }
                let wanted = if pooling == Pooling::Mean { &one.mean } else { &one.last };
                let most = wanted.iter().fold(0_f32, |most, value| most.max(value.abs()));
                let near = found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-4 * most);
                assert!(near, "{family}, {pooling:?}, {} tokens: {found:?} {wanted:?}", one.ids.len());
            }
        }
    }
}

#[test]
fn an_embedding_is_cut_then_normed_and_too_long_ones_are_cut_only_if_asked() {
    let llm = load("llama3", |config| config.context_length = Some(64));
    let of = |request: EmbedRequest| llm.embed(request).map(|embedding| embedding.vector_blocking().expect("a vector"));
    let prompt = |tokens: u32| EmbedRequest::new(Prompt::Tokens((0..tokens).collect()));
    let raw = of(EmbedRequest { normalize: false, ..prompt(20) }).expect("taken");
    let cut = of(EmbedRequest { dimensions: Some(8), ..prompt(20) }).expect("taken");
    let norm = raw[..8].iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!(cut.iter().zip(&raw).all(|(cut, raw)| (cut - raw / norm).abs() < 1e-6), "{cut:?}");
    assert_eq!((cut.len(), raw.len()), (8, llm.info().embedding_length));
    for dimensions in [0, raw.len() + 1] {
        let refused = of(EmbedRequest { dimensions: Some(dimensions), ..prompt(20) }).expect_err("no such size");
        assert!(refused.to_string().contains("dimensions"), "{refused}");
    }
    assert!(matches!(of(prompt(64)), Err(GenerateError::Submit(SubmitError::PromptTooLong { .. }))));
    assert_eq!(of(EmbedRequest { truncate: true, ..prompt(90) }).expect("cut"), of(prompt(63)).expect("it fits"));
}

#[test]
fn only_allowed_tokens_come_and_no_bad_words() {
    let llm = load("llama3", |_| {});
    let answer = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = request(&[1, 2, 3], 7);
        request.sampling.temperature = Some(5.0);
        change(&mut request);
        let answers = llm.generate(request).expect("taken").collect_blocking().expect("answered");
        answers[0].tokens.iter().map(|token| token.token).collect::<Vec<_>>()
    };
    let allowed = [65, 66, 67, 200];
    let kept = answer(&|request| request.allowed_token_ids = Some(allowed.to_vec()));
    assert!(kept.len() == 60 && kept.iter().all(|token| allowed.contains(token)), "{kept:?}");
    // Two letters that would come one after the other among four.
    let words: Vec<String> = ["A", "B"].map(String::from).to_vec();
    let [a, b] = ["A", "B"].map(|letter| llm.encode_plain(letter).expect("a letter")[0]);
    let pair = |tokens: &[u32]| tokens.windows(2).any(|two| two == [a, b]);
    let both = |request: &mut GenerateRequest| request.allowed_token_ids = Some(vec![a, b]);
    assert!(pair(&answer(&both)));
    let apart = answer(&|request| {
        both(request);
        request.bad_words = vec![words.concat()];
    });
    assert!(!pair(&apart) && apart.contains(&a), "{apart:?}");
    // Nothing is left: the request's own fault.
    let mut nothing = request(&[1], 1);
    (nothing.allowed_token_ids, nothing.bad_words) = (Some(vec![a]), vec!["A".into()]);
    let ended = llm.generate(nothing).expect("taken").collect_blocking();
    assert!(matches!(ended, Err(GenerateError::DeadEnd { field: "allowed_token_ids", .. })), "{ended:?}");
    for (allowed, bad) in [(Some(vec![]), vec![]), (Some(vec![1 << 30]), vec![]), (None, vec![String::new()])] {
        let refused = GenerateRequest { allowed_token_ids: allowed, bad_words: bad, ..request(&[1], 1) };
        assert!(matches!(llm.generate(refused), Err(GenerateError::Submit(SubmitError::Invalid { .. }))));
    }
}

#[test]
fn calls_are_forced_in_the_form_that_is_set() {
    let tools = [serde_json::json!({"type": "function", "function": {"name": "f"}})];
    for (parser, form) in [
        (ToolParser::Auto, CallFormat::Json),
        (ToolParser::Hermes, CallFormat::Hermes),
        (ToolParser::DeepSeek, CallFormat::DeepSeek),
        (ToolParser::Llama3, CallFormat::Json),
    ] {
        let forced = load("llama3", |config| config.tool_parser = parser).forced_calls(&tools, true);
        assert_eq!(forced, Grammar::calls(form, &tools, true), "{parser}");
    }
}

/// Noise that is forced into a call, cut anywhere: its arguments are told as they come, and are those that are told whole.
#[test]
fn a_forced_call_is_told_in_pieces_that_are_its_arguments() {
    let point = serde_json::json!({"type": "object", "properties": {"x": {"enum": [1, 2]}, "ä": {"enum": ["ü", "}"]}},
        "required": ["x", "ä"], "additionalProperties": false});
    let tools = serde_json::json!([{"type": "function", "function": {"name": "go", "parameters": point}}]);
    // The model with a template that knows tools.
    let copy = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder("llama3").join(file), copy.path().join(file)).expect("copied");
    }
    std::fs::write(copy.path().join("chat_template.jinja"), "{{ messages[0].content }}{{ tools | length }}")
        .expect("written");
    for parser in [ToolParser::Hermes, ToolParser::DeepSeek, ToolParser::Llama3] {
        let config = EngineConfig { tool_parser: parser, kv_cache_bytes: Some(8 << 20), ..EngineConfig::default() };
        let llm = load_path(copy.path(), "llama3", &config).expect("the fixture loads");
        let chat = Chat { messages: vec![Message::user("a")], tools: Some(tools.clone()), ..Chat::default() };
        for seed in 0..8 {
            let mut request = GenerateRequest::new(Prompt::Chat(chat.clone())).temperature(1.5).seed(seed);
            request.grammar = Some(llm.forced_calls(tools.as_array().expect("tools"), true));
            // Else noise is white space, for as long as it may.
            let blanks = (0..llm.engine().limits().vocab_size).filter(|id| llm.token_text(*id).trim().is_empty());
            request.sampling.logit_bias = blanks.map(|id| (id, -100.0)).collect();
            let mut generation = llm.generate(request).expect("taken");
            let whole = generation.answer_parser().expect("there are tools");
            let mut in_pieces = whole.clone().in_pieces();
            let (mut text, mut pieces, mut names) = (String::new(), Vec::new(), Vec::new());
            while let Some(event) = generation.blocking_next() {
                let GenerationEvent::Delta { text: more, .. } = event.expect("no fault") else { continue };
                for part in in_pieces.push(&more) {
                    match part {
                        Part::CallBegins(name) => names.push(name),
                        Part::Arguments(piece) => pieces.push(piece),
                        Part::CallEnds => {}
                        other => panic!("{other:?}: {text}"),
                    }
                }
                text.push_str(&more);
            }
            let mut whole_parts = whole.clone();
            let mut parts = whole_parts.push(&text);
            parts.extend(whole_parts.finish());
            let [Part::Call(call)] = parts.as_slice() else { panic!("{parser} {seed}: {parts:?}") };
            assert_eq!((names, pieces.concat()), (vec![call.name.clone()], call.arguments.clone()), "{parser} {seed}");
            assert!(pieces.len() > 1, "{parser} {seed}: {pieces:?}");
        }
    }
}

#[test]
fn a_script_answers_what_comes_after_its_texts() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let answers = r#"[{"after": "first", "say": "one, two"}, {"after": "second", "tokens": [65, 66, 300]}]"#;
    std::fs::write(file.path(), answers).expect("written");
    let llm = load("llama3", |_| {}).with_script(file.path()).expect("a script");
    let answer = |prompt: &str| {
        let answers = llm.generate(GenerateRequest::text(prompt).max_tokens(20).temperature(1.5)).expect("taken");
        answers.collect_blocking().expect("answered").remove(0)
    };
    let one = answer("the second and then the first");
    assert_eq!((one.text.as_str(), one.reason), ("one, two", FinishReason::Stop));
    let tokens: Vec<u32> = answer("the first, the second!").tokens.iter().map(|token| token.token).collect();
    assert_eq!(tokens[..3], [65, 66, 300]);
    assert_eq!(tokens.len(), 4, "and the end");
    assert_ne!(answer("another").text, "one, two");
    for wrong in ["{}", r#"[{"after": "x"}]"#, r#"[{"after": "x", "tokens": [99999]}]"#, "["] {
        std::fs::write(file.path(), wrong).expect("written");
        assert!(llm.with_script(file.path()).is_err(), "{wrong}");
    }
}

#[test]
fn prompt_logprobs_are_whole_whatever_the_chunks() {
    let prompt = &prompts()[9];
    let logprobs = |llm: &Llm| {
        let mut asking = request(prompt, 1).max_tokens(1);
        asking.sampling.prompt_logprobs = Some(3);
        let mut generation = llm.generate(asking).expect("taken");
        match generation.blocking_next() {
            Some(Ok(GenerationEvent::Started { prompt_logprobs, cached_tokens })) => (prompt_logprobs, cached_tokens),
            other => panic!("{other:?}"),
        }
    };
    let llm = load("llama3", |_| {});
    let (whole, _) = logprobs(&llm);
    assert_eq!(whole.len(), prompt.len() - 1);
    assert_eq!(logprobs(&llm), (whole.clone(), 0), "they skip the prefix cache");
    let chunked = load("llama3", |config| (config.max_step_tokens, config.max_sequences) = (Some(16), Some(4)));
    assert_eq!(logprobs(&chunked).0, whole);
}

#[test]
fn perplexity_is_that_of_the_second_halves_of_windows() {
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(4);
    for family in ["llama3", "qwen2"] {
        let llm = load(family, |_| {});
        let tokens = llm.encode(&text).expect("text");
        let begin = llm.encode("").expect("no text").first().copied();
        let mut costs = Vec::new();
        for window in tokens.chunks_exact(24) {
            let mut window = window.to_vec();
            window[0] = begin.unwrap_or(window[0]);
            let mut asking = request(&window, 1).max_tokens(1);
            asking.sampling.prompt_logprobs = Some(0);
            let event = llm.generate(asking).expect("taken").blocking_next();
            let Some(Ok(GenerationEvent::Started { prompt_logprobs, .. })) = event else { panic!("{event:?}") };
            assert_eq!(prompt_logprobs.len(), 23);
            costs.extend(prompt_logprobs.iter().skip(12).map(|token| -f64::from(token.logprob)));
        }
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let found = runtime.block_on(llm.perplexity(&text, 24)).expect("it is long enough");
        let wanted = (costs.iter().sum::<f64>() / costs.len() as f64).exp();
        assert!((found.perplexity / wanted - 1.0).abs() < 1e-6, "{family}: {found:?} is not {wanted}");
        assert_eq!((found.windows, found.tokens), (tokens.len() / 24, costs.len()), "{family}");
        assert!(found.windows >= 2 && found.error > 0.0, "{found:?}");
        let short = runtime.block_on(llm.perplexity("It was", 24)).expect_err("too short").to_string();
        assert!(short.contains("and a window takes 24"), "{short}");
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_both_counts() {
    let llm = load("llama3", |config| config.context_length = Some(64));
    let Err(GenerateError::Submit(error)) = llm.generate(request(&[5; 64], 1)) else { panic!("it was taken") };
    assert!(error.to_string().contains("has 64 tokens") && error.to_string().contains("holds 64"), "{error}");
    let answer = one(&llm, &[5; 60], 1);
    assert_eq!(answer.tokens.len(), 4, "the answer ends where the context does");
    assert_eq!(answer.reason, crate::request::FinishReason::Length);
}

#[test]
fn stop_strings_cut_the_text_wherever_tokens_cut_it() {
    let llm = load("llama3", |_| {});
    let whole = one(&llm, &[65, 66, 67], 3);
    let middle = whole.text.char_indices().nth(whole.text.chars().count() / 2).expect("a text").0;
    let stop: String = whole.text[middle..].chars().take(2).collect();
    let mut asking = request(&[65, 66, 67], 3);
    asking.stop = vec![stop.clone()];
    let cut = llm.generate(asking.clone()).expect("taken").collect_blocking().expect("answered").remove(0);
    assert_eq!(cut.text, whole.text.split(&stop).next().expect("a part"));
    assert_eq!(cut.stop, Some(stop.clone()));
    asking.include_stop = true;
    let with = llm.generate(asking).expect("taken").collect_blocking().expect("answered").remove(0);
    assert_eq!(with.text, cut.text + &stop);
}

/// A request whose answer must be what `grammar` says, however wild the draws.
fn formed(grammar: Grammar, seed: u64) -> GenerateRequest {
    let mut request = GenerateRequest::new(Prompt::Tokens(vec![5, 6, 7])).max_tokens(200).temperature(5.0).seed(seed);
    request.grammar = Some(grammar);
    // Neither goes past the grammar.
    (request.ignore_eos, request.min_tokens) = (true, 150);
    request
}

#[test]
fn answers_follow_their_grammars_at_any_temperature() {
    all_grammars_are_followed(&load("llama3", |_| {}));
}

/// On a GPU the next step is begun before a token is committed, and masks go over with the step.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_answers_follow_their_grammars_at_any_temperature() {
    let llm = load("llama3_heads64", |config| config.device = crate::config::DeviceWish::Cuda(None));
    all_grammars_are_followed(&llm);
    different_grammars_are_followed_beside_each_other(&llm);
    beside_failing(&llm);
}

#[test]
fn grammars_of_one_batch_do_not_mix() {
    for lag in [Lag::Zero, Lag::One] {
        different_grammars_are_followed_beside_each_other(&load("llama3", |config| config.lag = Some(lag)));
    }
    // Little memory: some are preempted, and their grammars stand where they stood.
    let small = load("llama3", |config| {
        (config.kv_cache_bytes, config.context_length, config.prefix_cache) = (Some(1 << 20), Some(160), false);
    });
    std::thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(|| different_grammars_are_followed_beside_each_other(&small))));
    });
    assert!(small.engine().metrics().snapshot().preemptions > 0);
}

/// Answers of 90 to 97 of one letter each, two to a request, beside some that follow nothing.
fn different_grammars_are_followed_beside_each_other(llm: &Llm) {
    let of_letter = |letter: u8| {
        let length = 90 + usize::from(letter - b'a');
        let pair = GenerateRequest { n: 2, ..formed(Grammar::Regex(format!("{}{{{length}}}", letter as char)), 1) };
        (Some("x".repeat(length).replace('x', &(letter as char).to_string())), pair)
    };
    let asked = (b'a'..=b'h').map(of_letter).chain((0..4).map(|seed| (None, request(&prompts()[5], seed))));
    let running: Vec<_> = asked.map(|(expected, request)| (expected, llm.generate(request).expect("taken"))).collect();
    for (expected, generation) in running {
        for answer in generation.collect_blocking().expect("answered") {
            match &expected {
                Some(text) => assert_eq!((&answer.text, answer.reason), (text, FinishReason::Stop)),
                None => assert_eq!(answer.tokens.len(), 60),
            }
        }
    }
}

fn all_grammars_are_followed(llm: &Llm) {
    let answer = |grammar: Grammar, seed| {
        llm.generate(formed(grammar, seed)).expect("taken").collect_blocking().expect("answered").remove(0)
    };
    let choices = ["red".to_owned(), "green".to_owned(), "a \"quoted\" one".to_owned()];
    let mut seen = std::collections::HashSet::new();
    for seed in 0..12 {
        let choice = answer(Grammar::Choice(choices.to_vec()), seed);
        assert_eq!(choice.reason, FinishReason::Stop);
        assert!(choices.contains(&choice.text), "{:?}", choice.text);
        seen.insert(choice.text);
        let digits = answer(Grammar::Regex("[0-9]{2,5}".into()), seed).text;
        assert!((2..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
        let schema = serde_json::json!({
            "type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"], "additionalProperties": false,
        });
        let object = answer(Grammar::JsonSchema(schema), seed);
        if object.reason == FinishReason::Stop {
            let object: serde_json::Value = serde_json::from_str(&object.text).expect("JSON");
            assert!(object["a"].is_boolean() && (object["b"] == "x" || object["b"] == "y"), "{object}");
        }
    }
    assert!(seen.len() > 1, "seeds decide within the grammar: {seen:?}");
}

#[test]
fn a_grammar_that_fails_within_an_answer_ends_that_request_alone() {
    let alone = |at| finished(load("llama3", |_| {}).generate(neighbour(at)).expect("taken"));
    let alone: Vec<_> = (0..3).map(alone).collect();
    for lag in [Lag::Zero, Lag::One] {
        let beside = beside_failing(&load("llama3", |config| config.lag = Some(lag)));
        assert_eq!(beside, alone, "{lag:?}");
    }
}

/// A grammar with ever more ways of reading what has come: after some tens of tokens there are too many to go on.
fn failing(n: u32) -> GenerateRequest {
    let mut request = formed(Grammar::Lark("start: e\ne: e e | e e e | e e e e | e e e e e | \"a\"\n".into()), 1);
    request.n = n;
    // It could end at any place, and is not to.
    request.sampling.logit_bias = [314, 317].map(|end| (end, -100.0)).to_vec();
    request
}

/// Longer than what fails.
fn neighbour(at: usize) -> GenerateRequest {
    request(&prompts()[at], at as u64).max_tokens(200)
}

/// What three neighbours say that begin with grammars that fail, of one answer and of two.
fn beside_failing(llm: &Llm) -> Vec<Answer> {
    let mut failing: Vec<_> = [1, 2].map(|n| llm.generate(failing(n)).expect("taken")).into();
    let beside: Vec<_> = (0..3).map(|at| llm.generate(neighbour(at)).expect("taken")).collect();
    for failing in &mut failing {
        let (mut tokens, mut error) = (0, None);
        while let Some(event) = failing.blocking_next() {
            match event {
                Ok(GenerationEvent::Delta { tokens: more, .. }) => tokens += more.len(),
                Ok(event) => assert!(matches!(event, GenerationEvent::Started { .. }), "{event:?}"),
                Err(failed) => error = Some(failed),
            }
        }
        assert!((20..200).contains(&tokens), "{tokens}");
        assert!(matches!(&error, Some(GenerateError::DeadEnd { .. })), "{error:?} after {tokens} tokens");
    }
    let beside: Vec<_> = beside.into_iter().map(finished).collect();
    assert!(beside.iter().all(|answer| answer.tokens.len() == 200));
    let counted = llm.engine().metrics().snapshot();
    assert_eq!((counted.running, counted.blocks_used), (0, 0), "{counted:?}");
    beside
}

fn finished(generation: Generation) -> Answer {
    generation.collect_blocking().expect("answered").remove(0)
}

#[test]
fn a_neighbour_with_a_grammar_changes_no_bit() {
    let llm = load("llama3", |_| {});
    let alone = one(&llm, &prompts()[5], 3);
    let formed: Vec<_> = (0..4).map(|seed| llm.generate(formed(Grammar::Regex("[a-f]{40}".into()), seed))).collect();
    let beside = one(&llm, &prompts()[5], 3);
    assert_eq!(beside, alone);
    for generation in formed {
        let answer = generation.expect("taken").collect_blocking().expect("answered").remove(0);
        assert_eq!(answer.text.len(), 40, "{:?}", answer.text);
    }
}
