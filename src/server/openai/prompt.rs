//! The `prompt` of a completion: a string, strings, token ids, or lists of token ids.
//!
//! Read straight into its final form: a list of a million ids never becomes a million JSON values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::llm::Prompt;
use crate::request::TokenId;

/// One prompt or several.
#[derive(Debug, PartialEq)]
pub(super) struct Prompts(pub(super) Vec<Prompt>);

impl Prompts {
    /// The prompts; `add_special_tokens` says whether the model's own go around texts, as they do unasked.
    pub(super) fn with_special_tokens(self, add_special_tokens: Option<bool>) -> Vec<Prompt> {
        let encoded = |prompt| match prompt {
            Prompt::Text(text) if add_special_tokens == Some(false) => Prompt::PlainText(text),
            prompt => prompt,
        };
        self.0.into_iter().map(encoded).collect()
    }
}

/// What a list begins with says what it is a list of.
enum First {
    Text(String),
    Token(TokenId),
    Tokens(Vec<TokenId>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadPrompts)
    }
}

struct ReadPrompts;

impl<'de> Visitor<'de> for ReadPrompts {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids, or a list of lists of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
        let prompts = match list.next_element()? {
            None => Vec::new(),
            Some(First::Text(first)) => rest(first, list)?.into_iter().map(Prompt::Text).collect(),
            Some(First::Token(first)) => vec![Prompt::Tokens(rest(first, list)?)],
            Some(First::Tokens(first)) => rest(first, list)?.into_iter().map(Prompt::Tokens).collect(),
        };
        Ok(Prompts(prompts))
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadFirst)
    }
}

struct ReadFirst;

impl<'de> Visitor<'de> for ReadFirst {
    type Value = First;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id, or a list of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<First, E> {
        Ok(First::Text(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<First, E> {
        TokenId::try_from(id).map(First::Token).map_err(|_| E::custom(format!("{id} is no token id")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First, A::Error> {
        Ok(First::Tokens(match list.next_element()? {
            Some(first) => rest(first, list)?,
            None => Vec::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_forms_are_read() {
        let text = |text: &str| Prompt::Text(text.into());
        let cases = [
            (r#""a""#, vec![text("a")]),
            (r#"["a", "b"]"#, vec![text("a"), text("b")]),
            ("[1, 2]", vec![Prompt::Tokens(vec![1, 2])]),
            ("[[1, 2], [3], []]", vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3]), Prompt::Tokens(vec![])]),
            ("[]", vec![]),
        ];
        for (json, expected) in cases {
            assert_eq!(serde_json::from_str::<Prompts>(json).expect(json).0, expected);
        }
    }

    #[test]
    fn texts_are_plain_where_special_tokens_are_not_wanted() {
        for (wish, expected) in [
            (None, Prompt::Text("a".into())),
            (Some(true), Prompt::Text("a".into())),
            (Some(false), Prompt::PlainText("a".into())),
        ] {
            let prompts = Prompts(vec![Prompt::Text("a".into()), Prompt::Tokens(vec![1])]);
            assert_eq!(prompts.with_special_tokens(wish), [expected, Prompt::Tokens(vec![1])]);
        }
    }

    #[test]
    fn mixed_and_foreign_forms_are_refused() {
        for json in ["5", "{}", "true", r#"["a", 1]"#, r#"[1, "a"]"#, "[[1], 2]", "[-1]", "[4294967296]", "[1.5]"] {
            assert!(serde_json::from_str::<Prompts>(json).is_err(), "{json}");
        }
    }
}
