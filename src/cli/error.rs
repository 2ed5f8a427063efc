//! Why a command failed, in words for the person who typed it.
//!
//! Knows no exit codes but the one of an interrupt: `main` prints the error and its causes.

use std::io;
use std::sync::Arc;

use super::client::ClientError;
use crate::config::ConfigError;
use crate::hub::HubError;
use crate::llm::{GenerateError, LoadError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings are not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model could not be found, fetched or removed.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A generation failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The running server did not do what was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server cannot listen where it should.
    #[error("{message}")]
    Bind {
        /// What is wrong and what to do.
        message: String,
        /// What the system says.
        source: io::Error,
    },
    /// The line editor failed.
    #[error("the terminal cannot be read")]
    Editor(#[from] rustyline::error::ReadlineError),
    /// Reading or writing failed.
    #[error("{doing}")]
    Io {
        /// What was being done, as in `standard input cannot be read`.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Something else that a person must know; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// The engine of a running server stopped by itself.
    #[error("the engine has stopped: {0}")]
    EngineDied(Arc<str>),
    /// Ctrl-C ended it.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// Standard output could not be written.
    pub(super) fn output(source: io::Error) -> Self {
        Self::Io { doing: "the output cannot be written", source }
    }

    /// Whether whoever read the output went away, as `head` does: no failure of ours.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
