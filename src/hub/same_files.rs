//! Whether two models are the same files: by other names, by links, or by a copy that shares them.
//! Reads no content.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::pull::Located;

/// What tells a file from all others, whatever it is called.
#[cfg(unix)]
type FileId = (u64, u64);
/// What tells a file from all others, where hard links show nowhere else.
#[cfg(not(unix))]
type FileId = std::path::PathBuf;

impl Located {
    /// Whether both are the same weights on this disk. Where the disk does not say, they are not.
    pub fn is_same_files(&self, other: &Self) -> bool {
        let (ours, theirs) = (weights(self.kind.path()), weights(other.kind.path()));
        ours.is_some_and(|ours| !ours.is_empty() && theirs == Some(ours))
    }
}

/// The file, or those of the folder that hold weights.
fn weights(path: &Path) -> Option<BTreeSet<FileId>> {
    if !path.is_dir() {
        return Some([id(path)?].into());
    }
    let files = fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|file| file.extension().is_some_and(|end| end == "safetensors")).map(|file| id(&file)).collect()
}

#[cfg(unix)]
fn id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn id(path: &Path) -> Option<FileId> {
    fs::canonicalize(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::LocatedKind;

    #[test]
    #[cfg(unix)]
    fn links_are_the_same_files_and_copies_are_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for model in ["one", "two", "three"] {
            fs::create_dir(path(model)).expect("a folder");
        }
        fs::write(path("one/model.safetensors"), "weights").expect("a file");
        fs::hard_link(path("one/model.safetensors"), path("two/model.safetensors")).expect("a link");
        fs::copy(path("one/model.safetensors"), path("three/model.safetensors")).expect("a copy");
        std::os::unix::fs::symlink(path("one/model.safetensors"), path("link.gguf")).expect("a link");
        let of_folder = |name: &str| Located { kind: LocatedKind::Folder(path(name)), display_name: name.to_owned() };
        let file = |name: &str| Located { kind: LocatedKind::Gguf(path(name)), display_name: name.to_owned() };
        assert!(of_folder("one").is_same_files(&of_folder("two")));
        assert!(!of_folder("one").is_same_files(&of_folder("three")));
        assert!(file("link.gguf").is_same_files(&file("one/model.safetensors")));
        assert!(!file("missing").is_same_files(&file("missing")), "nobody knows");
    }
}
