//! What the terminal can show: colours, bars, and whether a person sits there.
//!
//! Knows no commands.

use std::io::{IsTerminal, stderr, stdin, stdout};

/// Facts about the terminal, found once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Standard input is a person's keyboard.
    pub stdin: bool,
    /// Standard output is a screen.
    pub stdout: bool,
    /// Standard error is a screen.
    pub stderr: bool,
    /// Colours are welcome: `NO_COLOR` is not set and the terminal is not a dumb one.
    pub colour: bool,
}

impl Terminal {
    /// Looks at this process's terminal.
    pub fn detect(lookup: crate::config::Lookup<'_>) -> Self {
        let no_colour = lookup("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = lookup("TERM").is_some_and(|value| value == "dumb");
        Self {
            stdin: stdin().is_terminal(),
            stdout: stdout().is_terminal(),
            stderr: stderr().is_terminal(),
            colour: !no_colour && !dumb,
        }
    }

    /// `text` in grey where standard error shows colours: what is said besides the matter.
    pub fn grey(&self, text: &str) -> String {
        if self.stderr && self.colour { format!("\x1b[90m{text}\x1b[0m") } else { text.to_owned() }
    }
}
