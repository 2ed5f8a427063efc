//! The parts of a chat's answer as they come: text, thoughts, and calls of tools.
//!
//! Knows no API's form.

use crate::llm::{AnswerParser, Part};

/// One choice of an answer, taken apart as it comes.
pub(super) struct Parts {
    /// `None`: it is nothing but text.
    parser: Option<AnswerParser>,
    /// Calls so far.
    calls: usize,
    /// Further calls are left out.
    one_call: bool,
}

/// A whole answer, taken apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct WholeParts {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<crate::llm::ToolCall>,
}

impl Parts {
    pub(super) fn new(parser: Option<AnswerParser>, one_call: bool) -> Self {
        Self { parser, calls: 0, one_call }
    }

    /// The parts that `text` completes.
    pub(super) fn push(&mut self, text: String) -> Vec<Part> {
        let parts = match &mut self.parser {
            Some(parser) => parser.push(&text),
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

    /// The parts of an answer that is all there.
    pub(super) fn whole(&mut self, text: String) -> WholeParts {
        let mut whole = WholeParts::default();
        let mut all = self.push(text);
        all.extend(self.finish());
        for part in all {
            match part {
                Part::Text(text) => whole.text.push_str(&text),
                Part::Reasoning(text) => whole.reasoning.push_str(&text),
                Part::Call(call) => whole.calls.push(call),
            }
        }
        whole
    }

    fn count(&mut self, mut parts: Vec<Part>) -> Vec<Part> {
        parts.retain(|part| {
            let is_call = matches!(part, Part::Call(_));
            let keep = !is_call || !self.one_call || self.calls == 0;
            self.calls += usize::from(is_call && keep);
            keep
        });
        parts
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }
}
