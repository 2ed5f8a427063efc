//! How long an idle model stays loaded, in the forms that `OLLAMA_KEEP_ALIVE` takes.
//!
//! Knows no models.

use std::str::FromStr;
use std::time::Duration;

/// How long an idle model stays loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum KeepAlive {
    /// As long as the server runs.
    #[default]
    Forever,
    /// This long after its last request; zero unloads it at once.
    For(Duration),
}

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration; write it like 5m, 1h30m, 300 (seconds) or -1 (for ever)")]
pub struct KeepAliveError(String);

impl TryFrom<String> for KeepAlive {
    type Error = KeepAliveError;

    fn try_from(text: String) -> Result<Self, KeepAliveError> {
        text.parse()
    }
}

impl FromStr for KeepAlive {
    type Err = KeepAliveError;

    fn from_str(text: &str) -> Result<Self, KeepAliveError> {
        parse(text.trim()).ok_or_else(|| KeepAliveError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<KeepAlive> {
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let duration = match magnitude.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_units(magnitude)?,
    };
    Some(if negative { KeepAlive::Forever } else { KeepAlive::For(duration) })
}

/// `1h30m`, `90s`, `250ms`: whole numbers with a unit each, in any order.
fn parse_units(mut text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !text.is_empty() {
        let unit_start = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, rest) = text.split_at(unit_start);
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit_end);
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        text = rest;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let cases = [
            ("5m", KeepAlive::For(Duration::from_secs(300))),
            ("1h30m", KeepAlive::For(Duration::from_secs(5400))),
            ("250ms", KeepAlive::For(Duration::from_millis(250))),
            ("300", KeepAlive::For(Duration::from_secs(300))),
            ("0", KeepAlive::For(Duration::ZERO)),
            ("0s", KeepAlive::For(Duration::ZERO)),
            ("-1", KeepAlive::Forever),
            ("-1m", KeepAlive::Forever),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "-", "m", "5 m", "5x", "5m3", "forever", "99999999999999999999"] {
            let error = text.parse::<KeepAlive>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("`{text}` is no duration; write it like 5m")), "{error}");
        }
    }
}
