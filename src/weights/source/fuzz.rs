//! A fuzzer of the readers: damages the fixtures at random, for as long as it is told, and reads what still opens.
//!
//! `LANTERN_FUZZ_SECONDS=1200 cargo test --release --lib -- --ignored --nocapture --test-threads 1 fuzz::`. Nothing may
//! panic, and memory may not grow by more than a few copies of a fixture, whatever sizes a file states. What fails is
//! written to a file of its own, and `LANTERN_FUZZ_SEED` makes the same one again: it is printed, and every file's seed is
//! that of the one before it plus 1. `models::fuzz` reads metadata, indices and split files besides.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::*;
pub use crate::weights::gguf::tests::Random;

/// Bytes by which the process may grow for one file: the fixtures, their copies, and what is made of them.
const MOST_BYTES: u64 = 256 << 20;

/// Numbers that readers stumble over.
const NUMBERS: [u64; 12] = [0, 1, 2, 7, 31, 32, 255, 1 << 16, (1 << 31) - 1, u32::MAX as u64, 1 << 62, u64::MAX];

/// The fixtures whose names end so.
pub fn corpus(end: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the fixtures are here") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push((path.clone(), std::fs::read(path).expect("readable")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "the fixtures are missing");
    found
}

/// Damages some of the first `header` bytes.
fn damage(bytes: &mut Vec<u8>, header: usize, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(header.min(bytes.len()));
        match random.below(7) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.next() as u8),
            4 => bytes.truncate(at.max(16)),
            5 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = (4 << random.below(2)).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            _ => {
                // Another digit, where the header is text.
                let digit = bytes[at..].iter().position(u8::is_ascii_digit);
                digit.into_iter().for_each(|from| bytes[at + from] = b'0' + random.below(10) as u8);
            }
        }
        if bytes.len() < 16 {
            return;
        }
    }
}

/// Reads every matrix of what has opened.
pub fn read_all(weights: &Weights) {
    for tensor in weights.tensors.values() {
        if let (StoredFormat::Known(format), [rows, columns]) = (&tensor.format, &tensor.shape[..]) {
            let data = weights.files[tensor.file].data.clone();
            if let Ok(matrix) = Matrix::new(*format, *rows, *columns, data, tensor.range.clone()) {
                let values = matrix.dequantize_rows(0, matrix.rows().min(1));
                assert!(values.len() <= *columns);
            }
        }
    }
    for (name, packed) in &weights.packed {
        if let Ok(matrix) = weights.repacked(packed, name.clone(), &[packed.rows, packed.columns]) {
            assert_eq!(matrix.bytes().len(), packed.bytes());
        }
    }
    assert!(weights.parameters() > 0 || weights.tensors.is_empty() || weights.total_bytes() == 0);
    let _ = weights.main_format();
}

/// The most memory that this process has had, bytes; 0 where the system does not say.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable} is {text}: {error}")))
}

/// Damages files of `corpus` for as long as LANTERN_FUZZ_SECONDS says, or one second, and gives each to `open`, which says
/// whether something opened. An error must name the file, or the folder `place` if there is one.
pub fn fuzz(
    kind: &str,
    corpus: &[(PathBuf, Vec<u8>)],
    place: Option<&Path>,
    open: impl Fn(&Path, Vec<u8>, &mut Random) -> Result<(), LoadError>,
) {
    let seconds = number_from("LANTERN_FUZZ_SECONDS").unwrap_or(1);
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let first = number_from("LANTERN_FUZZ_SEED").unwrap_or_else(clock);
    println!("{kind}: LANTERN_FUZZ_SEED={first}, {seconds} s");
    let (start, before) = (Instant::now(), peak_bytes());
    let (mut tried, mut opened, mut peak) = (0_u64, 0_u64, before);
    while start.elapsed() < Duration::from_secs(seconds) {
        let seed = first.wrapping_add(tried);
        let mut random = Random(seed);
        let (path, whole) = &corpus[random.below(corpus.len())];
        let mut bytes = whole.clone();
        // Headers are what can be wrong; data is any bits.
        let header = 1 << (5 + random.below(13));
        damage(&mut bytes, header, &mut random);
        tried += 1;
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let outcome = open(path, bytes.clone(), &mut random);
            if let Err(error) = &outcome {
                let named = place.unwrap_or(path).display().to_string();
                assert!(error.to_string().contains(&named), "{error}");
            }
            let grown = peak_bytes().saturating_sub(peak);
            assert!(grown < MOST_BYTES, "memory grew by {grown} bytes");
            outcome.is_ok()
        }));
        match checked {
            Ok(is_open) => opened += u64::from(is_open),
            Err(panic) => {
                let dump = std::env::temp_dir().join(format!("lantern-fuzz-{kind}-{seed}"));
                let written = std::fs::write(&dump, &bytes);
                println!("{kind}: LANTERN_FUZZ_SEED={seed} makes it again, of {}", path.display());
                println!("{kind}: it is {} ({written:?})", dump.display());
                resume_unwind(panic);
            }
        }
        peak = peak_bytes();
    }
    let grown = peak.saturating_sub(before);
    println!("{kind}: {tried} files, {opened} opened, memory grew by {} MiB", grown >> 20);
    assert!(tried > 10 && opened > 0, "{opened} of {tried} opened");
    assert!(grown < 2 * MOST_BYTES, "memory grew by {grown} bytes");
}

#[test]
#[ignore = "runs for as long as LANTERN_FUZZ_SECONDS says"]
fn damaged_safetensors_files() {
    let schemes = [
        Scheme::Gptq { bits: 4, group: Some(32), zero_less: 1 },
        Scheme::Gptq { bits: 8, group: None, zero_less: 0 },
        Scheme::Awq { group: Some(64) },
        Scheme::Packed { bits: 4 },
        Scheme::Bytes { block: None },
        Scheme::Bytes { block: Some([128, 128]) },
    ];
    fuzz("safetensors", &corpus(".safetensors"), None, |path, bytes, random| {
        let scheme = Some(schemes[random.below(schemes.len())]).filter(|_| random.below(4) > 0);
        let weights = Weights::from_safetensors(path, Arc::new(bytes))?.gathered(scheme)?;
        read_all(&weights);
        Ok(())
    });
}
