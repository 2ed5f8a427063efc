//! [`ChatTemplate`]: messages to the one text that a model was trained on, by its own template.
//!
//! It knows no tokens; the text it makes holds the special tokens in writing.

use std::io;

use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};

use crate::config::ToolParser;

use super::answer::{CallFormat, DEEPSEEK_OPEN};
use super::chat_messages::{Expectations, normalise};
use super::listed_tools;
use super::template_environment::{Refusal, environment, without_generation_tags};

/// The most work that one rendering may do. A step is an instruction of the template, or 64
/// bytes of text that it makes.
pub const MAX_TEMPLATE_STEPS: u64 = 2_000_000;

/// The longest text, in bytes, that one rendering may make.
pub const MAX_RENDERED_BYTES: usize = 16 << 20;

/// The ChatML form, for models that bring no template of their own, and only for those.
pub const CHATML_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The name of the only template in an environment.
const NAME: &str = "chat";

/// Why a template could not be loaded, or not render a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template is not valid: {0}")]
    Syntax(#[source] Error),
    /// The template refused the conversation, in its own words.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// The messages hold something that no text model's template can take.
    #[error("unsupported messages: {0}")]
    Unsupported(String),
    /// Rendering took more than [`MAX_TEMPLATE_STEPS`].
    #[error("the chat template took more than {MAX_TEMPLATE_STEPS} steps")]
    TooManySteps,
    /// The text became longer than [`MAX_RENDERED_BYTES`].
    #[error("the chat template made more than {MAX_RENDERED_BYTES} bytes of text")]
    TooLong,
    /// The template failed.
    #[error("the chat template failed: {0}")]
    Failed(#[source] Error),
}

/// A model's chat template, with the environment that Hugging Face transformers gives it.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    expected: Expectations,
    tools: ToolsPlace,
    thinks: bool,
    calls: CallFormat,
}

/// Where a template shows tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToolsPlace {
    /// It writes them itself.
    Own,
    /// It writes calls in this form of DeepSeek's and says nothing of tools: they stand in a system message.
    SystemMessage(CallFormat),
    /// Nowhere.
    None,
}

impl ToolsPlace {
    fn of(source: &str) -> Self {
        if source.contains("tools") {
            Self::Own
        } else if source.contains(DEEPSEEK_OPEN) {
            Self::SystemMessage(CallFormat::of_template(source))
        } else {
            Self::None
        }
    }
}

impl ChatTemplate {
    /// Loads a template. `bos` and `eos` are the tokens as written (`<|im_end|>`); a template
    /// sees them as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = environment(MAX_TEMPLATE_STEPS).map_err(TemplateError::Failed)?;
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(TemplateError::Syntax)?;
        let mut template = ChatTemplate {
            source: source.to_owned(),
            environment,
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
            expected: Expectations::default(),
            tools: ToolsPlace::of(source),
            thinks: source.contains("</think>"),
            calls: CallFormat::of_template(source),
        };
        template.expected = template.probe();
        Ok(template)
    }

    /// The same for a model that writes calls in the form which is wished for.
    pub fn with_tool_parser(self, parser: ToolParser) -> Self {
        Self { calls: CallFormat::wished(parser, &self.source), ..self }
    }

    /// The template as the model brought it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the model hears of tools at all.
    pub fn knows_tools(&self) -> bool {
        self.tools != ToolsPlace::None
    }

    /// Whether the model thinks before it answers: its template then removes or shows thoughts.
    pub fn thinks(&self) -> bool {
        self.thinks
    }

    /// How the model writes calls of tools.
    pub fn call_format(&self) -> CallFormat {
        self.calls
    }

    /// Picks the source out of `chat_template` in tokenizer_config.json: a text, or a list of
    /// `{name, template}`, of which tools take `tool_use` and everything else `default`.
    pub fn pick(chat_template: &Value, with_tools: bool) -> Option<&str> {
        let Some(list) = chat_template.as_array() else { return chat_template.as_str() };
        let named =
            |name: &str| list.iter().find(|entry| entry["name"] == name).and_then(|entry| entry["template"].as_str());
        let tool_use = if with_tools { named("tool_use") } else { None };
        tool_use.or_else(|| named("default"))
    }

    /// Renders a conversation. `messages` are objects in OpenAI's form; content may be text, null
    /// or a list of text parts, and tool calls' arguments text or an object. `tools` is the list
    /// of tools; where the template has no word for them, but marks for their calls, they are listed in a system message.
    /// `extra` holds the template's own variables, such as `enable_thinking`; it cannot
    /// replace the ones above. Encode the result without `add_special`.
    ///
    /// # Errors
    /// Every [`TemplateError`] but `Syntax`.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let mut messages = normalise(messages, self.expected).map_err(TemplateError::Unsupported)?;
        if let (ToolsPlace::SystemMessage(format), Some(Value::Array(tools))) = (self.tools, tools) {
            let text = listed_tools::text(tools, format).map_err(TemplateError::Unsupported)?;
            listed_tools::add(&mut messages, &text);
        }
        let mut context = extra.clone();
        context.insert("messages".into(), Value::Array(messages));
        context.insert("tools".into(), tools.cloned().unwrap_or(Value::Null));
        context.entry("documents").or_insert(Value::Null);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        self.run(context)
    }

    fn run(&self, mut context: Map<String, Value>) -> Result<String, TemplateError> {
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                context.insert(name.into(), token.as_str().into());
            }
        }
        let template = self.environment.get_template(NAME).map_err(classify)?;
        let mut out = Bounded::default();
        template.render_captured_to(Serde(&context), &mut out).map_err(classify)?;
        Ok(String::from_utf8_lossy(&out.bytes).into_owned())
    }

    /// Finds what the template expects of a turn that only calls a tool, where templates differ:
    /// some require its content to be null, or leave out the call where it is not, and others to be
    /// text; some want the arguments as an object and others as text.
    fn probe(&self) -> Expectations {
        let render = |content: &Value, arguments: Value| {
            let call = json!({"id": "call00001", "type": "function",
                "function": {"name": "probe", "arguments": arguments}});
            let messages = json!([
                {"role": "user", "content": "question"},
                {"role": "assistant", "content": content, "tool_calls": [call]}]);
            let mut context = Map::new();
            context.insert("messages".into(), messages);
            context.insert("tools".into(), Value::Null);
            context.insert("add_generation_prompt".into(), false.into());
            self.run(context).ok()
        };
        let (null, text) = (Value::Null, json!(""));
        let object = json!({"needle": 1});
        let writes_json = |rendered: String| rendered.contains("\"needle\"");
        let object_arguments =
            [&null, &text].iter().any(|content| render(content, object.clone()).is_some_and(writes_json));
        let arguments = if object_arguments { object } else { json!("{}") };
        let (with_null, with_text) = (render(&null, arguments.clone()), render(&text, arguments));
        let text_content = match (&with_null, &with_text) {
            (None, Some(_)) => true,
            (Some(with_null), Some(with_text)) => with_null.contains("None") && !with_text.contains("None"),
            _ => false,
        };
        let shows_call = |rendered: Option<String>| rendered.is_some_and(|rendered| rendered.contains("probe"));
        let null_content = !text_content && shows_call(with_null) && !shows_call(with_text);
        Expectations { text_content, null_content, object_arguments }
    }
}

/// Text on its way out, up to [`MAX_RENDERED_BYTES`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says which of our errors an error of the engine is, by what caused it.
fn classify(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(refusal) = current.downcast_ref::<Refusal>() {
            return TemplateError::Refused(refusal.0.clone());
        }
        if let Some(io) = current.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::FileTooLarge
        {
            return TemplateError::TooLong;
        }
        if let Some(engine) = current.downcast_ref::<Error>()
            && engine.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooManySteps;
        }
        cause = current.source();
    }
    TemplateError::Failed(error)
}

#[cfg(test)]
mod tests;
