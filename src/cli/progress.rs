//! A download as a bar on a screen, or as a few lines where there is none.
//!
//! Knows no downloads but what they tell.

use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::Terminal;
use crate::config::ByteSize;
use crate::hub::Progress;
use crate::server::Loading;

/// Shows a pull on standard error.
pub struct Bar {
    terminal: Terminal,
    shown: Option<ProgressBar>,
    told: Option<Loading>,
}

impl Bar {
    /// Shows nothing until something starts.
    pub fn new(terminal: Terminal) -> Self {
        Self { terminal, shown: None, told: None }
    }

    /// Tells the clients of a server that is not ready, too.
    pub fn telling(mut self, loading: &Loading) -> Self {
        self.told = Some(loading.clone());
        self
    }
}

/// A bar for a known length, a spinner else. Both templates are fixed, so the default is a formality.
fn style(total_bytes: Option<u64>) -> ProgressStyle {
    match total_bytes {
        Some(_) => ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
        None => ProgressStyle::with_template("{spinner} {msg} {bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    }
}

impl Progress for Bar {
    fn start(&mut self, what: &str, total_bytes: Option<u64>) {
        self.finish();
        if let Some(told) = &self.told {
            told.begin(format!("fetching {what}"), total_bytes);
        }
        if !self.terminal.stderr {
            match total_bytes {
                Some(bytes) => eprintln!("fetching {what} ({})", ByteSize(bytes)),
                None => eprintln!("fetching {what}"),
            }
            return;
        }
        let bar = total_bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style(total_bytes));
        bar.set_message(what.to_owned());
        self.shown = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(told) = &self.told {
            told.advance(bytes);
        }
        if let Some(bar) = &self.shown {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(told) = &self.told {
            told.begin("loading the model", None);
        }
        if let Some(bar) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}
