//! The parts of a chat's answer as they come: text, thoughts, and calls of tools.
//!
//! Knows no API's form.

use crate::llm::{AnswerParser, Part, ToolCall};

/// One choice of an answer, taken apart as it comes.
pub(super) struct Parts {
    /// `None`: it is nothing but text.
    parser: Option<AnswerParser>,
    /// Whole calls so far.
    calls: usize,
    /// Calls after the first are left out.
    one_call: bool,
    /// The call whose pieces come is.
    leaves_out: bool,
    /// Tokens until it was seen that no thoughts come any more.
    first_tokens: u64,
    reasoning_tokens: u64,
}

/// A whole answer, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WholeParts {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<ToolCall>,
}

impl Parts {
    /// Each call comes whole.
    pub(super) fn new(parser: Option<AnswerParser>, one_call: bool) -> Self {
        Self { parser, calls: 0, one_call, leaves_out: false, first_tokens: 0, reasoning_tokens: 0 }
    }

    /// As [`Self::new`], but calls come in pieces where it is known before their end that they are calls.
    pub(super) fn in_pieces(parser: Option<AnswerParser>, one_call: bool) -> Self {
        Self::new(parser.map(AnswerParser::in_pieces), one_call)
    }

    /// The parts that `text` completes; it came with so many `tokens`.
    pub(super) fn push(&mut self, text: String, tokens: usize) -> Vec<Part> {
        let parts = match &mut self.parser {
            Some(parser) => {
                // The token that brings the mark that ends thoughts is still theirs.
                if !parser.is_past_thoughts() {
                    self.first_tokens += tokens as u64;
                }
                let parts = parser.push(&text);
                self.reasoning_tokens = if parser.has_thoughts() { self.first_tokens } else { 0 };
                parts
            }
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Text(text)],
        };
        self.count(parts)
    }

    /// What was held back, once the choice has ended.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let parts = self.parser.take().map_or_else(Vec::new, AnswerParser::finish);
        self.count(parts)
    }

    fn count(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        parts.retain(|part| {
            let (begins, ends) = match part {
                Part::Text(_) | Part::Reasoning(_) => return true,
                Part::Call(_) => (true, true),
                Part::CallBegins(_) => (true, false),
                Part::Arguments(_) => (false, false),
                Part::CallEnds => (false, true),
            };
            if begins {
                self.leaves_out = self.one_call && self.calls > 0;
            }
            self.calls += usize::from(ends && !self.leaves_out);
            !self.leaves_out
        });
        parts
    }

    /// Whole calls so far.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    /// Tokens so far that were thought: all until the end of thoughts was seen in the text, the marks' own among them.
    pub(super) fn reasoning_tokens(&self) -> u64 {
        self.reasoning_tokens
    }
}

impl WholeParts {
    /// Adds what follows.
    pub(super) fn extend(&mut self, parts: impl IntoIterator<Item = Part>) {
        for part in parts {
            match part {
                Part::Text(text) => self.text.push_str(&text),
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Call(call) => self.calls.push(call),
                Part::CallBegins(name) => self.calls.push(ToolCall { name, arguments: String::new() }),
                Part::Arguments(piece) => self.calls.last_mut().into_iter().for_each(|call| call.arguments += &piece),
                Part::CallEnds => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that count as thoughts, of an answer that comes in `pieces` of a token each.
    fn reasoning_tokens(parser: Option<AnswerParser>, pieces: &[&str]) -> u64 {
        let mut parts = Parts::new(parser, false);
        for piece in pieces {
            parts.push((*piece).to_owned(), 1);
        }
        // Text that was held back behind the last token is no token's.
        parts.push("end".to_owned(), 0);
        parts.finish();
        parts.reasoning_tokens()
    }

    #[test]
    fn tokens_are_thoughts_until_their_end_was_seen() {
        let answers = || AnswerParser::new(true, false, None);
        let opened = || AnswerParser::new(true, true, None);
        let cases: [(AnswerParser, &[&str], u64); 11] = [
            (opened(), &["so", "</think>", "\n\n", "Yes", "."], 2),
            (opened(), &["so", "</", "think", ">", "Yes"], 4),
            (opened(), &["so", "</think>Yes", "."], 2),
            (opened(), &["</think>", "Yes"], 1),
            (opened(), &["so", "", "on"], 3),
            (answers(), &["<think>", "so", "</think>", "Yes"], 3),
            (answers(), &["\n", "<th", "ink>", "so", "</think>", "Yes"], 5),
            (answers(), &["<think>so</think>Yes", "."], 1),
            (answers(), &["<th", "is>", "</think>"], 0),
            (answers(), &["\n", "Yes", "</think>"], 0),
            (AnswerParser::new(false, false, None), &["<think>", "so", "</think>"], 0),
        ];
        for (parser, pieces, expected) in cases {
            assert_eq!(reasoning_tokens(Some(parser), pieces), expected, "{pieces:?}");
        }
        assert_eq!(reasoning_tokens(None, &["<think>", "so", "</think>"]), 0);
    }
}
