//! [`StopMatcher`]: finds stop strings in text that arrives in pieces.
//!
//! It knows no tokens: pieces may be cut anywhere between characters.

/// The most stop strings that one request may bring.
pub const MAX_STOP_STRINGS: usize = 16;

/// The longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 1024;

/// Why a request's stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// There are more than [`MAX_STOP_STRINGS`].
    #[error("{count} stop strings; at most {MAX_STOP_STRINGS} are allowed")]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// One is longer than [`MAX_STOP_BYTES`].
    #[error("stop string {index} has {bytes} bytes; at most {MAX_STOP_BYTES} are allowed")]
    TooLong {
        /// Its place in the list.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// One is empty: it would match before anything was said.
    #[error("stop string {index} is empty")]
    Empty {
        /// Its place in the list.
        index: usize,
    },
}

/// What one push brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    /// Text that can no longer become a part of a stop string.
    pub emit: String,
    /// The place in the list of the stop string that was found. The text ends there.
    pub matched: Option<usize>,
}

/// Watches one choice's text for stop strings. The one that is complete first wins, whatever the
/// cuts; of those that end together, the longest. Text is held back only while it may be the
/// beginning of a stop string. A push costs its own length times the number of stop strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    needles: Vec<Needle>,
    include_stop: bool,
    /// Text not yet emitted: as long as the longest beginning of a stop string that ends it.
    held: String,
    stopped: bool,
}

/// One stop string as a Knuth-Morris-Pratt automaton.
#[derive(Debug, Clone)]
struct Needle {
    bytes: Vec<u8>,
    /// `fallback[n]`: the longest proper beginning of the needle that also ends its first
    /// `n + 1` bytes.
    fallback: Vec<usize>,
    /// How many bytes of the needle the text so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for `stops`; none of them is fine. `include_stop` leaves the stop string that
    /// was found in the text.
    ///
    /// # Errors
    /// Too many, too long or empty stop strings.
    pub fn new(stops: &[String], include_stop: bool) -> Result<Self, StopError> {
        if stops.len() > MAX_STOP_STRINGS {
            return Err(StopError::TooMany { count: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            match stop.len() {
                0 => return Err(StopError::Empty { index }),
                bytes if bytes > MAX_STOP_BYTES => return Err(StopError::TooLong { index, bytes }),
                _ => {}
            }
        }
        Ok(StopMatcher {
            needles: stops.iter().map(|stop| Needle::new(stop)).collect(),
            include_stop,
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes the next piece of text. After a match everything further is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::default();
        }
        let held_before = self.held.len();
        self.held.push_str(text);
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            if let Some((index, length)) = self.step(byte) {
                let end = held_before + offset + 1;
                return self.stop_at(index, end, length);
            }
        }
        StopOutcome { emit: self.release(), matched: None }
    }

    /// As [`Self::push`], of text in which no stop string counts. One that begins in it and is
    /// completed by a later push does.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        for &byte in text.as_bytes() {
            for needle in &mut self.needles {
                if needle.step(byte) {
                    needle.matched = needle.fallback[needle.matched - 1];
                }
            }
        }
        self.release()
    }

    /// The text that no stop string begins with any more.
    fn release(&mut self) -> String {
        let keep = self.needles.iter().map(|needle| needle.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text and returns what was held back; empty after a match.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }

    /// Advances every automaton; the longest needle that is now complete, with its length.
    fn step(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for (index, needle) in self.needles.iter_mut().enumerate() {
            let length = needle.bytes.len();
            if needle.step(byte) && found.is_none_or(|(_, best)| length > best) {
                found = Some((index, length));
            }
        }
        found
    }

    fn stop_at(&mut self, index: usize, end: usize, length: usize) -> StopOutcome {
        self.stopped = true;
        let mut emit = std::mem::take(&mut self.held);
        emit.truncate(if self.include_stop { end } else { end - length });
        StopOutcome { emit, matched: Some(index) }
    }
}

impl Needle {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[matched] != bytes[at] {
                matched = fallback[matched - 1];
            }
            matched += usize::from(bytes[matched] == bytes[at]);
            fallback[at] = matched;
        }
        Needle { bytes, fallback, matched: 0 }
    }

    /// Takes the text's next byte; whether the needle is now complete.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(stops: &[&str], include_stop: bool) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        StopMatcher::new(&stops, include_stop).unwrap()
    }

    /// Feeds `pieces`; the text that came out and the match.
    fn run(mut matcher: StopMatcher, pieces: &[&str]) -> (String, Option<usize>) {
        let mut text = String::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            text.push_str(&outcome.emit);
            if outcome.matched.is_some() {
                assert_eq!(matcher.push("more"), StopOutcome::default());
                return (text + &matcher.finish(), outcome.matched);
            }
        }
        (text + &matcher.finish(), None)
    }

    #[test]
    fn a_stop_that_is_complete_in_passed_text_does_not_count() {
        // What is passed, what is pushed, all that is told, and the stop that is found.
        let cases = [
            ("xabab", "c", "xababc", None),
            ("xab", "ab", "xab", Some(0)),
            ("xa", "b", "x", Some(0)),
            ("aa", "a", "a", Some(1)),
            ("aaa", "c", "aaac", None),
            ("", "xab", "x", Some(0)),
        ];
        for (passed, pushed, text, matched) in cases {
            let mut matcher = matcher(&["ab", "aa"], false);
            let told = matcher.pass(passed);
            let outcome = matcher.push(pushed);
            let all = told + &outcome.emit + &if matched.is_none() { matcher.finish() } else { String::new() };
            assert_eq!((all.as_str(), outcome.matched), (text, matched), "{passed} {pushed}");
        }
    }

    #[test]
    fn stops_are_found_across_pieces() {
        type Case = (&'static [&'static str], &'static [&'static str], &'static str, Option<usize>);
        let cases: &[Case] = &[
            (&["STOP"], &["go ST", "OP on"], "go ", Some(0)),
            (&["STOP"], &["go ST", "ART"], "go START", None),
            (&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", Some(0)),
            (&["aab"], &["aa", "ab"], "a", Some(0)),
            (&["abcd", "bc"], &["abc", "d"], "a", Some(1)),
            (&["b", "ab"], &["a", "b"], "", Some(1)),
            (&["é"], &["è", "é"], "è", Some(0)),
            (&[], &["any", "thing"], "anything", None),
            (&["x"], &["", ""], "", None),
        ];
        for (stops, pieces, text, matched) in cases {
            let found = run(matcher(stops, false), pieces);
            assert_eq!(found, ((*text).to_owned(), *matched), "{stops:?} in {pieces:?}");
        }
        assert_eq!(run(matcher(&["ND"], true), &["E", "N", "D."]), ("END".into(), Some(0)));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = matcher(&["<end>"], false);
        assert_eq!(matcher.push("hello <e").emit, "hello ");
        assert_eq!(matcher.push("m> <").emit, "<em> ");
        assert_eq!(matcher.finish(), "<");
    }

    #[test]
    fn limits_are_errors_of_their_own() {
        let many = vec!["x".to_owned(); MAX_STOP_STRINGS + 1];
        assert_eq!(StopMatcher::new(&many, false).unwrap_err(), StopError::TooMany { count: 17 });
        let empty = ["a".to_owned(), String::new()];
        assert_eq!(StopMatcher::new(&empty, false).unwrap_err(), StopError::Empty { index: 1 });
        let long = ["x".repeat(MAX_STOP_BYTES + 1)];
        let error = StopMatcher::new(&long, false).unwrap_err();
        assert_eq!(error, StopError::TooLong { index: 0, bytes: 1025 });
    }

    /// The definition, by search: the earliest end, then the longest.
    fn naive(stops: &[String], text: &str) -> Option<(usize, usize, usize)> {
        (0..=text.len()).filter(|&end| text.is_char_boundary(end)).find_map(|end| {
            (0..stops.len())
                .filter(|&index| text[..end].ends_with(&stops[index]))
                .min_by_key(|&index| (std::cmp::Reverse(stops[index].len()), index))
                .map(|index| (end - stops[index].len(), end, index))
        })
    }

    #[test]
    fn any_cut_gives_what_naive_search_gives() {
        let alphabet = ['a', 'b', 'é', '🙂'];
        let mut matches = 0;
        for seed in 0..4000u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 20) as usize % below
            };
            let stops: Vec<String> =
                (0..1 + next(3)).map(|_| (0..1 + next(5)).map(|_| alphabet[next(3)]).collect()).collect();
            let text: Vec<char> = (0..next(40)).map(|_| alphabet[next(4)]).collect();
            let mut pieces = vec![String::new()];
            for character in &text {
                if next(3) == 0 {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push(*character);
            }
            let text: String = text.into_iter().collect();
            let include = next(2) == 0;
            let expected = match naive(&stops, &text) {
                Some((start, end, index)) => {
                    matches += 1;
                    (text[..if include { end } else { start }].to_owned(), Some(index))
                }
                None => (text.clone(), None),
            };
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let found = run(StopMatcher::new(&stops, include).unwrap(), &pieces);
            assert_eq!(found, expected, "seed {seed}: {stops:?} in {pieces:?}");
        }
        assert!(matches > 1000, "the texts must contain stops to be worth searching: {matches}");
    }
}
