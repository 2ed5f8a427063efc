//! What each token id stands for, as bytes: the one table behind decoding, streaming and grammars.
//!
//! It knows nothing of merges or of how text becomes ids.

use serde_json::Value;

use super::TokenizerError;

/// The most tokens that a vocabulary may have. The largest known ones hold about 262,000.
pub const MAX_VOCAB_SIZE: usize = 1 << 22;

/// How a vocabulary spells bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character of a piece stands for one byte, as in GPT-2.
    ByteLevel,
    /// A piece is text in which `▁` stands for a space; `<0xNN>` is a byte, as in SentencePiece.
    SentencePiece,
}

/// One token, on its way into the table.
pub(super) struct Piece<'a> {
    /// The token as the vocabulary spells it.
    pub text: &'a str,
    /// Spelled as it reads, whatever the vocabulary's spelling: an added token such as `<think>`.
    pub literal: bool,
    /// Left out when special tokens are skipped.
    pub special: bool,
}

/// The bytes of every token id, in one allocation.
#[derive(Debug)]
pub(super) struct PieceTable {
    bytes: Vec<u8>,
    /// Where each id's bytes end, `[vocab_size]`; they begin where those of the id before end.
    ends: Vec<u32>,
    special: Vec<bool>,
    /// Whether a text's first space belongs to the vocabulary's spelling and not to the text.
    pub strips_leading_space: bool,
}

impl PieceTable {
    /// Builds the table from one entry an id; `None` is an id that no token has.
    ///
    /// # Errors
    /// A vocabulary over [`MAX_VOCAB_SIZE`] tokens or 4 GiB of text.
    pub fn new<'a>(
        pieces: impl ExactSizeIterator<Item = Option<Piece<'a>>>,
        spelling: Spelling,
        strips_leading_space: bool,
    ) -> Result<Self, TokenizerError> {
        let count = pieces.len();
        if count > MAX_VOCAB_SIZE {
            return Err(TokenizerError::Vocabulary(format!("{count} tokens; at most {MAX_VOCAB_SIZE} are supported")));
        }
        let mut table = PieceTable {
            bytes: Vec::with_capacity(count.saturating_mul(8)),
            ends: Vec::with_capacity(count),
            special: Vec::with_capacity(count),
            strips_leading_space,
        };
        for piece in pieces {
            table.special.push(piece.as_ref().is_some_and(|piece| piece.special));
            if let Some(piece) = piece {
                append_bytes(&piece, spelling, &mut table.bytes);
            }
            let end = u32::try_from(table.bytes.len())
                .map_err(|_| TokenizerError::Vocabulary("over 4 GiB of token text".into()))?;
            table.ends.push(end);
        }
        Ok(table)
    }

    /// Number of ids, including those that no token has.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of `id`; none for an id out of range.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Length of the longest token, in bytes.
    pub fn longest(&self) -> usize {
        (0..self.ends.len() as u32).map(|id| self.bytes(id).len()).max().unwrap_or(0)
    }

    /// Whether `id` is a control token such as an end of turn.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

fn append_bytes(piece: &Piece<'_>, spelling: Spelling, out: &mut Vec<u8>) {
    match spelling {
        _ if piece.literal => out.extend_from_slice(piece.text.as_bytes()),
        Spelling::ByteLevel => {
            let start = out.len();
            for character in piece.text.chars() {
                let Some(byte) = byte_of_character(character) else {
                    // Not written in GPT-2's alphabet, so it can only mean itself.
                    out.truncate(start);
                    out.extend_from_slice(piece.text.as_bytes());
                    return;
                };
                out.push(byte);
            }
        }
        Spelling::SentencePiece => match byte_of_fallback(piece.text) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(piece.text.replace('▁', " ").as_bytes()),
        },
    }
}

/// The byte that a character stands for in GPT-2's alphabet: printable Latin-1 stands for itself,
/// the other 68 bytes, in order, for U+0100 and up.
///
/// Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, and the
/// byte table of its published encoder.
fn byte_of_character(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte that a piece of the form `<0xNN>` stands for.
fn byte_of_fallback(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_byte { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Reads from the decoder of a tokenizer.json how its vocabulary is spelled, and whether a
/// text's first space is dropped.
///
/// # Errors
/// A decoder whose output is not the tokens' bytes in a row.
pub(super) fn spelling_of_decoder(decoder: &Value) -> Result<(Spelling, bool), TokenizerError> {
    let kind = decoder["type"].as_str().unwrap_or("none");
    let unsupported = || TokenizerError::UnsupportedDecoder(kind.to_owned());
    let steps = match kind {
        "Sequence" => decoder["decoders"].as_array().ok_or_else(unsupported)?.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    let mut spelling = None;
    let mut strips_leading_space = false;
    for step in steps {
        match step["type"].as_str().unwrap_or("none") {
            "ByteLevel" => spelling = Some(Spelling::ByteLevel),
            "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {
                spelling = Some(Spelling::SentencePiece);
            }
            "Metaspace" if step["replacement"] == "▁" => {
                spelling = Some(Spelling::SentencePiece);
                strips_leading_space = step["prepend_scheme"] != "never";
            }
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                strips_leading_space = true;
            }
            "ByteFallback" | "Fuse" => {}
            other => return Err(TokenizerError::UnsupportedDecoder(other.to_owned())),
        }
    }
    spelling.map(|spelling| (spelling, strips_leading_space)).ok_or_else(unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_covers_each_byte_once() {
        let mut seen = [false; 256];
        for code in 0..=0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of_character) {
                assert!(!seen[byte as usize], "byte {byte} has two characters");
                seen[byte as usize] = true;
            }
        }
        assert!(seen.iter().all(|&seen| seen));
        assert_eq!(byte_of_character('Ġ'), Some(b' '));
        assert_eq!(byte_of_character('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_character('｜'), None);
    }

    #[test]
    fn byte_fallback_is_exactly_two_hex_digits() {
        assert_eq!(byte_of_fallback("<0x0A>"), Some(10));
        assert_eq!(byte_of_fallback("<0xFF>"), Some(255));
        for piece in ["<0x0>", "<0x+1>", "<0x00A>", "0x0A", "<0xZZ>", ""] {
            assert_eq!(byte_of_fallback(piece), None, "{piece}");
        }
    }

    #[test]
    fn decoders_are_recognised_or_refused_by_name() {
        let byte_level = json!({"type": "ByteLevel", "use_regex": true});
        assert_eq!(spelling_of_decoder(&byte_level).unwrap(), (Spelling::ByteLevel, false));
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(spelling_of_decoder(&llama).unwrap(), (Spelling::SentencePiece, true));
        let error = spelling_of_decoder(&json!({"type": "WordPiece"})).unwrap_err();
        assert!(error.to_string().contains("WordPiece"));
        let error = spelling_of_decoder(&Value::Null).unwrap_err();
        assert!(error.to_string().contains("none"));
    }
}
