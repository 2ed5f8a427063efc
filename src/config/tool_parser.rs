//! How calls of tools are read out of what a model writes.
//!
//! Knows no form: those are the tokenizer's.

use std::fmt;
use std::str::FromStr;

/// In which form a model writes calls of tools, for whoever knows better than its chat template says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum ToolParser {
    /// In the one that its chat template teaches.
    #[default]
    Auto,
    /// Hermes' and Qwen's: JSON between `<tool_call>` and `</tool_call>`.
    Hermes,
    /// DeepSeek's: V3.1's where the template teaches that one, else V3's and R1's. Both are read.
    DeepSeek,
    /// Llama 3's: an answer that is nothing but JSON.
    Llama3,
    /// The same, of any model.
    Json,
}

impl ToolParser {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Hermes, Self::DeepSeek, Self::Llama3, Self::Json];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Hermes => "hermes",
            Self::DeepSeek => "deepseek",
            Self::Llama3 => "llama3",
            Self::Json => "json",
        }
    }
}

/// Why a text names no parser.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no parser of tool calls; auto, hermes, deepseek, llama3 and json are")]
pub struct ToolParserError(String);

impl fmt::Display for ToolParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ToolParser {
    type Err = ToolParserError;

    fn from_str(text: &str) -> Result<Self, ToolParserError> {
        let lower = text.trim().to_ascii_lowercase();
        Self::ALL.into_iter().find(|parser| parser.name() == lower).ok_or_else(|| ToolParserError(text.to_owned()))
    }
}

impl TryFrom<String> for ToolParser {
    type Error = ToolParserError;

    fn try_from(text: String) -> Result<Self, ToolParserError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsers_are_read_by_their_names_and_other_words_are_not() {
        for parser in ToolParser::ALL {
            assert_eq!(format!(" {} ", parser.name().to_uppercase()).parse(), Ok(parser));
            assert_eq!(parser.to_string(), parser.name());
        }
        for text in ["", "qwen", "llama-3"] {
            let error = text.parse::<ToolParser>().expect_err(text).to_string();
            assert_eq!(
                error,
                format!("`{text}` is no parser of tool calls; auto, hermes, deepseek, llama3 and json are")
            );
        }
    }
}
