//! The part of [`AnswerParser`] that reads calls: each when it is whole, since only then it is known that it is one, or in
//! pieces where a grammar holds calls to their form.

use super::opened::Depth;
use super::{AnswerParser, Part, State, held_back, tell};

/// Longest call that is waited for, in bytes; a longer one is text.
const MAX_CALL_BYTES: usize = 1 << 20;
/// Most marks that end a call which may stand within strings of its arguments; with more it is text. Each is one reading of
/// the call so far.
pub(super) const MAX_INNER_MARKS: usize = 64;

impl AnswerParser {
    /// Reads a call that is waited for until it is whole; whether there may be more to do.
    pub(super) fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(format) = self.calls else { return false };
        let close = format.close();
        let Some(at) = self.held[self.searched..].find(close).map(|at| self.searched + at) else {
            self.searched = self.held.len() - held_back(&self.held[self.searched..], close);
            if self.held.len() > MAX_CALL_BYTES {
                let text = std::mem::take(&mut self.held);
                tell(Part::Text, &format!("{}{}{text}", self.space, format.open()), parts);
                self.end_call();
            }
            return false;
        };
        let call = format.read(&self.held[..at]);
        if call.is_none() && self.inner_marks.len() < MAX_INNER_MARKS && format.goes_on(&self.held[..at + close.len()])
        {
            self.inner_marks.push(at);
            self.searched = at + close.len();
            return true;
        }
        // What is no call ends at the first mark: another may begin behind it.
        let at = self.inner_marks.first().copied().filter(|_| call.is_none()).unwrap_or(at);
        let body: String = self.held.drain(..at + close.len()).collect();
        match call {
            Some(call) => {
                parts.push(Part::Call(call));
                self.called = true;
            }
            None => tell(Part::Text, &format!("{}{}{body}", self.space, format.open()), parts),
        }
        self.end_call();
        true
    }

    /// Behind a call there is text again.
    pub(super) fn end_call(&mut self) {
        self.inner_marks.clear();
        self.searched = 0;
        self.state = State::Text;
    }

    /// Tells that a call has begun, if calls are told in pieces and what is held is the beginning of one up to its arguments.
    pub(super) fn begin_arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(format) = self.calls.filter(|_| self.in_pieces) else { return false };
        let Ok((name, at)) = format.head(&self.held) else { return false };
        self.held.drain(..at);
        parts.push(Part::CallBegins(name));
        self.called = true;
        self.depth = Depth::default();
        self.state = State::Arguments;
        true
    }

    /// Tells what is held of the arguments of a call.
    pub(super) fn arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let end = self.depth.end(&self.held);
        let piece: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        tell(Part::Arguments, &piece, parts);
        if end.is_some() {
            parts.push(Part::CallEnds);
            self.state = State::BehindArguments;
        }
        end.is_some()
    }

    /// Passes over what stands between the arguments of a call and its end. A bare call's is the answer's.
    pub(super) fn behind_arguments(&mut self) -> bool {
        let close = self.calls.filter(|format| !format.is_bare()).map(|format| format.close());
        match close.and_then(|close| Some(self.held.find(close)? + close.len())) {
            Some(behind) => {
                self.held.drain(..behind);
                self.end_call();
                true
            }
            None => {
                let kept = close.map_or(0, |close| held_back(&self.held, close));
                self.held.drain(..self.held.len() - kept);
                false
            }
        }
    }
}
