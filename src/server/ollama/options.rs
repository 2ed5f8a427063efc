//! The `options` of a request and the fields around them, and what they mean to the library.
//!
//! Knows no prompts. Options that change no answer here (`num_thread`, `num_gpu` ...) are passed over; what would change it
//! and is not done here is refused by name.

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::config::KeepAlive;
use crate::llm::{GenerateRequest, Grammar, Prompt, SamplingOptions};
use crate::request::Tenant;
use crate::server::body::Object;
use crate::server::chats;
use crate::server::error::ApiError;

/// Tokens of the prompt that a shifted context keeps where nobody says. Source: Ollama's default of `num_keep`.
const KEPT: u32 = 4;

/// How far back penalties look where nobody says. Source: Ollama's default of `repeat_last_n`. Here they look at all tokens,
/// and who sends the default asks for nothing in particular.
const REPEAT_LAST_N: i64 = 64;

/// What chat and generate share.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    /// The clients of older servers say `name`.
    #[serde(alias = "name")]
    pub(super) model: String,
    stream: Option<bool>,
    options: Option<Object<Options>>,
    format: Option<Value>,
    think: Option<Value>,
    truncate: Option<bool>,
    shift: Option<bool>,
    keep_alive: Option<Value>,
    pub(super) logprobs: Option<bool>,
    top_logprobs: Option<u32>,
}

/// Numbers may be written with a fraction of zero, as some clients write all of theirs.
#[derive(Debug, Default, Deserialize)]
struct Options {
    num_ctx: Option<Number>,
    num_keep: Option<Number>,
    num_predict: Option<Number>,
    seed: Option<Number>,
    top_k: Option<Number>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<Number>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    mirostat: Option<f32>,
    tfs_z: Option<f32>,
    typical_p: Option<f32>,
    stop: Option<Value>,
}

impl Options {
    /// Ways of sampling that are not here, unless they are off, as clients send them that send all they know. Of
    /// `mirostat_eta` and `mirostat_tau` nobody asks: without `mirostat` they say nothing.
    fn refuse(&self) -> Result<(), ApiError> {
        // All of the distribution is left by 1 and above.
        let cuts = |p: Option<f32>| p.is_some_and(|p| p < 1.0);
        let refused = [
            ("options.mirostat", self.mirostat.is_some_and(|version| version != 0.0)),
            ("options.tfs_z", cuts(self.tfs_z)),
            ("options.typical_p", cuts(self.typical_p)),
        ];
        match refused.into_iter().find(|(_, asked)| *asked) {
            Some((name, _)) => Err(ApiError::unsupported(name, "this server does not sample so; leave it out")),
            None => Ok(()),
        }
    }

    /// The penalties of repetition, presence and frequency.
    fn penalties(&self) -> Result<[Option<f32>; 3], ApiError> {
        let penalties = [self.repeat_penalty, self.presence_penalty, self.frequency_penalty];
        let [repeat, more @ ..] = penalties.map(|penalty| penalty.unwrap_or_default());
        let asked = !matches!(repeat, 0.0 | 1.0) || more.iter().any(|penalty| *penalty != 0.0);
        match self.repeat_last_n.as_ref().map(|number| whole("options.repeat_last_n", number)).transpose()? {
            Some(0) => Ok([Some(1.0), Some(0.0), Some(0.0)]),
            Some(count) if asked && count > 0 && count != REPEAT_LAST_N => {
                let why = "penalties look at all tokens, as -1 asks; 0 takes them away";
                Err(ApiError::unsupported("options.repeat_last_n", why))
            }
            _ => Ok(penalties),
        }
    }
}

impl Fields {
    /// Whether the answer is streamed: it is, unless it is refused.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(true)
    }

    /// Whether messages may be left out of a chat that is too long. Only where it is asked for: nothing is lost silently.
    pub(super) fn may_truncate(&self) -> bool {
        self.truncate.unwrap_or(false)
    }

    /// How long the model is to stay after this request, if the request says.
    ///
    /// # Errors
    /// 400: it is no duration.
    pub(super) fn keep_alive(&self) -> Result<Option<KeepAlive>, ApiError> {
        let text = match &self.keep_alive {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(seconds)) => whole("keep_alive", seconds)?.to_string(),
            Some(other) => return Err(ApiError::invalid("keep_alive", format!("{other} is no duration"))),
        };
        text.parse().map(Some).map_err(|error| ApiError::invalid("keep_alive", error))
    }

    /// Most tokens of prompt and answer, if the request says.
    ///
    /// # Errors
    /// 400: it is no whole number.
    pub(super) fn max_context(&self) -> Result<Option<u32>, ApiError> {
        let number = self.options.as_ref().and_then(|Object(options)| options.num_ctx.as_ref());
        number.map_or(Ok(None), |number| positive("options.num_ctx", number))
    }

    fn asks_for_form(&self) -> bool {
        !matches!(&self.format, None | Some(Value::Null)) && self.format != Some("".into())
    }

    /// The variables of the template that switch thoughts.
    ///
    /// # Errors
    /// 400: `think` is neither a boolean nor a level.
    pub(super) fn template_variables(&self) -> Result<Map<String, Value>, ApiError> {
        let mut variables = Map::new();
        let thinks = match &self.think {
            // Thoughts have no place in an answer of one form.
            None | Some(Value::Null) if self.asks_for_form() => false,
            None | Some(Value::Null) => return Ok(variables),
            Some(Value::Bool(thinks)) => *thinks,
            Some(Value::String(level)) if matches!(level.as_str(), "low" | "medium" | "high" | "max") => {
                variables.insert("reasoning_effort".into(), level.as_str().into());
                true
            }
            Some(other) => {
                let known = "true, false, \"low\", \"medium\" and \"high\" are taken";
                return Err(ApiError::invalid("think", format!("{other} is not known; {known}")));
            }
        };
        chats::set_thinking(&mut variables, thinks);
        Ok(variables)
    }

    /// A request that continues `prompt` as these fields say.
    ///
    /// # Errors
    /// 400, naming the field that is wrong. What depends on the model is checked by the engine.
    pub(super) fn request(&self, prompt: Prompt, tenant: Tenant) -> Result<GenerateRequest, ApiError> {
        let grammar = match &self.format {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) if text == "json" => Some(Grammar::JsonObject),
            Some(schema @ Value::Object(_)) => Some(Grammar::JsonSchema(schema.clone())),
            Some(other) => {
                return Err(ApiError::invalid(
                    "format",
                    format!("{other} is not known; \"json\" or a schema is taken"),
                ));
            }
        };
        let none = Options::default();
        let options = self.options.as_ref().map_or(&none, |Object(options)| options);
        options.refuse()?;
        let [repetition_penalty, presence_penalty, frequency_penalty] = options.penalties()?;
        let whole = |name, number: &Option<Number>| number.as_ref().map(|number| whole(name, number)).transpose();
        let sampling = SamplingOptions {
            temperature: options.temperature,
            top_k: whole("options.top_k", &options.top_k)?.map(|k| u32::try_from(k).unwrap_or(0)),
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            // -1 is any, as absent is.
            seed: whole("options.seed", &options.seed)?.filter(|seed| *seed != -1).map(i64::cast_unsigned),
            logprobs: self.logprobs.unwrap_or(false).then(|| self.top_logprobs.unwrap_or(0)),
            ..SamplingOptions::default()
        };
        // -1 is all of the prompt.
        let keep = whole("options.num_keep", &options.num_keep)?
            .map_or(KEPT, |number| if number < 0 { u32::MAX } else { u32::try_from(number).unwrap_or(u32::MAX) });
        Ok(GenerateRequest {
            sampling,
            // 0 and below: as much as the context holds.
            max_tokens: options.num_predict.as_ref().map_or(Ok(None), |n| positive("options.num_predict", n))?,
            max_context: self.max_context()?,
            // Only where it is asked for: nothing is lost silently.
            shift_keeping: self.shift.unwrap_or(false).then_some(keep),
            stop: chats::stop_strings(options.stop.as_ref(), "options.stop")?,
            grammar_field: grammar.as_ref().map_or("grammar", |_| "format"),
            grammar,
            tenant,
            ..GenerateRequest::new(prompt)
        })
    }
}

/// `None` of 0 and below.
fn positive(name: &str, number: &Number) -> Result<Option<u32>, ApiError> {
    let number = Some(whole(name, number)?).filter(|number| *number > 0);
    Ok(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
}

fn whole(name: &str, number: &Number) -> Result<i64, ApiError> {
    let float = || number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15).map(|float| float as i64);
    let unsigned = || number.as_u64().map(u64::cast_signed);
    let found = number.as_i64().or_else(unsigned).or_else(float);
    found.ok_or_else(|| ApiError::invalid(name, format!("{number} is no whole number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(fields: Value) -> Result<GenerateRequest, ApiError> {
        let mut body = json!({"model": "m"});
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let fields: Fields = crate::server::body::parse(body.to_string().as_bytes())?;
        fields.template_variables()?;
        fields.keep_alive()?;
        fields.request(Prompt::Text("p".into()), Tenant::default())
    }

    #[test]
    fn every_option_arrives() {
        let options = json!({
            "num_ctx": 4096.0, "num_predict": 7, "seed": 42, "top_k": 40, "temperature": 0.5, "top_p": 0.25,
            "min_p": 0.125, "repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1, "stop": ["a"],
            "num_thread": 8, "mirostat": 0
        });
        let expected = GenerateRequest {
            max_tokens: Some(7),
            max_context: Some(4096),
            stop: vec!["a".into()],
            sampling: SamplingOptions {
                temperature: Some(0.5),
                top_k: Some(40),
                top_p: Some(0.25),
                min_p: Some(0.125),
                repetition_penalty: Some(1.5),
                presence_penalty: Some(1.0),
                frequency_penalty: Some(-1.0),
                seed: Some(42),
                logprobs: Some(3),
                ..SamplingOptions::default()
            },
            ..GenerateRequest::text("p")
        };
        let fields = json!({"options": options, "logprobs": true, "top_logprobs": 3, "format": "", "think": null});
        assert_eq!(request(fields), Ok(expected));
    }

    #[test]
    fn what_asks_for_nothing_in_particular_is_left_open() {
        let options = json!({"num_predict": -1, "seed": -1, "top_k": -1, "stop": null});
        let mut expected = GenerateRequest::text("p");
        expected.sampling.top_k = Some(0);
        assert_eq!(request(json!({"options": options})), Ok(expected));
        assert_eq!(request(json!({"options": {"num_predict": -2}, "options_of_others": 1})).unwrap().max_tokens, None);
    }

    #[test]
    fn ways_of_sampling_that_are_off_pass() {
        let neutral = json!({
            "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5.0, "tfs_z": 1, "typical_p": 1.0, "repeat_last_n": 64,
            "repeat_penalty": 1.0
        });
        let mut expected = GenerateRequest::text("p");
        expected.sampling.repetition_penalty = Some(1.0);
        assert_eq!(request(json!({"options": neutral})), Ok(expected));
        let penalties = |options: Value| {
            let sampling = request(json!({"options": options})).expect("valid").sampling;
            [sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty]
        };
        let asked = |last: i64| json!({"repeat_penalty": 1.5, "presence_penalty": 1, "repeat_last_n": last});
        assert_eq!(penalties(asked(-1)), [Some(1.5), Some(1.0), None]);
        assert_eq!(penalties(asked(64)), [Some(1.5), Some(1.0), None]);
        assert_eq!(penalties(asked(0)), [Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(penalties(json!({"repeat_last_n": 33})), [None, None, None]);
    }

    #[test]
    fn a_context_is_shifted_only_where_it_is_asked_for() {
        let cases = [
            (json!({"options": {"num_keep": 9}}), None),
            (json!({"shift": false, "options": {"num_keep": 9}}), None),
            (json!({"shift": true}), Some(4)),
            (json!({"shift": true, "options": {"num_keep": 9}}), Some(9)),
            (json!({"shift": true, "options": {"num_keep": -1}}), Some(u32::MAX)),
        ];
        for (fields, expected) in cases {
            assert_eq!(request(fields.clone()).map(|request| request.shift_keeping), Ok(expected), "{fields}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"options": {"num_predict": 1.5}}), "options.num_predict"),
            (json!({"options": {"num_keep": 0.5}}), "options.num_keep"),
            (json!({"options": {"temperature": "hot"}}), "options.temperature"),
            (json!({"options": {"stop": 3}}), "options.stop"),
            (json!({"options": []}), "options"),
            (json!({"options": {"mirostat": 2}}), "options.mirostat"),
            (json!({"options": {"tfs_z": 0.5}}), "options.tfs_z"),
            (json!({"options": {"typical_p": 0.7}}), "options.typical_p"),
            (json!({"options": {"repeat_penalty": 1.1, "repeat_last_n": 33}}), "options.repeat_last_n"),
            (json!({"options": {"frequency_penalty": 1, "repeat_last_n": 33}}), "options.repeat_last_n"),
            (json!({"options": {"repeat_last_n": 0.5}}), "options.repeat_last_n"),
            (json!({"think": "hard"}), "think"),
            (json!({"format": "xml"}), "format"),
            (json!({"keep_alive": "soon"}), "keep_alive"),
            (json!({"keep_alive": 1.5}), "keep_alive"),
        ];
        for (fields, name) in cases {
            let error = request(fields.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{fields}");
        }
    }
}
