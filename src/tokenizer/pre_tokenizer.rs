//! The ways in which known byte-level vocabularies cut text before merging, by GGUF name.
//!
//! It knows no vocabulary: a name goes in, patterns come out.

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::TokenizerError;

/// Source: tokenizer.json of Llama 3 and 3.1.
const LLAMA3: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// Source: tokenizer.json of Qwen2, Qwen2.5 and Qwen3.
const QWEN2: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// Source: tokenizer.json of DeepSeek-V3 and R1.
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
/// Source: the pattern list of `deepseek-llm` in the GGUF format's reference implementation. The
/// long class is spelled in code points because Unicode normalisation would change its ends.
const DEEPSEEK_LLM: &[&str] = &[
    r"[\r\n]",
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    r"\s+$",
    r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+",
    r"\p{N}+",
];
/// Source: as [`DEEPSEEK_LLM`], for `deepseek-coder`.
const DEEPSEEK_CODER: &[&str] =
    &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+", r"\p{N}"];

/// Source: the published encoder of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Source: tokenizer.json of SmolLM2 (each digit by itself, then as GPT-2).
const SMOLLM: &[&str] = &[r"\p{N}", GPT2];
/// Source: as [`DEEPSEEK_LLM`], for files that name no pre-tokenizer.
const FALLBACK: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// How text is cut, and what goes with that cut in the models that use it.
#[derive(Debug)]
pub(super) struct PreTokenization {
    /// These, one after the other; what each matches becomes a word of its own.
    patterns: &'static [&'static str],
    /// Whether text is brought into Unicode's composed form (NFC) first.
    pub composes: bool,
    /// Whether a whole word that is in the vocabulary is taken without merging.
    pub ignores_merges: bool,
    /// Whether a beginning-of-text token is added where the file does not say.
    pub adds_bos: bool,
}

impl PreTokenization {
    /// What `tokenizer.ggml.pre` means; a file without one is old and gets the fallback.
    ///
    /// # Errors
    /// A name that is not known here.
    pub fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let patterns = match name {
            None | Some("default") => FALLBACK,
            Some("llama-bpe" | "llama3" | "llama-v3") => LLAMA3,
            Some("qwen2" | "deepseek-r1-qwen") => QWEN2,
            Some("deepseek-v3") => DEEPSEEK_V3,
            Some("deepseek-llm") => DEEPSEEK_LLM,
            Some("deepseek-coder") => DEEPSEEK_CODER,
            Some("gpt-2" | "phi-2" | "olmo") => &[GPT2],
            Some("smollm" | "starcoder" | "refact" | "command-r") => SMOLLM,
            Some(unknown) => return Err(TokenizerError::UnknownPreTokenizer(unknown.to_owned())),
        };
        let is_llama3 = matches!(name, Some("llama-bpe" | "llama3" | "llama-v3"));
        Ok(PreTokenization {
            patterns,
            composes: matches!(name, Some("qwen2" | "deepseek-r1-qwen")),
            ignores_merges: is_llama3,
            adds_bos: is_llama3,
        })
    }

    /// The steps as `tokenizers` runs them, ending in GPT-2's byte alphabet.
    ///
    /// # Errors
    /// A pattern that the regex engine refuses (none of ours, as the tests hold).
    pub fn build(&self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(TokenizerError::Failed)?;
            steps.push(PreTokenizerWrapper::from(split));
        }
        steps.push(ByteLevel::new(false, true, false).into());
        for_long_runs(&Sequence::new(steps).into())
    }
}

/// All spaces but the one before a word, as published patterns say it.
const RUN: &str = r"\s+(?!\S)";
/// The same, a hundred spaces a step and with no way back to a step. The engine keeps a way back for each space of the
/// form above; after a million it gives up, and `tokenizers` takes all text from there on for one word, without an error.
const RUN_IN_STEPS: &str = r"(?=\s(?:\s|\z))(?>(?:\s{100}(?=\s))*)\s*(?!\S)";

/// A pre-tokenizer that cuts as `steps` does, whatever the length of a run of spaces.
///
/// # Errors
/// Steps that cannot be written as JSON and read again; none is known.
pub(super) fn for_long_runs(steps: &PreTokenizerWrapper) -> Result<PreTokenizerWrapper, TokenizerError> {
    let failed = |error: serde_json::Error| TokenizerError::Failed(error.into());
    let mut json = serde_json::to_value(steps).map_err(failed)?;
    bound_runs(&mut json);
    serde_json::from_value(json).map_err(failed)
}

fn bound_runs(step: &mut Value) {
    if let Some(steps) = step["pretokenizers"].as_array_mut() {
        steps.iter_mut().for_each(bound_runs);
    }
    // The pattern that this step brings itself is GPT-2's; spelled out, it can be replaced as any other.
    if step["type"] == "ByteLevel" && step["use_regex"] == true && step["add_prefix_space"] == false {
        step["use_regex"] = false.into();
        let split = json!({"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Isolated", "invert": false});
        *step = json!({"type": "Sequence", "pretokenizers": [split, step.take()]});
        bound_runs(step);
    } else if let Some(pattern) = step.pointer_mut("/pattern/Regex")
        && pattern.as_str().is_some_and(|text| text.matches(RUN).count() == 1)
    {
        *pattern = pattern.as_str().unwrap_or_default().replace(RUN, RUN_IN_STEPS).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    const NAMES: &[&str] = &[
        "default",
        "llama-bpe",
        "qwen2",
        "deepseek-r1-qwen",
        "deepseek-v3",
        "deepseek-llm",
        "deepseek-coder",
        "gpt-2",
        "smollm",
    ];

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        PreTokenization::named(Some(name)).unwrap().build().unwrap().pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.iter().map(|(_, (start, end), _)| text[*start..*end].to_owned()).collect()
    }

    #[test]
    fn words_are_cut_as_each_model_learned() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "I'm 1234  x", &["I", "'m", " 1234", " ", " x"]),
            ("smollm", "a 12", &["a", " ", "1", "2"]),
            ("llama-bpe", "DON'T 12345\n\n x", &["DON", "'T", " ", "123", "45", "\n\n", " x"]),
            ("qwen2", "DON'T 123", &["DON", "'T", " ", "1", "2", "3"]),
            ("deepseek-v3", "x12345 你好y", &["x", "123", "45", " ", "你好", "y"]),
            ("deepseek-llm", "ab 12\nέ!", &["ab", " ", "12", "\n", "έ", "!"]),
            ("deepseek-coder", "ab 12", &["ab", " ", "1", "2"]),
            ("default", "a+=1234", &["a", "+=", "123", "4"]),
        ];
        for (name, text, expected) in cases {
            assert_eq!(words(name, text), *expected, "{name}: {text:?}");
        }
    }

    #[test]
    fn runs_of_spaces_are_cut_alike_at_once_and_in_steps() {
        let plain = ByteLevel::new(false, true, true).into();
        let bounded = for_long_runs(&plain).unwrap();
        let cut = |steps: &PreTokenizerWrapper, text: &str| {
            let mut cut = PreTokenizedString::from(text);
            steps.pre_tokenize(&mut cut).unwrap();
            let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.iter().map(|(_, range, _)| *range).collect::<Vec<_>>()
        };
        let alphabet = [" ", "\n", "\u{3000}", "a", "1", "!", "\t"];
        for number in 0..7_usize.pow(5) {
            let text: String = (0..5).map(|place| alphabet[number / 7_usize.pow(place) % 7]).collect();
            assert_eq!(cut(&bounded, &text), cut(&plain, &text), "{text:?}");
        }
        let long = format!("{}word and word", " ".repeat(1_200_000));
        let words = cut(&bounded, &long);
        assert_eq!(words, [(0, 1_199_999), (1_199_999, 1_200_004), (1_200_004, 1_200_008), (1_200_008, 1_200_013)]);
    }

    #[test]
    fn no_cut_loses_a_byte() {
        let text = " \t x\r\n  don't ÀÉ 東京タワー ١٢٣ 🙂\u{301}e   \n\n  $5.00 \u{0}\u{7}";
        for name in NAMES {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = PreTokenization::named(Some("tekken-9")).unwrap_err();
        assert!(error.to_string().contains("tekken-9"), "{error}");
    }
}
