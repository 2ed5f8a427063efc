//! Sizes as people write them: `8GiB`, `512MB`, `1048576`.
//!
//! Knows nothing of what is measured.

use std::fmt;
use std::str::FromStr;

/// A number of bytes that is read from text and printed for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(try_from = "SizeText")]
pub struct ByteSize(pub u64);

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no size; write it like 8GiB, 512MB or 1048576")]
pub struct SizeError(String);

/// `(name, bytes)`, in lower case. A bare letter is binary, as memory is counted.
const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Most digits read after the point.
const MAX_DECIMALS: usize = 6;

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse(text.trim()).map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if decimals.is_empty() || decimals.len() > MAX_DECIMALS || decimals.contains('.') {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    let thousandths = u128::from(whole.parse::<u64>().ok()?) * scale + decimals.parse::<u128>().ok()?;
    u64::try_from(thousandths.checked_mul(u128::from(*factor))? / scale).ok()
}

impl fmt::Display for ByteSize {
    /// Three digits and a decimal unit: `98.0 MB`, `1.20 GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
        let mut value = self.0 as f64;
        let mut name = 0;
        // 999.5 would print as 1000 of the smaller unit.
        while value >= 999.5 && name + 1 < NAMES.len() {
            value /= 1000.0;
            name += 1;
        }
        let decimals = match value {
            _ if name == 0 => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.decimals$} {}", NAMES[name]))
    }
}

/// A size in a configuration file: a number of bytes, or text with a unit.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "a size like \"8GiB\", \"512MB\" or 1048576")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for ByteSize {
    type Error = SizeError;

    fn try_from(size: SizeText) -> Result<Self, SizeError> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("12B", 12),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("8G", 8 << 30),
            ("512MB", 512_000_000),
            ("512M", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("0.001kB", 1),
            (" 2TB ", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "-1", "1e9", "8GiBs", "1.", ".5G", "1.2.3M", "1.0000001G", "99999999TB", "８G"] {
            let error = text.parse::<ByteSize>().expect_err(text).to_string();
            assert_eq!(error, format!("`{text}` is no size; write it like 8GiB, 512MB or 1048576"));
        }
    }

    #[test]
    fn sizes_print_with_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (98_000_000, "98.0 MB"),
            (134_515_008, "135 MB"),
            (999_600_000, "1.00 GB"),
            (25_000_000_000, "25.0 GB"),
            (u64::MAX, "18446744 TB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
