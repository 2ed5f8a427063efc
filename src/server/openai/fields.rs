//! The fields that chat and completions share, and what they mean to the library.
//!
//! Knows no prompts. `null` is the same as absent everywhere.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::llm::{GenerateRequest, Grammar, Prompt, SamplingOptions};
use crate::request::{Tenant, TokenId};
use crate::server::body::Object;
use crate::server::chats;
use crate::server::error::ApiError;

/// How answers are generated.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    pub(super) model: String,
    pub(super) n: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<Map<String, Value>>,
    seed: Option<Number>,
    stop: Option<Value>,
    stop_token_ids: Option<Vec<TokenId>>,
    include_stop_str_in_output: Option<bool>,
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    pub(super) prompt_logprobs: Option<i64>,
    cache_salt: Option<String>,
    allowed_token_ids: Option<Vec<TokenId>>,
    bad_words: Option<Vec<String>>,
    /// Named so by Qwen's services, and by vLLM as the next.
    thinking_budget: Option<u32>,
    thinking_token_budget: Option<u32>,
    priority: Option<i32>,
    return_token_ids: Option<bool>,
    /// What the answer must follow, and the field that says so; read from fields of its own.
    #[serde(skip)]
    pub(super) grammar: Option<(&'static str, Grammar)>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
}

/// What a stream tells besides its text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// When a stream tells usage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StreamUsage {
    /// In a last chunk of its own.
    pub(super) at_end: bool,
    /// In every chunk.
    pub(super) always: bool,
}

impl Fields {
    /// Whether the answer is streamed.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether the answer is to tell its tokens and those of the prompt.
    pub(super) fn returns_token_ids(&self) -> bool {
        self.return_token_ids.unwrap_or(false)
    }

    pub(super) fn min_tokens(&self) -> u32 {
        self.min_tokens.unwrap_or(0)
    }

    pub(super) fn stream_usage(&self) -> StreamUsage {
        let options = self.stream_options.map_or_else(StreamOptions::default, |Object(options)| options);
        let at_end = options.include_usage.unwrap_or(false);
        StreamUsage { at_end, always: at_end && options.continuous_usage_stats.unwrap_or(false) }
    }

    /// A request that continues `prompt` as these fields say.
    ///
    /// # Errors
    /// 400, naming the field that is wrong. What depends on the model is checked by the engine.
    pub(super) fn request(&self, prompt: Prompt, tenant: Tenant) -> Result<GenerateRequest, ApiError> {
        let (name, max_tokens) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(tokens), _) => ("max_completion_tokens", Some(tokens)),
            (None, tokens) => ("max_tokens", tokens),
        };
        if max_tokens == Some(0) {
            return Err(ApiError::invalid(name, "0 asks for nothing; at least 1 is needed"));
        }
        let min_tokens = self.min_tokens();
        if max_tokens.is_some_and(|most| min_tokens > most) {
            return Err(ApiError::invalid("min_tokens", format!("{min_tokens} is more than {name}")));
        }
        if self.prompt_logprobs.is_some() && self.is_stream() {
            return Err(ApiError::unsupported("prompt_logprobs", "a stream does not tell them; set `stream` to false"));
        }
        Ok(GenerateRequest {
            n: self.n.unwrap_or(1),
            sampling: self.sampling()?,
            max_tokens,
            min_tokens,
            stop: chats::stop_strings(self.stop.as_ref(), "stop")?,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            grammar: self.grammar.as_ref().map(|(_, grammar)| grammar.clone()),
            grammar_field: self.grammar.as_ref().map_or("grammar", |(field, _)| field),
            allowed_token_ids: self.allowed_token_ids.clone(),
            bad_words: self.bad_words.clone().unwrap_or_default(),
            thinking_budget: self.thinking_budget.or(self.thinking_token_budget),
            priority: self.priority.unwrap_or(0),
            tenant,
            cache_salt: match self.cache_salt.as_deref() {
                Some("") => {
                    return Err(ApiError::invalid("cache_salt", "it is empty; leave it out to share the cache"));
                }
                salt => salt.map(Arc::from),
            },
            ..GenerateRequest::new(prompt)
        })
    }

    fn sampling(&self) -> Result<SamplingOptions, ApiError> {
        Ok(SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k.map(top_k).transpose()?,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.as_ref().map(logit_bias).transpose()?.unwrap_or_default(),
            seed: self.seed.as_ref().map(seed).transpose()?,
            logprobs: None,
            prompt_logprobs: self.prompt_logprobs.map(prompt_logprobs).transpose()?,
        })
    }
}

/// -1 is vLLM's word for the whole vocabulary.
fn prompt_logprobs(count: i64) -> Result<u32, ApiError> {
    u32::try_from(count).map_err(|_| {
        ApiError::invalid("prompt_logprobs", format!("{count} is outside 0 to 20: not all of the vocabulary is told"))
    })
}

/// -1 and 0 keep all tokens, as clients of different servers mean it.
fn top_k(k: i64) -> Result<u32, ApiError> {
    match k {
        -1 => Ok(0),
        _ => u32::try_from(k).map_err(|_| ApiError::invalid("top_k", format!("{k} is outside -1 to {}", u32::MAX))),
    }
}

/// Any whole number of 64 bits, with or without a sign.
fn seed(number: &Number) -> Result<u64, ApiError> {
    let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    seed.ok_or_else(|| ApiError::invalid("seed", format!("{number} is no whole number of 64 bits")))
}

/// Token ids are text here, since they are keys of a JSON object.
fn logit_bias(biases: &Map<String, Value>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let one = |(token, bias): (&String, &Value)| {
        let id = token.parse().map_err(|_| ApiError::invalid("logit_bias", format!("`{token}` is no token id")))?;
        let bias = bias.as_f64().ok_or_else(|| {
            ApiError::invalid("logit_bias", format!("the bias of token {token} is {bias}, which is no number"))
        })?;
        Ok((id, bias as f32))
    };
    biases.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(fields: Value) -> Result<GenerateRequest, ApiError> {
        let mut body = json!({"model": "m"});
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let fields: Fields = crate::server::body::parse(body.to_string().as_bytes())?;
        fields.request(Prompt::Text("p".into()), Tenant::default())
    }

    #[test]
    fn null_is_absent() {
        let nulls = json!({
            "n": null, "max_tokens": null, "max_completion_tokens": null, "temperature": null, "top_p": null,
            "top_k": null, "min_p": null, "repetition_penalty": null, "presence_penalty": null,
            "frequency_penalty": null, "logit_bias": null, "seed": null, "stop": null, "stop_token_ids": null,
            "include_stop_str_in_output": null, "min_tokens": null, "ignore_eos": null, "prompt_logprobs": null,
            "cache_salt": null, "allowed_token_ids": null, "bad_words": null, "thinking_budget": null,
            "priority": null, "return_token_ids": null, "stream": null, "stream_options": null, "user": null, "options": {"num_ctx": 8}
        });
        assert_eq!(request(nulls), Ok(GenerateRequest::text("p")));
    }

    #[test]
    fn every_field_arrives() {
        let all = json!({
            "n": 3, "max_tokens": 5, "max_completion_tokens": 7, "temperature": 1, "top_p": 0.5, "top_k": 40,
            "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 2,
            "logit_bias": {"7": -100, "8": 1.5}, "seed": -3, "stop": "end", "stop_token_ids": [4, 5],
            "include_stop_str_in_output": true, "min_tokens": 2, "ignore_eos": true, "prompt_logprobs": 4,
            "cache_salt": "mine", "allowed_token_ids": [1, 2], "bad_words": ["no"], "thinking_token_budget": 9,
            "priority": -1
        });
        let expected = GenerateRequest {
            n: 3,
            max_tokens: Some(7),
            min_tokens: 2,
            stop: vec!["end".into()],
            include_stop: true,
            stop_token_ids: vec![4, 5],
            ignore_eos: true,
            cache_salt: Some("mine".into()),
            allowed_token_ids: Some(vec![1, 2]),
            bad_words: vec!["no".into()],
            thinking_budget: Some(9),
            priority: -1,
            sampling: SamplingOptions {
                temperature: Some(1.0),
                top_k: Some(40),
                top_p: Some(0.5),
                min_p: Some(0.25),
                repetition_penalty: Some(1.5),
                presence_penalty: Some(-2.0),
                frequency_penalty: Some(2.0),
                logit_bias: vec![(7, -100.0), (8, 1.5)],
                seed: Some(u64::MAX - 2),
                logprobs: None,
                prompt_logprobs: Some(4),
            },
            ..GenerateRequest::text("p")
        };
        assert_eq!(request(all).expect("valid"), expected);
    }

    #[test]
    fn the_forms_of_stop_seed_and_top_k() {
        let get = |fields| request(fields).expect("valid");
        assert_eq!(get(json!({"stop": ["a", "b"]})).stop, ["a", "b"]);
        assert_eq!(get(json!({"stop": []})).stop, Vec::<String>::new());
        assert_eq!(get(json!({"seed": u64::MAX})).sampling.seed, Some(u64::MAX));
        assert_eq!(get(json!({"top_k": -1})).sampling.top_k, Some(0));
        assert_eq!(get(json!({"top_k": 0})).sampling.top_k, Some(0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
            (json!({"n": 1.5}), "n"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stop": 3}), "stop"),
            (json!({"stop": ["a", 3]}), "stop"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": "x"}}), "logit_bias"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
            (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
            (json!({"cache_salt": ""}), "cache_salt"),
            (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
            (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
            (json!({"prompt_logprobs": 4_294_967_296_u64}), "prompt_logprobs"),
            (json!({"stream_options": {"include_usage": "yes"}}), "stream_options.include_usage"),
            (json!({"model": 5}), "model"),
        ];
        for (fields, name) in cases {
            let error = request(fields.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{fields}");
        }
    }
}
