//! Checksums of files: SHA-256, and git's blob hash, which the hub gives for small files.
//! Does not know where a file is from or what happens to a wrong one.

use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::error::{HubError, io};

/// What a file's content is promised to hash to, in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// SHA-256 of the content: the hub's entity tag of a large file.
    Sha256(String),
    /// SHA-1 of git's blob header and the content: its entity tag of a small one.
    GitBlob(String),
}

impl Checksum {
    /// Reads a checksum from an HTTP entity tag; `None` where it is neither of the two.
    pub(super) fn from_etag(etag: &str) -> Option<Self> {
        let text = plain_etag(etag).to_ascii_lowercase();
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match text.len() {
            64 => Some(Self::Sha256(text)),
            40 => Some(Self::GitBlob(text)),
            _ => None,
        }
    }
}

/// An entity tag without its quotes and weakness mark.
pub(super) fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Hashes content as it arrives, both ways where the promise is a git blob.
#[derive(Clone)]
pub(super) struct Hasher {
    sha256: Sha256,
    git_blob: Option<Sha1>,
}

/// What was found by a [`Hasher`].
pub(super) struct Hashed {
    /// SHA-256 of the content, in lower-case hex.
    pub(super) sha256: String,
    git_blob: Option<String>,
}

impl Hasher {
    /// Begins a file of `bytes` bytes that is promised to hash to `promise`.
    pub(super) fn new(promise: Option<&Checksum>, bytes: u64) -> Self {
        let git_blob =
            matches!(promise, Some(Checksum::GitBlob(_))).then(|| Sha1::new_with_prefix(format!("blob {bytes}\0")));
        Self { sha256: Sha256::new(), git_blob }
    }

    /// Takes the next piece of the content.
    pub(super) fn update(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        if let Some(git_blob) = &mut self.git_blob {
            git_blob.update(piece);
        }
    }

    /// The hashes of all that was taken.
    pub(super) fn finish(self) -> Hashed {
        Hashed { sha256: hex(&self.sha256.finalize()), git_blob: self.git_blob.map(|hasher| hex(&hasher.finalize())) }
    }
}

impl Hashed {
    /// Compares with what was promised.
    ///
    /// # Errors
    /// The expected and the found hash, in hex, where they differ.
    pub(super) fn check(&self, promise: &Checksum) -> Result<(), (String, String)> {
        let (expected, found) = match promise {
            Checksum::Sha256(expected) => (expected, Some(&self.sha256)),
            Checksum::GitBlob(expected) => (expected, self.git_blob.as_ref()),
        };
        match found {
            Some(found) if found == expected => Ok(()),
            found => Err((expected.clone(), found.cloned().unwrap_or_default())),
        }
    }
}

/// SHA-256 of a file in lower-case hex, read in pieces.
///
/// # Errors
/// Where the file cannot be read.
pub(super) fn sha256_of_file(path: &Path) -> Result<String, HubError> {
    Ok(hash_file(path, Hasher::new(None, 0))?.sha256)
}

/// SHA-256, in lower-case hex, of a file that is there, `bytes` bytes long and what was promised; `None` of any other.
///
/// # Errors
/// Where the file cannot be read.
pub(super) fn sha256_if_promised(path: &Path, promise: &Checksum, bytes: u64) -> Result<Option<String>, HubError> {
    if !std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes) {
        return Ok(None);
    }
    let hashed = hash_file(path, Hasher::new(Some(promise), bytes))?;
    Ok(hashed.check(promise).is_ok().then_some(hashed.sha256))
}

fn hash_file(path: &Path, mut hasher: Hasher) -> Result<Hashed, HubError> {
    let mut file = std::fs::File::open(path).map_err(io("read", path))?;
    let mut piece = vec![0; 1 << 18];
    loop {
        let read = file.read(&mut piece).map_err(io("read", path))?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&piece[..read]);
    }
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of the empty input. Source: FIPS 180-4's examples.
    const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    /// What `git hash-object` says of a file that holds "hello\n".
    const HELLO_BLOB: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    #[test]
    fn both_hashes_are_the_known_ones() {
        assert_eq!(Hasher::new(None, 0).finish().sha256, EMPTY_SHA256);
        let promise = Checksum::GitBlob(HELLO_BLOB.into());
        let mut hasher = Hasher::new(Some(&promise), 6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        assert!(hasher.finish().check(&promise).is_ok());
    }

    #[test]
    fn a_wrong_content_is_found() {
        let promise = Checksum::Sha256(EMPTY_SHA256.into());
        let mut hasher = Hasher::new(Some(&promise), 1);
        hasher.update(b"x");
        let (expected, found) = hasher.finish().check(&promise).unwrap_err();
        assert_eq!(expected, EMPTY_SHA256);
        assert_ne!(found, expected);
    }

    #[test]
    fn entity_tags_are_told_apart_by_their_length() {
        assert_eq!(Checksum::from_etag(&format!("\"{EMPTY_SHA256}\"")), Some(Checksum::Sha256(EMPTY_SHA256.into())));
        assert_eq!(Checksum::from_etag(&format!("W/\"{HELLO_BLOB}\"")), Some(Checksum::GitBlob(HELLO_BLOB.into())));
        assert_eq!(Checksum::from_etag("\"d41d8cd98f00b204e9800998ecf8427e\""), None);
        assert_eq!(Checksum::from_etag(&"z".repeat(64)), None);
    }
}
