//! Reads a stream of server-sent events line by line.
//!
//! Knows no HTTP and no JSON. Source: the HTML standard, section 9.2.6, "Interpreting an event stream".

use std::io::{self, BufRead, Read};

/// Longest line that is read, in bytes: a server that sends more is broken.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The data of each event of a stream. Names, ids and retry times are skipped: no API of ours needs them.
pub struct SseEvents<R> {
    reader: R,
    at_start: bool,
}

impl<R: BufRead> SseEvents<R> {
    /// Events of a body.
    pub fn new(reader: R) -> Self {
        Self { reader, at_start: true }
    }

    /// One line without its end; `None` at the end of the stream.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        if !bytes.ends_with(b"\n") && read as u64 == MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the event stream is over 1 MiB"));
        }
        let mut text = String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        text.truncate(text.trim_end_matches(['\n', '\r']).len());
        if std::mem::take(&mut self.at_start) && text.starts_with('\u{feff}') {
            text.remove(0);
        }
        Ok(Some(text))
    }

    fn event(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            // An event that the end of the stream cuts off is none.
            let Some(line) = self.line()? else { return Ok(None) };
            if line.is_empty() {
                match data.take() {
                    Some(data) => return Ok(Some(data)),
                    None => continue,
                }
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            if field == "data" {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                }
            }
        }
    }
}

impl<R: BufRead> Iterator for SseEvents<R> {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.event().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<String> {
        // A reader that gives three bytes at a time: lines and characters arrive in pieces.
        let reader = io::BufReader::with_capacity(3, text.as_bytes());
        SseEvents::new(reader).map(|event| event.expect("a readable stream")).collect()
    }

    #[test]
    fn events_are_read_in_every_form_that_servers_send() {
        let cases: [(&str, &[&str]); 8] = [
            ("data: {\"a\":1}\n\ndata: [DONE]\n\n", &["{\"a\":1}", "[DONE]"]),
            ("data:no blank\r\n\r\n", &["no blank"]),
            (": keep-alive\n\ndata: x\n\n", &["x"]),
            ("event: message\nid: 7\ndata: x\nretry: 10\n\n", &["x"]),
            ("data: first\ndata: second\n\n", &["first\nsecond"]),
            ("\u{feff}data: grüße 🕯\n\n", &["grüße 🕯"]),
            ("data\n\ndata:  two blanks\n\n", &["", " two blanks"]),
            ("data: whole\n\ndata: cut off\n", &["whole"]),
        ];
        for (text, expected) in cases {
            assert_eq!(events(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = io::BufReader::new(io::repeat(b'x'));
        let error = SseEvents::new(endless).next().expect("an item").expect_err("too long");
        assert_eq!(error.to_string(), "a line of the event stream is over 1 MiB");
    }
}
