//! The Jinja environment that chat templates were written for: that of Hugging Face transformers,
//! with the functions, the filter and the string methods it offers.
//!
//! It knows no messages. Source: `transformers/utils/chat_template_utils.py`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};

use super::python_json::{Style, dumps};
use super::strftime::strftime;

/// A template's own words, when it calls `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub String);

/// An environment whose renderings end after `max_steps`.
///
/// # Errors
/// A syntax that the engine refuses; it does not refuse this one.
pub(super) fn environment(max_steps: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(max_steps));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
    Err(error.with_source(Refusal(message)))
}

fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    strftime(format, now)
}

/// `json.dumps` with the arguments that transformers passes on.
fn tojson(value: Value, arguments: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no JSON form"));
    }
    let indent = arguments.get::<Option<usize>>("indent")?.map(|indent| indent.min(MAX_INDENT));
    let ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let mut style = Style { indent, ensure_ascii, ..Style::default() };
    if style.indent.is_some() {
        style.item_separator = ",".into();
    }
    if let Some(separators) = arguments.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "separators must be a pair"))?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    let sorts_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "a value has no JSON form").with_source(error)
    };
    let text = if sorts_keys {
        let mut json = serde_json::to_value(&value).map_err(failed)?;
        json.sort_all_objects();
        dumps(&json, &style)
    } else {
        dumps(&value, &style)
    };
    text.map(Value::from).map_err(failed)
}

/// The widest indentation of a level; a template that asks for more could fill the memory.
const MAX_INDENT: usize = 16;

/// Templates mark what the assistant says with `{% generation %}`, for training. Rendering it is
/// rendering what is inside, so both tags become a condition that always holds.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag, after) = (&rest[..start], &rest[start..start + length + 2], &rest[start + length + 2..]);
        out.push_str(before);
        let name = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
