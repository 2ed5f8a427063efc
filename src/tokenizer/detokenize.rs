//! [`IncrementalDecoder`]: the text of a stream of token ids, as soon as it is certain.
//!
//! It knows no stop strings, and nothing of who reads the text.

use super::Tokenizer;

/// Turns one choice's token ids into text, piece by piece. Every piece is whole characters, and
/// all pieces together are exactly what [`Tokenizer::decode`] makes of all ids. A push costs the
/// token's own length; at most three bytes, the start of a character, are held back.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The beginning of a character whose end has not come yet; at most three bytes.
    pending: Vec<u8>,
    /// Whether a space, should it come next, belongs to the spelling and not to the text.
    strips_space: bool,
}

impl IncrementalDecoder {
    /// A decoder for ids that begin a text. `skip_special` leaves out control tokens.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        IncrementalDecoder {
            tokenizer: tokenizer.clone(),
            skip_special,
            pending: Vec::new(),
            strips_space: tokenizer.strips_leading_space(),
        }
    }

    /// A decoder for ids that go on from a text: a space in front is part of what is new.
    pub fn continuing(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        IncrementalDecoder { strips_space: false, ..Self::new(tokenizer, skip_special) }
    }

    /// Takes the next id and returns the text that is now certain; often empty.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_onto(id, &mut text);
        text
    }

    /// As [`push`](Self::push), appending to `text`.
    pub fn push_onto(&mut self, id: u32, text: &mut String) {
        if self.skip_special && self.tokenizer.is_special(id) {
            return;
        }
        let mut bytes = self.tokenizer.id_to_bytes(id);
        if self.strips_space && !bytes.is_empty() {
            self.strips_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        if self.pending.is_empty() {
            let held = append_certain(bytes, text);
            self.pending.extend_from_slice(held);
        } else {
            self.pending.extend_from_slice(bytes);
            let held = append_certain(&self.pending, text).len();
            self.pending.drain(..self.pending.len() - held);
        }
    }

    /// Ends the stream. What is left is the start of a character that never ended; it becomes
    /// U+FFFD, as in [`Tokenizer::decode`].
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Appends `bytes` as text, invalid sequences as U+FFFD, and returns the unfinished character at
/// the end: cut there, the next bytes decode as if nothing had been cut.
fn append_certain<'a>(bytes: &'a [u8], text: &mut String) -> &'a [u8] {
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        let is_last = chunks.peek().is_none();
        if is_last && !invalid.is_empty() && is_unfinished(invalid) {
            return &bytes[bytes.len() - invalid.len()..];
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    &[]
}

/// Whether more bytes could still make `bytes` a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::GgufVocab;

    /// `<unk>`, `<s>`, `</s>`, all bytes, then pieces: a SentencePiece vocabulary in small.
    fn sentence_piece() -> Tokenizer {
        let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
        for (token, kind) in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] {
            vocab.tokens.push(token.into());
            vocab.token_types.push(kind);
        }
        for byte in 0..=255u8 {
            vocab.tokens.push(format!("<0x{byte:02X}>"));
            vocab.token_types.push(6);
        }
        for piece in ["▁", "▁▁", "▁a", "a", "é", "▁你", "🙂"] {
            vocab.tokens.push(piece.into());
            vocab.token_types.push(1);
        }
        vocab.scores = (0..vocab.tokens.len()).map(|id| -(id as f32)).collect();
        Tokenizer::from_gguf_vocab(vocab).unwrap()
    }

    fn random_ids(seed: u64, count: usize, vocab_size: usize) -> Vec<u32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % (vocab_size + 2)
        };
        (0..count).map(|_| next() as u32).collect()
    }

    #[test]
    fn pieces_concatenate_to_the_whole() {
        for tokenizer in [sentence_piece(), crate::tokenizer::encode::tests::fixture()] {
            for seed in 0..500 {
                let ids = random_ids(seed, 1 + seed as usize % 60, tokenizer.vocab_size());
                for skip_special in [false, true] {
                    let whole_bytes: Vec<u8> = ids
                        .iter()
                        .filter(|&&id| !(skip_special && tokenizer.is_special(id)))
                        .flat_map(|&id| tokenizer.id_to_bytes(id).to_vec())
                        .collect();
                    let whole = String::from_utf8_lossy(&whole_bytes);
                    let strips = tokenizer.strips_leading_space();
                    let expected = if strips { whole.strip_prefix(' ').unwrap_or(&whole) } else { &whole };
                    let mut decoder = IncrementalDecoder::new(&tokenizer, skip_special);
                    let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
                    assert!(decoder.pending.len() <= 3, "seed {seed}");
                    pieces.push(decoder.finish());
                    assert_eq!(pieces.concat(), expected, "seed {seed}");
                    assert_eq!(tokenizer.decode(&ids, skip_special), expected, "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn a_character_comes_out_whole() {
        let tokenizer = sentence_piece();
        let byte = |byte: u8| u32::from(byte) + 3;
        let mut decoder = IncrementalDecoder::new(&tokenizer, true);
        let texts: Vec<String> = "🙂é".bytes().map(|value| decoder.push(byte(value))).collect();
        assert_eq!(texts, ["", "", "", "🙂", "", "é"]);
        assert_eq!(decoder.push(byte(0xE4)), "");
        assert_eq!(decoder.push(byte(0xBD)), "");
        assert_eq!(decoder.finish(), "\u{FFFD}");
    }

    #[test]
    fn only_a_text_that_begins_loses_its_first_space() {
        let tokenizer = sentence_piece();
        let a = tokenizer.token_to_id("▁a").unwrap();
        assert_eq!(tokenizer.decode(&[a, a], true), "a a");
        assert_eq!(tokenizer.decode(&[1, a, a], true), "a a");
        let mut decoder = IncrementalDecoder::continuing(&tokenizer, true);
        assert_eq!([decoder.push(a), decoder.push(a)].concat(), " a a");
    }
}
