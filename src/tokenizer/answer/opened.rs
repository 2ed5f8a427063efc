//! What is known of a call before it has ended: that the model has begun one, which tool it calls, and where its arguments
//! begin and end.
//!
//! Knows the forms in the one way in which a grammar writes them: what is written otherwise is read when it is whole.

use super::CallFormat;

/// Longest beginning of a call, up to its arguments, in bytes.
const MAX_HEAD_BYTES: usize = 4 << 10;

/// Longest name, in bytes, where it does not stand in JSON.
const MAX_NAME_BYTES: usize = 256;

/// Why the beginning of a call cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// More of it is to come.
    NotYet,
    /// It has another form, or is none.
    Never,
}

impl CallFormat {
    /// Most white space in a row, in bytes, in the beginning of a call that is told in pieces: of more it would not be known
    /// that a grammar holds it.
    pub const MAX_SPACE_BYTES: usize = 128;

    /// Whether `text`, which stands behind the mark that opens a call, is one as far as it goes: the model has written
    /// that a name follows, or the name. Some text behind the mark only speaks of calls.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn has_begun(self, text: &str) -> Result<(), Unread> {
        let mut reader = Reader::new(text);
        match self {
            Self::Hermes | Self::Json => reader.key('{', &["name"]),
            Self::DeepSeek => reader.take(&format!("function{}", CallFormat::DEEPSEEK_SEPARATOR)),
            Self::DeepSeekV31 => reader.name_before(CallFormat::DEEPSEEK_SEPARATOR).map(drop),
        }
        .map_err(|unread| reader.within_limit(unread))
    }

    /// The name of the tool, and where in `text`, which stands behind the mark that opens a call, the object of its
    /// arguments begins.
    ///
    /// # Errors
    /// [`Unread`].
    pub(super) fn head(self, text: &str) -> Result<(String, usize), Unread> {
        let mut reader = Reader::new(text);
        let name = reader.head(self).map_err(|unread| reader.within_limit(unread))?;
        Ok((name, text.len() - reader.rest.len()))
    }
}

/// Reads from the front of a text that may go on.
struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, rest: text }
    }

    /// `unread`, unless the text has grown too long to be waited for.
    fn within_limit(&self, unread: Unread) -> Unread {
        if self.text.len() > MAX_HEAD_BYTES { Unread::Never } else { unread }
    }

    fn head(&mut self, format: CallFormat) -> Result<String, Unread> {
        let name = match format {
            CallFormat::Hermes | CallFormat::Json => {
                self.key('{', &["name"])?;
                self.space()?;
                self.take(":")?;
                let name = self.string()?;
                self.key(',', &["arguments", "parameters"])?;
                self.space()?;
                self.take(":")?;
                name
            }
            CallFormat::DeepSeek => {
                self.take(&format!("function{}", CallFormat::DEEPSEEK_SEPARATOR))?;
                self.name_before("\n```json\n")?
            }
            CallFormat::DeepSeekV31 => self.name_before(CallFormat::DEEPSEEK_SEPARATOR)?,
        };
        self.space()?;
        match self.rest.as_bytes() {
            [] => Err(Unread::NotYet),
            [b'{', ..] if !name.is_empty() => Ok(name),
            _ => Err(Unread::Never),
        }
    }

    fn take(&mut self, literal: &str) -> Result<(), Unread> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None if literal.starts_with(self.rest) => Err(Unread::NotYet),
            None => Err(Unread::Never),
        }
    }

    /// White space of JSON, if any is there.
    fn space(&mut self) -> Result<(), Unread> {
        let rest = self.rest.trim_start_matches([' ', '\n', '\r', '\t']);
        if self.rest.len() - rest.len() > CallFormat::MAX_SPACE_BYTES {
            return Err(Unread::Never);
        }
        self.rest = rest;
        Ok(())
    }

    /// One of `names` as the key of an object, behind `before`.
    fn key(&mut self, before: char, names: &[&str]) -> Result<(), Unread> {
        self.space()?;
        self.take(before.encode_utf8(&mut [0; 4]))?;
        self.space()?;
        let mut unread = Unread::Never;
        for name in names {
            match self.take(&format!("\"{name}\"")) {
                Ok(()) => return Ok(()),
                Err(Unread::NotYet) => unread = Unread::NotYet,
                Err(Unread::Never) => {}
            }
        }
        Err(unread)
    }

    /// A string of JSON.
    fn string(&mut self) -> Result<String, Unread> {
        self.space()?;
        let json = self.rest;
        self.take("\"")?;
        let mut escaped = false;
        let is_end = |character: char| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        };
        let end = self.rest.find(is_end).ok_or(Unread::NotYet)? + 2;
        self.rest = &json[end..];
        serde_json::from_str(&json[..end]).map_err(|_| Unread::Never)
    }

    /// A name that ends where `mark` stands. `function` stands there where the name comes later, and JSON where there is no
    /// name.
    fn name_before(&mut self, mark: &str) -> Result<String, Unread> {
        let Some((name, rest)) = self.rest.split_once(mark) else {
            return Err(if self.rest.contains('{') { Unread::Never } else { Unread::NotYet });
        };
        let is_name = name.len() <= MAX_NAME_BYTES && !name.contains(['{', '<', '`', '\n']);
        if !is_name || matches!(name.trim(), "" | "function") {
            return Err(Unread::Never);
        }
        self.rest = rest;
        Ok(name.trim().to_owned())
    }
}

/// How deep within an object of JSON a text that comes in pieces has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Depth {
    open: usize,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Where in `piece`, the next of the text, the object ends, if it does.
    pub(super) fn end(&mut self, piece: &str) -> Option<usize> {
        for (at, byte) in piece.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.open += 1,
                b'}' | b']' if !self.in_string => {
                    self.open = self.open.saturating_sub(1);
                    if self.open == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEPARATOR: &str = CallFormat::DEEPSEEK_SEPARATOR;

    /// Cut anywhere, a head is not there yet; whole, it is there however the text goes on.
    #[test]
    fn heads_of_calls_are_read_once_they_are_there() {
        let cases = [
            (CallFormat::Hermes, "\n{\"name\": \"größe \\\"7\\\"\", \"arguments\": ".to_owned(), "größe \"7\""),
            (CallFormat::Hermes, "{ \"name\":\"f\" ,\n \"parameters\" :".into(), "f"),
            (CallFormat::Json, "{\"name\": \"f\", \"parameters\": ".into(), "f"),
            (CallFormat::DeepSeek, format!("function{SEPARATOR}f\n```json\n"), "f"),
            (CallFormat::DeepSeekV31, format!("f{SEPARATOR}"), "f"),
        ];
        for (format, head, name) in cases {
            for at in head.char_indices().map(|(at, _)| at) {
                assert_eq!(format.head(&head[..at]), Err(Unread::NotYet), "{format:?}: {head} until {at}");
            }
            for behind in ["{", "{\"x\": 1}}", "{{{"] {
                let text = format!("{head}{behind}");
                assert_eq!(format.head(&text), Ok((name.to_owned(), head.len())), "{format:?}: {text}");
                assert_eq!(format.has_begun(&text), Ok(()), "{format:?}: {text}");
            }
        }
    }

    #[test]
    fn what_has_another_form_is_no_head() {
        let cases = [
            (CallFormat::Hermes, "\n<function=f>".to_owned()),
            (CallFormat::Hermes, " is how calls begin".into()),
            (CallFormat::Hermes, "{\"arguments\": {".into()),
            (CallFormat::Hermes, format!("{}{{\"name\"", " ".repeat(CallFormat::MAX_SPACE_BYTES + 1))),
            (CallFormat::Hermes, "{\"name\": 5".into()),
            (CallFormat::Hermes, "{\"name\": \"\", \"arguments\": {".into()),
            (CallFormat::Hermes, "{\"name\": \"f\", \"arguments\": \"".into()),
            (CallFormat::Hermes, "{\"name\": \"f\", \"id\"".into()),
            (CallFormat::Hermes, format!("{{\"name\": \"{}", "f".repeat(MAX_HEAD_BYTES))),
            (CallFormat::DeepSeek, format!("f{SEPARATOR}{{")),
            (CallFormat::DeepSeek, format!("function{SEPARATOR}{{")),
            (CallFormat::DeepSeekV31, format!("function{SEPARATOR}f")),
            (CallFormat::DeepSeekV31, "{\"name\"".into()),
        ];
        for (format, text) in cases {
            assert_eq!(format.head(&text), Err(Unread::Never), "{format:?}: {text:.80}");
        }
    }

    #[test]
    fn a_call_has_begun_once_its_name_is_announced() {
        let cases = [
            (CallFormat::Hermes, "\n{\"nam", Err(Unread::NotYet)),
            (CallFormat::Hermes, "\n{\"name\"", Ok(())),
            (CallFormat::Hermes, "\n{\"name\":'", Ok(())),
            (CallFormat::Hermes, "</tool_call>", Err(Unread::Never)),
            (CallFormat::DeepSeek, "function<｜tool▁sep", Err(Unread::NotYet)),
            (CallFormat::DeepSeek, "function<｜tool▁sep｜>", Ok(())),
            (CallFormat::DeepSeekV31, "f<｜tool▁sep｜>", Ok(())),
        ];
        for (format, text, expected) in cases {
            assert_eq!(format.has_begun(text), expected, "{format:?}: {text}");
        }
    }

    #[test]
    fn objects_end_where_they_end() {
        let object = r#"{"a": [{"}": "\"}\\"}, "\\\\\""], "ü": "]["}"#;
        for behind in ["", "}", "\n```"] {
            let text = format!("{object}{behind}");
            for at in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
                let (first, second) = text.split_at(at);
                let mut depth = Depth::default();
                let end = depth.end(first).or_else(|| depth.end(second).map(|end| at + end));
                assert_eq!(end, Some(object.len()), "cut at {at}: {text}");
            }
        }
    }
}
