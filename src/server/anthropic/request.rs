//! The body of a request to `/v1/messages`, and what it means to the library.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::llm::{Chat, GenerateRequest, Grammar, Llm, Prompt, SamplingOptions};
use crate::request::Tenant;
use crate::server::body::Object;
use crate::server::chats::{self, ToolChoice};
use crate::server::error::ApiError;
use crate::server::grammars::response_format;

use super::blocks::{InputMessage, translate};

/// The body; fields that change no answer here (`metadata`, `service_tier`, `cache_control` ...) are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Body {
    pub(super) model: String,
    messages: Vec<Object<InputMessage>>,
    system: Option<Value>,
    max_tokens: Option<u32>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Object<Choice>>,
    thinking: Option<Object<Thinking>>,
    output_config: Option<Object<OutputConfig>>,
    mcp_servers: Option<Vec<Value>>,
    container: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    format: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    r#type: String,
    budget_tokens: Option<u32>,
}

impl Body {
    /// Whether the answer is streamed.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether calls after the first are left out.
    pub(super) fn one_call(&self) -> bool {
        self.tool_choice.as_ref().is_some_and(|Object(choice)| choice.disable_parallel_tool_use == Some(true))
    }

    /// The chat that the model is to continue, and whether it was given tools.
    ///
    /// # Errors
    /// 400, naming the field that is wrong.
    pub(super) fn chat(&mut self) -> Result<Chat, ApiError> {
        self.refuse()?;
        let tools = self.tools.take().unwrap_or_default();
        let tools = tools.into_iter().enumerate().map(|(index, tool)| function(tool, index));
        let tools = chats::functions(Some(tools.collect::<Result<_, _>>()?))?;
        let messages = translate(self.system.as_ref(), std::mem::take(&mut self.messages))?;
        // A last message of the assistant's is the beginning of the answer.
        let continue_final_message = messages.last().is_some_and(|last| last.role == "assistant");
        let mut template_variables = Map::new();
        chats::set_thinking(&mut template_variables, self.thinks()?);
        let tools = tools.filter(|_| self.choice() != Ok(ToolChoice::None));
        Ok(Chat { messages, tools, template_variables, continue_final_message, ..Chat::default() })
    }

    /// What would give another answer if it were passed over.
    fn refuse(&self) -> Result<(), ApiError> {
        if self.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
            return Err(ApiError::unsupported(
                "mcp_servers",
                "this server calls no others; send their tools as `tools`",
            ));
        }
        if self.container.is_some() {
            return Err(ApiError::unsupported("container", "this server runs no code of the model's"));
        }
        Ok(())
    }

    fn choice(&self) -> Result<ToolChoice, ApiError> {
        let Some(Object(choice)) = &self.tool_choice else { return Ok(ToolChoice::Auto) };
        match (choice.r#type.as_str(), &choice.name) {
            ("auto", _) => Ok(ToolChoice::Auto),
            ("none", _) => Ok(ToolChoice::None),
            ("any", _) => Ok(ToolChoice::Required),
            ("tool", Some(name)) => Ok(ToolChoice::Named(name.clone())),
            ("tool", None) => Err(ApiError::invalid("tool_choice.name", "it is missing")),
            (other, _) => Err(ApiError::invalid("tool_choice.type", format!("`{other}` is not known"))),
        }
    }

    /// What the answer must follow: a form, or a call that is forced in the model's own way of writing calls. With the field
    /// that it comes from.
    fn grammar(&self, chat: &Chat, llm: &Llm) -> Result<Option<(&'static str, Grammar)>, ApiError> {
        let format = self.output_config.as_ref().and_then(|Object(config)| config.format.as_ref());
        let form = format.map_or(Ok(None), |format| response_format(format, "output_config.format"))?;
        let choice = self.choice()?;
        let tools = chat.tools.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        match choice.forced(tools) {
            None => Ok(form.map(|form| ("output_config.format", form))),
            Some(forced) if forced.is_empty() => Err(ApiError::invalid("tool_choice", "no tool is called so")),
            Some(_) if form.is_some() => {
                Err(ApiError::invalid("tool_choice", "an answer of one form and a forced call exclude each other"))
            }
            Some(forced) => {
                let one = self.one_call() || matches!(choice, ToolChoice::Named(_));
                Ok(Some(("tools", llm.forced_calls(&forced, one))))
            }
        }
    }

    /// Whether the model is to think first: only where it is asked to.
    fn thinks(&self) -> Result<bool, ApiError> {
        match self.thinking.as_ref().map(|Object(thinking)| thinking.r#type.as_str()) {
            None | Some("disabled") => Ok(false),
            Some("enabled" | "adaptive") => Ok(true),
            Some(other) => Err(ApiError::invalid("thinking.type", format!("`{other}` is not known"))),
        }
    }

    /// A request that continues `chat` as these fields say.
    ///
    /// # Errors
    /// 400, naming the field that is wrong. What depends on the model is checked by the engine.
    pub(super) fn request(&self, chat: Chat, tenant: Tenant, llm: &Llm) -> Result<GenerateRequest, ApiError> {
        let grammar = self.grammar(&chat, llm)?;
        let max_tokens = match self.max_tokens {
            None => return Err(ApiError::invalid("max_tokens", "it is missing")),
            Some(0) => return Err(ApiError::invalid("max_tokens", "0 asks for nothing; at least 1 is needed")),
            Some(tokens) => tokens,
        };
        Ok(GenerateRequest {
            max_tokens: Some(max_tokens),
            stop: self.stop_sequences.clone().unwrap_or_default(),
            sampling: SamplingOptions {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                ..SamplingOptions::default()
            },
            grammar_field: grammar.as_ref().map_or("grammar", |(field, _)| field),
            grammar: grammar.map(|(_, grammar)| grammar),
            thinking_budget: self.thinking.as_ref().and_then(|Object(thinking)| thinking.budget_tokens),
            tenant,
            ..GenerateRequest::new(Prompt::Chat(chat))
        })
    }
}

/// A tool in the form that templates read.
fn function(tool: Value, index: usize) -> Result<Value, ApiError> {
    if let Some(kind) = tool.get("type").and_then(Value::as_str).filter(|kind| *kind != "custom") {
        let why = format!("`{kind}` runs on Anthropic's servers; tools with a `name` and an `input_schema` are taken");
        return Err(ApiError::unsupported(format!("tools[{index}].type"), why));
    }
    let mut function = Map::new();
    for (name, field) in [("name", "name"), ("description", "description"), ("parameters", "input_schema")] {
        if let Some(value) = tool.get(field) {
            function.insert(name.into(), value.clone());
        }
    }
    Ok(json!({ "type": "function", "function": function }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: Value) -> Result<GenerateRequest, ApiError> {
        let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let mut body: Body = crate::server::body::parse(body.to_string().as_bytes())?;
        let chat = body.chat()?;
        body.request(chat, Tenant::default(), &crate::server::tests::fixture::named("m", "", ()))
    }

    fn chat(more: Value) -> Chat {
        match read(more).expect("valid").prompt {
            Prompt::Chat(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_field_arrives() {
        let request = read(json!({
            "stop_sequences": ["a"], "temperature": 0.5, "top_p": 0.25, "top_k": 7,
            "metadata": {"user_id": "u"}, "service_tier": "auto", "mcp_servers": [], "container": null
        }))
        .expect("valid");
        assert_eq!((request.max_tokens, request.stop), (Some(9), vec!["a".to_owned()]));
        let expected =
            SamplingOptions { temperature: Some(0.5), top_p: Some(0.25), top_k: Some(7), ..SamplingOptions::default() };
        assert_eq!(request.sampling, expected);
    }

    #[test]
    fn tools_take_the_form_of_templates_unless_none_are_wanted() {
        let tools = json!([{"name": "f", "description": "d", "input_schema": {"type": "object"}, "type": "custom"}]);
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
        let expected = json!([{"type": "function", "function": function}]);
        assert_eq!(chat(json!({"tools": tools})).tools, Some(expected));
        assert_eq!(chat(json!({"tools": tools, "tool_choice": {"type": "none"}})).tools, None);
    }

    #[test]
    fn the_model_thinks_where_it_is_asked_to() {
        for (thinking, thinks) in [
            (json!(null), false),
            (json!({"type": "disabled"}), false),
            (json!({"type": "enabled", "budget_tokens": 1024}), true),
        ] {
            assert_eq!(chat(json!({"thinking": thinking})).template_variables["enable_thinking"], thinks);
        }
    }

    #[test]
    fn a_last_word_of_the_assistant_is_continued() {
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I"}]);
        assert!(chat(json!({"messages": messages})).continue_final_message);
        assert!(!chat(json!({})).continue_final_message);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"thinking": {"type": "deep"}}), "thinking.type"),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
            (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format.type"),
            (json!({"tool_choice": {"type": "maybe"}}), "tool_choice.type"),
            (json!({"mcp_servers": [{"type": "url", "url": "u", "name": "n"}]}), "mcp_servers"),
            (json!({"container": "c"}), "container"),
            (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"description": "d"}]}), "tools[0].function"),
        ];
        for (fields, name) in cases {
            let error = read(fields.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{fields}");
        }
    }
}
