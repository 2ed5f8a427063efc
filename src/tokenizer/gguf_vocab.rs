//! Builds a tokenizer from the vocabulary inside a GGUF file, equal to the model's tokenizer.json.
//!
//! It does not read GGUF: whoever does hands over the metadata as [`GgufVocab`].

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence};

use super::TokenizerError;
use super::pieces::{Piece, PieceTable, Spelling};
use super::pre_tokenizer::PreTokenization;

/// The longest token, in bytes, whose merges are derived from scores. SentencePiece's own limit
/// is 16 characters unless its trainer was told otherwise.
pub const MAX_PIECE_BYTES: usize = 512;

/// Values of `tokenizer.ggml.token_type`.
///
/// Source: the GGUF specification, "Tokenizer".
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

/// A tokenizer as GGUF metadata holds it, under `tokenizer.ggml.*`.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the name of the pre-tokenizer; only for `gpt2`.
    pub pre: Option<String>,
    /// `tokens`: the text of each id, `[vocab_size]`.
    pub tokens: Vec<String>,
    /// `token_type`: the kind of each id, `[vocab_size]`; empty means that all are normal.
    pub token_types: Vec<i32>,
    /// `merges`: pairs in order of rank, written `left right`; only for `gpt2`.
    pub merges: Vec<String>,
    /// `scores`: the merge score of each id, `[vocab_size]`; only for `llama`.
    pub scores: Vec<f32>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`; by default true for `llama` and Llama 3, else false.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; by default false.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; by default true for `llama`; `gpt2` knows none.
    pub add_space_prefix: Option<bool>,
}

/// What [`GgufVocab::build`] makes.
pub(super) struct Built {
    pub encoder: tokenizers::Tokenizer,
    pub pieces: PieceTable,
    pub adds_bos: bool,
    pub adds_eos: bool,
}

impl GgufVocab {
    pub(super) fn build(&self) -> Result<Built, TokenizerError> {
        self.check()?;
        match self.model.as_str() {
            "gpt2" => self.build_byte_level(),
            "llama" => self.build_sentence_piece(),
            other => Err(TokenizerError::UnsupportedModel(other.to_owned())),
        }
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        let fail = |reason: String| Err(TokenizerError::Vocabulary(reason));
        if count == 0 {
            return fail("it holds no tokens".into());
        }
        if !self.token_types.is_empty() && self.token_types.len() != count {
            return fail(format!("{count} tokens but {} token types", self.token_types.len()));
        }
        let named = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)];
        for (name, id) in named {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return fail(format!("the {name} token is {id}, but there are {count} tokens"));
            }
        }
        Ok(())
    }

    fn build_byte_level(&self) -> Result<Built, TokenizerError> {
        if self.pre.is_none() {
            tracing::warn!("the file names no pre-tokenizer: text may be cut into other tokens than the model learned");
        }
        let cut = PreTokenization::named(self.pre.as_deref())?;
        let ids = self.ids();
        let merges = self.listed_merges(&ids)?;
        let model = BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(cut.ignores_merges)
            .build()
            .map_err(TokenizerError::Failed)?;
        let mut encoder = tokenizers::Tokenizer::new(model);
        if cut.composes {
            encoder.with_normalizer(Some(NFC)).map_err(TokenizerError::Failed)?;
        }
        encoder.with_pre_tokenizer(Some(cut.build()?));
        self.add_tokens(&mut encoder)?;
        Ok(Built {
            encoder,
            pieces: self.pieces(Spelling::ByteLevel, false)?,
            adds_bos: self.add_bos.unwrap_or(cut.adds_bos),
            adds_eos: self.add_eos.unwrap_or(false),
        })
    }

    fn build_sentence_piece(&self) -> Result<Built, TokenizerError> {
        let ids = self.ids();
        let merges = self.scored_merges(&ids)?;
        let mut builder = BPE::builder().byte_fallback(true).fuse_unk(true);
        let unk = self.unk.or_else(|| self.first_of_type(token_type::UNKNOWN));
        if let Some(unk) = unk {
            builder = builder.unk_token(self.tokens[unk as usize].clone());
        }
        let model = builder.vocab_and_merges(ids, merges).build().map_err(TokenizerError::Failed)?;
        let mut encoder = tokenizers::Tokenizer::new(model);
        let prefixes_space = self.add_space_prefix.unwrap_or(true);
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if prefixes_space {
            steps.push(Prepend::new("▁".into()).into());
        }
        steps.push(Replace::new(" ", "▁").map_err(TokenizerError::Failed)?.into());
        encoder.with_normalizer(Some(Sequence::new(steps))).map_err(TokenizerError::Failed)?;
        self.add_tokens(&mut encoder)?;
        Ok(Built {
            encoder,
            pieces: self.pieces(Spelling::SentencePiece, prefixes_space)?,
            adds_bos: self.add_bos.unwrap_or(true),
            adds_eos: self.add_eos.unwrap_or(false),
        })
    }

    fn type_of(&self, index: usize) -> i32 {
        self.token_types.get(index).copied().unwrap_or(token_type::NORMAL)
    }

    fn first_of_type(&self, kind: i32) -> Option<u32> {
        self.token_types.iter().position(|&found| found == kind).and_then(|i| u32::try_from(i).ok())
    }

    /// The id of each text; the first one where a text occurs twice.
    fn ids(&self) -> Vocab {
        let mut ids = Vocab::with_capacity(self.tokens.len());
        for (id, token) in (0u32..).zip(&self.tokens) {
            ids.entry(token.clone()).or_insert(id);
        }
        ids
    }

    /// The merges as the file lists them. Both halves and their union must be tokens: the
    /// merging code relies on it.
    fn listed_merges(&self, ids: &Vocab) -> Result<Vec<(String, String)>, TokenizerError> {
        let mut merges = Vec::with_capacity(self.merges.len());
        for (rank, merge) in self.merges.iter().enumerate() {
            let pair = merge.split_once(' ').filter(|(left, right)| {
                let union = [*left, *right].concat();
                [*left, *right, union.as_str()].iter().all(|token| ids.contains_key(*token))
            });
            let Some((left, right)) = pair else {
                return Err(TokenizerError::Vocabulary(format!(
                    "merge {rank} is {merge:?}: its halves and their union are not all tokens"
                )));
            };
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(merges)
    }

    /// The merges that a SentencePiece vocabulary implies: every way to make a token out of two
    /// others, the highest score first.
    ///
    /// Source: Kudo and Richardson, "SentencePiece", 2018: BPE merges the pair whose union has
    /// the highest score. Among equals (Llama 2's runs of spaces all score -1e9) the order is that of the tokens' ids, as in
    /// the tokenizer.json that such models were published with.
    fn scored_merges(&self, ids: &Vocab) -> Result<Vec<(String, String)>, TokenizerError> {
        if self.scores.len() != self.tokens.len() {
            return Err(TokenizerError::Vocabulary(format!(
                "{} tokens but {} scores",
                self.tokens.len(),
                self.scores.len()
            )));
        }
        let mut merges = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            if self.type_of(index) != token_type::NORMAL {
                continue;
            }
            if token.len() > MAX_PIECE_BYTES {
                return Err(TokenizerError::Vocabulary(format!(
                    "token {index} has {} bytes; at most {MAX_PIECE_BYTES} are supported",
                    token.len()
                )));
            }
            let mut ways: Vec<(u32, u32, usize)> = token
                .char_indices()
                .skip(1)
                .filter_map(|(at, _)| {
                    let (left, right) = token.split_at(at);
                    Some((*ids.get(left)?, *ids.get(right)?, at))
                })
                .collect();
            ways.sort_unstable();
            merges.extend(ways.into_iter().map(|(_, _, at)| (self.scores[index], token.split_at(at))));
        }
        merges.sort_by(|(score_a, _), (score_b, _)| score_b.total_cmp(score_a));
        Ok(merges.into_iter().map(|(_, (left, right))| (left.into(), right.into())).collect())
    }

    /// Control tokens and user-defined ones are found in text before anything else is done to it.
    fn add_tokens(&self, encoder: &mut tokenizers::Tokenizer) -> Result<(), TokenizerError> {
        let added = self.tokens.iter().enumerate().filter_map(|(index, token)| {
            let kind = self.type_of(index);
            let is_added = matches!(kind, token_type::CONTROL | token_type::USER_DEFINED)
                || (kind == token_type::UNKNOWN && self.model == "llama");
            let special = kind != token_type::USER_DEFINED && !is_mark_of_calls(token);
            is_added.then(|| AddedToken::from(token.clone(), special).normalized(false))
        });
        encoder.add_tokens(added.collect::<Vec<_>>()).map_err(TokenizerError::Failed)?;
        Ok(())
    }

    fn pieces(&self, spelling: Spelling, strips_leading_space: bool) -> Result<PieceTable, TokenizerError> {
        let pieces = self.tokens.iter().enumerate().map(|(index, text)| {
            let kind = self.type_of(index);
            (kind != token_type::UNUSED).then_some(Piece {
                text,
                literal: matches!(kind, token_type::CONTROL | token_type::USER_DEFINED),
                special: matches!(kind, token_type::CONTROL | token_type::UNKNOWN) && !is_mark_of_calls(text),
            })
        });
        PieceTable::new(pieces, spelling, strips_leading_space)
    }
}

/// Whether `token` is one of the marks in which DeepSeek's models write calls of tools. Files made by llama.cpp have them as
/// control tokens, as all that are spelled so; they are part of an answer's text, from which the calls are read.
fn is_mark_of_calls(token: &str) -> bool {
    token.starts_with("<｜tool▁")
}
