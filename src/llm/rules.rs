//! What an answer's tokens keep to: a grammar, tokens that may come, words that may not, and how long it may think.
//!
//! Knows no engine: it makes the masks that the engine samples under.

use std::fmt;
use std::sync::Arc;

use crate::request::{TokenId, TokenMask, TokenMasks};
use crate::tokenizer::IncrementalDecoder;

/// What opens and ends thoughts, in the text of every model that has them.
const THOUGHTS: [&str; 2] = ["<think>", "</think>"];

/// All rules of a request.
#[derive(Clone, Default)]
pub(super) struct Rules {
    pub(super) grammar: Option<Arc<dyn TokenMasks>>,
    /// The only tokens that may come.
    pub(super) allowed: Option<Arc<[TokenId]>>,
    /// Rows of tokens that may not come one after another. Source: `bad_words` of vLLM.
    pub(super) bad_words: Arc<[Vec<TokenId>]>,
    pub(super) thoughts: Option<ThoughtLimit>,
    /// Tokens in the vocabulary.
    pub(super) vocab_size: u32,
}

/// How long an answer may think.
#[derive(Clone)]
pub(super) struct ThoughtLimit {
    /// Tokens between the marks.
    pub(super) budget: u32,
    /// What then comes, to end them; at least one token.
    pub(super) end: Arc<[TokenId]>,
    /// Whether the prompt has opened them.
    pub(super) opened: bool,
    /// Before the first token.
    pub(super) decoder: IncrementalDecoder,
}

impl Rules {
    /// The masks that they make; `None` where anything may come.
    pub(super) fn masks(self) -> Option<Arc<dyn TokenMasks>> {
        let alone = self.allowed.is_none() && self.bad_words.is_empty() && self.thoughts.is_none();
        if alone { self.grammar } else { Some(Arc::new(self)) }
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("bad_words", &self.bad_words).finish_non_exhaustive()
    }
}

impl TokenMasks for Rules {
    fn start(&self) -> Box<dyn TokenMask> {
        let longest = self.bad_words.iter().map(Vec::len).max().unwrap_or(0);
        Box::new(Keeping {
            grammar: self.grammar.as_ref().map(|grammar| grammar.start()),
            allowed: self.allowed.as_ref().map(|allowed| bits(self.vocab_size, allowed)),
            bad_words: self.bad_words.clone(),
            last: Vec::with_capacity(longest),
            longest,
            thoughts: self.thoughts.clone().map(Thinking::new),
            all: self.vocab_size.div_ceil(32) as usize,
            mask: Vec::new(),
        })
    }
}

fn bits(vocab_size: u32, tokens: &[TokenId]) -> Vec<u32> {
    let mut bits = vec![0; vocab_size.div_ceil(32) as usize];
    for token in tokens {
        bits[*token as usize / 32] |= 1 << (token % 32);
    }
    bits
}

/// One answer's place in its rules.
struct Keeping {
    grammar: Option<Box<dyn TokenMask>>,
    allowed: Option<Vec<u32>>,
    bad_words: Arc<[Vec<TokenId>]>,
    /// As many of the last tokens as the longest bad word has before its end.
    last: Vec<TokenId>,
    longest: usize,
    thoughts: Option<Thinking>,
    /// Words of a mask of all tokens.
    all: usize,
    mask: Vec<u32>,
}

impl TokenMask for Keeping {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        let Self { grammar, allowed, bad_words, last, mask, .. } = self;
        if let Some(token) = self.thoughts.as_ref().and_then(Thinking::forced) {
            mask.clear();
            mask.resize(self.all, 0);
            mask[token as usize / 32] |= 1 << (token % 32);
            return Ok(Some(mask));
        }
        let followed = grammar.as_mut().map_or(Ok(None), |grammar| grammar.allowed())?;
        let completes = |word: &&Vec<TokenId>| last.ends_with(&word[..word.len() - 1]);
        let banned: Vec<_> = bad_words.iter().filter(completes).filter_map(|word| word.last()).collect();
        if followed.is_none() && allowed.is_none() && banned.is_empty() {
            return Ok(None);
        }
        mask.clear();
        match followed {
            Some(followed) => mask.extend_from_slice(followed),
            None => mask.resize(self.all, u32::MAX),
        }
        for (word, allowed) in mask.iter_mut().zip(allowed.iter().flatten()) {
            *word &= allowed;
        }
        for token in banned {
            if let Some(word) = mask.get_mut(*token as usize / 32) {
                *word &= !(1 << (token % 32));
            }
        }
        if mask.iter().all(|word| *word == 0) {
            return Err("no token is left that all of the request's rules allow".into());
        }
        Ok(Some(mask))
    }

    fn commit(&mut self, token: TokenId) -> Result<(), String> {
        if self.longest > 1 {
            if self.last.len() == self.longest - 1 {
                self.last.remove(0);
            }
            self.last.push(token);
        }
        if let Some(thoughts) = &mut self.thoughts {
            thoughts.commit(token);
        }
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.commit(token))
    }
}

/// Where an answer stands in its thoughts.
struct Thinking {
    limit: ThoughtLimit,
    stage: Stage,
    /// Text of the answer, as far back as a mark could begin.
    tail: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Nothing but white space, or the beginning of the mark that opens them.
    Before,
    /// So many tokens inside.
    Inside(u32),
    /// They are being ended; so many tokens of the end have come.
    Ending(usize),
    /// There are no more.
    After,
}

impl Thinking {
    fn new(limit: ThoughtLimit) -> Self {
        let stage = match limit {
            ThoughtLimit { opened: true, budget: 0, .. } => Stage::Ending(0),
            ThoughtLimit { opened: true, .. } => Stage::Inside(0),
            _ => Stage::Before,
        };
        Self { limit, stage, tail: String::new() }
    }

    /// The token that must come now, if one must.
    fn forced(&self) -> Option<TokenId> {
        match self.stage {
            Stage::Ending(at) => self.limit.end.get(at).copied(),
            _ => None,
        }
    }

    fn commit(&mut self, token: TokenId) {
        let [open, close] = THOUGHTS;
        if self.stage == Stage::After {
            return;
        }
        self.limit.decoder.push_onto(token, &mut self.tail);
        self.stage = match self.stage {
            Stage::Before => match self.tail.trim_start() {
                text if text.starts_with(open) => self.inside(0),
                text if open.starts_with(text) => Stage::Before,
                _ => Stage::After,
            },
            Stage::Inside(_) if self.tail.contains(close) => Stage::After,
            Stage::Inside(count) => self.inside(count + 1),
            Stage::Ending(at) if at + 1 == self.limit.end.len() => Stage::After,
            Stage::Ending(at) => Stage::Ending(at + 1),
            Stage::After => Stage::After,
        };
        if let Stage::Inside(_) = self.stage {
            let mut from = self.tail.len().saturating_sub(close.len());
            while !self.tail.is_char_boundary(from) {
                from += 1;
            }
            self.tail.drain(..from);
        }
    }

    fn inside(&self, count: u32) -> Stage {
        if count >= self.limit.budget { Stage::Ending(0) } else { Stage::Inside(count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{GgufVocab, Tokenizer};

    /// Ids 0 to 255 are bytes.
    fn decoder() -> IncrementalDecoder {
        let tokens: Vec<String> = (0..=255_u32).map(|byte| format!("<0x{byte:02X}>")).collect();
        let (token_types, scores) = (vec![6; 256], vec![0.0; 256]);
        let vocab = GgufVocab { model: "llama".into(), tokens, token_types, scores, ..GgufVocab::default() };
        IncrementalDecoder::continuing(&Tokenizer::from_gguf_vocab(vocab).expect("a valid vocabulary"), false)
    }

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    /// The tokens that may follow `text`; `None` where all may.
    fn after(rules: &Rules, text: &str) -> Result<Option<Vec<TokenId>>, String> {
        let mut keeping = rules.start();
        for token in ids(text) {
            keeping.allowed()?;
            keeping.commit(token)?;
        }
        let of = |bits: &[u32]| (0..256).filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        keeping.allowed().map(|bits| bits.map(of))
    }

    fn rules() -> Rules {
        Rules { vocab_size: 256, ..Rules::default() }
    }

    #[test]
    fn a_bad_word_cannot_be_completed_and_what_it_begins_with_can() {
        let rules = Rules { bad_words: [ids("x"), ids("aab")].into(), ..rules() };
        let banned = |text: &str| {
            let allowed = after(&rules, text).expect("something may come").expect("not all may");
            (0..256).filter(|id| !allowed.contains(id)).collect::<Vec<TokenId>>()
        };
        assert_eq!(banned(""), ids("x"));
        assert_eq!(banned("a"), ids("x"));
        assert_eq!(banned("ca"), ids("x"));
        assert_eq!(banned("aa"), ids("bx"));
        assert_eq!(banned("caaaa"), ids("bx"));
    }

    #[test]
    fn only_allowed_tokens_come_and_a_dead_end_is_said() {
        let allowed = Rules { allowed: Some(ids("ab").into()), ..rules() };
        assert_eq!(after(&allowed, "abba"), Ok(Some(ids("ab"))));
        let all_bad = Rules { bad_words: [ids("a"), ids("b")].into(), ..allowed };
        assert!(after(&all_bad, "").is_err());
        assert!(rules().masks().is_none());
    }

    #[test]
    fn thoughts_end_when_their_budget_is_used_up() {
        let limit = |opened, budget| {
            let thoughts = ThoughtLimit { budget, end: ids("!</think>").into(), opened, decoder: decoder() };
            Rules { thoughts: Some(thoughts), ..rules() }
        };
        // What is forced after each text, by its first character; `None`: nothing.
        let cases = [
            (true, 3, "abc", Some("!")),
            (true, 3, "ab", None),
            (true, 3, "abc!</think", Some(">")),
            (true, 3, "abc!</think>", None),
            (true, 0, "", Some("!")),
            (true, 99, "ab</think> and so on", None),
            (false, 2, "\n<think>ab", Some("!")),
            (false, 2, "\n<think>a", None),
            (false, 0, "<think>", Some("!")),
            (false, 2, "<thanks>abcdef", None),
            (false, 2, "no <think>abcdef", None),
        ];
        for (opened, budget, text, forced) in cases {
            assert_eq!(after(&limit(opened, budget), text), Ok(forced.map(ids)), "{opened} {budget} {text}");
        }
    }
}
