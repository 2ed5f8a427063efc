//! The body of a request to `/v1/responses`, and what it means to the library.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::llm::{Chat, GenerateRequest, Grammar, Llm, Message, Prompt, SamplingOptions};
use crate::request::Tenant;
use crate::server::body::Object;
use crate::server::chats::{self, ToolChoice};
use crate::server::error::ApiError;
use crate::server::grammars::response_format;

use super::input::{resolve, with_ids};
use super::items::translate;

/// What `include` calls the log-probabilities of the answer's text.
const LOGPROBS: &str = "message.output_text.logprobs";

/// What a client may keep beside a response: pairs, and bytes of a name and of a text. Source: OpenAI's reference.
const MAX_METADATA: usize = 16;
const MAX_METADATA_NAME_BYTES: usize = 64;
const MAX_METADATA_BYTES: usize = 4 * 512;

/// The body; fields that change no answer here (`user`, `service_tier` ...) are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Body {
    pub(super) model: String,
    input: Option<Value>,
    pub(super) instructions: Option<String>,
    pub(super) previous_response_id: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    /// Bounds the calls of tools that OpenAI's servers run, of which there are none here.
    pub(super) max_tool_calls: Option<u32>,
    pub(super) top_logprobs: Option<u32>,
    include: Option<Vec<String>>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) tools: Option<Vec<Value>>,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) reasoning: Option<Object<Reasoning>>,
    pub(super) text: Option<Object<Text>>,
    pub(super) metadata: Option<Value>,
    pub(super) prompt_cache_key: Option<String>,
    stream: Option<bool>,
    store: Option<bool>,
    background: Option<bool>,
    truncation: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reasoning {
    pub(super) effort: Option<String>,
    /// Repeated in the answer, whose thoughts come whole.
    pub(super) summary: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Text {
    format: Option<Value>,
}

/// What is asked, in the library's words.
pub(super) struct Asked {
    /// What has been said, instructions apart: what a stored response goes on from.
    pub(super) conversation: Vec<Message>,
    pub(super) tools: Option<Value>,
    choice: ToolChoice,
    /// Types of tools that this server does not run.
    pub(super) passed_over: Vec<String>,
}

impl Body {
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether later responses may refer to this one: they may, unless it is refused.
    pub(super) fn is_stored(&self) -> bool {
        self.store.unwrap_or(true)
    }

    /// The form that is asked for.
    pub(super) fn format(&self) -> Option<&Value> {
        self.text.as_ref().and_then(|Object(text)| text.format.as_ref())
    }

    /// Puts the items that `find` has where the input refers to them.
    ///
    /// # Errors
    /// 400: they are too many or too large. 404: there is none of that id.
    pub(super) fn resolve(&mut self, most_bytes: usize, find: impl Fn(&str) -> Option<Value>) -> Result<(), ApiError> {
        self.input.as_mut().map_or(Ok(()), |input| resolve(input, most_bytes, find))
    }

    /// Whether what the client keeps beside a response is what OpenAI takes: 16 short texts.
    ///
    /// # Errors
    /// 400: it is not.
    pub(super) fn check_metadata(&self) -> Result<(), ApiError> {
        let fits = |(name, value): (&String, &Value)| {
            name.len() <= MAX_METADATA_NAME_BYTES && value.as_str().is_some_and(|text| text.len() <= MAX_METADATA_BYTES)
        };
        match &self.metadata {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Object(pairs)) if pairs.len() <= MAX_METADATA && pairs.iter().all(fits) => Ok(()),
            Some(_) => Err(ApiError::invalid(
                "metadata",
                format!(
                    "at most {MAX_METADATA} texts of {MAX_METADATA_BYTES} bytes, under names of \
                     {MAX_METADATA_NAME_BYTES}, are kept"
                ),
            )),
        }
    }

    /// What is asked now, as items with ids, which `unique_id` makes.
    pub(super) fn input_items(&self, unique_id: impl Fn() -> String) -> Vec<Value> {
        self.input.as_ref().map_or_else(Vec::new, |input| with_ids(input, unique_id))
    }

    /// Alternatives to each token that are told, where any are.
    fn logprobs(&self) -> Option<u32> {
        let asked = self.include.iter().flatten().any(|name| name == LOGPROBS);
        self.top_logprobs.filter(|top| asked || *top > 0).or(asked.then_some(0))
    }

    /// What was said `earlier` and is said now, and the tools.
    ///
    /// # Errors
    /// 400, naming the field that is wrong.
    pub(super) fn conversation(&mut self, earlier: Vec<Message>) -> Result<Asked, ApiError> {
        self.refuse()?;
        let Some(input) = self.input.take() else { return Err(ApiError::invalid("input", "it is missing")) };
        let mut conversation = earlier;
        conversation.extend(translate(input)?);
        if conversation.is_empty() {
            return Err(ApiError::invalid("input", "there are no items; at least one is needed"));
        }
        let (mut functions, mut passed_over) = (Vec::new(), Vec::new());
        for tool in self.tools.iter().flatten() {
            match tool.get("type").and_then(Value::as_str) {
                Some("function") => functions.push(function(tool)),
                // Agents offer tools that only OpenAI's servers run; a model that does not hear of them calls none.
                other => passed_over.push(other.unwrap_or("unknown").to_owned()),
            }
        }
        if !passed_over.is_empty() {
            tracing::info!(?passed_over, "tools that are no functions are not shown to the model");
        }
        let choice = self.tool_choice.as_ref().map_or(Ok(ToolChoice::Auto), ToolChoice::read)?;
        let tools = chats::only_allowed(chats::functions(Some(functions))?, self.tool_choice.as_ref())?;
        let tools = tools.filter(|_| choice != ToolChoice::None);
        if matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) && tools.is_none() {
            return Err(ApiError::invalid("tool_choice", "a call is required, and there are no functions"));
        }
        Ok(Asked { conversation, tools, choice, passed_over })
    }

    /// What would give another answer if it were passed over.
    fn refuse(&self) -> Result<(), ApiError> {
        if self.background == Some(true) {
            return Err(ApiError::unsupported("background", "responses are made while the client waits"));
        }
        if self.truncation.as_deref() == Some("auto") {
            let why = "prompts are never cut; one that is too long is refused with both counts";
            return Err(ApiError::unsupported("truncation", why));
        }
        if self.conversation.is_some() {
            let why = "conversations are not kept; go on from a stored response with `previous_response_id`";
            return Err(ApiError::unsupported("conversation", why));
        }
        if self.prompt.is_some() {
            let why = "no templates of prompts are kept; send what it says as `instructions` and `input`";
            return Err(ApiError::unsupported("prompt", why));
        }
        Ok(())
    }

    /// What the answer must follow: a form, or a call that is forced in the model's own way of writing calls. With the field
    /// that it comes from.
    fn grammar(&self, asked: &Asked, llm: &Llm) -> Result<Option<(&'static str, Grammar)>, ApiError> {
        let tools = asked.tools.as_ref().and_then(Value::as_array);
        let forced = match tools.and_then(|tools| asked.choice.forced(tools)) {
            Some(forced) if forced.is_empty() => {
                return Err(ApiError::invalid("tool_choice", "no function is called so"));
            }
            forced => forced,
        };
        let form = match self.format() {
            Some(format) => response_format(format, "text.format")?,
            None => None,
        };
        let one = self.parallel_tool_calls == Some(false) || matches!(asked.choice, ToolChoice::Named(_));
        match (form, forced) {
            (Some(_), Some(_)) => {
                Err(ApiError::invalid("tool_choice", "an answer of one form and a forced call exclude each other"))
            }
            (Some(form), None) => Ok(Some(("text.format", form))),
            (None, forced) => Ok(forced.map(|tools| ("tools", llm.forced_calls(&tools, one)))),
        }
    }

    /// The request to the library.
    ///
    /// # Errors
    /// 400: nothing may be generated. What depends on the model is checked by the engine.
    pub(super) fn request(&self, asked: &Asked, tenant: Tenant, llm: &Llm) -> Result<GenerateRequest, ApiError> {
        if self.max_output_tokens == Some(0) {
            return Err(ApiError::invalid("max_output_tokens", "0 asks for nothing; at least 1 is needed"));
        }
        let instructions = self.instructions.clone().filter(|text| !text.is_empty()).map(Message::system);
        let grammar = self.grammar(asked, llm)?;
        let mut template_variables = Map::new();
        let effort = self.reasoning.as_ref().and_then(|Object(reasoning)| reasoning.effort.as_deref());
        if let Some(effort) = effort {
            chats::set_thinking(&mut template_variables, effort != "none");
        }
        chats::set_effort(&mut template_variables, effort);
        if grammar.is_some() {
            // Thoughts have no place in an answer of one form.
            chats::set_thinking(&mut template_variables, false);
        }
        let chat = Chat {
            messages: instructions.into_iter().chain(asked.conversation.iter().cloned()).collect(),
            tools: asked.tools.clone(),
            template_variables,
            ..Chat::default()
        };
        Ok(GenerateRequest {
            max_tokens: self.max_output_tokens,
            sampling: SamplingOptions {
                temperature: self.temperature,
                top_p: self.top_p,
                logprobs: self.logprobs(),
                ..SamplingOptions::default()
            },
            grammar_field: grammar.as_ref().map_or("grammar", |(field, _)| field),
            grammar: grammar.map(|(_, grammar)| grammar),
            tenant,
            ..GenerateRequest::new(Prompt::Chat(chat))
        })
    }
}

/// A function in the form that templates read, which has its fields one level deeper.
fn function(tool: &Value) -> Value {
    let mut function = Map::new();
    for name in ["name", "description", "parameters"] {
        if let Some(value) = tool.get(name).filter(|value| !value.is_null()) {
            function.insert(name.into(), value.clone());
        }
    }
    json!({ "type": "function", "function": function })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(more: Value) -> Result<(Asked, GenerateRequest), ApiError> {
        let mut body = json!({"model": "m", "input": "hi"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let mut body: Body = crate::server::body::parse(body.to_string().as_bytes())?;
        let asked = body.conversation(vec![Message::user("before"), Message::assistant("yes")])?;
        let llm = crate::server::tests::fixture::named("m", "", ());
        let request = body.request(&asked, Tenant::default(), &llm)?;
        Ok((asked, request))
    }

    #[test]
    fn instructions_come_first_and_are_no_part_of_the_conversation() {
        let (asked, request) =
            asked(json!({"instructions": "be brief", "max_output_tokens": 7, "temperature": 0.5})).expect("valid");
        assert_eq!(asked.conversation.len(), 3);
        let Prompt::Chat(chat) = request.prompt else { panic!("a chat") };
        let texts: Vec<_> = chat.messages.iter().filter_map(|message| message.content.as_deref()).collect();
        assert_eq!(texts, ["be brief", "before", "yes", "hi"]);
        assert_eq!((request.max_tokens, request.sampling.temperature), (Some(7), Some(0.5)));
    }

    #[test]
    fn functions_are_shown_and_other_tools_are_passed_over() {
        let tools = json!([
            {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true},
            {"type": "web_search"}, {"type": "local_shell"},
        ]);
        let (found, _) = asked(json!({"tools": tools, "tool_choice": "auto"})).expect("valid");
        let function = json!({"name": "f", "parameters": {"type": "object"}});
        assert_eq!(found.tools, Some(json!([{"type": "function", "function": function}])));
        assert_eq!(found.passed_over, ["web_search", "local_shell"]);
        assert_eq!(asked(json!({"tools": tools, "tool_choice": "none"})).expect("valid").0.tools, None);
        let allowed = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]});
        assert_eq!(asked(json!({"tools": tools, "tool_choice": allowed})).expect("valid").0.tools, None);
    }

    #[test]
    fn logprobs_are_asked_for_by_include_or_by_their_number() {
        let logprobs = |more| asked(more).map(|(_, request)| request.sampling.logprobs);
        let include = json!(["reasoning.encrypted_content", "message.output_text.logprobs"]);
        assert_eq!(logprobs(json!({"include": ["reasoning.encrypted_content"], "top_logprobs": 0})), Ok(None));
        assert_eq!(logprobs(json!({"include": include})), Ok(Some(0)));
        assert_eq!(logprobs(json!({"include": include, "top_logprobs": 3})), Ok(Some(3)));
        assert_eq!(logprobs(json!({"top_logprobs": 3, "conversation": null, "prompt": null})), Ok(Some(3)));
    }

    #[test]
    fn what_is_wrong_or_not_done_is_named() {
        let cases = [
            (json!({"input": null}), "input"),
            (json!({"background": true}), "background"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"conversation": {"id": "conv_1"}}), "conversation"),
            (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
            (json!({"max_tool_calls": -1}), "max_tool_calls"),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        ];
        for (fields, name) in cases {
            let error = asked(fields.clone()).err().expect(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{fields}");
        }
    }
}
