//! What OpenAI's API or other servers' extensions of it can ask and this server does not do: refused by name, since
//! leaving it out silently would give another answer than the one that was asked for.
//!
//! Fields that change no answer (`user`, `store`, `metadata`, `options` ...) are passed over and not listed.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::server::error::ApiError;

const STRUCTURED: &str = "send it as `response_format` or in `structured_outputs`";
const TEXT_ONLY: &str = "only text is taken and given";
const NOT_HERE: &str = "this server does not do that; leave it out";

/// Name, values that ask for nothing, and what is said about any other.
type Rule = (&'static str, fn(&Value) -> bool, &'static str);

/// `null`, `false`, empty text, lists and objects ask for nothing anywhere and need no rule, but for [`MEANT_FALSE`].
const REFUSED: [Rule; 19] = [
    ("grammar", never, STRUCTURED),
    ("json_schema", never, STRUCTURED),
    ("functions", never, "the older form of `tools`; send `tools` instead"),
    ("function_call", |value| value == "auto" || value == "none", "the older form of `tool_choice`; send that instead"),
    ("modalities", |value| value.as_array().is_some_and(|list| list.iter().all(|one| one == "text")), TEXT_ONLY),
    ("audio", never, TEXT_ONLY),
    ("web_search_options", never, NOT_HERE),
    ("suffix", never, "filling in before a suffix is not there; send what comes before it alone"),
    ("use_beam_search", never, "answers are sampled; there is no beam search"),
    ("truncate_prompt_tokens", never, "prompts are never cut; one that is too long is refused with both counts"),
    ("chat_template", never, "the model's own template is used"),
    ("documents", never, "put the documents into a message"),
    ("mirostat", |value| value.as_f64() == Some(0.0), NOT_HERE),
    ("typical_p", |value| value.as_f64() == Some(1.0), NOT_HERE),
    ("logits_processors", never, NOT_HERE),
    ("prompt_embeds", never, "only text and token ids are taken"),
    ("return_tokens_as_token_ids", never, NOT_HERE),
    ("skip_special_tokens", is_true, "answers are without special tokens; `return_token_ids` gives all ids"),
    ("spaces_between_special_tokens", is_true, "answers are without special tokens"),
];

/// Fields of which `false` asks for something.
const MEANT_FALSE: [&str; 2] = ["skip_special_tokens", "spaces_between_special_tokens"];

fn is_true(value: &Value) -> bool {
    value.is_null() || value == true
}

fn never(_: &Value) -> bool {
    false
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A view of a body that finds what is refused.
pub(super) struct Refused(Option<(&'static str, &'static str)>);

impl Refused {
    /// # Errors
    /// 400, naming the first field that asks for what is not done.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        match self.0 {
            Some((name, why)) => Err(ApiError::unsupported(name, why)),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FindRefused)
    }
}

struct FindRefused;

impl<'de> Visitor<'de> for FindRefused {
    type Value = Refused;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Refused, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            match REFUSED.iter().find(|(name, _, _)| *name == key) {
                Some((name, accepts, why)) => {
                    let value: Value = map.next_value()?;
                    let asks = MEANT_FALSE.contains(name) || !asks_for_nothing(&value);
                    if found.is_none() && asks && !accepts(&value) {
                        found = Some((*name, *why));
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Refused(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_answer_is_refused_by_name() {
        let refused = [
            (r#"{"json_schema": {"type": "object"}}"#, "json_schema"),
            (r#"{"modalities": ["text", "audio"]}"#, "modalities"),
            (r#"{"suffix": "end"}"#, "suffix"),
            (r#"{"function_call": {"name": "f"}}"#, "function_call"),
            (r#"{"use_beam_search": true}"#, "use_beam_search"),
            (r#"{"truncate_prompt_tokens": 10}"#, "truncate_prompt_tokens"),
            (r#"{"skip_special_tokens": false}"#, "skip_special_tokens"),
        ];
        for (json, name) in refused {
            let found: Refused = serde_json::from_str(json).expect(json);
            assert_eq!(found.check().expect_err(json).param.as_deref(), Some(name));
        }
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        for json in [
            "{}",
            r#"{"suffix": "", "functions": [], "use_beam_search": false}"#,
            r#"{"skip_special_tokens": true, "spaces_between_special_tokens": null}"#,
            r#"{"modalities": ["text"], "mirostat": 0, "function_call": "auto"}"#,
            r#"{"store": true, "metadata": {"a": "b"}, "anything": [1, 2]}"#,
        ] {
            let found: Refused = serde_json::from_str(json).expect(json);
            assert_eq!(found.check(), Ok(()), "{json}");
        }
    }
}
