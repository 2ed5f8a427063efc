//! [`AnswerParser`]: what a model writes, taken apart as it comes: thoughts, text for the reader, and calls of tools.
//!
//! It knows no API. The same parts come however the text is cut: a mark that may be incomplete is held back until it is
//! known, and what only looks like a call is text.

mod calling;
mod calls;
#[cfg(test)]
mod corpus;
mod opened;
#[cfg(test)]
mod tests;

pub(super) use calls::DEEPSEEK_OPEN;
pub use calls::{CallFormat, ToolCall};
pub use opened::Unread;

use opened::Depth;

/// What opens and closes thoughts.
const THINK: &str = "<think>";
const THINK_END: &str = "</think>";

/// Most white space that is held back since it may say nothing, in bytes.
const MAX_SPACE_BYTES: usize = 4 << 10;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// A tool that it calls.
    Call(ToolCall),
    /// A tool that it calls, by name, with the arguments that follow.
    CallBegins(String),
    /// More of the arguments of the call that has begun: of the text that a whole call has.
    Arguments(String),
    /// The arguments of the call that has begun are whole. An answer that is cut off may lack it.
    CallEnds,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    /// Nothing but a little white space has come: thoughts may begin, or an answer that is nothing but a call.
    #[default]
    Start,
    Reasoning,
    /// Thoughts have just ended: white space before what is said is dropped.
    AfterReasoning,
    Text,
    /// Behind the mark that opens a call.
    Call,
    /// In an answer that began as a call without marks does.
    BareCall,
    /// In the arguments of a call that is told in pieces.
    Arguments,
    /// Behind those, until the call ends.
    BehindArguments,
}

/// Takes one answer apart.
#[derive(Clone, Debug, Default)]
pub struct AnswerParser {
    reasoning: bool,
    calls: Option<CallFormat>,
    state: State,
    /// Text that is not told yet.
    held: String,
    /// Whether thoughts were opened, if only to hold nothing.
    opened: bool,
    /// Whether any thought was told.
    thought: bool,
    /// Whether a call has come: white space behind it is dropped.
    called: bool,
    /// White space before the call that is read: it is text where that is none.
    space: String,
    /// Where, in the call that is read, marks of its end stand within strings.
    inner_marks: Vec<usize>,
    /// So much of what is held has no mark of the end of the call that is read, but for those.
    searched: usize,
    /// A grammar holds each call, from its name on, to the form that calls have.
    holds_calls: bool,
    /// Calls that are held to their form are told as they come.
    in_pieces: bool,
    depth: Depth,
}

impl AnswerParser {
    /// For an answer of a model that thinks, if `reasoning`, and calls tools in the form `calls`, if any were given to it.
    /// `opened` says that the prompt ends within thoughts.
    pub fn new(reasoning: bool, opened: bool, calls: Option<CallFormat>) -> Self {
        let state = if opened { State::Reasoning } else { State::Start };
        Self { reasoning: reasoning || opened, opened, calls, state, ..Self::default() }
    }

    /// As [`Self::new`], for an answer that goes on where `message` ends: within thoughts, where it has opened some and not
    /// ended them. What `message` says is not told.
    pub fn continuing(message: &str, reasoning: bool, calls: Option<CallFormat>) -> Self {
        let mut before = Self::new(reasoning, false, None);
        before.push(message);
        Self { thought: before.thought, ..Self::new(reasoning, before.is_in_thoughts(), calls) }
    }

    /// For an answer as this one's, had the prompt not ended within thoughts.
    pub fn without_thoughts(self) -> Self {
        Self::new(self.reasoning, false, self.calls)
    }

    /// For an answer as this one's, in which calls are text.
    pub fn without_calls(self) -> Self {
        Self { calls: None, ..self }
    }

    /// For an answer as this one's, in which a grammar holds calls to their form: from their names on, or altogether.
    pub fn holding_calls(self) -> Self {
        Self { holds_calls: true, ..self }
    }

    /// As it is, but that calls which a grammar holds to their form are told in pieces: their arguments as they come, and
    /// not where they are whole. Only of such a call it is known that it is one before it has ended.
    pub fn in_pieces(self) -> Self {
        Self { in_pieces: self.holds_calls, ..self }
    }

    /// Whether anything but text can be found.
    pub fn finds_anything(&self) -> bool {
        self.reasoning || self.calls.is_some()
    }

    /// Whether what comes next is thoughts, until they end.
    pub fn is_in_thoughts(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Whether thoughts were opened, by the prompt or by what has come.
    pub fn has_thoughts(&self) -> bool {
        self.opened
    }

    /// Whether no thoughts can come any more: they have ended, or the answer began without them.
    pub fn is_past_thoughts(&self) -> bool {
        !matches!(self.state, State::Start | State::Reasoning)
    }

    /// The parts that `text` completes.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// What was held back, once the answer has ended.
    pub fn finish(mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Reasoning => tell(Part::Reasoning, held.trim_end(), &mut parts),
            State::Call => match self.calls.and_then(|format| read_unclosed(format, &held)) {
                Some(call) => parts.push(Part::Call(call)),
                None => {
                    let (open, close) = self.calls.map_or(("", ""), |format| (format.open(), format.close()));
                    let (text, rest) =
                        held.split_at(self.inner_marks.first().map_or(held.len(), |at| at + close.len()));
                    tell(Part::Text, &format!("{}{open}{text}", self.space), &mut parts);
                    self.end_call();
                    self.in_pieces = false;
                    // Behind a mark that seemed to stand within a string there may be a call.
                    parts.extend(self.push(rest));
                    parts.extend(self.finish());
                }
            },
            State::BareCall => match calls::read_bare(&held) {
                Some(calls) => parts.extend(calls.into_iter().map(Part::Call)),
                None => tell(Part::Text, &held, &mut parts),
            },
            State::Arguments | State::BehindArguments => {}
            State::Start | State::AfterReasoning | State::Text => {
                let text = if self.called { held.trim_end() } else { &held };
                tell(Part::Text, text, &mut parts);
            }
        }
        parts
    }

    /// Goes on as far as what is held allows; whether there may be more to do.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Reasoning => self.reason(parts),
            State::AfterReasoning => {
                let rest = self.held.trim_start();
                self.held.drain(..self.held.len() - rest.len());
                let goes_on = !self.held.is_empty();
                if goes_on {
                    self.state = self.begin_text();
                }
                goes_on
            }
            State::Text => self.say(parts),
            State::Call => self.begin_arguments(parts) || self.call(parts),
            State::BareCall => self.begin_arguments(parts),
            State::Arguments => self.arguments(parts),
            State::BehindArguments => self.behind_arguments(),
        }
    }

    fn start(&mut self) -> bool {
        let text = self.held.trim_start();
        if self.held.len() - text.len() > MAX_SPACE_BYTES {
            self.state = State::Text;
            return true;
        }
        let is_open = |mark: &str| !text.is_empty() && text.len() < mark.len() && mark.starts_with(text);
        if text.is_empty() || self.reasoning && is_open(THINK) {
            return false;
        }
        if let Some(rest) = text.strip_prefix(THINK).filter(|_| self.reasoning) {
            self.held = rest.to_owned();
            self.opened = true;
            self.state = State::Reasoning;
            return true;
        }
        self.state = self.begin_text();
        true
    }

    /// How an answer goes on that begins with what is held, which is not nothing.
    fn begin_text(&self) -> State {
        let is_bare = self.calls.is_some_and(CallFormat::is_bare) && self.held.trim_start().starts_with('{');
        if is_bare { State::BareCall } else { State::Text }
    }

    fn reason(&mut self, parts: &mut Vec<Part>) -> bool {
        // White space is told with what follows it: at both ends of thoughts it says nothing.
        if !self.thought {
            let rest = self.held.trim_start().len();
            self.held.drain(..self.held.len() - rest);
        }
        if let Some(at) = self.held.find(THINK_END) {
            let thought = self.held[..without_space(&self.held[..at])].to_owned();
            tell(Part::Reasoning, &thought, parts);
            self.held.drain(..at + THINK_END.len());
            self.state = State::AfterReasoning;
            return true;
        }
        let known = self.held.len() - held_back(&self.held, THINK_END);
        let told = without_space(&self.held[..known]);
        let thought: String = self.held.drain(..told).collect();
        self.thought |= !thought.is_empty();
        tell(Part::Reasoning, &thought, parts);
        false
    }

    fn say(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(format) = self.calls.filter(|format| !format.is_bare()) else {
            let text = std::mem::take(&mut self.held);
            tell(Part::Text, &text, parts);
            return false;
        };
        for mark in format.ignored() {
            if let Some(at) = self.held.find(mark) {
                self.held.replace_range(at..at + mark.len(), "");
                return true;
            }
        }
        if let Some(at) = self.held.find(format.open()) {
            let text = &self.held[..without_space(&self.held[..at])];
            tell(Part::Text, text, parts);
            self.space = self.held[text.len()..at].to_owned();
            self.held.drain(..at + format.open().len());
            self.state = State::Call;
            return true;
        }
        let marks = format.ignored().iter().copied().chain([format.open()]);
        let unknown = marks.map(|mark| held_back(&self.held, mark)).max().unwrap_or(0);
        // White space before a call, and behind one, says nothing.
        let told = without_space(&self.held[..self.held.len() - unknown]);
        let text: String = self.held.drain(..told).collect();
        tell(Part::Text, &text, parts);
        false
    }
}

/// Adds `text`, if it is any, to the last of `parts` or as a new one.
fn tell(part: fn(String) -> Part, text: &str, parts: &mut Vec<Part>) {
    if text.is_empty() {
        return;
    }
    match (parts.last_mut(), part(String::new())) {
        (Some(Part::Text(last)), Part::Text(_)) | (Some(Part::Reasoning(last)), Part::Reasoning(_)) => {
            last.push_str(text);
        }
        _ => parts.push(part(text.to_owned())),
    }
}

/// Length of `text` without the white space at its end, in bytes; of more than is held back, a part is text.
fn without_space(text: &str) -> usize {
    text.trim_end().len().max(text.floor_char_boundary(text.len().saturating_sub(MAX_SPACE_BYTES)))
}

/// Bytes at the end of `text` that may be the beginning of `mark`.
fn held_back(text: &str, mark: &str) -> usize {
    let most = mark.len().min(text.len() + 1) - 1;
    (1..=most).rev().find(|count| mark.is_char_boundary(*count) && text.ends_with(&mark[..*count])).unwrap_or(0)
}

/// A call whose closing mark never came, for some models end where it would stand, or had only begun when a limit ended it.
fn read_unclosed(format: CallFormat, held: &str) -> Option<ToolCall> {
    let begun = held_back(held, format.close());
    format.read(held).or_else(|| format.read(&held[..held.len() - begun]))
}
