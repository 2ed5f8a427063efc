//! The `options` of a request and the fields around them, and what they mean to the library.
//!
//! Knows no prompts. Options that change no answer here (`num_thread`, `num_gpu` ...) are passed over.

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
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    stop: Option<Value>,
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
        let whole = |name, number: &Option<Number>| number.as_ref().map(|number| whole(name, number)).transpose();
        let positive = |name: &'static str, number| {
            let positive = whole(name, number)?.filter(|number| *number > 0);
            Ok::<_, ApiError>(positive.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
        };
        let sampling = SamplingOptions {
            temperature: options.temperature,
            top_k: whole("options.top_k", &options.top_k)?.map(|k| u32::try_from(k).unwrap_or(0)),
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repeat_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
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
            max_tokens: positive("options.num_predict", &options.num_predict)?,
            max_context: positive("options.num_ctx", &options.num_ctx)?,
            // Only where it is asked for: nothing is lost silently.
            shift_keeping: self.shift.unwrap_or(false).then_some(keep),
            stop: chats::stop_strings(options.stop.as_ref(), "options.stop")?,
            grammar,
            tenant,
            ..GenerateRequest::new(prompt)
        })
    }
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
