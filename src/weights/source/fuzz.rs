//! A fuzzer of the readers: damages the fixtures at random, for as long as it is told, and reads what still opens.
//!
//! `LANTERN_FUZZ_SECONDS=1200 cargo test --lib weights::source::fuzz -- --ignored --nocapture`. Nothing may panic, and memory
//! may not grow by more than a few copies of a fixture, whatever sizes a file states. The seed is printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::weights::gguf::tests::Random;

/// Bytes by which the process may grow: the fixtures, their copies, and what is made of them.
const MOST_BYTES: u64 = 512 << 20;

/// Numbers that readers stumble over.
const NUMBERS: [u64; 12] = [0, 1, 2, 7, 31, 32, 255, 1 << 16, (1 << 31) - 1, u32::MAX as u64, 1 << 62, u64::MAX];

fn corpus(extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the fixtures are here") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push((path.clone(), std::fs::read(path).expect("readable")));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 5, "the fixtures are missing");
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
fn read_all(weights: &Weights) {
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

/// Opens damaged files for as long as LANTERN_FUZZ_SECONDS says, or one second.
fn fuzz(extension: &str, open: impl Fn(&Path, Vec<u8>, &mut Random) -> Result<Weights, LoadError>) {
    let seconds = std::env::var("LANTERN_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    println!("{extension}: seed {seed}, {seconds} s");
    let (corpus, mut random, start) = (corpus(extension), Random(seed), Instant::now());
    let (before, mut tried, mut opened) = (peak_bytes(), 0_u64, 0_u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let (path, whole) = &corpus[random.below(corpus.len())];
        let mut bytes = whole.clone();
        // Headers are what can be wrong; data is any bits.
        let header = 1 << (5 + random.below(13));
        damage(&mut bytes, header, &mut random);
        tried += 1;
        match open(path, bytes, &mut random) {
            Ok(weights) => {
                opened += 1;
                read_all(&weights);
            }
            Err(error) => assert!(error.to_string().contains(&path.display().to_string()), "{error}"),
        }
    }
    let grown = peak_bytes().saturating_sub(before);
    println!("{extension}: {tried} files, {opened} opened, memory grew by {} MiB", grown >> 20);
    assert!(tried > 10 && opened > 0, "{opened} of {tried} opened");
    assert!(grown < MOST_BYTES, "memory grew by {grown} bytes");
}

#[test]
#[ignore = "runs for as long as LANTERN_FUZZ_SECONDS says"]
fn damaged_gguf_files() {
    fuzz("gguf", |path, bytes, _| Weights::from_gguf(path, Arc::new(bytes)));
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
    fuzz("safetensors", |path, bytes, random| {
        let scheme = Some(schemes[random.below(schemes.len())]).filter(|_| random.below(4) > 0);
        Weights::from_safetensors(path, Arc::new(bytes))?.gathered(scheme)
    });
}
